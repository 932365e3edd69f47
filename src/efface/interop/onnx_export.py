"""Export a network to ONNX, and check with onnxruntime that the file computes what the network computes."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from efface.errors import EffaceError, optional_imports, unknown_name_error
from efface.files import atomic_path
from efface.training.checkpoint import Checkpoint

OnnxSpace = Literal["backbone", "projector", "logits"]
ONNX_TOLERANCE = 1e-4
"""Largest difference that is accepted, relative to the largest output."""


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that was written and checked."""

    path: str
    space: OnnxSpace
    images: tuple[int, int, int]
    """Channels, height and width of the images that it takes, in [0, 1]; their number is free."""
    width: int
    """Outputs per image."""
    difference: float
    """Largest difference of an output between onnxruntime and PyTorch, over 9 random images."""
    largest: float
    """Largest output, to compare it with."""
    digest: str
    """Digest of the model, which is in the file's metadata as well."""

    def as_dict(self) -> dict[str, Any]:
        """The facts as a JSON object."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The facts as lines to print."""
        channels, height, width = self.images
        return [
            f"{self.path}: {self.space}, images [n, {channels}, {height}, {width}] in [0, 1] to [n, {self.width}]",
            f"onnxruntime computes the same: largest difference {self.difference:.1e} of {self.largest:.1e}",
        ]


class _Network(nn.Module):
    """From images to one space."""

    def __init__(self, model: Any, space: OnnxSpace) -> None:
        super().__init__()
        self.model, self.space = model, space

    def forward(self, images: Tensor) -> Tensor:
        features = self.model.features(images)
        return features if self.space == "backbone" else self.model.project(features)


def export_onnx(checkpoint: Checkpoint, out: Path, *, space: str | None = None, force: bool = False) -> OnnxFile:
    """Export the network of a checkpoint, and check the file with onnxruntime before it is kept.

    Args:
        checkpoint: The model, for example a run's.
        out: The ``.onnx`` file to write.
        space: ``backbone``, ``projector`` or ``logits``; by default logits for a classifier, else the backbone.
        force: Replace ``out`` if it exists.

    Returns:
        What the file takes and gives, and how far it is from the network.

    Raises:
        EffaceError: A package is missing, ``out`` exists, the model has no such space, the network cannot be exported,
            or the file does not compute the same.

    Example:
        >>> export_onnx(Checkpoint.load(Path("runs/forgotten")), Path("encoder.onnx"))  # doctest: +SKIP

    """
    onnx, runtime = _require("onnx"), _require("onnxruntime")
    _require("onnxscript")
    out = Path(out)
    if out.exists() and not force:
        raise EffaceError(f"{out} exists already.", remedy="Choose another --out, or add --force.")
    chosen = _choose_space(checkpoint, space)
    model = copy.deepcopy(checkpoint.model).cpu().eval()
    model.bf16 = model.channels_last = False
    model.set_micro_batch(None)
    network = _Network(model, chosen).eval()
    shape = (checkpoint.recipe.channels, *_pair(checkpoint.recipe.size))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((8, *shape), generator=generator)
    digest = checkpoint.model.digest()
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as path:
        try:
            program = torch.onnx.export(
                network, (images,), dynamo=True, input_names=["images"], output_names=[chosen],
                dynamic_shapes={"images": {0: torch.export.Dim("n", min=1)}}, verbose=False,
            )  # fmt: skip
        except Exception as error:  # the exporter wraps whatever went wrong, in many types
            raise EffaceError(
                "This network cannot be exported to ONNX.",
                f"PyTorch says: {str(error).strip().splitlines()[0]}",
                "Hand on the weights instead: checkpoint.safetensors, or the file in foreign/.",
            ) from error
        assert program is not None
        file = program.model_proto
        onnx.helper.set_model_props(file, {"efface_digest": digest, "efface_space": chosen})
        onnx.save(file, str(path))
        difference, largest, width = _compare(runtime, path, network, images)
    return OnnxFile(str(out), chosen, shape, width, difference, largest, digest)


def _compare(runtime: Any, path: Path, network: nn.Module, images: Tensor) -> tuple[float, float, int]:
    """Run the file on eight images and on one, and refuse it if its outputs are others."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    difference = largest = 0.0
    width = 0
    for batch in (images, images[:1]):
        with torch.no_grad():
            wanted = network(batch).numpy()
        (found,) = session.run(None, {"images": batch.numpy()})
        if found.shape != wanted.shape:
            raise _differs(f"Its outputs have the shape {found.shape}, not {wanted.shape}.")
        difference = max(difference, float(np.abs(found - wanted).max()))
        largest, width = max(largest, float(np.abs(wanted).max())), wanted.shape[1]
    if not difference <= ONNX_TOLERANCE * max(largest, 1e-6):
        raise _differs(f"Its outputs differ by {difference:.1e}; the largest is {largest:.1e}.")
    return difference, largest, width


def _differs(why: str) -> EffaceError:
    return EffaceError(
        "The exported file does not compute what the network computes, and was not kept.",
        why,
        "Hand on the weights instead: checkpoint.safetensors, or the file in foreign/.",
    )


def _choose_space(checkpoint: Checkpoint, space: str | None) -> OnnxSpace:
    classifier = checkpoint.model.objective.needs_labels
    if space is None:
        return "logits" if classifier else "backbone"
    for known in get_args(OnnxSpace):
        if space != known:
            continue
        if space != "backbone" and (space == "logits") != classifier:
            what, has = ("a classifier", "logits") if classifier else ("an encoder", "projector")
            raise EffaceError(f"This model is {what}: it has no {space}.", remedy=f"Set --space to backbone or {has}.")
        return known
    raise unknown_name_error("space", space, get_args(OnnxSpace))


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _require(module: str) -> Any:
    """Import a package of the extra, or say how to install it."""
    with optional_imports("export to ONNX", "onnx"):
        return import_module(module)
