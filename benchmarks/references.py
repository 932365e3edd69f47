"""What references are worth: which signal, how many references, which space, on an over-fitted SimCLR world.

    python -m benchmarks.references make --model oracle-3     one model of the world, and what it shows
    python -m benchmarks.references measure                   results/references.json

``original`` and ``original-K`` saw F, ``oracle-K`` did not; each has a seed of its own. Resumable: a model whose
folder is complete is not made again, and one command makes one model, so that several machines can share the work.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import efface
from benchmarks.worlds import World, make
from efface.watch import Watch

HERE = Path(__file__).parent
HOME, RESULT = HERE / "runs" / "references", HERE / "results" / "references.json"
SEED = 10
WATCH = Watch(gradient=True, cap=1000, test_cap=2000)


def made(world: World, name: str) -> None:
    """Make a model, unless it was made before, and look at it with gradient norms."""
    folder = world.folder / name
    if not (folder / "cell.json").exists() and name.startswith("original-"):
        data, split = world.data()
        seed = 1000 * int(name.rpartition("-")[2]) + world.seed
        checkpoint = efface.pretrain(data, split, recipe=world.recipe(data), seed=seed, device="cpu")
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(folder)
        cell = {"world": world.family, "seed": world.seed, "name": name, "cost": vars(checkpoint.tally)}
        (folder / "cell.json").write_text(json.dumps(cell, indent=1) + "\n", encoding="utf-8")
    make(world, name)
    if not (folder / "whole.npz").exists():
        data, split = world.data()
        seen = efface.observe(world.model(name), data, split, WATCH, device="cpu")
        seen.save(folder / "whole.tmp.npz")
        (folder / "whole.tmp.npz").replace(folder / "whole.npz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("make",))
    parser.add_argument("--model", nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=SEED)
    asked = parser.parse_args()
    world = World("simclr", asked.seed, HOME, epochs=400)
    for name in asked.model:
        made(world, name)


if __name__ == "__main__":
    main()
