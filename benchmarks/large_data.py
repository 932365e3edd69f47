"""Memory and time with data that are larger than memory: pictures on disk, many embeddings, many observations.

    python -m benchmarks.large_data [FOLDER] [--pictures 5000] [--thumbnails 50000] [--embeddings 1000000]
        [--examples 100000] [--again NAME]

Pictures: JPEGs of 256 to 640 pixels, made from scikit-learn's digits. A ViT-tiny at 224 pixels is pretrained on a few
of them, so that reading, not computing, is measured: decoded once into one array (``data.decode=memory``, the only way
there was before) and each time when they are needed (``lazy``), from a folder, from tars and from tables; then on all
of them for an epoch, unlearned and audited. Thumbnails: the same with PNGs of 32 pixels and the usual small network.
Embeddings: two files are audited, and halves of them against each other. Examples: the logits of 1 000 classes
are stored and read back, without a network and without PyTorch; a tiny classifier
observes them with and without a temporary file, and a run that forgot half of them is audited, first and from stored
observations.

Everything runs in processes of its own; the peak is the largest resident set, interpreter and libraries included. Of a
mapped file the pages in use count as well. Times are those of this machine and of what else runs on it.

Each row is written to benchmarks/results/large_data.json as soon as it is measured, and the same command goes on after
the last one. A part that is asked for with another number is measured anew, as are rows whose name begins with NAME.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.large_inputs import DIMENSIONS, VIEWS, draw_arrays, draw_embeddings, draw_pictures
from benchmarks.machine import RESULTS, machine, read_json, write_json

RESULT = RESULTS / "large_data.json"
SIDE, BATCH, OTHERS = 224, 64, 300
ACCEPTED = (0, 3, 4, 5)
"""Exit codes of a command that did its work; the others than 0 are verdicts."""
DECODES = ("memory", "lazy")
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
from efface.auditing.observers.settings import ObservationSettings
from efface.data.dataset import Data
from efface.data.split import partition
from efface.training.networks.backbones import Backbone
from efface.training.objectives import CrossEntropy
from efface.training.recipe import Recipe
count, scratch = int(sys.argv[1]), sys.argv[2] == "scratch"
rng, classes = np.random.default_rng(0), 1000
x, y = rng.integers(0, 256, (count + 3000, 1, 8, 8), dtype=np.uint8), np.arange(count + 3000) % classes
data = Data.from_arrays(x, y, classes=[str(one) for one in range(classes)])
split = partition(data, train=1000, valid=500, holdout=count, test=500)
backbone, size = Backbone(width=16, stride=2), {"channels": 1, "size": (8, 8), "classes": classes}
recipe = Recipe(objective=CrossEntropy(), backbone=backbone, epochs=1, batch_size=100, **size)
made = api.pretrain(data, split, recipe=recipe, device="cpu")
with tempfile.TemporaryDirectory() as folder:
    watch = ObservationSettings(gradient=False, views=2)
    seen = api.observe(made, data, split, watch, device="cpu", scratch=Path(folder) if scratch else None)
    seen.save(Path(folder) / "o.npz")
"""

STORE = """
import sys, tempfile
from pathlib import Path
import numpy as np
from efface.auditing.observations import Observations
from efface.auditing.observers.rows import RowArrays
count, scratch = int(sys.argv[1]) // 2, sys.argv[2] == "scratch"
logits, arrays = np.random.default_rng(0).normal(size=(500, 1000)), {}
with tempfile.TemporaryDirectory() as folder:
    for part in ("forget", "holdout"):
        held = RowArrays(count, {"logits": logits}, Path(folder) if scratch else None)
        for start in range(0, count, len(logits)):
            held.write(start, {"logits": logits[: count - start]})
        arrays |= {f"{part}/{name}": value for name, value in held.finish().items()}
        arrays[f"{part}/keys"] = np.arange(count).astype(str)
    Observations("model", "split", arrays, {"spaces": ["backbone"]}).save(Path(folder) / "o.npz")
    del arrays, held
    Observations.load(Path(folder) / "o.npz")
"""


