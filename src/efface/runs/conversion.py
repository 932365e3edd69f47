"""The verb ``convert``: write the model of a run in the layout of another library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from efface.errors import EffaceError
from efface.files import disk_errors, file_digest, make_folder
from efface.interop.consent import Consent
from efface.interop.containers import weights_file
from efface.interop.unlearned_marker import LIST_SUFFIX, list_path, write_marker
from efface.runs.data_at_hand import DataChecks
from efface.runs.embed import forgotten_by
from efface.runs.handover import Pattern, find_pattern, write_in_layout
from efface.runs.ownership import require_apart
from efface.runs.requests import VerbRequest
from efface.runs.run import Common, OpenedRun, Progress, open_run
from efface.training.checkpoint import Checkpoint
from efface.training.loop import Run

CONVERSIONS = {
    "original": "the file that the model came in, or that of --like",
    "plain": "a state dict with the names of torchvision and timm, .pth or .safetensors",
    "timm": "a folder that timm loads with local-dir:",
}
"""Layouts that can be written, and what each is."""
TENSORS = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True, kw_only=True)
class ConversionRequest(Common, DataChecks, VerbRequest):
    """What ``efface convert`` is asked to do."""

    layout: str = "original"
    """``original``, ``plain`` or ``timm``."""
    trust_pickle: bool = False
    """Unpickle the file of ``--like`` if it asks for classes."""
    trusted: tuple[str, ...] = ()
    """SHA-256 of files that may be unpickled."""


@dataclass(frozen=True)
class ConvertedModel:
    """A model that was written in the layout of another library."""

    path: str
    layout: str
    sha256: dict[str, str]
    """Digest of each file of weights."""
    notes: dict[str, str]
    """What was done with each part."""

    def lines(self) -> list[str]:
        """The lines to print."""
        return [
            *(f"{part}: {done}" for part, done in self.notes.items()),
            *(f"{digest}  {name}" for name, digest in self.sha256.items()),
            f"Written: {self.path}",
        ]


def convert_run(
    run: Path,
    out: Path,
    request: ConversionRequest | Mapping[str, Any],
    *,
    like: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ConvertedModel:
    """Write the model of a run in the layout of another library.

    Args:
        run: A run folder.
        out: The file or folder to write. For ``original`` a folder, which gets a file of the pattern's name.
        request: An :class:`ConversionRequest`, or a mapping with its fields.
        like: A file or folder whose layout is taken; by default the one that the run, or an ancestor, was made from.
        force: Replace ``out``, if it is what this verb wrote.
        progress: Receives progress messages.

    Raises:
        EffaceError: The layout is unknown, cannot hold this model, or no file of that layout is known.

    """
    progress, request, run, out = progress or Progress(), ConversionRequest.of(request), Path(run), Path(out)
    if request.layout not in CONVERSIONS:
        shown = "; ".join(f"{name}: {what}" for name, what in CONVERSIONS.items())
        raise EffaceError(f"There is no layout called '{request.layout}' to convert to.", f"Known: {shown}.")
    if like is not None and request.layout != "original":
        raise EffaceError("--like gives a layout, and --as another one.", remedy="Leave out one of the two.")
    require_apart(out, [run, like])
    opened = open_run(run, request, judged=False)
    checkpoint = opened.checkpoint()
    pattern = _find(run, like, request.consent) if request.layout == "original" else None
    _require_free(out, pattern, force)
    progress.say(f"Writing {out}")
    make_folder(out.parent)
    with disk_errors(out):
        if pattern is not None:
            written, notes = _write_like(pattern, opened, checkpoint, request, out)
        elif request.layout == "timm":
            written, notes = _write_timm(checkpoint, out, opened.data.classes), {}
        else:
            written, notes = _write_plain(checkpoint, out), {}
        asked = forgotten_by(run)
        if asked and weights_file(written) is not None:
            notes["foreign.marker"] = write_marker(written, checkpoint.model.digest(), _count(opened), sorted(asked))
    files = [written] if written.is_file() else sorted(path for path in written.rglob("*") if path.is_file())
    digests = {
        str(path.relative_to(out.parent)): file_digest(path) for path in files if path.suffix in (*TENSORS, ".bin")
    }
    return ConvertedModel(str(written), request.layout, digests or {str(written): file_digest(files[0])}, notes)


def plain_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights with the names of torchvision and timm: the backbone's, and a classifier's head."""
    model = checkpoint.model
    state: dict[str, Tensor] = {k: v.detach().cpu().contiguous() for k, v in model.backbone.state_dict().items()}
    if not model.objective.needs_labels:
        return state
    head = "head" if any(name.startswith("blocks.") for name in state) else "fc"
    return state | {f"{head}.{k}": v.detach().cpu().contiguous() for k, v in model.head.state_dict().items()}


