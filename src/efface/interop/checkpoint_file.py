"""Read a checkpoint of another library: its container, its layout, and the way to write it back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from efface.errors import EffaceError
from efface.interop.averages import is_required, pair_sections, split_modules
from efface.interop.containers import Container, open_container
from efface.interop.layouts import Layout, Role, State, TensorPlace, detect_layout
from efface.interop.layouts.protocol import first_words
from efface.interop.names import clean_names, find_normalization_buffers, is_bookkeeping

NORMALIZATION = ("mean", "std")
"""Names here of the buffers of a normalization layer."""


@dataclass(frozen=True, eq=False)
class ForeignCheckpoint:
    """A checkpoint of another library: which tensors it holds, what each of them is, and how to write it back."""

    container: Container
    layout: Layout
    table: dict[str, TensorPlace]
    """Name in the file to role and name here, one to one, in the order of the file."""
    unknown: frozenset[TensorPlace] = frozenset()
    """The places of tensors that the layout does not know."""
    averaged: bool = False
    """Whether the network is read from its averaged copy."""

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self.container.path

    @property
    def meta(self) -> dict[str, Any]:
        """The plain entries of the file, and the JSON files beside it."""
        return self.container.meta

    def part(self, role: Role) -> dict[str, Tensor]:
        """Return the tensors of one role by their names here, in the order of the file; empty if there are none."""
        state = self.container.state
        found = {place.name: state[name] for name, place in self.table.items() if place.role is role}
        if self.averaged and role is not Role.MOMENTUM_ENCODER:
            averages = self.part(Role.MOMENTUM_ENCODER)
            return {name: averages.get(f"{role}.{name}", value) for name, value in found.items()}
        return found

    def from_averaged(self) -> ForeignCheckpoint:
        """Return the same checkpoint, with its network read from its averaged copy.

        Raises:
            EffaceError: It has no averaged copy of the whole backbone.

        """
        averages = self.part(Role.MOMENTUM_ENCODER)
        needed = {f"backbone.{name}" for name, value in self.part(Role.BACKBONE).items() if is_required(name, value)}
        if not needed <= averages.keys():
            raise EffaceError(
                f"{self.path} has no averaged copy of its network to start from.",
                f"Its parts: {', '.join(dict.fromkeys(str(place.role) for place in self.table.values()))}.",
                "Leave out averaged=start.",
            )
        return replace(self, averaged=True)

    def with_head(self, name: str | None) -> ForeignCheckpoint:
        """Return the same checkpoint, with the tensors below a name taken for the head; None: as the layout says."""
        if not name:
            return self
        moved = {
            place: TensorPlace(Role.HEAD, place.name.removeprefix(name).removeprefix("."))
            for place in self.table.values()
            if place.role in (Role.BACKBONE, Role.HEAD) and f"{place.name}.".startswith(f"{name}.")
        }
        return replace(self, table={key: moved.get(place, place) for key, place in self.table.items()})

    def write(
        self,
        folder: Path,
        changed: Mapping[TensorPlace, Tensor],
        *,
        cleaned: bool,
        without: Collection[TensorPlace] = (),
    ) -> dict[str, str]:
        """Write a copy of the checkpoint under the same name.

        Args:
            folder: An existing folder.
            changed: The tensors to replace; each must have the shape and dtype of the one in the file.
            cleaned: Whether to leave out the state of the training run, such as optimizer moments.
            without: The tensors to leave out.

        Returns:
            What was done with the entries that are not weights: name to action.

        """
        names = {place: name for name, place in self.table.items()}
        replaced = {names[place]: value for place, value in changed.items()}
        return self.container.write(folder, replaced, cleaned=cleaned, without=[names[place] for place in without])


def read_foreign(path: Path, *, trust_pickle: bool = False) -> ForeignCheckpoint:
    """Open a checkpoint of any known library and recognize its layout.

    Args:
        path: A file of weights, or a model folder as Hugging Face and timm write them.
        trust_pickle: Whether to unpickle classes that are not known to be harmless. That can run code in the file.

    Raises:
        EffaceError: The file cannot be read safely, or its layout is not known.

    Example:
        >>> checkpoint = read_foreign(Path("moco_v2_800ep.pth.tar"))
        >>> checkpoint.layout.name
        'moco'

    """
    container = open_container(path, trust_pickle=trust_pickle)
    names, layout = recognize_names(container.state, container.meta)
    table = layout.table(names.values())
    unknown = {table[name] for name in names.values() if name not in layout.fixed and layout.ruled_place(name) is None}
    return ForeignCheckpoint(
        container, layout, {name: table[clean] for name, clean in names.items()}, frozenset(unknown)
    )


def recognize_names(state: State, meta: Mapping[str, Any]) -> tuple[dict[str, str], Layout]:
    """Recognize the layout of named tensors, without the names of tools and with its averaged copies paired.

    Args:
        state: Name in the file to tensor.
        meta: The plain entries of the file.

    Returns:
        Name in the file to the name that the layout knows it by, and the layout.

    """
    names = clean_names(state)
    tensors = {names[name]: value for name, value in state.items()}
    fixed = {
        name: TensorPlace(Role.BOOKKEEPING, name) for name, value in tensors.items() if is_bookkeeping(name, value)
    }
    weights = {name: value for name, value in tensors.items() if name not in fixed}
    split = split_modules(names, weights)
    if split != names and _detect(weights, meta) in (None, "plain"):
        tensors = {split[name]: value for name, value in state.items()}
        renamed = {names[name]: split[name] for name in state}
        fixed = {renamed[name]: TensorPlace(Role.BOOKKEEPING, renamed[name]) for name in fixed}
        weights, names = {name: value for name, value in tensors.items() if name not in fixed}, split
    if not {"mean", "std", "backbone"} <= first_words(weights):
        for number, buffers in enumerate(find_normalization_buffers(weights)):
            kinds = buffers if number else NORMALIZATION
            fixed |= {name: TensorPlace(Role.BUFFERS, kind) for name, kind in zip(buffers, kinds, strict=True)}
        weights = {name: value for name, value in weights.items() if name not in fixed}
    layout = detect_layout(weights, meta)
    found = pair_sections(weights, layout)
    return names, replace(layout, fixed=fixed | found.places, copies=found.originals)


def _detect(weights: State, meta: Mapping[str, Any]) -> str | None:
    try:
        return detect_layout(weights, meta).name
    except EffaceError:
        return None


def stores_keys_in_rows(queue: Tensor, dim: int, foreign: ForeignCheckpoint) -> bool:
    """Whether a two-dimensional queue is stored as [K, dim]; most libraries store [dim, K]."""
    return foreign.layout.name == "efface" or (queue.shape[0] != dim and queue.shape[1] == dim)


def read_queue_keys(queue: Tensor, dim: int, foreign: ForeignCheckpoint) -> Tensor:
    """Return a queue as rows of keys, [K, dim]; of solo-learn's [2, dim, K], one queue per view, the first."""
    first = queue[0] if queue.dim() == 3 else queue
    return first if stores_keys_in_rows(first, dim, foreign) else first.T
