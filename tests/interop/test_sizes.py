"""What a file claims is checked before memory is taken, and a file of another kind is called what it is."""

from __future__ import annotations

import gzip
import json
import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from efface.errors import EffaceError
from efface.interop import sizes
from efface.interop.checkpoint_file import read_foreign
from efface.interop.inspect import inspect_checkpoint
from efface.interop.sizes import require_memory
from tests import foreign


def refused(path: Path, said: str) -> None:
    """The file is refused, and less than 300 MB more are in use at the peak."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(EffaceError, match=said):
        inspect_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def tensors() -> dict[str, torch.Tensor]:
    return foreign.resnet().state_dict()


# ---- larger than they are ----


def test_a_zip_bomb(tmp_path: Path):
    torch.save(tensors(), tmp_path / "small.pth")
    with (
        zipfile.ZipFile(tmp_path / "small.pth") as small,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in small.namelist():
            with bomb.open(name, "w") as member:
                member.write(small.read(name))
                if name.endswith("data/0"):
                    for _ in range(400):
                        member.write(bytes(2**20))
    assert (tmp_path / "bomb.pth").stat().st_size < 2**20
    refused(tmp_path / "bomb.pth", r"unpacks to 0.4 GiB")


def test_a_pickle_in_a_zip_that_is_a_bomb(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/version", "3\n")
        with archive.open("x/data.pkl", "w") as member:
            for _ in range(400):
                member.write(bytes(2**20))
    refused(tmp_path / "x.pth", "unpacks to 0.4 GiB")


@pytest.mark.parametrize("legacy", [False, True])
def test_one_number_that_claims_to_be_a_thousand_million(tmp_path: Path, legacy: bool):
    state = {"conv1.weight": torch.zeros(1).expand(2000, 1000, 1000, 1), "fc.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "wide.pth", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "wide.pth", r"\(2000, 1000, 1000, 1\) has only 4 bytes")


def test_a_storage_that_claims_more_than_the_file_has(tmp_path: Path):
    path = tmp_path / "claim.pth"
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    claim = b"M\xe8\x03"  # the number 1000 in a pickle
    assert claim in content
    path.write_bytes(content.replace(claim, b"\x8a\x06" + (10**14).to_bytes(6, "little")))
    refused(path, "damaged|refused")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [225_000_000_000], "data_offsets": [0, 900_000_000_000]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0, "x"]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]},
        [0, 16],
    ],
)
def test_safetensors_headers_that_lie(tmp_path: Path, entry: Any):
    header = json.dumps({"w": entry}).encode()
    (tmp_path / "lie.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    refused(tmp_path / "lie.safetensors", "damaged or truncated")


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b'{"a":' * 100_000, b"{}x", b"\xff\xfe", b'{"a": 1' + b"0" * 6000 + b"}"]
)
def test_safetensors_headers_that_are_no_json(tmp_path: Path, header: bytes):
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(tmp_path / "x.safetensors", "damaged or truncated|no named tensors")


def test_a_file_larger_than_memory(tmp_path: Path):
    header = json.dumps({"w": {"dtype": "U8", "shape": [10**13], "data_offsets": [0, 10**13]}}).encode()
    path = tmp_path / "sparse.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + 10**13)
    refused(path, "does not fit into memory")
    require_memory(path, 1000)


def test_memory_that_is_free_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert (sizes.available_memory() or 2**30) > 2**20
    (tmp_path / "limit").write_text("4096\n")
    monkeypatch.setattr(sizes, "MEMORY_FILES", (str(tmp_path / "limit"),))
    assert sizes.available_memory() == 4096
    (tmp_path / "limit").write_text("max\n")
    assert (sizes.available_memory() or 2**30) > 2**20


# ---- nested ----


def nested(levels: int) -> Any:
    value: Any = {"end": 1}
    for _ in range(levels):
        value = {"in": value}
    return value


def pickled_nest(levels: int) -> bytes:
    """A dictionary in a dictionary and so on, as pickle would write it if it did not recurse."""
    return b"\x80\x02" + b"}X\x01\x00\x00\x00a" * levels + b"}" + b"s" * levels + b"."


@pytest.mark.parametrize("levels", [150, 5_000, 200_000])
def test_deep_nesting(tmp_path: Path, levels: int):
    path = tmp_path / "deep.pth"
    torch.save({"state_dict": tensors(), "args": 1}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    inner = pickled_nest(levels)[2:-1]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if name.endswith("data.pkl"):
                where = content.rindex(b"K\x01")
                content = content[:where] + inner + content[where + 2 :]
            archive.writestr(name, content)
    refused(path, "nested more than 100 levels|damaged")


def test_what_libraries_nest_is_read(tmp_path: Path):
    torch.save({"state_dict": tensors(), "hyper_parameters": nested(40)}, tmp_path / "some.pth")
    assert read_foreign(tmp_path / "some.pth").meta["hyper_parameters"] == nested(40)


def test_values_that_hold_themselves_and_values_that_unfold(tmp_path: Path):
    circle: dict[str, Any] = {}
    circle["again"] = circle
    torch.save({"state_dict": tensors(), "args": circle}, tmp_path / "circle.pth")
    refused(tmp_path / "circle.pth", "nested more than 100 levels")
    laughs: Any = ["ha"]
    for _ in range(30):
        laughs = [laughs] * 10
    torch.save({"state_dict": tensors(), "args": laughs}, tmp_path / "laughs.pth")
    refused(tmp_path / "laughs.pth", "unfolds to more than 5,000,000 values")


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' * 200_000, '{"method": ' + "1" * 6000 + "}", "\x00"])
def test_configurations_beside_the_weights(tmp_path: Path, content: str):
    torch.save(tensors(), tmp_path / "x.pth")
    (tmp_path / "args.json").write_text(content)
    refused(tmp_path / "x.pth", "args.json cannot be read")


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", {"pretrained_cfg": "abc"}),
     ("config.json", {"pretrained_cfg": {"mean": [None] * 3, "std": [1] * 3}}),
     ("config.json", {"model_type": "vit", "num_channels": "x"}), ("open_clip_config.json", {"preprocess_cfg": 3}),
     ("config.json", {"model_type": "vit", "hidden_size": None})],
)  # fmt: skip
def test_configurations_with_values_of_another_kind(tmp_path: Path, name: str, content: Any):
    case = foreign.solo_moco(tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    refused(case.path, f"{name}.* cannot be understood")


def test_a_configuration_of_a_terabyte(tmp_path: Path):
    torch.save(tensors(), tmp_path / "x.pth")
    with (tmp_path / "args.json").open("wb") as file:
        file.truncate(10**12)
    refused(tmp_path / "x.pth", "args.json is not read")


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("kind", ["sparse", "without data"])
def test_tensors_that_are_not_dense(tmp_path: Path, kind: str):
    value = torch.eye(3).to_sparse() if kind == "sparse" else torch.empty(3, 3, device="meta")
    torch.save(tensors() | {"fc.weight": value}, tmp_path / "odd.pth")
    refused(tmp_path / "odd.pth", f"a tensor that is {kind}")


# ---- other kinds of file ----


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_called_what_it_is_and_the_advice_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    torch.jit.save(torch.jit.script(net), tmp_path / "net.pt")
    with pytest.raises(EffaceError, match="It is a TorchScript archive") as caught:
        read_foreign(tmp_path / "net.pt")
    assert "damaged" not in str(caught.value) and "Fetch" not in str(caught.value)
    command = caught.value.remedy.partition('"')[2].rpartition('"')[0]
    monkeypatch.chdir(tmp_path)
    exec(command, {})  # the advice, as the user would run it
    state = torch.load(tmp_path / "net_state.pth", weights_only=True)
    assert state.keys() == net.state_dict().keys() and all(
        torch.equal(state[k], v) for k, v in net.state_dict().items()
    )


def test_an_exported_program(tmp_path: Path):
    program = torch.export.export(nn.Linear(3, 2), (torch.zeros(1, 3),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(EffaceError, match=r"It is an exported program.*torch.export.load"):
        read_foreign(tmp_path / "net.pt2")


def test_archives_of_other_kinds(tmp_path: Path):
    np.savez(tmp_path / "arrays.pth", w=np.zeros(3))
    (tmp_path / "arrays.pth.npz").rename(tmp_path / "arrays.pth")
    (tmp_path / "zipped.pth").write_bytes(gzip.compress(b"x" * 100))
    np.save(tmp_path / "array.npy", np.zeros(3))
    with zipfile.ZipFile(tmp_path / "folder.pth", "w") as archive:
        archive.writestr("model.pth", b"x")
    for name, said in (
        ("arrays.pth", "an archive of NumPy arrays"), ("zipped.pth", "a gzip archive"),
        ("array.npy", "a NumPy array"), ("folder.pth", "a zip archive that holds: model.pth"),
    ):  # fmt: skip
        refused(tmp_path / name, said)


def test_safetensors_under_another_name(tmp_path: Path):
    from safetensors.torch import save_file

    save_file(tensors(), tmp_path / "pytorch_model.bin")
    found = read_foreign(tmp_path / "pytorch_model.bin")
    (tmp_path / "out").mkdir()
    found.write(tmp_path / "out", {}, cleaned=True)
    assert (tmp_path / "out" / "pytorch_model.bin").read_bytes() == (tmp_path / "pytorch_model.bin").read_bytes()


def test_pickles_are_still_refused_with_the_class_named(tmp_path: Path):
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(nested(3) | {"path": Path("/")}, protocol=2))
    refused(tmp_path / "bare.pth", "nothing in it was run.*pathlib")
