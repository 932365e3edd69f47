"""The charts of the bench page: average gaps, cost x gap x utility, and ROC curves. numpy only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from efface.reporting.figures import svg
from efface.reporting.figures.audit import Plot, slug

WIDE, TALL = 620.0, 380.0
CHEAPEST = 1e-4
"""Largest lower end of the cost axis; methods that use no examples are drawn there."""
LETTER, LINE = 5.6, 13.0
"""Approximate width of a letter and height of a line, in pixels."""
RATES = np.concatenate([[0.0], np.geomspace(0.002, 1, 40)])
RankingLine = Mapping[str, Any]


def mean(one: Mapping[str, Any] | None) -> float | None:
    """The mean of a summary from :func:`efface.bench.tables.mean_and_spread`; None if there is none."""
    return None if one is None else one["mean"]


def points(value: float) -> float:
    """A share in percentage points."""
    return 100 * value


def gaps(name: str, world: Mapping[str, Any]) -> Markup | None:
    """Draw the average gap of each method with its spread over seeds, and that of the oracle's selection."""
    lines = [line for line in world["methods"] if line["gap"]]
    if not lines:
        return None
    floor, start = mean(world["floor"]), mean(world["original"]["gap"])
    ends = [points(line["gap"]["mean"] + (line["gap"]["sd"] or 0)) for line in lines]
    ends += [points(line["oracle_picked"]["gap"]["mean"]) for line in lines if _picked(line)]
    ends += [points(value) for value in (floor, start) if value is not None]
    row, top, left = 22.0, 18.0, 168.0
    height = top + row * len(lines) + 44
    panel = svg.Panel(svg.Scale(0, 1.05 * max(ends), left, WIDE - 12), svg.Scale(0, 1, height - 40, top), WIDE, height)
    said: list[str] = []
    if floor is not None:
        a, b = panel.x(0), panel.x(points(floor))
        panel.add(
            f'<rect class="band" x="{svg.n(a)}" y="{top - 8}" width="{svg.n(b - a)}" height="{height - top - 32}"/>'
        )
        panel.text("noise floor", a, top - 9, anchor="start")
        said.append(f"noise floor {points(floor):.2f}")
    panel.axes("average gap to retraining, percentage points", "", svg.nice_ticks(0, 1.05 * max(ends), 6), [])
    if start is not None:
        at = svg.n(panel.x(points(start)))
        panel.add(f'<path class="line chance" d="M{at} {top - 4}V{svg.n(height - 40)}"/>')
        label_end = left + 14 * LETTER  # right end of the text "noise floor"
        overlaps = panel.x(points(start)) - 12 * LETTER < label_end
        x = max(label_end, panel.x(points(start))) if overlaps else panel.x(points(start))
        panel.text("original", x, top - 9, anchor="start" if overlaps else "end")
    for number, line in enumerate(lines):
        at, gap = top + row * number + 12, line["gap"]
        panel.text(line["label"], left - 8, at + 4, anchor="end", kind="name")
        panel.add(f'<path class="grid" d="M{left} {svg.n(at)}H{svg.n(WIDE - 12)}"/>')
        if gap["sd"]:
            panel.whisker(max(0.0, points(gap["mean"] - gap["sd"])), points(gap["mean"] + gap["sd"]), at)
        if _picked(line):
            panel.mark(points(line["oracle_picked"]["gap"]["mean"]), at, "oracle")
        panel.mark(points(gap["mean"]), at, "subject")
        said.append(f"{line['label']} {points(gap['mean']):.2f}")
    return panel.svg(f"gaps-{name}", "Average gap of each method", "; ".join(said))


def _picked(line: RankingLine) -> bool:
    """Whether the oracle would select another setting with a known gap."""
    other = line["by_oracle"] is not None and line["by_oracle"] != line["setting"]
    return bool(other and line["oracle_picked"] and line["oracle_picked"]["gap"])


# ---- cost x gap x utility ----


@dataclass(frozen=True)
class MethodPoint:
    """Cost (lower is better), gap (lower is better) and utility (higher is better) of a method."""

    label: str
    cost: float
    gap: float
    utility: float
    on_front: bool = False
    """Whether the method is on the Pareto front: no other is at least as good in all three and better in one."""


def method_points(world: Mapping[str, Any]) -> list[MethodPoint]:
    """The methods with all three numbers known. Cost: number of examples processed, relative to retraining."""
    known = [
        MethodPoint(line["label"], *(one["mean"] for one in (line["share"]["examples"], line["gap"], line["utility"])))
        for line in world["methods"]
        if line["gap"] and line["utility"] and line["share"]["examples"]
    ]
    return [MethodPoint(p.label, p.cost, p.gap, p.utility, not any(dominates(q, p) for q in known)) for p in known]


