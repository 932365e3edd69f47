"""Malicious containers: seven ways to run code in six kinds of file, each refused before anything is run."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from research.fuzz.cases import MARK
from research.fuzz.mutations import EXPLOITS

from efface.auditing.embeddings.arrays import read_embeddings
from efface.auditing.observations import Observations
from efface.data.sources import load
from efface.errors import EffaceError
from efface.interop.checkpoint_file import read_foreign
from tests import foreign

PIECES = {piece.split(b"\n")[0].decode(): piece for piece in EXPLOITS[:-1]}
NAMED = {
    "cposix": "posix.system", "c__builtin__": "for: exec", "cbuiltins": "for: eval", "csubprocess": "subprocess.Popen",
    "cio": "io.open", "cnumpy.testing._private.utils": "numpy.testing._private.utils.runstring",
}  # fmt: skip
"""What the message names; a pickle without a GLOBAL (INST) is refused as it stands."""


def malicious(piece: bytes, folder: Path) -> bytes:
    """A pickle of a dictionary that runs a piece of code first."""
    return b"\x80\x02}(" + piece.replace(b"{mark}", str(folder / MARK).encode()) + b"0U\x01aK\x01u."


def zipped(folder: Path, pickled: bytes) -> Path:
    """A torch file of real weights whose pickle is exchanged."""
    buffer, path = io.BytesIO(), folder / "zip.pth"
    torch.save(foreign.resnet().state_dict(), buffer)
    with zipfile.ZipFile(buffer) as good, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as bad:
        for info in good.infolist():
            bad.writestr(info.filename, pickled if info.filename.endswith("data.pkl") else good.read(info))
    return path


def bare(folder: Path, pickled: bytes) -> Path:
    (folder / "bare.ckpt").write_bytes(pickled)
    return folder / "bare.ckpt"


def in_folder(folder: Path, pickled: bytes) -> Path:
    home = folder / "model"
    home.mkdir()
    (home / "config.json").write_text('{"model_type": "vit"}')
    zipped(folder, pickled).rename(home / "pytorch_model.bin")
    return home


def in_shard(folder: Path, pickled: bytes) -> Path:
    home = folder / "sharded"
    home.mkdir()
    (home / "one.bin").write_bytes(pickled)
    (home / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": "one.bin"}}))
    return home


def array(folder: Path, pickled: bytes) -> Path:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    (folder / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + pickled)
    return folder / "x.npy"


def arrays(folder: Path, pickled: bytes) -> Path:
    member = array(folder, pickled).read_bytes()
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        for name in ("x", "forget", "__header__"):
            archive.writestr(f"{name}.npy", member)
    return folder / "x.npz"


CONTAINERS: dict[str, tuple[Callable[[Path, bytes], Path], tuple[Callable[[Path], Any], ...]]] = {
    "zip": (zipped, (read_foreign,)),
    "bare": (bare, (read_foreign,)),
    "folder": (in_folder, (read_foreign,)),
    "shard": (in_shard, (read_foreign,)),
    "npy": (array, (read_embeddings,)),
    "npz": (arrays, (load, read_embeddings, Observations.load)),
}


def test_there_are_enough():
    assert len(PIECES) * len(CONTAINERS) >= 42


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("container", CONTAINERS)
def test_no_code_is_run_and_the_class_is_named(tmp_path, container, piece):
    write, readers = CONTAINERS[container]
    path = write(tmp_path, malicious(PIECES[piece], tmp_path))
    for read in readers:
        with pytest.raises(EffaceError) as caught:
            read(path)
        assert not (tmp_path / MARK).exists()
        if read is read_foreign and piece in NAMED:
            assert NAMED[piece] in str(caught.value)
            assert "nothing in it was run" in str(caught.value)


@pytest.mark.parametrize("piece", PIECES)
def test_trusted_it_would_run(tmp_path, piece):
    """The containers are real: NumPy, told to unpickle, runs what is in them."""
    path = array(tmp_path, malicious(PIECES[piece], tmp_path))
    code = f"import time, numpy; numpy.load({str(path)!r}, allow_pickle=True); time.sleep(0.2)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, check=False)
    assert (tmp_path / MARK).exists()