class Part:
    """One part of the result: its settings, and its rows as they are measured.

    Args:
        name: Its name in the result.
        settings: What it is measured with; stored rows of other settings are dropped.
        home: The folder of its files.
        again: Rows whose name begins so are measured although they are there.

    """

    def __init__(self, name: str, settings: dict[str, Any], home: Path, again: str | None) -> None:
        self.name, self.home, self.again = name, home, again
        stored = read_json(RESULT).get(name, {}) if RESULT.exists() else {}
        rows = stored.get("rows", {}) if stored.get("settings") == settings else {}
        self.content: dict[str, Any] = {"machine": machine(), "settings": settings, "rows": rows}
        home.mkdir(parents=True, exist_ok=True)

    def has(self, row: str) -> bool:
        """Whether a row need not be measured."""
        stored = self.content["rows"].get(row)
        return stored is not None and stored["exit"] in ACCEPTED and not (self.again and row.startswith(self.again))

    def measure(
        self,
        row: str,
        words: Sequence[object],
        cache: Path | None = None,
        made: Path | None = None,
        needed: Path | None = None,
    ) -> None:
        """Run a command, and store its peak resident bytes, exit code and seconds; nothing is done if it is there.

        Args:
            row: The name of the row.
            words: The command, after ``python``.
            cache: A folder of caches for this command; its size afterwards is stored as ``kept``.
            made: The run folder that it makes; its steps, their seconds and its digest are stored.
            needed: A run folder that it makes and later rows need; if it is gone, the row is measured again.

        """
        if self.has(row) and (needed is None or (needed / "meta.json").exists()):
            return
        made = made or needed
        busy, began = os.getloadavg()[0], time.perf_counter()
        command = [sys.executable, *map(str, words)]
        environment = os.environ if cache is None else {**os.environ, "XDG_CACHE_HOME": str(cache)}
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *command], capture_output=True, text=True, check=True, env=environment
        )
        _, peak, code = done.stdout.splitlines()[-1].split()
        found: dict[str, Any] = {"peak": int(peak) * 1024, "exit": int(code)}
        found |= {"seconds": round(time.perf_counter() - began, 1), "load_before": round(busy, 1)}
        if int(code) not in ACCEPTED:
            found["said"] = done.stderr[-2000:]
        elif made is not None:
            meta = read_json(made / "meta.json")
            found |= {"steps": meta["cost"]["steps"], "stepping": meta["cost"]["seconds"], "digest": meta["digest"]}
        if cache is not None:
            found["kept"] = folder_size(cache)
        self.content["rows"][row] = found
        self.store()
        print(f"{self.name}, {row}: {found['peak'] / 2**20:.0f} MiB, {found['seconds']} s, exit {code}", flush=True)
        if int(code) not in ACCEPTED:
            raise SystemExit(f"{' '.join(command)} failed:\n{found['said']}")

    def store(self) -> None:
        """Write the part into the result."""
        result = read_json(RESULT) if RESULT.exists() else {}
        write_json(RESULT, result | {self.name: self.content}, hide=self.home.parent)


def folder_size(home: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in home.rglob("*") if path.is_file())


def training(source: Path, train: int, decode: str, *recipe: str) -> list[object]:
    """The command that pretrains SimCLR for one epoch on ``train`` pictures of a source."""
    split = {"train": train, "valid": OTHERS, "holdout": OTHERS, "test": OTHERS}
    settings = [f"split={json.dumps(split)}", f"data.decode={decode}", "recipe.objective=simclr", "recipe.epochs=1"]
    settings += [f"recipe.batch_size={BATCH}", *recipe]
    words: list[object] = ["-m", "efface", "pretrain", "--data", source, "--device", "cpu", "--force", "--quiet"]
    return [*words, *(word for setting in settings for word in ("--set", setting))]


def measure_epoch(part: Part, train: int, *recipe: str) -> None:
    """Pretrain for an epoch on all pictures, unlearn and audit: from an array, and decoded when needed."""
    for decode in DECODES:
        cache, home = part.home / f"cache-{decode}", part.home / decode
        made, forgotten = home / "original", home / "forgotten"
        if all(part.has(f"{decode} {verb}") for verb in ("pretrain", "unlearn", "audit")):
            continue
        words = training(part.home / "pictures", train, decode, *recipe)
        part.measure(f"{decode} pretrain", [*words, "--out", made], cache, needed=made)
        words = ["-m", "efface", "unlearn", made, "--forget", "@random:100", "--method", "gradient_ascent"]
        words += ["--set", "method.epochs=1", "--device", "cpu", "--force", "--quiet", "--out", forgotten]
        part.measure(f"{decode} unlearn", words, cache, needed=forgotten)
        words = [
            "-m",
            "efface",
            "audit",
            forgotten,
            "--recheck",
            "--set",
            "watch.views=2",
            "--set",
            f"watch.cap={OTHERS}",
        ]
        part.measure(f"{decode} audit", [*words, "--device", "cpu", "--quiet"], cache)
        shutil.rmtree(cache, ignore_errors=True)
    made_by = {part.content["rows"][f"{decode} pretrain"]["digest"] for decode in DECODES}
    part.content["same weights"] = len(made_by) == 1
    part.store()


