"""Describe a checkpoint without running anything in it: layout, network, parts, and what may hold personal data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from efface.errors import EffaceError
from efface.interop.architecture import guess_architecture
from efface.interop.checkpoint_file import read_foreign
from efface.interop.siblings import find_sibling_checkpoints
from efface.training.checkpoint import META, WEIGHTS, read_meta, read_weights
from efface.training.model import digest

PERSONAL = {
    "queue": "literal embeddings of training images: purge, refill from retained examples",
    "twin": "a momentum copy that remembers what the online network forgot: update it or copy it again",
    "prototypes": "directions fitted to embeddings of training images: start afresh",
    "predictor": "trained on the same images as the backbone",
    "optimizer": "moments of past gradients: drop",
}


@dataclass(frozen=True)
class CheckpointContents:
    """Contents of a checkpoint."""

    path: str
    digest: str
    parts: dict[str, dict[str, Any]]
    """Part to its tensors, numbers and dtypes, and why it may hold personal data."""
    finite: bool
    """Whether every number is finite."""
    meta: dict[str, Any] = field(default_factory=dict)
    """The run's own metadata; empty for a foreign checkpoint."""
    layout: str = "efface"
    """The library or method whose layout it has."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """The guessed architecture; empty for a run folder, which stores it."""
    entries: dict[str, str] = field(default_factory=dict)
    """Entries beside the weights, and what happens to each after unlearning."""
    copies: list[str] = field(default_factory=list)
    """Other files that may remember the same images; unlearning does not change them."""
    notes: list[str] = field(default_factory=list)
    """What its tensors do not show, and what was assumed."""
    trusted: bool = False
    """Whether it was unpickled on request, so that code in it may have run."""

    def as_dict(self) -> dict[str, Any]:
        """Return a dictionary that can be written as JSON."""
        return vars(self).copy()

    def lines(self) -> list[str]:
        """Return the lines to print on a terminal."""
        head = [self.path, f"digest  {self.digest}", f"layout  {self.layout}"]
        if self.meta:
            recipe = self.meta["recipe"]
            head += [
                f"trained {recipe['objective']['name']} on {recipe['backbone']['name']}, {recipe['epochs']} epochs",
                f"parent  {self.meta['parent'] or 'none: an original'}",
                f"method  {(self.meta['method'] or {}).get('name', 'none')}",
            ]
        if self.architecture:
            backbone = self.architecture["backbone"]
            head += [
                f"network {self.architecture['name']}",
                f"setting {_format_backbone(backbone) if backbone else 'none: no backbone here has these weights'}",
            ]
        safe = "NOT KNOWN: it was unpickled on your word" if self.trusted else "read without running anything in it"
        lines = [
            *head,
            f"safe    {safe}",
            f"finite  {'yes' if self.finite else 'NO: NaN or infinite weights'}",
            "parts",
        ]
        for part, row in self.parts.items():
            sizes = f"{row['tensors']:5} tensors {row['numbers']:>12,} numbers"
            personal = f"  PERSONAL: {row['personal']}" if row["personal"] else ""
            lines.append(f"  {part:12}{sizes}  {', '.join(row['types'])}{personal}")
        for title, rows in (
            ("entries", [f"{name}: {fate}" for name, fate in self.entries.items()]),
            ("copies, which keep what this one forgets", self.copies),
            ("notes", self.notes),
        ):
            lines += [title, *(f"  {row}" for row in rows)] if rows else []
        return lines


def inspect_checkpoint(path: Path, *, trust_pickle: bool = False) -> CheckpointContents:
    """Describe a run folder or a foreign checkpoint.

    Args:
        path: A run folder, a file of weights, or a model folder of another library.
        trust_pickle: See :func:`efface.interop.safe_load.load_torch`.

    Raises:
        EffaceError: There is nothing at that path, or the file cannot be read safely.

    Example:
        >>> inspect_checkpoint(Path("moco_v2_800ep.pth.tar")).layout
        'moco'

    """
    path = Path(path)
    if (path / META).is_file():
        weights = read_weights(path / WEIGHTS)
        roles = {name: name.split(".")[0] for name in weights}
        return CheckpointContents(
            str(path), digest(weights), _describe_parts(weights, roles), _all_finite(weights), read_meta(path)
        )
    if not path.exists():
        raise EffaceError(
            f"There is no checkpoint at {path}.", f"A run folder holds {WEIGHTS} and {META}.", "Check the path."
        )
    found = read_foreign(path, trust_pickle=trust_pickle)
    weights, architecture = found.container.state, guess_architecture(found)
    return CheckpointContents(
        str(path),
        digest(weights),
        _describe_parts(weights, {name: str(place.role) for name, place in found.table.items()}),
        _all_finite(weights),
        layout=found.layout.name,
        architecture=architecture.as_dict(),
        entries=found.container.entries(),
        copies=find_sibling_checkpoints(found.container),
        notes=[*found.layout.notes, *architecture.notes],
        trusted=trust_pickle,
    )


def _describe_parts(weights: Mapping[str, Tensor], roles: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {}
    for name, value in weights.items():
        part = roles[name]
        row = parts.setdefault(part, {"tensors": 0, "numbers": 0, "types": [], "personal": PERSONAL.get(part, "")})
        row["tensors"] += 1
        row["numbers"] += value.numel()
        kind = str(value.dtype).removeprefix("torch.")
        if kind not in row["types"]:
            row["types"].append(kind)
    return parts


def _all_finite(weights: Mapping[str, Tensor]) -> bool:
    return all(bool(v.isfinite().all()) for v in weights.values() if v.is_floating_point())


def _format_backbone(backbone: dict[str, Any]) -> str:
    """Format a backbone as it is written after ``--set``; only the small ResNets have a width and a stride."""
    shown = [f"recipe.backbone.name={backbone['name']}"]
    if ":" not in backbone["name"]:
        shown += [f"recipe.backbone.width={backbone['width']}", f"recipe.backbone.stride={backbone['stride']}"]
    options = ", ".join(f"{key}: {value}" for key, value in backbone["options"].items())
    return " ".join([*shown, *([f"'recipe.backbone.options={{{options}}}'"] if options else [])])
