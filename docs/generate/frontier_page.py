"""The tables of ``docs/results/frontier_tables.md``, from the results of ``frontier``, ``unseen`` and ``step_cost``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.machine import read_json
from docs.generate.claims import paired
from docs.generate.markdown import figure, made_by, spread, table_head, table_row
from research.frontier import ABLATION, FAMILIES, TWICE
from research.paths import RESULTS
from research.unseen import RIVALS

EACH = ("distance of each", "gap of each")
"""Fields of a row that hold a value per seed."""
CORRELATION = "correlation of A1 with the first"


def page() -> list[str]:
    """Tables of ``results/frontier.json`` and ``results/unseen.json``."""
    result = read_json(RESULTS / "frontier.json")
    lines: list[str] = []
    for family, rows in result["families"].items():
        lines += [f"### {family}", "", *plane_table(rows), ""]
    seeds = ", ".join(map(str, result["reporting_seeds"]))
    lines.append(f"Reporting seeds {seeds} (n = {len(result['reporting_seeds'])} where nothing is missing).")
    lines.append(made_by(result["machine"], note="one thread per model"))
    unseen = read_json(RESULTS / "unseen.json")
    lines += ["", *equal_lines(result["families"], unseen["cases"]), "", *beside_lines(result["families"])]
    lines += ["", *step_cost_lines(), "", *luck_lines(result["luck"])]
    for family, rows in result["selection"].items():
        lines += ["", f"### {family}, selection seeds {', '.join(map(str, result['selection_seeds']))}", ""]
        lines += plane_table(rows)
    return [*lines, "", *unseen_lines(unseen)]


def step_cost_lines() -> list[str]:
    """Time of one step in plain training steps, by family and batch."""
    result = read_json(RESULTS / "step_cost.json")
    families = result["families"]
    columns = [(family, size) for family, sizes in families.items() for size in sizes]
    lines = [f"### Time of one step, in steps of `{result['plain']}` with the same batch of R", ""]
    lines += table_head("", *(f"{family}, {size}" for family, size in columns))
    for label in next(iter(families["simclr"].values())):
        found = [families[family][size][label] for family, size in columns]
        if label != result["plain"]:
            lines.append(table_row(label, *(spread(one, 1) for one in found)))
    n = families["simclr"]["100"][result["plain"]]["n"]
    return [*lines, "", f"Median (least to most) of {n} rounds in turns. {made_by(result['machine'])}"]


def beside_lines(families: dict[str, Any], level: str = "###") -> list[str]:
    """Margin matching minus each other method, paired by seed: below 0 it is closer to retraining."""
    mine = "margin_matching"
    lines = [f"{level} `{mine}` minus each of the others, paired by seed", ""]
    lines += [*table_head("", "family", "steps", "distance (95 %)", "closer in", "average gap (95 %)", "closer in")]
    for family, rows in families.items():
        for label, row in rows.items():
            if label in (mine, *ABLATION) or label.startswith(("original", "oracle")):
                continue
            lines.append(table_row(label, family, steps(row), *less(rows[mine], row)))
    return lines


def less(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Cells: the paired difference in distance and in average gap, each with how often it is below 0."""
    found = [paired(ours[key], theirs[key]) for key in EACH]
    return [cell for one in found for cell in ((str(one), one.seeds) if one else ("–", "–"))]


def steps(row: dict[str, Any]) -> str:
    """Optimizer steps as a share of the oracle's."""
    share = row["share_of_steps"]
    return f"{100 * share['mean']:.0f} %" if share else "–"


def equal_lines(families: dict[str, Any], cases: dict[str, Any]) -> list[str]:
    """Margin matching minus each published method at as many steps, over all worlds of encoders with a random F."""
    places = {f"{f} 500": (families[f], ", 10 %") for f in FAMILIES}
    places |= {f"{f} 2000": (cases[f"2000, {f}"]["rows"], "") for f in FAMILIES}
    lines = [
        "### At equal steps: `margin_matching` minus each published method, over SimCLR and MoCo, 500 and 2 000 images"
    ]
    lines += ["", *less_each(places, TWICE), "", "### The same over the later seeds alone, 2 000 images", ""]
    return lines + less_each({f"{f} later": (cases[f"2000, later, {f}"]["rows"], "") for f in FAMILIES}, RIVALS)


