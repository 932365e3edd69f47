"""Memory and time with data that are larger than memory: pictures on disk, many embeddings, many observations.

    python -m benchmarks.large_data [FOLDER] [--pictures 5000] [--embeddings 1000000] [--examples 100000]

Pictures: JPEGs of 256 to 640 pixels, enlarged from scikit-learn's digits on random colors. A ViT-tiny is pretrained on
them at 224 pixels for one epoch of a small training set, so that reading, not computing, is measured: decoded once into
one array (``data.decode=memory``), each time when they are needed (``lazy``), from a folder, from tars and from tables.
Then two files of embeddings are audited, and a tiny network observes many examples with and without a scratch folder.
Everything runs in processes of its own; the peak is the largest resident set, interpreter and libraries included. Of a
mapped file the pages in use count as well. Times are those of this machine and of what else runs on it: compare them
within one result only. It is written to benchmarks/results/large_data.json.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import RESULTS, machine, write_json

SIDE, BATCH, SHARDS, VIEWS, DIMENSIONS = 224, 64, 10, 2, 128
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(f"PEAK {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss} {code}")
"""
OBSERVE = """
import sys, tempfile
from pathlib import Path
import numpy as np
from efface import api
from efface.auditing.observers.observe import ObservationSettings
from efface.data.dataset import Data
from efface.data.split import partition
from efface.training.networks.backbones import Backbone
from efface.training.objectives import SimClr
from efface.training.recipe import Recipe
count, scratch = int(sys.argv[1]), sys.argv[2] == "scratch"
data = Data.from_arrays(np.random.default_rng(0).integers(0, 256, (count + 3000, 1, 8, 8), dtype=np.uint8))
split = partition(data, train=1000, valid=500, holdout=count, test=500)
backbone = Backbone(width=32, stride=2)
recipe = Recipe(objective=SimClr(), backbone=backbone, channels=1, size=(8, 8), epochs=1, batch_size=500)
made = api.pretrain(data, split, recipe=recipe, device="cpu")
with tempfile.TemporaryDirectory() as folder:
    watch = ObservationSettings(gradient=False, views=2)
    api.observe(made, data, split, watch, device="cpu", scratch=Path(folder) if scratch else None)
"""


