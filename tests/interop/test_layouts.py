"""Layouts are recognized, map names one to one, and files are written back unchanged."""

from __future__ import annotations

import filecmp
from argparse import Namespace
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from efface.errors import EffaceError
from efface.interop.architecture import guess_architecture
from efface.interop.checkpoint_file import read_foreign
from efface.interop.layouts import LAYOUTS, Role, TensorPlace
from tests.checkpoints import FIXTURES
from tests.foreign import Case
from tests.wrapped import WRAPPED


@pytest.fixture(
    params=[function for family in (*FIXTURES.values(), WRAPPED) for function in family], ids=lambda f: f.__name__
)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return request.param(tmp_path)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_tensor_gets_its_role(case: Case):
    found = read_foreign(case.path)
    assert found.layout.name == case.layout
    assert equal(found.part(Role.BACKBONE), case.backbone)
    if case.head is not None:
        assert equal(found.part(Role.HEAD), case.head)
    if case.momentum:
        assert equal(found.part(Role.MOMENTUM_ENCODER), case.momentum)
    for role, names in case.others.items():
        assert set(found.part(Role(role))) == names
    known = {Role.BACKBONE, Role.HEAD, Role.MOMENTUM_ENCODER} | {Role(role) for role in case.others}
    assert {place.role for place in found.table.values()} <= known
    assert list(found.table) == list(found.container.state)


def same(a: Any, b: Any) -> bool:
    """Deep equality: types, order of keys, bytes of tensors, attributes of dictionaries."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a) and same_attributes(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def same_attributes(a: Any, b: Any) -> bool:
    """An OrderedDict from a module carries ``_metadata``."""
    mine, theirs = getattr(a, "__dict__", {}), getattr(b, "__dict__", {})
    return (not mine and not theirs) or same(mine, theirs)


def content(path: Path) -> Any:
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(path, weights_only=True)


def unchanged(path: Path, copy: Path) -> None:
    if path.is_dir():
        assert sorted(p.name for p in path.iterdir()) == sorted(p.name for p in copy.iterdir())
        for item in path.iterdir():
            unchanged(item, copy / item.name)
    elif path.suffix in (".pth", ".tar", ".ckpt", ".pt", ".bin"):
        assert same(content(path), content(copy))
    else:
        assert filecmp.cmp(path, copy, shallow=False)


@pytest.mark.parametrize("whole", [False, True], ids=["untouched", "every tensor put back"])
def test_reading_and_writing_changes_nothing(case: Case, tmp_path: Path, whole: bool):
    found = read_foreign(case.path)
    out = tmp_path / "out"
    out.mkdir()
    fresh = {place: found.container.state[name].clone() for name, place in found.table.items()} if whole else {}
    assert found.write(out, fresh, cleaned=False) == {}
    unchanged(case.path, out / case.path.name)
    for item in case.path.parent.glob("*.json"):
        unchanged(item, out / item.name)


def test_only_the_changed_tensors_are_written(case: Case, tmp_path: Path):
    found = read_foreign(case.path)
    out = tmp_path / "out"
    out.mkdir()
    body = found.part(Role.BACKBONE)
    fresh = {TensorPlace(Role.BACKBONE, name): value + 1 for name, value in body.items()}
    found.write(out, fresh, cleaned=True)
    again = read_foreign(out / case.path.name)
    assert again.layout == found.layout and list(again.table.items()) == list(found.table.items())
    assert equal(again.part(Role.BACKBONE), {name: value + 1 for name, value in body.items()})
    for role in Role:
        assert role is Role.BACKBONE or equal(again.part(role), found.part(role))


def test_cleaning_drops_the_state_of_the_training_run(case: Case, tmp_path: Path):
    found = read_foreign(case.path)
    out = tmp_path / "out"
    out.mkdir()
    notes = found.write(out, {}, cleaned=True)
    if case.path.is_file() and case.path.suffix != ".safetensors":
        before, after = content(case.path), content(out / case.path.name)
        assert set(before) - set(after) == set(notes)
        assert not {"optimizer", "optimizer_states", "callbacks", "loops", "scaler", "amp"} & set(after)
        assert {"epoch", "arch", "args", "hyper_parameters"} & set(before) <= set(after)
    else:
        assert notes == {}


def test_every_layout_has_a_fixture():
    assert set(FIXTURES) == set(LAYOUTS)


def test_a_network_of_which_a_tensor_is_missing_or_has_another_shape_is_guessed_or_named(case: Case):
    """Whatever becomes of one tensor of the backbone, the guess ends in an architecture, in unknown, or in advice."""
    read = read_foreign(case.path)
    names = [name for name, place in read.table.items() if place.role is Role.BACKBONE]
    state = read.container.state
    for name in names[:: max(1, len(names) // 12)]:
        table = {one: place for one, place in read.table.items() if one != name}
        damaged: list[Any] = [replace(read, table=table)]
        for other in (state[name].reshape(-1)[:0], state[name][None, None]):
            held = SimpleNamespace(path=read.path, meta=read.meta, state=state | {name: other})
            damaged.append(replace(read, container=held))  # pyright: ignore[reportArgumentType]
        for one in damaged:
            with suppress(EffaceError):
                guess_architecture(one)
