"""Share a model: push a run to the Hugging Face Hub, or to a folder, with a model card; and pull it again.

What could name a forgotten example stays at home: split, selector, configuration, key, observations and identity of the
pictures are never pushed, and the description of the weights goes without the digests that could confirm a guess at
them. Record and report, which hold class names and paths, go along only if asked for.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from efface.errors import EffaceError, optional_imports
from efface.files import META, WEIGHTS, file_digest
from efface.reporting.bundle import FINDINGS
from efface.reporting.model_card import write_card
from efface.reporting.page import REPORT
from efface.reporting.record import RECORD, SCHEMA, Record
from efface.reporting.statements import describe_unlearning
from efface.runs.handover import FOREIGN
from efface.training.checkpoint import CONTENT, Checkpoint, content_digest, read_meta

CARD, BUNDLES = "README.md", "*.intoto.jsonl"
WITH_RECORD = (RECORD, SCHEMA, REPORT, FINDINGS)
"""Files that are pushed only if asked for."""
AT_HOME = {"split": "", "identity": "", "fixed": {}, "purged": {}, "search": None, "stopped": None, "seed": 0}
"""Entries of ``meta.json`` that are emptied: they describe who was forgotten, how to draw them again, or where data
lie. Weights load without them."""
LOCAL = "file:"


def push(
    run: Path | str,
    to: str,
    *,
    private: bool = True,
    with_record: bool = False,
    token: str | None = None,
    api: Any = None,
) -> str:
    """Push the model of a run, with a model card.

    Args:
        run: A run folder. If it was audited, the card states the verdict.
        to: ``owner/name`` on the Hub, or ``file:DIR``, a folder.
        private: Make a new repository private; one that exists stays as it is.
        with_record: Push record, findings and report as well; they hold class names and paths.
        token: Token of the Hub; by default that of ``hf auth login``.
        api: A ``huggingface_hub.HfApi`` to use.

    Returns:
        The address of the repository, or the path of the folder.

    Raises:
        EffaceError: The folder is no run, its weights are not those that were audited, the record holds bare ids,
            ``file:DIR`` exists and holds something else, or the Hub refuses.

    Example:
        >>> push("runs/forgotten", "file:/mnt/models/encoder")  # doctest: +SKIP

    """
    with _staged(Path(run), to.rstrip("/"), with_record=with_record) as folder:
        if to.startswith(LOCAL):
            return str(_copy_to(folder, Path(to.removeprefix(LOCAL))))
        hub = _require_hub()
        api = api or hub.HfApi(token=token)
        try:
            api.create_repo(to, private=private, exist_ok=True)
            api.upload_folder(repo_id=to, folder_path=str(folder), commit_message="A run of efface")
        except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
            raise _refused(to, error) from error
    return f"https://huggingface.co/{to}"


def pull(source: str, out: Path | str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Pull a model that :func:`push` shared, and check that its weights are those that it describes.

    Args:
        source: ``owner/name`` on the Hub, or ``file:DIR``.
        out: The folder to write; it must not exist.
        revision: Branch, tag or commit on the Hub.
        token: Token of the Hub; by default that of ``hf auth login``.

    Returns:
        The folder, for :meth:`efface.Checkpoint.load`.

    Raises:
        EffaceError: ``out`` exists, there is no such model, or what came is damaged or was not pushed by efface.

    Example:
        >>> folder = pull("file:/mnt/models/encoder", "pulled")  # doctest: +SKIP
        >>> model = efface.Checkpoint.load(folder).model  # doctest: +SKIP

    """
    out = Path(out)
    if out.exists():
        raise EffaceError(f"{out} exists already.", remedy="Choose another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as parent:
        folder = Path(parent) / out.name
        if source.startswith(LOCAL):
            _copy_from(Path(source.removeprefix(LOCAL)), folder)
        else:
            hub = _require_hub()
            try:
                hub.snapshot_download(source, revision=revision, local_dir=str(folder), token=token)
            except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
                raise _refused(source, error) from error
            shutil.rmtree(folder / ".cache", ignore_errors=True)
        Checkpoint.load(folder)
        folder.rename(out)
    return out


@contextmanager
def _staged(run: Path, to: str, *, with_record: bool) -> Iterator[Path]:
    """A folder that holds exactly what is pushed."""
    meta = read_meta(run)
    record = Record.load(run) if (run / RECORD).exists() else None
    if record is not None and record.checkpoints["subject"].sha256 != file_digest(run / WEIGHTS):
        raise EffaceError(
            f"{run} cannot be pushed: its {WEIGHTS} is not the file that was audited.",
            "The model card would state what was found in another model.",
            f"Restore it, or run `efface audit {run}` again.",
        )
    if record is not None and record.items.scheme == "plain":
        raise EffaceError(
            f"{run} cannot be pushed: its record holds the bare ids of the forgotten examples.",
            "A pushed model is made to be passed on.",
            f"Run `efface audit {run}` again without --plain-ids.",
        )
    if record is None and with_record:
        raise EffaceError(f"{run} has no record to push.", remedy=f"Run `efface audit {run}` first.")
    stated = None
    if record is not None:
        stated = describe_unlearning(record, file_digest(run / RECORD), request_id="", release="audited")
    with tempfile.TemporaryDirectory(prefix="efface-push-") as parent:
        folder = Path(parent)
        shutil.copyfile(run / WEIGHTS, folder / WEIGHTS)
        shared = {key: AT_HOME.get(key, value) for key, value in meta.items() if key != CONTENT}
        shared |= {CONTENT: content_digest(shared)}
        (folder / META).write_text(json.dumps(shared, indent=1) + "\n", encoding="utf-8")
        (folder / CARD).write_text(write_card(stated, meta["recipe"], to), encoding="utf-8")
        for path in sorted(run.glob(BUNDLES)):
            shutil.copyfile(path, folder / path.name)
        if (run / FOREIGN).is_dir():
            shutil.copytree(run / FOREIGN, folder / FOREIGN)
        for extra in WITH_RECORD if with_record else ():
            shutil.copyfile(run / extra, folder / extra)
        yield folder


def _copy_to(folder: Path, target: Path) -> Path:
    """Copy what is staged into ``target``, which is absent or an earlier push."""
    if target.exists() and not (target.is_dir() and (target / META).is_file() and (target / CARD).is_file()):
        raise EffaceError(
            f"{target} exists, and holds something else.",
            "A push replaces only what an earlier push wrote.",
            "Name another folder.",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as parent:
        fresh = shutil.copytree(folder, Path(parent) / "fresh")
        if target.exists():
            target.rename(Path(parent) / "old")
        fresh.rename(target)
    return target


def _copy_from(source: Path, folder: Path) -> None:
    """Copy a pushed folder; links are refused, since they could lead anywhere."""
    if not (source / META).is_file() or not (source / CARD).is_file():
        raise EffaceError(
            f"There is no pushed model at {source}.",
            f"It has no {CARD if (source / META).is_file() else META}.",
            "Name the folder that `efface push` wrote.",
        )
    links = [path for path in source.rglob("*") if path.is_symlink()]
    if links:
        raise EffaceError(f"{links[0]} is a link.", "A pushed model has none.", "Pull from where it was pushed to.")
    shutil.copytree(source, folder)


def _require_hub() -> Any:
    """Import the Hub's package, or say how to install it."""
    with optional_imports("the Hub", "hub", "A folder needs none: file:DIR."):
        hub = import_module("huggingface_hub")
        import_module("huggingface_hub.errors")
    return hub


def _refused(name: str, error: Exception) -> EffaceError:
    """What the Hub said, in one line."""
    said = str(error).strip().splitlines()
    return EffaceError(
        f"The Hub did not take or give {name}.",
        f"It says: {said[0] if said else type(error).__name__}",
        "Check the name and the connection, log in with `hf auth login`, or use a folder: file:DIR.",
    )
