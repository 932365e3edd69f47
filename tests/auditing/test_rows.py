"""Arrays that are written a few rows at a time: the same in memory and in a file, of which nothing is ever left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from efface.auditing.observers.rows import RowArrays
from efface.data import array_files
from efface.errors import EffaceError

KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from efface.auditing.observers.rows import RowArrays
from efface.data import array_files
array_files.MAPPED_BYTES = 0
held = RowArrays(9, {"a": np.zeros((1, 5))}, Path(sys.argv[1]))
held.write(0, {"a": np.ones((4, 5))})
assert os.fstat(held.file.fileno()).st_size == 80
if sys.argv[2] == "finished":
    held.write(4, {"a": np.ones((5, 5))})
    assert held.finish()["a"].sum() == 45
os.kill(os.getpid(), signal.SIGKILL)
"""


def fill(folder):
    rng = np.random.default_rng(0)
    batches = [
        {"pairs": rng.normal(size=(n, 3)), "norm": rng.normal(size=n), "zip": rng.random((n, 0))} for n in (4, 1, 6)
    ]
    held, start = RowArrays(11, batches[0], folder), 0
    for batch in batches:
        held.write(start, batch)
        start += len(batch["norm"])
    return held.finish()


def test_arrays_are_the_same_in_memory_and_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "MAPPED_BYTES", 64)
    kept, filed = fill(None), fill(tmp_path)
    assert kept.keys() == filed.keys()
    for name, value in kept.items():
        assert (value.dtype, value.shape) == (np.float32, filed[name].shape)
        assert filed[name].flags.aligned
        np.testing.assert_array_equal(value, filed[name])
    assert isinstance(filed["pairs"], np.memmap)
    assert not isinstance(kept["pairs"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        filed["pairs"][0] = 1
    monkeypatch.undo()
    assert not isinstance(fill(tmp_path)["pairs"], np.memmap)  # small ones need no file


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("when", ["half", "finished"])
def test_a_killed_process_leaves_nothing(tmp_path, when):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), when], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "MAPPED_BYTES", 0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115
    with pytest.raises(EffaceError, match="The disk is full"):
        fill(tmp_path)
