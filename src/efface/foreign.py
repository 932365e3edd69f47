"""Foreign checkpoints, opened: a container, its layout, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from efface.layouts import Layout, Place, Role, sniff
from efface.layouts.container import Container, open_container


@dataclass(frozen=True, eq=False)
class Foreign:
    """A checkpoint of another library: what it holds, where, and how to write it back."""

    container: Container
    layout: Layout
    table: dict[str, Place]
    """Foreign name to place, one to one, in the order of the file."""

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self.container.path

    @property
    def meta(self) -> dict[str, Any]:
        """Its plain entries, and the JSON files beside it."""
        return self.container.meta

    def part(self, role: Role) -> dict[str, Tensor]:
        """Own name to tensor of one part, in the order of the file; empty where there is none."""
        state = self.container.state
        return {place.name: state[name] for name, place in self.table.items() if place.role is role}

    def write(self, folder: Path, fresh: Mapping[Place, Tensor], *, cleaned: bool) -> dict[str, str]:
        """Write a copy under the same name into an existing folder, with the ``fresh`` tensors in their places.

        Each must have the shape and type of the one it replaces. ``cleaned``: leave the state of the training run
        behind. What was done with the entries that are no weights comes back, name to action.
        """
        names = {place: name for name, place in self.table.items()}
        return self.container.write(folder, {names[place]: value for place, value in fresh.items()}, cleaned=cleaned)


def read(path: Path, *, trust_pickle: bool = False) -> Foreign:
    """Open a checkpoint of any known library, without running anything in it (unless it is trusted)."""
    container = open_container(path, trust_pickle=trust_pickle)
    layout = sniff(container.state, container.meta)
    return Foreign(container, layout, layout.table(container.state))
