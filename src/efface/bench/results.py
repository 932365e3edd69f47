"""Collect the outcomes of all tasks in one JSON-serializable mapping: the grid, one row per model, and the choices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from efface import config
from efface._version import __version__
from efface.bench.plan import METHOD_CHOICES, BenchPlan, BenchTask, FamilyPlan, TaskKind
from efface.bench.tables import headline_numbers, rank_methods

BENCH_RESULTS_FORMAT = 1
ROC_DIGITS = 4
"""Decimals of the stored ROC curves."""


def collect_results(
    planned: BenchPlan,
    tasks: Iterable[BenchTask],
    state: Mapping[str, Mapping[str, Any]],
    picks: Sequence[Any],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """Collect everything that the tables and the page need.

    Args:
        planned: The plan.
        tasks: Its tasks.
        state: Outcomes by digest of the task.
        picks: The setting choices of the runner.
        machine: Description of the machine.

    """
    rows = [
        _row(planned, task, state, picks) for task in tasks if task.kind not in (TaskKind.ORIGINAL, TaskKind.JUDGMENT)
    ]
    results: dict[str, Any] = {
        "format": BENCH_RESULTS_FORMAT,
        "efface": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": planned.grid.name,
        "machine": dict(machine),
        "grid": config.dump(planned.grid, METHOD_CHOICES),
        "families": {name: _family(one) for name, one in planned.families.items()},
        "unfit": [asdict(one) for family in planned.families.values() for one in family.unfit],
        "picks": [asdict(pick) for pick in picks],
        "rows": rows,
    }
    return results | {"ranking": rank_methods(results)}


def _family(one: FamilyPlan) -> dict[str, Any]:
    return {
        "recipe": one.recipe,
        "data": one.data,
        "forget": one.forget,
        "sizes": one.shape,
        "methods": {
            entry.label: {"method": entry.method, "idea": entry.idea, "settings": list(entry.settings)}
            for entry in one.entries
        },
    }


def _row(
    planned: BenchPlan, task: BenchTask, state: Mapping[str, Mapping[str, Any]], picks: Sequence[Any]
) -> dict[str, Any]:
    """The row of one model: identity, setting, status and findings."""
    world, seeds = task.world, planned.grid.seeds
    judged = planned.judgment(task)
    outcome, judgment = state[task.digest], state[judged.digest]
    error = outcome.get("error") or judgment.get("error", "")
    blocked = outcome.get("blocked") if "error" in outcome else judgment.get("blocked")
    place = (world.family, world.forget, task.label)
    pick = next((p for p in picks if (p.family, p.forget, p.label) == place), None)
    chosen, by_oracle = (pick.chosen, pick.by_oracle) if task.kind is TaskKind.CELL and pick else (None, None)
    row: dict[str, Any] = {
        "family": world.family,
        "objective": planned.families[world.family].recipe["objective"]["name"],
        "forget": world.forget,
        "seed": world.seed,
        "role": "selection" if world.seed in seeds.selection else "reporting",
        "kind": {TaskKind.OBSERVATION: "original", TaskKind.ORACLE: "oracle", TaskKind.CELL: "method"}[task.kind],
        "label": task.label,
        "setting": task.setting,
        "settings": task.request.get("method", {}),
        "chosen": chosen is not None and task.setting == chosen,
        "by_oracle": by_oracle is not None and task.setting == by_oracle,
        "status": ("not begun" if blocked else "failed") if error else "done",
        "error": error,
        "folder": f"{task.kind.value}/{task.digest[:16]}",
        "judged": f"{judged.kind.value}/{judged.digest[:16]}",
    }
    if error:
        return row
    curves = {
        signal: {axis: [round(value, ROC_DIGITS) for value in values] for axis, values in curve.items()}
        for signal, curve in judgment["curves"].items()
    }
    return row | headline_numbers(judgment) | {"findings": judgment["findings"], "curves": curves}