def measure_reading(part: Part, *recipe: str) -> None:
    """Pretrain for four steps from all three kinds of sources, first and once more."""
    for source, more in (("pictures", []), ("tars", ["data.key_suffix=true"]), ("tables", [])):
        for decode in DECODES:
            cache, made = part.home / f"cache-{source}-{decode}", part.home / "read"
            words = training(part.home / source, 4 * BATCH, decode, *recipe, *more)
            for turn in ("first", "again"):
                part.measure(f"{source} {decode} {turn}", [*words, "--out", made], cache, made)
            shutil.rmtree(cache, ignore_errors=True)
    digests = {row["digest"] for row in part.content["rows"].values()}
    part.content["same weights"] = len(digests) == 1
    part.content["bytes"] = folder_size(part.home / "pictures")
    part.store()


def measure_embeddings(part: Part, count: int) -> None:
    """Audit ``count`` items, alone and half of them against the other half."""
    draw_embeddings(part.home, count)
    words = ["-m", "efface", "audit", "--out", part.home / "out", "--force", "--quiet", "--embeddings"]
    part.measure("alone", [*words, part.home / "all-before.npy", part.home / "all-after.npy"])
    halves = [part.home / "forget-before.npy", part.home / "forget-after.npy", "--control"]
    part.measure(
        "against a control", [*words, *halves, part.home / "control-before.npy", part.home / "control-after.npy"]
    )


def measure_observations(part: Part, count: int) -> None:
    """Store, observe and audit a tenth of the examples and all of them; a run has forgotten half of them."""
    for examples in (count // 10, count):
        for where in ("memory", "scratch"):
            part.measure(f"{examples} store {where}", ["-c", STORE, examples, where])
    for examples in (count // 10, count):
        for where in ("memory", "scratch"):
            part.measure(f"{examples} {where}", ["-c", OBSERVE, examples, where])
    for examples in (count // 10, count):
        home, half = part.home / str(examples), examples // 2
        if part.has(f"{examples} audit first") and part.has(f"{examples} audit again"):
            continue
        draw_arrays(home / "data.npz", examples + 3000)
        split = {"train": half + 1000, "valid": 1000, "holdout": half, "test": 1000}
        words = ["-m", "efface", "pretrain", "--data", home / "data.npz", "--set", f"split={json.dumps(split)}"]
        for setting in ("objective=cross_entropy", "backbone={width: 16, stride: 2}", "epochs=1", "batch_size=100"):
            words += ["--set", f"recipe.{setting}"]
        words += ["--device", "cpu", "--force", "--quiet", "--out", home / "original"]
        part.measure(f"{examples} pretrain", words, needed=home / "original")
        words = ["-m", "efface", "unlearn", home / "original", "--forget", f"@random:{half}", "--method"]
        words += ["gradient_ascent", "--set", "method.epochs=1", "--set", "method.batch_size=100"]
        words += ["--device", "cpu", "--force", "--quiet", "--out", home / "forgotten"]
        part.measure(f"{examples} unlearn", words, needed=home / "forgotten")
        words = ["-m", "efface", "audit", home / "forgotten", "--device", "cpu", "--quiet"]
        words += ["--set", "watch.gradient=false", "--set", "watch.views=2"]
        part.measure(f"{examples} audit first", [*words, "--recheck"])
        part.measure(f"{examples} audit again", words)


def main() -> None:
    """Measure what is not measured yet; every row is printed and written at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="runs/large_data", type=Path)
    sizes = {"pictures": 5000, "thumbnails": 50_000, "embeddings": 1_000_000, "examples": 100_000}
    for name, usual in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=usual, help="How many; 0: leave this part out.")
    parser.add_argument("--again", metavar="NAME", help="Measure rows again whose name begins so.")
    chosen = parser.parse_args()

    def part(name: str, settings: dict[str, Any], folder: str) -> Part:
        return Part(name, settings, chosen.folder / folder, chosen.again)

    if chosen.examples:
        measure_observations(part("observations", {"examples": chosen.examples}, "observations"), chosen.examples)
    if chosen.embeddings:
        settings = {"items": chosen.embeddings, "views": VIEWS, "dimensions": DIMENSIONS}
        measure_embeddings(part("embeddings", settings, "embeddings"), chosen.embeddings)
    if chosen.pictures:
        vit = (f"data.size={SIDE}", "recipe.backbone={name: 'timm:vit_tiny_patch16_224'}")
        settings = {"pictures": chosen.pictures, "side": SIDE, "array": chosen.pictures * 3 * SIDE**2}
        draw_pictures(chosen.folder / "pictures", chosen.pictures, (256, 640), shards=True)
        measure_reading(part("reading", settings, "pictures"), *vit)
        measure_epoch(part("pictures", settings, "pictures"), chosen.pictures - 3 * OTHERS, *vit)
    if chosen.thumbnails:
        settings = {"pictures": chosen.thumbnails, "side": 32, "array": chosen.thumbnails * 3 * 32**2}
        draw_pictures(chosen.folder / "thumbnails", chosen.thumbnails, (32, 32))
        measure_epoch(part("thumbnails", settings, "thumbnails"), chosen.thumbnails - 3 * OTHERS)


if __name__ == "__main__":
    main()