def less_each(places: dict[str, tuple[dict[str, Any], str]], labels: Iterable[str]) -> list[str]:
    """A table of paired differences over worlds; ``places`` has the rows of each, and the suffix of its labels."""
    mine = "margin_matching"
    lines = [*table_head("", "worlds", "distance (95 %)", "closer in", "average gap (95 %)", "closer in")]
    for label in labels:
        found = {name: rows[label + added] for name, (rows, added) in places.items() if label + added in rows}
        ours, theirs = flat({name: places[name][0][mine] for name in found}), flat(found)
        lines.append(table_row(label, len(theirs[EACH[0]]), *less(ours, theirs)))
    return lines


def flat(rows: dict[str, Any]) -> dict[str, Any]:
    """Rows of several places as one, with the values keyed by place and seed."""
    return {
        key: {f"{name} {seed}": value for name, row in rows.items() for seed, value in row[key].items()} for key in EACH
    }


def luck_lines(luck: dict[str, Any]) -> list[str]:
    """The result of margin matching against how hard F is for models that never saw it."""
    lines = [
        "### What `margin_matching` cannot know: how hard F is",
        "",
        *table_head(
            "",
            "worlds",
            "raw AUC of F in the oracles",
            "in margin_matching",
            "its A1",
            "correlation of A1 with the first",
        ),
    ]
    for family, spaces in luck.items():
        for space, row in spaces.items():
            cells = [str(row["worlds"]), *(figure(row[key]) for key in ("oracles, raw", "raw", "a1"))]
            cells.append("–" if row["correlation"] is None else f"{row['correlation']:.2f}")
            lines.append(table_row(f"{family}, {space.split('.')[0]}", *cells))
    return lines


def unseen_lines(result: dict[str, Any]) -> list[str]:
    """The same tables with a small or shifted V, with a class or group as F, and on more images."""
    lines: list[str] = []
    for name, case in result["cases"].items():
        about = f"F {case['forget']} of {case['train']} images, {case['epochs']} epochs"
        lines += [f"### {name}: {about}", "", *plane_table(case["rows"]), ""]
        if not name.startswith("V") and "margin_matching" in case["rows"]:
            lines += [*beside_lines({name.split(", ")[-1]: case["rows"]}, level="####"), ""]
    return [*lines, made_by(result["machine"], note="one thread per model")]


def plane_table(rows: dict[str, Any]) -> list[str]:
    """One line per model: trace of F, loss of R, utility, and how often the goal is met."""
    first = next(iter(rows.values()))
    spaces = [key for key in first if key.endswith(".margin")]
    names = [space.removesuffix(".margin") for space in spaces]
    useful = [key for key in ("knn", "probe", "accuracy") if first[key] is not None]
    shown = [{"knn": "kNN"}.get(key, key) for key in useful]
    heads = ["n", *(f"A1 of F, {name}" for name in names), *(f"R, {name}" for name in names), *shown, "average gap"]
    heads += ["distance", "steps", "F within", "R within", f"{' / '.join(shown)} within", "all"]
    lines = table_head("", *heads)
    for label, row in rows.items():
        cells = [figure(row[space][key]) for key in ("a1", "retained") for space in spaces]
        cells += [figure(row[key]) for key in (*useful, "average_gap", "distance")]
        cells.append("–" if label == "original" else steps(row))
        within = row["within"]
        for side in ("F", "R"):
            cells.append(" / ".join(str(within.get(f"{side} {space}", 0)) for space in spaces))
        cells.append(" / ".join(str(within.get(key, 0)) for key in useful))
        cells.append(f"{row['box']} of {row['n']}")
        lines.append(table_row(label, row["n"], *cells))
    return lines
