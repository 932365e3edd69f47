"""Say what is in a checkpoint without running anything of it: parts, sizes, lineage, what in it is personal."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from efface.checkpoint import META, WEIGHTS, read_meta, read_weights
from efface.errors import EffaceError
from efface.model import digest

PERSONAL = {
    "queue": "literal embeddings of training images: purge, refill from retained examples",
    "twin": "a momentum copy that remembers what the online network forgot: let it follow or copy it again",
    "optimizer": "moments of past gradients: drop",
}


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds."""

    path: str
    digest: str
    parts: dict[str, dict[str, Any]]
    """Part to tensors, numbers, types, and what is personal in it."""
    finite: bool
    """Whether every number is finite."""
    meta: dict[str, Any] = field(default_factory=dict)
    """The run's own meta data; empty for a bare file of weights."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return vars(self).copy()

    def lines(self) -> list[str]:
        """Sentences for a terminal."""
        rows = [
            f"  {part:12}{row['tensors']:5} tensors {row['numbers']:>12,} numbers  {', '.join(row['types'])}"
            + (f"  PERSONAL: {row['personal']}" if row["personal"] else "")
            for part, row in self.parts.items()
        ]
        head = [self.path, f"digest  {self.digest}"]
        if self.meta:
            recipe = self.meta["recipe"]
            head += [
                f"trained {recipe['objective']['name']} on {recipe['backbone']['name']}, {recipe['epochs']} epochs",
                f"parent  {self.meta['parent'] or 'none: an original'}",
                f"method  {(self.meta['method'] or {}).get('name', 'none')}",
            ]
        safe = "read without running anything in it"
        return [
            *head,
            f"safe    {safe}",
            f"finite  {'yes' if self.finite else 'NO: NaN or infinite weights'}",
            "parts",
            *rows,
        ]


def inspect(path: Path) -> Contents:
    """What is in a run folder or a file of weights; a file that asks for foreign classes is refused."""
    path = Path(path)
    if path.is_dir():
        return _contents(path, read_weights(path / WEIGHTS), read_meta(path))
    if not path.exists():
        raise EffaceError(
            f"There is no checkpoint at {path}.", f"A run folder holds {WEIGHTS} and {META}.", "Check the path."
        )
    return _contents(path, read_weights(path), {})


def _contents(path: Path, weights: dict[str, Tensor], meta: dict[str, Any]) -> Contents:
    parts: dict[str, dict[str, Any]] = {}
    for name, value in weights.items():
        part = name.split(".")[0]
        row = parts.setdefault(part, {"tensors": 0, "numbers": 0, "types": [], "personal": PERSONAL.get(part, "")})
        row["tensors"] += 1
        row["numbers"] += value.numel()
        kind = str(value.dtype).removeprefix("torch.")
        if kind not in row["types"]:
            row["types"].append(kind)
    finite = all(bool(v.isfinite().all()) for v in weights.values() if v.is_floating_point())
    return Contents(str(path), digest(weights), parts, finite, meta)
