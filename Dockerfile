# efface in a container, from its wheel, with PyTorch's CPU build.
#   docker build -t efface .
#   docker run --rm -v "$PWD:/work" efface demo
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m pip install --no-cache-dir build && python -m build --wheel

FROM python:3.12-slim
ENV PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HOME=/tmp
COPY --from=build /source/dist/*.whl /tmp/
RUN python -m pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu \
    && python -m pip install --no-cache-dir "$(ls /tmp/*.whl)[sign]" \
    && rm /tmp/*.whl \
    && useradd --create-home --uid 1000 efface \
    && mkdir /work && chown efface /work
USER efface
WORKDIR /work
ENTRYPOINT ["efface"]
CMD ["--help"]
