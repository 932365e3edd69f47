"""The tables of ``docs/results/claims.md``: the papers' claims, checked where there are results.

A claim "A below B in average gap" is decided by the difference of means over worlds, with a 95 % interval by Student's
t: paired by seed where both were measured on the same seeds one by one, by Welch where only means were kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from benchmarks.machine import read_json
from docs.generate.bench_pages import GRIDS, by_seed, cells_of, results_of, said
from docs.generate.markdown import figure, percent, table_head, table_row
from research.paths import RESULTS
from scipy.stats import t as student

from efface.unlearning.methods import METHODS

HOLDS, FAILS, OPEN, MISSING = "holds here", "does not hold here", "undecided here", "not tested yet"
OURS = ("margin_matching",)
"""Our own methods, which are never counted as the best baseline."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """Average gap of the first minus that of the second; below zero the first is closer to retraining."""

    mean: float
    low: float
    high: float
    n: int
    seeds: str
    """In how many seeds the first is lower; empty where they were not paired."""

    @property
    def word(self) -> str:
        """Whether the first is better: decided only where the interval is clear of zero."""
        return HOLDS if self.high < 0 else FAILS if self.low > 0 else OPEN

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


def paired(first: Mapping[Any, float], second: Mapping[Any, float]) -> Difference | None:
    """The difference paired by seed; None if fewer than two seeds have both."""
    values = np.array([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])
    if len(values) < 2:
        return None
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    mean, wins = float(values.mean()), f"{(values < 0).sum()} of {len(values)}"
    return Difference(mean, mean - half, mean + half, len(values), wins)


def welch(first: Row | None, second: Row | None) -> Difference | None:
    """The difference by Welch's test from mean, sd and n; None if a value is missing or n is 1."""
    if not first or not second or first["sd"] is None or second["sd"] is None:
        return None
    shares = [one["sd"] ** 2 / one["n"] for one in (first, second)]
    total = sum(shares)
    freedom = total**2 / sum(share**2 / (one["n"] - 1) for share, one in zip(shares, (first, second), strict=True))
    half = student.ppf(0.975, freedom) * math.sqrt(total)
    mean = first["mean"] - second["mean"]
    return Difference(mean, mean - half, mean + half, min(first["n"], second["n"]), "")


def between(first: Row, second: Row) -> Difference | None:
    """The difference of two rows: paired if both have the gap of each seed, else by Welch's test."""
    each = [row.get("gap of each", {}) for row in (first, second)]
    return paired(*each) or welch(first.get("average_gap"), second.get("average_gap"))


def kept(name: str) -> Row | None:
    """The result of an experiment; None if it was not run."""
    file = RESULTS / f"{name}.json"
    return read_json(file) if file.exists() else None


def worlds(*labels: str) -> list[tuple[str, Row, Row]]:
    """Every world of the grids that has all of these methods: its name, the grid's results, the world."""
    found = []
    for name in GRIDS:
        result = results_of(name)
        found += [
            (f"{name}, {world['family']}, {world['forget']}", result, world)
            for world in (result["ranking"] if result else ())
            if {line["label"] for line in world["methods"] if line["gap"]} >= set(labels)
        ]
    return found


def reported(result: Row, world: Row, label: str) -> dict[int, float]:
    """Average gap of a method's chosen setting, by seed."""
    return by_seed(cells_of(result, world, label=label, chosen=True))


def gap_of(world: Row, label: str) -> Row:
    return next(line["gap"] for line in world["methods"] if line["label"] == label)


def versus(result: Row, world: Row, first: str, second: str, note: str = "") -> str:
    """A row of a table of differences, each with the setting that was chosen without the oracle."""
    found = paired(reported(result, world, first), reported(result, world, second))
    cells = [f"{first} | {second}{note}", figure(gap_of(world, first), 4), figure(gap_of(world, second), 4)]
    return table_row(*cells, told(found))


def told(found: Difference | None) -> str:
    return "– | – | " + MISSING if found is None else f"{found} | {found.seeds or '–'} | {found.word}"


