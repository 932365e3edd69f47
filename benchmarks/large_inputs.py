"""Inputs of the benchmark of large data: pictures as a folder, tars and tables, embeddings, and small arrays."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHARDS, VIEWS, DIMENSIONS = 10, 2, 128
FINISHED = ".finished"
"""Marks a folder whose files are all there, so that they need not be made again."""


def draw_pictures(home: Path, count: int, sides: tuple[int, int], *, shards: bool = False) -> None:
    """Write pictures into ``home/pictures``, a folder for each class; with ``shards`` also as tars and as tables.

    They are scikit-learn's digits on random colors, enlarged to a width and a height between ``sides``, with noise.
    """
    from sklearn.datasets import load_digits

    if (home / FINISHED).exists():
        return
    digits: Any = load_digits()
    rng = np.random.default_rng(0)
    listed: list[tuple[str, str]] = []
    kind = {"suffix": ".jpg", "quality": 90} if sides[1] > 64 else {"suffix": ".png"}
    for number in range(count):
        row = number % len(digits["target"])
        shades = digits["data"][row].reshape(8, 8, 1) / 16
        colors = rng.integers(0, 256, (2, 3))
        x = colors[0] * shades + colors[1] * (1 - shades)
        size = rng.integers(sides[0], sides[1] + 1, 2)
        image = Image.fromarray(x.astype(np.uint8)).resize((int(size[0]), int(size[1])), Image.Resampling.BICUBIC)
        noise = rng.integers(-12, 13, (int(size[1]), int(size[0]), 1))
        label = str(digits["target"][row])
        key = f"{label}/{number:06d}{kind['suffix']}"
        path = home / "pictures" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        noisy = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
        noisy.save(path, **{name: value for name, value in kind.items() if name != "suffix"})
        listed.append((key, label))
    if shards:
        _pack(home, listed)
    (home / FINISHED).touch()


def _pack(home: Path, listed: list[tuple[str, str]]) -> None:
    """Write the pictures of a folder as tars and as tables."""
    import pyarrow
    from pyarrow import parquet

    for name in ("tars", "tables"):
        (home / name).mkdir(exist_ok=True)
    for shard in range(SHARDS):
        dealt = listed[shard::SHARDS]
        contents = [(home / "pictures" / key).read_bytes() for key, _ in dealt]
        with tarfile.open(home / "tars" / f"shard-{shard:06d}.tar", "w") as archive:
            for (key, label), content in zip(dealt, contents, strict=True):
                for name, one in ((key, content), (str(Path(key).with_suffix(".cls")), label.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(one)
                    archive.addfile(info, io.BytesIO(one))
        table = pyarrow.table({"key": [k for k, _ in dealt], "label": [v for _, v in dealt], "image": contents})
        parquet.write_table(table, home / "tables" / f"part-{shard:02d}.parquet", row_group_size=100)


def draw_embeddings(home: Path, count: int) -> None:
    """Write embeddings of all items, and of each half of them, before and after."""
    if (home / FINISHED).exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("before", "after")):
        for part, items in (("all", count), ("forget", count // 2), ("control", count - count // 2)):
            shape = (items, VIEWS, DIMENSIONS)
            z = np.lib.format.open_memmap(home / f"{part}-{name}.npy", "w+", np.float32, shape)
            rng = np.random.default_rng(number)
            for start in range(0, items, 50_000):
                size = min(50_000, items - start)
                center = np.random.default_rng(start).normal(size=(size, 1, DIMENSIONS))
                z[start : start + size] = center + rng.normal(size=(size, VIEWS, DIMENSIONS))
    (home / FINISHED).touch()


def draw_arrays(path: Path, count: int) -> None:
    """Write random pictures of 8 x 8 pixels in 1 000 classes as .npz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8), y=np.arange(count) % 1000)
