"""Files from untrusted sources: no code in them is run, and each error says what was found."""

from __future__ import annotations

import json
import os
import pickle
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from efface.errors import EffaceError
from efface.interop.checkpoint_file import read_foreign
from efface.interop.layouts import Role
from efface.interop.safe_load import is_archive
from tests import checkpoints, foreign


class Bomb:
    """Runs a shell command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class Settings:
    """A class of some training code."""

    def __init__(self) -> None:
        self.lr = 0.1


def tensors() -> dict[str, torch.Tensor]:
    return foreign.resnet().state_dict()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["alone", "beside", "inside"])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path, where: str, legacy: bool):
    mark, bomb = tmp_path / "went-off", tmp_path / "bomb.pth"
    content = {
        "alone": Bomb(mark),
        "beside": {"state_dict": tensors(), "optimizer": Bomb(mark)},
        "inside": {"state_dict": tensors(), "args": Namespace(path=[{"deep": Bomb(mark)}])},
    }[where]
    torch.save(content, bomb, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(EffaceError, match=r"nothing in it was run.*(posix|nt)\.system"):
        read_foreign(bomb)
    assert not mark.exists()
    with suppress(EffaceError):
        read_foreign(bomb, trust_pickle=True)
    assert mark.exists()  # the bomb is real: trusted, it goes off


def test_a_bare_pickle_is_refused_too(tmp_path: Path):
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps({"state_dict": Bomb(tmp_path / "went-off")}, protocol=2))
    with pytest.raises(EffaceError, match=r"nothing in it was run.*posix\.system"):
        read_foreign(tmp_path / "x.ckpt")
    assert not (tmp_path / "went-off").exists()


def test_code_in_a_model_folder_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    torch.save(Bomb(tmp_path / "went-off"), tmp_path / "pytorch_model.bin")
    with pytest.raises(EffaceError, match=r"nothing in it was run"):
        read_foreign(tmp_path)
    assert not (tmp_path / "went-off").exists()


def test_a_namespace_needs_no_trust(tmp_path: Path):
    case = foreign.mae(tmp_path)
    assert read_foreign(case.path).meta["args"] == {"model": "mae_vit_base_patch16"}


def test_other_classes_are_named_and_need_trust(tmp_path: Path):
    path = tmp_path / "run.ckpt"
    torch.save({"state_dict": tensors(), "hyper_parameters": Settings(), "epoch": 3}, path)
    with pytest.raises(EffaceError, match=r"tests\.interop\.test_safe_load\.Settings.*--trust-pickle"):
        read_foreign(path)
    found = read_foreign(path, trust_pickle=True)
    assert found.part(Role.BACKBONE).keys() == tensors().keys()
    (tmp_path / "out").mkdir()
    notes = found.write(tmp_path / "out", {}, cleaned=True)
    assert notes == {"hyper_parameters": "dropped: it is not made of plain settings"}
    assert read_foreign(tmp_path / "out" / "run.ckpt").meta == {"epoch": 3}


def test_a_pickled_network_is_not_a_checkpoint(tmp_path: Path):
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(EffaceError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        read_foreign(tmp_path / "whole.pt")
    with pytest.raises(EffaceError, match="It holds a Linear"):
        read_foreign(tmp_path / "whole.pt", trust_pickle=True)


@pytest.mark.parametrize("keep", [0, 3, 40, 2000, -1])
@pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors"])
def test_truncated_files_are_damaged(tmp_path: Path, kind: str, keep: int):
    path = tmp_path / f"cut.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(tensors(), path)
    else:
        torch.save(tensors(), path, _use_new_zipfile_serialization=kind == "pth")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EffaceError, match=r"damaged|empty"):
        read_foreign(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x00" * 64, "damaged"),
    ],
)
def test_files_that_are_often_mistaken_for_checkpoints(tmp_path: Path, content: bytes, said: str):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(EffaceError, match=said):
        read_foreign(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, [1, 2], torch.zeros(3), {"state_dict": {}}, {"optimizer": {"a": torch.zeros(1)}}]
)
def test_files_without_named_tensors(tmp_path: Path, content: Any):
    torch.save(content, tmp_path / "nothing.pth")
    with pytest.raises(EffaceError, match="no named tensors"):
        read_foreign(tmp_path / "nothing.pth")


def test_unknown_layouts_are_refused(tmp_path: Path):
    torch.save({f"stage{i}.w": torch.zeros(2, 2) for i in range(3)}, tmp_path / "own.pth")
    with pytest.raises(EffaceError, match=r"layout of no library.*stage0.*moco"):
        read_foreign(tmp_path / "own.pth")


def test_two_tensors_for_one_place_are_refused(tmp_path: Path):
    state = {"projection_head.layers.0.weight": torch.zeros(2, 2), "backbone.conv1.weight": torch.zeros(2, 2, 1, 1)}
    state |= {"projection_head.layers": torch.zeros(1), "backbone.0.weight": torch.zeros(2, 2, 1, 1)}
    torch.save(state, tmp_path / "both.pth")
    with pytest.raises(EffaceError, match=r"'conv1.weight' of the backbone: backbone.conv1.weight and backbone.0"):
        read_foreign(tmp_path / "both.pth")


def test_missing_paths_are_refused(tmp_path: Path):
    with pytest.raises(EffaceError, match="There is no checkpoint"):
        read_foreign(tmp_path / "nowhere.pth")
    with pytest.raises(EffaceError, match="holds no weights that are known"):
        read_foreign(tmp_path)


def test_distributed_checkpoints_are_refused(tmp_path: Path):
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(EffaceError, match=r"distributed checkpoint.*dcp_to_torch"):
        read_foreign(tmp_path)


class TestShards:
    def folder(self, tmp_path: Path, **changed: str | None) -> Path:
        """A folder of two shards; ``changed``: other entries of its weight map."""
        state = tensors()
        names = list(state)
        shards = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
        for file, inside in shards.items():
            save_file({name: state[name] for name in inside}, tmp_path / file)
        listed = {name: file for file, inside in shards.items() for name in inside}
        listed = {k: v for k, v in (listed | {k.replace("__", "."): v for k, v in changed.items()}).items() if v}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
        return tmp_path

    def test_joined(self, tmp_path: Path):
        assert read_foreign(self.folder(tmp_path)).part(Role.BACKBONE).keys() == tensors().keys()

    def test_one_missing(self, tmp_path: Path):
        (self.folder(tmp_path) / "model-2.safetensors").unlink()
        with pytest.raises(EffaceError, match=r"shard model-2.safetensors is not in"):
            read_foreign(tmp_path)

    @pytest.mark.parametrize("listed", ["model-1.safetensors", None])
    def test_another_index(self, tmp_path: Path, listed: str | None):
        self.folder(tmp_path, layer4__0__bn1__weight=listed)
        with pytest.raises(EffaceError, match=r"layer4.0.bn1.weight.*model-2.safetensors"):
            read_foreign(tmp_path)

    def test_a_shard_outside_of_the_folder_is_refused(self, tmp_path: Path):
        inner = tmp_path / "inner"
        inner.mkdir()
        save_file({"x": torch.zeros(1)}, tmp_path / "secret.safetensors")
        self.folder(inner, x="../secret.safetensors")
        with pytest.raises(EffaceError, match=r"shard ../secret.safetensors is not in"):
            read_foreign(inner)

    def test_an_index_that_is_not_json(self, tmp_path: Path):
        (self.folder(tmp_path) / "model.safetensors.index.json").write_text("{")
        with pytest.raises(EffaceError, match=r"index.json cannot be read"):
            read_foreign(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_other_precisions_are_preserved_to_the_bit(tmp_path: Path, dtype: torch.dtype, kind: str):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors().items()}
    path = tmp_path / f"half.{kind}"
    save_file(state, path) if kind == "safetensors" else torch.save(state, path)
    found = read_foreign(path)
    (tmp_path / "out").mkdir()
    found.write(
        tmp_path / "out", {place: found.container.state[name] for name, place in found.table.items()}, cleaned=True
    )
    again = read_foreign(tmp_path / "out" / path.name).part(Role.BACKBONE)
    assert all(again[name].dtype == value.dtype and torch.equal(again[name], value) for name, value in state.items())


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_wrong_shapes_and_dtypes_cannot_be_written(tmp_path: Path, kind: str):
    path = tmp_path / f"x.{kind}"
    save_file(tensors(), path) if kind == "safetensors" else torch.save(tensors(), path)
    found = read_foreign(path)
    place = found.table["conv1.weight"]
    for wrong in (torch.zeros(1), found.container.state["conv1.weight"].half()):
        with pytest.raises(EffaceError, match=r"'conv1.weight' cannot be written.*there it is.*\(4, 3, 3, 3\)|There"):
            found.write(tmp_path / "out", {place: wrong}, cleaned=True)
    assert not (tmp_path / "out").exists()


def test_other_copies_of_the_weights_in_a_folder_are_left_out(tmp_path: Path):
    case = checkpoints.timm_folder(tmp_path)
    for name in ("optimizer.pt", "tf_model.h5", "flax_model.msgpack", "training_args.bin"):
        (case.path / name).write_bytes(b"x")
    (case.path / "checkpoint-500").mkdir()
    (case.path / "vocab.txt").write_text("a")
    (tmp_path / "out").mkdir()
    notes = read_foreign(case.path).write(tmp_path / "out", {}, cleaned=True)
    left = {"optimizer.pt", "tf_model.h5", "flax_model.msgpack", "training_args.bin", "checkpoint-500"}
    assert set(notes) == left
    assert {p.name for p in (tmp_path / "out" / "timm_vit").iterdir()} == {p.name for p in case.path.iterdir()} - left


def test_the_end_of_an_archive_that_python_cannot_read_is_a_damaged_file(tmp_path):
    """An archive that claims to span disks, which zipfile refuses while it asks whether the file is one."""
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(3)}, path)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x06\x07")  # the locator of the 64-bit end record: number of disks at its end
    content[place + 16] = 9
    path.write_bytes(bytes(content))
    assert not is_archive(path)
    with pytest.raises(EffaceError, match=r"is not|cannot be read"):
        read_foreign(path)