HEAD = table_head("", "against", "its gap", "the other's", "difference (95 %)", "seeds", "")


def best(world: Row, *but: str) -> str:
    """The published method with the lowest average gap, without those in ``but``."""
    lines = [
        line
        for line in world["methods"]
        if line["gap"] and line["method"] not in (*but, *OURS) and line["label"] not in but
    ]
    return min(lines, key=lambda line: line["gap"]["mean"])["label"]


def sweep(result: Row, world: Row, labels: Iterable[str]) -> list[str]:
    """Settings tried on the selection seeds: each one's score without the oracle, and its gap."""
    lines = ["", "Tried on the selection seed:", ""]
    for label in labels:
        pick = next(
            (
                one
                for one in result["picks"]
                if (one["family"], one["forget"], one["label"]) == (world["family"], world["forget"], label)
            ),
            None,
        )
        if pick is None or pick["gaps"][0] is None:
            continue
        settings = [flat(one) for one in result["settings"][world["family"]][label]]
        keys = [key for key in settings[0] if len({str(one.get(key)) for one in settings}) > 1]
        shown = []
        for number, setting in enumerate(settings):
            mark = " (chosen)" if number == pick["chosen"] else ""
            values = " ".join(f"{key} {setting.get(key)}" for key in keys)
            shown.append(f"{values}{mark}: score {pick['scores'][number]:.3f}, gap {pick['gaps'][number]:.4f}")
        lines.append(f"* {label}: {'; '.join(shown)}.")
    return lines if len(lines) > 3 else []


def flat(setting: Row, prefix: str = "") -> Row:
    values: Row = {}
    for key, value in setting.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


def words(found: Iterable[str]) -> str:
    """The common answer of several worlds."""
    each = list(found)
    return MISSING if not each else each[0] if len(set(each)) == 1 else "mixed: see the worlds"


# ---- the claims ----


def coun() -> list[str]:
    """CoUn against its best baseline, and its term on other methods."""
    lines, against, term, tables = [], [], [], []
    for name, result, world in worlds("coun"):
        rival = best(world, "coun")
        found = paired(reported(result, world, "coun"), reported(result, world, rival))
        against.append(found.word if found else MISSING)
        tables += ["", f"**{name}** (noise floor {world['floor']['mean']:.4f}; best baseline: {rival})", "", *HEAD]
        tables += [versus(result, world, "coun", rival)]
        tables += [versus(result, world, "coun", "finetune")] if rival != "finetune" else []
        for row, word in added(result, world):
            tables.append(row)
            term.append(word)
        tables += sweep(result, world, ["coun", "coun on neggrad", "coun on l1_sparse", rival])
    lines += ["### CoUn beats its best baseline in average gap", "", f"**{words(against)}**", ""]
    lines += [f"### Its term improves NegGrad+ and l1-sparse: {words(term)}"]
    return [*lines, *tables]


def added(result: Row, world: Row) -> list[tuple[str, str]]:
    """CoUn's term on another method against that method alone, for each reported setting."""
    settings, rows = result["settings"][world["family"]], []
    for label in (one["label"] for one in world["methods"] if one["label"].startswith("coun on ")):
        for number, setting in enumerate(settings[label]):
            mine = by_seed(cells_of(result, world, label=label, setting=number, kind="method"))
            plain = label.removeprefix("coun on ")
            same = [k for k, one in enumerate(settings.get(plain, [])) if one == setting["base"]]
            theirs = by_seed(cells_of(result, world, label=plain, setting=same[0], kind="method")) if same else {}
            found = paired(mine, theirs)
            if not mine:
                continue
            short = f"lr {setting['base']['optim']['lr']}"
            means = [f"{np.mean(list(one.values())):.4f}" if one else "–" for one in (mine, theirs)]
            rows.append(
                (table_row(label, f"{plain} alone, same setting ({short})", *means, told(found)),
                 found.word if found else MISSING)
            )  # fmt: skip
    return rows