def _count(opened: OpenedRun) -> int:
    """Number of requests that a run has answered."""
    return 1 + len(opened.split.provenance.get("earlier", ()))


def _find(run: Path, like: Path | None, consent: Consent) -> Pattern:
    if like is not None:
        return Pattern(like, trust=consent.covers(like, named=True))
    found = find_pattern(run, consent)
    if found is None:
        raise EffaceError(
            f"The model of {run} did not come in a file of another library, or that file is gone.",
            "So there is no layout to write it in.",
            "Name a file of that layout: --like FILE; or a layout: --as plain, --as timm.",
        )
    return found


def _require_free(out: Path, pattern: Pattern | None, force: bool) -> None:
    target = out / pattern.path.name if pattern is not None else out
    if not target.exists():
        return
    if not force:
        raise EffaceError(f"{target} exists already.", "", "Choose another --out, or add --force.")
    if not list_path(target).is_file():
        raise EffaceError(
            f"--force does not replace {target}: nothing shows that efface wrote it.",
            f"{target.name}{LIST_SUFFIX} is not beside it.",
            "Choose another --out, or move it away yourself.",
        )
    shutil.rmtree(target) if target.is_dir() else target.unlink()


def _write_like(
    pattern: Pattern, opened: OpenedRun, checkpoint: Checkpoint, request: ConversionRequest, out: Path
) -> tuple[Path, dict[str, str]]:
    make_folder(out)
    common = request.resolve()
    notes = write_in_layout(pattern, checkpoint, opened.data, opened.split.retain, common, out, Run(seed=common.seed))
    return out / pattern.path.name, notes


def _write_plain(checkpoint: Checkpoint, out: Path) -> Path:
    state = plain_state(checkpoint)
    if out.suffix == ".safetensors":
        save_file(state, out, metadata={"format": "pt"})
    elif out.suffix in TENSORS:
        torch.save(state, out)
    else:
        raise EffaceError(f"A state dict is not written to {out}.", f"Its name ends in {', '.join(TENSORS)}.")
    return out


def _write_timm(checkpoint: Checkpoint, out: Path, classes: tuple[str, ...]) -> Path:
    """Write a folder as timm does, after timm has loaded the weights strictly."""
    import timm  # slow to import, rarely needed

    recipe = checkpoint.recipe
    library, _, name = recipe.backbone.name.partition(":")
    options = dict(recipe.backbone.options) if library == "timm" else {}
    count = recipe.classes if checkpoint.model.objective.needs_labels else 0
    wanted = name if library in ("timm", "torchvision") and timm.is_model(name) else recipe.backbone.name
    try:
        net: Any = timm.create_model(wanted, num_classes=count, in_chans=recipe.channels, **options)
        net.load_state_dict(plain_state(checkpoint))
    except (ValueError, TypeError, RuntimeError) as error:
        raise EffaceError(
            f"The network {recipe.backbone.name} cannot be written as timm's.",
            (str(error).strip().splitlines() or [type(error).__name__])[0],
            "Write --as plain, or --as original.",
        ) from error
    make_folder(out)
    mean, std = (
        list(value) if isinstance(value, tuple) else [value] * recipe.channels for value in (recipe.mean, recipe.std)
    )
    cfg = {"mean": mean, "std": std, "input_size": [recipe.channels, *recipe.size], "crop_pct": 1.0}
    config = {"architecture": name, "num_classes": count, "pretrained_cfg": cfg, "label_names": list(classes)}
    config |= {"model_args": options} if options else {}
    save_file(plain_state(checkpoint), out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return out