def dominates(one: MethodPoint, other: MethodPoint) -> bool:
    """Whether ``one`` is at least as good as ``other`` in everything and better in something."""
    a, b = (one.cost, one.gap, -one.utility), (other.cost, other.gap, -other.utility)
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def pareto(name: str, world: Mapping[str, Any]) -> Markup | None:
    """Draw gap against cost, with the Pareto front filled and the utility relative to the oracle in the labels."""
    shown = method_points(world)
    if not shown:
        return None
    cheapest = min((p.cost for p in shown if p.cost > 0), default=CHEAPEST)
    low = 10.0 ** math.floor(math.log10(max(CHEAPEST, cheapest)))
    high = max(1.2, *(1.2 * p.cost for p in shown))
    floor, full = mean(world["floor"]), mean(world["oracle"]["utility"])
    top = 1.1 * max(points(p.gap) for p in shown)
    panel = svg.Panel(svg.Scale(low, high, 52, WIDE - 14, log=True), svg.Scale(0, top, TALL - 40, 12), WIDE, TALL)
    panel.axes(
        "examples processed, relative to retraining",
        "average gap, percentage points",
        svg.decade_ticks(low, high),
        svg.nice_ticks(0, top, 6),
    )
    if floor is not None and floor > 0:
        at = panel.y(min(points(floor), top))
        panel.add(
            f'<rect class="band" x="52" y="{svg.n(at)}" width="{svg.n(WIDE - 66)}" height="{svg.n(panel.y(0) - at)}"/>'
        )
    taken: list[tuple[float, float, float, float]] = [
        (panel.x(p.cost) - 6, panel.y(points(p.gap)) - 6, panel.x(p.cost) + 6, panel.y(points(p.gap)) + 6)
        for p in shown
    ]
    for one in sorted(shown, key=lambda p: (not p.on_front, p.gap)):
        x, y = panel.x(one.cost), panel.y(points(one.gap))
        panel.add(svg.marker(x, y, "subject" if one.on_front else "original"))
        utility = "" if full is None else f" ({format_signed_points(points(one.utility - full))})"
        _label(panel, taken, f"{one.label}{utility}", x, y, "name" if one.on_front else "")
    said = "; ".join(f"{p.label}: cost {p.cost:.3g}, gap {points(p.gap):.2f}, utility {p.utility:.3f}" for p in shown)
    return panel.svg(f"pareto-{name}", "Cost, gap and utility", said)


def format_signed_points(value: float) -> str:
    """Percentage points with their sign, and a true minus sign."""
    return f"{value:+.1f}".replace("-", "\u2212")


def _label(
    panel: svg.Panel, taken: list[tuple[float, float, float, float]], text: str, x: float, y: float, kind: str
) -> None:
    """Draw a label next to a marker where it overlaps nothing; omit it if there is no space."""
    width = LETTER * len(text) + 4
    for reach in (0.0, 1.0, 2.0, 3.0):
        for side in (1, -1):
            for up in (0.0, -1.0, 1.0):
                left = x + 9 if side > 0 else x - 9 - width
                middle = y + up * LINE * (reach or 0.7)
                box = (left, middle - LINE / 2, left + width, middle + LINE / 2)
                inside = box[0] >= panel.x.start and box[2] <= WIDE and box[1] >= 0 and box[3] <= panel.y.start
                if inside and not any(_overlap(box, other) for other in taken):
                    taken.append(box)
                    panel.text(
                        text,
                        left if side > 0 else left + width,
                        middle + 4,
                        anchor="start" if side > 0 else "end",
                        kind=kind,
                    )
                    return


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# ---- ROC ----


def averaged(curves: Iterable[Mapping[str, Sequence[float]]]) -> list[svg.Point]:
    """Average the true-positive rates of several ROC curves at common false-positive rates."""
    rates = [np.interp(RATES, curve["fpr"], curve["tpr"]) for curve in curves]
    return [(float(x), float(y)) for x, y in zip(RATES, np.mean(rates, axis=0), strict=True)] if rates else []


def draw_method_roc(
    name: str,
    signal: str,
    mine: Sequence[Mapping[str, Any]],
    originals: Sequence[Mapping[str, Any]],
    oracles: Sequence[Mapping[str, Any]],
) -> Plot | None:
    """Draw the ROC curves of a method, one per seed, with the mean curves of the originals and of the oracles."""
    rows_with_curve = [row for row in mine if signal in row.get("curves", {})]
    if not rows_with_curve:
        return None
    panel = svg.Panel.of((0.0, 1.0), (0.0, 1.0), height=240)
    panel.axes("false-positive rate", "true-positive rate", [0, 0.25, 0.5, 0.75, 1], [0, 0.25, 0.5, 0.75, 1])
    panel.line([(0.0, 0.0), (1.0, 1.0)], "chance")
    for kind, rows in (("original", originals), ("oracle", oracles)):
        panel.line(averaged(row["curves"][signal] for row in rows if signal in row.get("curves", {})), kind)
    for row in rows_with_curve:
        panel.line(averaged([row["curves"][signal]]), "subject each")
    aucs = [row["signals"][signal]["auc"] for row in rows_with_curve]
    said = "AUC " + ", ".join(f"{auc:.3f}" for auc in aucs)
    return Plot(signal, panel.svg(f"roc-{name}-{slug(signal)}", f"ROC of {signal}", said), said)