def draw_pictures(home: Path, count: int) -> list[tuple[str, str]]:
    """Write the pictures as a folder, as tars and as tables; return their keys and classes."""
    import pyarrow
    from pyarrow import parquet
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    rng = np.random.default_rng(0)
    listed: list[tuple[str, str]] = []
    for number in range(count):
        row = number % len(digits["target"])
        shades = digits["data"][row].reshape(8, 8, 1) / 16
        colors = rng.integers(0, 256, (2, 3))
        x = colors[0] * shades + colors[1] * (1 - shades)
        size = rng.integers(256, 641, 2)
        image = Image.fromarray(x.astype(np.uint8)).resize((int(size[0]), int(size[1])), Image.Resampling.BICUBIC)
        noise = rng.integers(-12, 13, (int(size[1]), int(size[0]), 1))
        label = str(digits["target"][row])
        path = home / "pictures" / label / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        listed.append((f"{label}/{number:06d}.jpg", label))
    for shard in range(SHARDS):
        dealt = listed[shard::SHARDS]
        contents = [(home / "pictures" / key).read_bytes() for key, _ in dealt]
        (home / "tars").mkdir(exist_ok=True)
        with tarfile.open(home / "tars" / f"shard-{shard:06d}.tar", "w") as archive:
            for (key, label), content in zip(dealt, contents, strict=True):
                for name, one in ((key, content), (key[:-4] + ".cls", label.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(one)
                    archive.addfile(info, io.BytesIO(one))
        (home / "tables").mkdir(exist_ok=True)
        table = pyarrow.table({"key": [k for k, _ in dealt], "label": [v for _, v in dealt], "image": contents})
        parquet.write_table(table, home / "tables" / f"part-{shard:02d}.parquet", row_group_size=100)
    return listed


def measure(words: Sequence[object], fresh: Path | None = None) -> dict[str, Any]:
    """Run a command, and return its peak resident bytes, exit code and seconds.

    Args:
        words: The command, after ``python``.
        fresh: A folder of caches for this command.

    """
    import os

    began = time.perf_counter()
    command = [sys.executable, *map(str, words)]
    environment = os.environ if fresh is None else {**os.environ, "XDG_CACHE_HOME": str(fresh)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command], capture_output=True, text=True, check=True, env=environment
    )
    _, peak, code = done.stdout.splitlines()[-1].split()
    found = {"peak": int(peak) * 1024, "exit": int(code), "seconds": round(time.perf_counter() - began, 1)}
    return found | ({} if int(code) in (0, 3, 4, 5) else {"said": done.stderr[-2000:]})


def folder_size(home: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in home.rglob("*") if path.is_file())


def measure_pictures(home: Path, count: int) -> dict[str, Any]:
    """Pretrain on the pictures as an array and lazily, first and once more, and from all three kinds of sources."""
    draw_pictures(home, count)
    split = {"train": 4 * BATCH, "valid": 64, "holdout": 64, "test": 64}
    common = ["--set", f"data.size={SIDE}", "--set", f"split={json.dumps(split)}", "--set", "recipe.objective=simclr"]
    common += ["--set", "recipe.backbone={name: 'timm:vit_tiny_patch16_224'}", "--set", "recipe.epochs=1"]
    common += ["--set", f"recipe.batch_size={BATCH}", "--device", "cpu", "--force", "--quiet"]
    found: dict[str, Any] = {"pictures": count, "bytes": folder_size(home / "pictures"), "array": count * 3 * SIDE**2}
    found["steps"] = split["train"] // BATCH
    for source, more in (("pictures", []), ("tars", ["--set", "data.key_suffix=true"]), ("tables", [])):
        for decode in ("memory", "lazy"):
            cache = home / "caches" / f"{source}-{decode}"
            words = ["-m", "efface", "pretrain", "--data", home / source, *common, *more]
            words += ["--set", f"data.decode={decode}", "--out", home / "out"]
            for time_ in ("first", "again"):
                found[f"{source} {decode} {time_}"] = measure(words, cache) | {"kept": folder_size(cache)}
            meta = json.loads((home / "out" / "meta.json").read_text(encoding="utf-8"))
            found[f"{source} {decode} weights"] = meta["digest"]
            shutil.rmtree(cache)
    found["same weights"] = len({value for name, value in found.items() if name.endswith(" weights")}) == 1
    return found


def measure_embeddings(home: Path, count: int) -> dict[str, Any]:
    """Audit ``count`` items, alone and half of them against the other half."""
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
    words = ["-m", "efface", "audit", "--out", home / "out", "--force", "--quiet"]
    alone = ["--embeddings", home / "all-before.npy", home / "all-after.npy"]
    halves = ["--embeddings", home / "forget-before.npy", home / "forget-after.npy"]
    halves += ["--control", home / "control-before.npy", home / "control-after.npy"]
    found = {"items": count, "views": VIEWS, "dimensions": DIMENSIONS, "alone": measure([*words, *alone])}
    return found | {"against a control": measure([*words, *halves])}


def measure_observations(count: int) -> dict[str, Any]:
    """Observe a tenth of the examples and all of them, in memory and with a scratch folder."""
    return {"examples": count} | {
        f"{examples} {where}": measure(["-c", OBSERVE, examples, where])
        for where in ("memory", "scratch")
        for examples in (count // 10, count)
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="runs/large_data", type=Path)
    for name, usual in (("pictures", 5000), ("embeddings", 1_000_000), ("examples", 100_000)):
        parser.add_argument(f"--{name}", type=int, default=usual, help="How many; 0: leave this part out.")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": machine()}
    if chosen.pictures:
        result["pictures"] = measure_pictures(chosen.folder / "pictures", chosen.pictures)
    if chosen.embeddings:
        result["embeddings"] = measure_embeddings(chosen.folder / "embeddings", chosen.embeddings)
    if chosen.examples:
        result["observations"] = measure_observations(chosen.examples)
    print(json.dumps(result, indent=1))
    write_json(RESULTS / "large_data.json", result, hide=chosen.folder)


if __name__ == "__main__":
    main()