def alignment() -> list[str]:
    """Alignment calibration against four baselines on SimCLR and MoCo."""
    name, baselines = "alignment_calibration", ("finetune", "gradient_ascent", "neggrad", "l1_sparse")
    answers: dict[str, list[str]] = {"simclr": [], "moco": []}
    lines = []
    frontier = kept("frontier")
    for family in answers:
        rows = (frontier or {"families": {}})["families"].get(family, {})
        if name not in rows:
            continue
        lines += ["", f"**frontier, {family}, a fifth of 500 images** (5 seeds)", "", *HEAD]
        for rival in baselines:
            row = rows.get(f"{rival} lr .1") or rows.get(rival, {})
            found = between(rows[name], row)
            answers[family].append(found.word if found else MISSING)
            note = ", lr .1" if f"{rival} lr .1" in rows else ""
            gaps = [figure(one.get("average_gap"), 4) for one in (rows[name], row)]
            lines.append(table_row(name, f"{rival}{note}", *gaps, told(found)))
    for title, result, world in worlds(name):
        if world["family"] in answers:
            lines += ["", f"**{title}** (noise floor {world['floor']['mean']:.4f})", "", *HEAD]
            for rival in baselines:
                found = paired(reported(result, world, name), reported(result, world, rival))
                answers[world["family"]].append(found.word if found else MISSING)
                lines.append(versus(result, world, name, rival))
            lines += sweep(result, world, [name, *baselines])
    head = ["### Alignment Calibration beats fine-tune, gradient ascent, NegGrad and l1-sparse in average gap", ""]
    for family, found in answers.items():
        counts = [f"{found.count(word)} {word}" for word in (HOLDS, OPEN, FAILS, MISSING) if word in found]
        head.append(f"* {family}: **{words(found)}** ({said(counts) or 'no comparison'}).")
    return [*head, *lines]


CONTROLS = (
    "lethevit, random mask",
    "lethevit, low attention",
    "lethevit, retain stage alone",
    "lethevit, forget stage alone",
    "neggrad",
    "random_labels",
    "finetune",
    "coun",
    "contrastive_unlearning",
)


def lethevit() -> list[str]:
    """LetheViT against its controls: whether it is the attention, the masking, or the two stages."""
    answers, lines = [], []
    for title, result, world in worlds("lethevit"):
        lines += ["", f"**{title}** (noise floor {world['floor']['mean']:.4f})", "", *HEAD]
        for rival in (one for one in CONTROLS if one in {line["label"] for line in world["methods"]}):
            found = paired(reported(result, world, "lethevit"), reported(result, world, rival))
            answers.append(found.word if found else MISSING)
            lines.append(versus(result, world, "lethevit", rival))
        lines += sweep(result, world, ["lethevit", *CONTROLS])
    own = "The forget loss and the attention are ours, because the paper's equation could not be read."
    return ["### LetheViT against its controls", "", f"**{words(answers)}** {own}", *lines]


