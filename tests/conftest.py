"""Fixtures that several files of tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efface.training import devices
from tests.accessibility import open_browser
from tests.commands import TINY, call


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small color pictures of three classes, with labels, in an .npz file."""
    from tests.adoption import drawn

    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    x, y = drawn()
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of caches, empty and of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "efface"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    with open_browser() as opened:
        yield opened


@pytest.fixture(autouse=True, scope="session")
def same_precision_everywhere() -> Iterator[None]:
    """The default precision depends on the machine; the numbers that tests check must not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "prefers_bfloat16", lambda device: False)
        yield


@pytest.fixture
def efface(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process and return its exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        code = call(*words)
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs on tiny digits: ``original``, retrained ``oracle`` and ``second``, fine-tuned ``tuned``."""
    home = tmp_path_factory.mktemp("runs")
    calls = [["pretrain", "--data", "digits", "--objective", "simclr", "--out", home / "original", *TINY]]
    for name, method, seed in (("oracle", "retrain", 1), ("second", "retrain", 2), ("tuned", "finetune", 0)):
        words = ["--forget", "@random:0.2", "--method", method, "--seed", seed]
        calls.append(["unlearn", home / "original", *words, "--out", home / name])
    for words in calls:
        assert call(*words, "--quiet") == 0, words
    return home
