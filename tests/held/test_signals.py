"""A training that is stopped by a signal goes on with the same command and ends with the same weights.

SIGINT is in ``tests/cli/test_cli.py``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from efface.files import EPOCH
from efface.runs.folder import partial_path
from tests.commands import TINY

WORDS = [sys.executable, "-m", "efface", "pretrain", "--data", "digits", "--objective", "moco", "--quiet"]
WORDS += [*TINY, "--set", "recipe.epochs=25", "--device", "cpu"]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def digest_of(run: Path) -> str:
    return json.loads((run / "meta.json").read_text(encoding="utf-8"))["digest"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run([*WORDS, "--out", str(out)], env=ENV, check=True)
    return out


@pytest.mark.parametrize("name", ["SIGHUP", "SIGKILL"])
def test_stopped_and_called_again_it_ends_with_the_same_weights(tmp_path, whole, name):
    out, number = tmp_path / "cut", getattr(signal, name)
    cut = subprocess.Popen([*WORDS, "--out", str(out)], env=ENV, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 90
    while not (partial_path(out) / EPOCH).exists() and time.monotonic() < deadline and cut.poll() is None:
        time.sleep(0.005)
    cut.send_signal(number)
    assert cut.wait(timeout=60) != 0, "it had ended before the signal came"
    assert not out.exists()
    subprocess.run([*WORDS, "--out", str(out)], env=ENV, check=True)
    assert digest_of(out) == digest_of(whole)
    assert not partial_path(out).exists()
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) == len((whole / "log.jsonl").read_text(encoding="utf-8").splitlines())
