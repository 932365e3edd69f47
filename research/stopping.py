"""Over-forgetting with and without early stopping, and `auto` against the best fixed method.

    python -m research.stopping make [--jobs 2]     every setting on every world
    python -m research.stopping tables              research/results/stopping.json
    make docs                                       docs/results/stopping.md

Worlds (originals, oracles) are those of :mod:`research.gradient_constraint`. Resumable: a model whose folder is
complete is not made again. Worlds are finished one after the other, so that an interrupted run leaves complete ones.
``tables`` keeps the results of worlds whose folders no longer exist.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.machine import machine, read_json, write_json
from research import frontier
from research.frontier import FAMILIES, REPORTING, SELECTION
from research.gradient_constraint import at
from research.paths import RESULTS
from research.worlds import World, make, measure, spread, together

RESULT = RESULTS / "stopping.json"
LIMIT = 0.05
"""How far an AUC may lie from 1/2."""
FIXED: dict[str, dict[str, Any]] = {
    "margin_matching": {"name": "margin_matching"},
    "alignment_calibration lr .06": {"name": "alignment_calibration", **at(0.06)},
    "gradient_constraint": {"name": "gradient_constraint"},
}
"""As in :mod:`research.frontier`; the second is known to go too far."""
STOPPED = {f"{label}, stop": recipe | {"stop": {}} for label, recipe in FIXED.items()}
SETTINGS = FIXED | STOPPED | {"auto": {"name": "auto"}}


def worlds() -> list[World]:
    """All worlds, seed by seed, so that the families progress together."""
    return [world for seed in REPORTING + SELECTION for world in frontier.worlds(list(FAMILIES), [seed])]


def measure_cell(world: World, label: str) -> dict[str, Any] | None:
    """The measurements of one model and its distance from the goal; None if it does not exist or diverged."""
    if not (world.folder / label / "cell.json").exists():
        return None
    cell = measure(world, label)
    if "error" in cell:
        return None
    oracles = [measure(world, name) for name in world.oracles()]
    a1 = {s: row["a1"] for s, row in cell["signals"].items()}
    fall = {s: frontier.retained(oracles, s) - row["retained"] for s, row in cell["signals"].items()}
    stopped = cell.get("stopped")
    return {
        "a1": a1,
        "fall": fall,
        "over": min(a1.values()) < 0.5 - LIMIT,
        "residue": max(a1.values()) > 0.5 + LIMIT,
        "distance": frontier.distance(cell, oracles),
        "knn": cell["knn"],
        "average_gap": cell["average_gap"],
        "steps": cell["cost"]["steps"],
        "reason": stopped and stopped["reason"],
        "reached": stopped and stopped["reached"],
        "looked": stopped and min((one["distance"] for one in stopped["looks"][1:]), default=None),
        "chosen": cell.get("method", {}).get("name"),
        "trials": len(cell["search"]["trials"]) if cell.get("search") else None,
    }


def summed(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Rates and spreads of one setting over worlds."""
    reasons = [one["reason"] for one in found if one["reason"]]
    chosen = [one["chosen"] for one in found if one["trials"]]
    return {
        "n": len(found),
        "over": sum(one["over"] for one in found),
        "residue": sum(one["residue"] for one in found),
        "reached": sum(bool(one["reached"]) for one in found),
        "reasons": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        "chosen": {name: chosen.count(name) for name in sorted(set(chosen))},
        **{key: spread(one[key] for one in found) for key in ("distance", "knn", "average_gap", "steps", "trials")},
        "lowest": spread(min(one["a1"].values()) for one in found),
        "highest": spread(max(one["a1"].values()) for one in found),
        "fall": spread(max(one["fall"].values()) for one in found),
    }


def regret(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Regret of `auto` against the oracle's choice: the best fixed setting for all worlds, and the best in each."""
    fixed = {label: found for label, found in rows.items() if label != "auto" and found.keys() >= rows["auto"].keys()}
    mean = {
        label: spread(one["distance"] for key, one in found.items() if key in rows["auto"])
        for label, found in fixed.items()
    }
    best = min(mean, key=lambda label: (mean[label] or {"mean": 1.0})["mean"])
    each = {key: min((found[key]["distance"], label) for label, found in fixed.items()) for key in rows["auto"]}
    return {
        "best fixed": best,
        "worlds": len(rows["auto"]),
        "distance": mean,
        "to the best fixed": spread(
            one["distance"] - fixed[best][key]["distance"] for key, one in rows["auto"].items()
        ),
        "to the best of each world": spread(one["distance"] - each[key][0] for key, one in rows["auto"].items()),
    }


def found_in(world: World, before: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Measurements of a world by setting: as it is now, or the stored ones if they cover more settings."""
    now = {label: found for label in SETTINGS if (found := measure_cell(world, label)) is not None}
    name = f"{world.family} {world.seed}"
    old = {label: before[label][name] for label in SETTINGS if name in before.get(label, {})}
    return old if len(old) > len(now) else now


def tables() -> None:
    """Write the results of each family and of all together."""
    before = read_json(RESULT)["worlds"] if RESULT.exists() else {}
    rows: dict[str, dict[str, Any]] = {label: {} for label in SETTINGS}
    for world in worlds():
        for label, found in found_in(world, before).items():
            rows[label][f"{world.family} {world.seed}"] = found
    rows = {label: found for label, found in rows.items() if found}
    families: dict[str, Any] = {}
    for family in [*FAMILIES, "all"]:
        of = {
            label: [one for key, one in found.items() if family in ("all", key.split()[0])]
            for label, found in rows.items()
        }
        families[family] = {label: summed(found) for label, found in of.items() if found}
    result = {"machine": machine(), "limit": LIMIT, "families": families, "worlds": rows}
    if rows.get("auto"):
        result["regret"] = regret(rows)
    write_json(RESULT, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("make", "tables"))
    parser.add_argument("--only", nargs="+", help="labels of the settings to run")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.part == "tables":
        tables()
        return
    chosen = {label: recipe for label, recipe in SETTINGS.items() if not arguments.only or label in arguments.only}
    together([(make, (world, label, recipe)) for world in worlds() for label, recipe in chosen.items()], arguments.jobs)


if __name__ == "__main__":
    main()