def constraint() -> list[str]:
    """The gradient constraint against the best other method of every table."""
    name, rows, answers = "gradient_constraint", [], []

    def add(where: str, mine: Row, rival: str, theirs: Row, found: Difference | None, place: str) -> None:
        answers.append(found.word if found else MISSING)
        cells = [where, figure(mine, 4), place, rival, figure(theirs, 4)]
        rows.append(table_row(*cells, told(found)))

    for title, result, world in worlds(name):
        rival = best(world, name)
        ranked = [line["label"] for line in world["methods"] if line["gap"]]
        found = paired(reported(result, world, name), reported(result, world, rival))
        place = f"{ranked.index(name) + 1} of {len(ranked)}"
        add(title, gap_of(world, name), rival, gap_of(world, rival), found, place)
    tables = {
        **{f"frontier, {key}": one for key, one in (kept("frontier") or {"families": {}})["families"].items()},
        **{
            f"gradient_constraint, {key}": one["reporting"]
            for key, one in (kept("gradient_constraint") or {"families": {}})["families"].items()
            if key not in ("simclr", "moco")
        },
        **{f"emoji, {key}": one for key, one in (kept("emoji") or {"reporting": {}})["reporting"].items()},
    }
    for title, table in tables.items():
        gaps = {
            label: row["average_gap"]
            for label, row in table.items()
            if row.get("average_gap") and label.partition("-")[0] not in ("original", "oracle")
            if not label.endswith(", 10 %")  # twice the steps of the others
        }
        mine = next(label for label in gaps if label.partition(",")[0] == name)
        published = set(METHODS) - {name, *OURS}
        others = {label: gap for label, gap in gaps.items() if re.split("[ ,]", label)[0] in published}
        rival = min(others, key=lambda label: others[label]["mean"])
        place = 1 + sum(gap["mean"] < gaps[mine]["mean"] for gap in others.values())
        add(
            title, gaps[mine], rival, others[rival], between(table[mine], table[rival]), f"{place} of {len(others) + 1}"
        )
    head = [*table_head("table", "its gap", "place", "best other", "its gap", "difference (95 %)", "seeds", "")]
    own = "The penalty is ours, because the paper's text could not be read."
    title = "### Gradient Constraint against all others in average gap"
    return [title, "", f"**{words(answers)}** {own}", "", *head, *rows]


def one_class() -> list[str]:
    """Contrastive unlearning of one class against retraining."""
    title = [
        "### Contrastive Unlearning: one class gone in under one pass, others within 2 points, 20 times faster",
        "",
    ]
    result = kept("one_class")
    if result is None:
        return [*title, f"**{MISSING}**"]
    reporting, chosen = result["reporting"], result["chosen"]
    oracle = reporting["retrain"]["cells"]
    lines = [
        *table_head(
            *("", "n", "forgotten class, trained on", "the class, unseen", "others, unseen", "points below retrain"),
            *("CPU seconds", "times less than retrain", "all three"),
        ),
    ]
    words_of: dict[str, list[bool]] = {}
    for label, row in reporting.items():
        lost = [
            100 * (ref["others, unseen"] - c["others, unseen"]) for c, ref in zip(row["cells"], oracle, strict=True)
        ]
        less = [
            ref["cpu seconds"] / c["cpu seconds"] if "cpu seconds" in c else None
            for c, ref in zip(row["cells"], oracle, strict=True)
        ]
        sides = [
            max(c["forget"], c["class, unseen"]) <= 0.01 and points <= 2 and times is not None and times >= 20
            for c, points, times in zip(row["cells"], lost, less, strict=True)
        ]
        words_of[label] = sides
        shown = label + (" (chosen)" if label == chosen else "")
        cells = [
            str(len(row["cells"])),
            *(percent(row[key], " %") for key in ("forget", "class, unseen", "others, unseen")),
            ranged(lost, 1),
            figure(row.get("cpu seconds"), 1),
            ranged([x for x in less if x is not None], 0),
            "" if label in ("retrain", "original", "neggrad") else f"{sum(sides)} of {len(sides)}",
        ]
        lines.append(table_row(shown, *cells))
    answer = HOLDS if all(words_of[chosen]) else FAILS
    default = HOLDS if all(words_of["defaults"]) else FAILS
    tried = ["", "Tried on the selection seed:", ""]
    for label, row in result["selection"].items():
        one = row["cells"][0]
        tried.append(
            f"* {label}: class {100 * one['forget']:.1f} % (valid {100 * one['class, valid']:.1f} %), others on valid "
            f"{100 * one['others, valid']:.1f} %, {one['steps']} steps."
        )
    return [*title, f"**{answer}** with the setting chosen; with the defaults: **{default}**.", "", *lines, *tried]


def ranged(values: list[float], digits: int) -> str:
    """Mean, lowest and highest."""
    if not values:
        return "–"
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def page() -> list[str]:
    """All claims, as Markdown lines."""
    lines: list[str] = []
    for part in (coun, one_class, alignment, lethevit, constraint):
        lines += [*part(), ""]
    return lines
