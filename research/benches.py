"""Keep the results of the grids in ``examples/``: the part that the pages show, and how settings were chosen.

    efface bench examples/fashion-resnet.yaml --forget "ten per cent" --jobs 1 --out FOLDER
    python -m research.benches FOLDER          research/results/fashion_resnet.json
    make docs

A grid may have several folders, also added later: each adds its families and forget sets to the file, or replaces them.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.machine import read_json, write_json
from research.paths import EXAMPLES, RESULTS

from efface.bench import grid

ALIKE = ("name", "data", "split", "seeds", "oracles", "watch", "criteria")
"""Parts of the grid that must be equal in all pieces of one file."""
ROW = ("family", "forget", "seed", "role", "kind", "label", "setting", "chosen", "by_oracle", "status", "error")
MEASURED = ("gap", "utility", "utility_of", "verdict", "counts", "seconds", "examples")
SIGNAL = ("auc", "raw", "power", "powered", "retained")
World = tuple[str, str]


def file_of(name: str) -> Path:
    """The result file of a grid."""
    return RESULTS / f"{name.replace('-', '_')}.json"


def world_of(row: dict[str, Any]) -> World:
    return row["family"], row["forget"]


def command_of(asked: dict[str, Any]) -> str:
    """The command that made a piece, derived from the part of the shipped grid that it has."""
    file = EXAMPLES / f"{asked['name']}.yaml"
    whole = grid.read_grid(file)
    words = [f"efface bench examples/{file.name}"]
    if len(asked["families"]) < len(whole.families):
        words += [f"--family {name}" for name in asked["families"]]
    has = dict.fromkeys(name for one in asked["families"].values() for name in one["forget"] or asked["forget"])
    all_of = {name for family in asked["families"] for name in whole.family(family).forget or {}}
    if set(has) < all_of:
        words += [f'--forget "{name}"' for name in has]
    return " ".join([*words, *([f"--jobs {asked['jobs']}"] if asked["jobs"] else [])])


def wall(folder: Path) -> dict[str, Any]:
    """Number of tasks in a folder, and the seconds they took without pauses.

    If a task ends more than ten times its usual duration after the one before, there was a pause in between. Its time
    is then left out, so that the sum is too small rather than too large.
    """
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    first = read_json(folder / lines[0]["made"] / "outcome.json")
    steps = [(later["made"].split("/")[0], later["at"] - sooner["at"]) for sooner, later in pairwise(lines)]
    usual: dict[str, list[float]] = {}
    for kind, seconds in steps:
        usual.setdefault(kind, []).append(seconds)
    median = {kind: sorted(values)[len(values) // 2] for kind, values in usual.items()}
    counted = [seconds for kind, seconds in steps if seconds <= max(60.0, 10 * median[kind])]
    return {
        "tasks": len(lines),
        "seconds": sum(counted) + first.get("cost", {}).get("seconds", 0.0),
        "pauses": len(steps) - len(counted),
    }


def cell(row: dict[str, Any]) -> dict[str, Any]:
    """Summary of one model; findings and curves remain in the bench's own files."""
    kept = {key: row[key] for key in ROW} | {key: row.get(key) for key in MEASURED}
    signals = {name: {key: one[key] for key in SIGNAL} for name, one in row.get("signals", {}).items()}
    return kept | {"signals": signals, "share": row.get("share", {}).get("examples")}


def reduce_folder(folder: Path) -> dict[str, Any]:
    """The piece of the result file that one folder gives."""
    results = read_json(folder / "results.json")
    asked = results["grid"]
    worlds = [[family, name] for family, facts in results["families"].items() for name in facts["forget"]]
    settings = {
        name: {label: entry["settings"] for label, entry in family["methods"].items()}
        for name, family in results["families"].items()
    }
    piece = {"command": command_of(asked), "worlds": worlds, "created": results["created"], **wall(folder)}
    return {
        "format": 2,
        "name": results["name"],
        "efface": results["efface"],
        "machine": results["machine"],
        "grid": {key: asked[key] for key in ALIKE} | ({"bf16": True} if asked.get("bf16") else {}),
        "pieces": [piece],
        "recipes": {name: family["recipe"] for name, family in results["families"].items()},
        "sizes": {name: family["sizes"] for name, family in results["families"].items()},
        "settings": settings,
        "unfit": results["unfit"],
        "ranking": results["ranking"],
        "picks": results["picks"],
        "cells": [cell(row) for row in results["rows"]],
    }


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Both results in one; a world that is in both is taken from the new one."""
    for key in ("grid", "efface"):
        if old[key] != new[key]:
            raise SystemExit(f"{new['name']}: the pieces differ in '{key}'. Remove the file to start again.")
    for name, recipe in new["recipes"].items():
        if old["recipes"].get(name, recipe) != recipe:
            raise SystemExit(f"{new['name']}: the recipe of the family '{name}' differs. Remove the file.")
    again = {tuple(world) for piece in new["pieces"] for world in piece["worlds"]}
    whole = dict(new)
    for key in ("ranking", "picks", "cells"):
        whole[key] = [one for one in old[key] if world_of(one) not in again] + new[key]
    for key in ("recipes", "settings"):
        whole[key] = old[key] | new[key]
    whole["sizes"] = {name: old["sizes"].get(name, {}) | new["sizes"].get(name, {}) for name in whole["recipes"]}
    whole["unfit"] = [*(one for one in old["unfit"] if one not in new["unfit"]), *new["unfit"]]
    kept = [piece for piece in old["pieces"] if not {tuple(world) for world in piece["worlds"]} <= again]
    return whole | {"pieces": kept + new["pieces"]}


def main() -> None:
    """Write or extend ``research/results/<grid>.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders that the bench wrote")
    for folder in parser.parse_args().folders:
        new = reduce_folder(folder)
        file = file_of(new["name"])
        old = read_json(file) if file.exists() else {}
        whole = merge(old, new) if old.get("format") == new["format"] else new
        write_json(file, whole)
        print(file, len(whole["ranking"]), "worlds,", len(whole["cells"]), "models")


if __name__ == "__main__":
    main()
