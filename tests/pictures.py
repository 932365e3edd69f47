"""Test images and data, and assertions on errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efface.data.dataset import Data
from efface.data.sources import load
from efface.errors import EffaceError

ZOO = ("cat/b.png", "cat/a.png", "ant/x/c.png", "ant/d.bmp", "ant/e.png", "cat/f.png")


def raises(call: Callable[[], Any], *words: object) -> None:
    """Assert that ``call`` raises an EffaceError whose message contains every one of ``words``."""
    with pytest.raises(EffaceError) as caught:
        call()
    for word in words:
        assert str(word) in str(caught.value), str(caught.value)


def fails(source: object, *words: object, **options: Any) -> None:
    """Assert that loading ``source`` raises an EffaceError whose message contains every one of ``words``."""
    raises(lambda: load(str(source), **options), *words)


def picture(path: Path, seed=0, size=(8, 6), mode="RGB", **save: Any) -> None:
    """Write a random image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path, **save)


def make_zoo(folder: Path) -> Path:
    """Create a folder of two classes with three images each."""
    for number, name in enumerate(ZOO):
        picture(folder / name, number)
    return folder


def made(n=200, classes=4, tested=0, seed=0, shape=(1, 5, 5), **more: Any) -> Data:
    """Create ``n`` random images, the last ``tested`` of which are the official test part."""
    rng = np.random.default_rng(seed)
    given: dict[str, Any] = {
        "y": None if classes == 0 else np.arange(n) % classes,
        "keys": [f"k{i:04d}" for i in range(n)],
        "official": ["train"] * (n - tested) + ["test"] * tested if tested else None,
    }
    return Data.from_arrays(rng.integers(0, 256, (n, *shape)), **(given | more))
