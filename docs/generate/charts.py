"""Draw the charts of the result pages as SVG files that need nothing else: rows of dots, and lines over a size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import escape
from research.paths import DOCS

from efface.reporting.figures import svg

STYLE = (
    "text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',Arial,sans-serif;fill:#1b1d20}"
    ".head{font-weight:600}.soft{fill:#585d64}.paper{fill:#fff}.grid{stroke:#d9dce0}.axis{stroke:#585d64}"
    ".goal{stroke:#0b57a4;stroke-dasharray:5 3}.whisker{stroke-width:1.5;fill:none}"
    ".a{fill:#0b57a4;stroke:#0b57a4}.b{fill:#fff;stroke:#b3430b}.c{fill:#2c7a3f;stroke:#2c7a3f}.d{fill:#fff;stroke:#585d64}"
    ".line{fill:none;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#e7e9ec}.soft{fill:#a3a9b1}.paper{fill:#1b1d20}.grid{stroke:#383c42}"
    ".axis{stroke:#a3a9b1}.goal{stroke:#7db6f2}.a{fill:#7db6f2;stroke:#7db6f2}.b{fill:#1b1d20;stroke:#f0a37a}"
    ".c{fill:#7fce94;stroke:#7fce94}.d{fill:#1b1d20;stroke:#a3a9b1}.line{fill:none}}"
)
FIGURES = DOCS / "figures"
HALF = {"guessing": 0.5}
"""A vertical line at an AUC of one half."""
KINDS = ("a", "b", "c", "d")
WIDE, ROW = 660.0, 24.0


@dataclass(frozen=True)
class Dot:
    """A value and, where it has one, its interval."""

    value: float
    low: float | None = None
    high: float | None = None


def spread_dot(value: Mapping[str, float | None]) -> Dot:
    """A mean with one standard deviation to either side."""
    mean, sd = value["mean"], value["sd"]
    assert mean is not None
    return Dot(mean) if sd is None else Dot(mean, mean - sd, mean + sd)


def range_dot(values: Iterable[float]) -> Dot | None:
    """The mean of some values, from the smallest to the largest; None without any."""
    known = list(values)
    if not known:
        return None
    ends = (min(known), max(known)) if len(known) > 1 else (None, None)
    return Dot(sum(known) / len(known), *ends)


@dataclass(frozen=True)
class Rows:
    """One panel of dots: its rows by label, each with a dot for every series, and vertical lines to compare with."""

    title: str
    rows: Mapping[str, Sequence[Dot | None]]
    goals: Mapping[str, float]
    """Label of a line to its place; labels are not drawn, the caption names them."""


def _shape(kind: str, x: float, y: float) -> str:
    """A disc, an empty disc, a square or an empty diamond, so that color is not needed to tell them apart."""
    at = f"{svg.n(x)} {svg.n(y)}"
    if kind == "c":
        return f'<rect class="c" x="{svg.n(x - 4.5)}" y="{svg.n(y - 4.5)}" width="9" height="9"/>'
    if kind == "d":
        return f'<path class="d" stroke-width="1.6" d="M{at}m0 -6l6 6l-6 6l-6 -6z"/>'
    return f'<circle class="{kind}" stroke-width="1.8" cx="{svg.n(x)}" cy="{svg.n(y)}" r="5"/>'


def _soft(text: str, x: float, y: float, more: str = "") -> str:
    """A label of an axis."""
    return f'<text class="soft" x="{svg.n(x)}" y="{svg.n(y)}" text-anchor="middle"{more}>{escape(text)}</text>'


def _legend(names: Sequence[str], y: float) -> list[str]:
    """A marker and a name for each series, in one line."""
    drawn, x = list[str](), 16.0
    for kind, name in zip(KINDS, names, strict=False):
        drawn.append(_shape(kind, x, y - 4.5))
        drawn.append(f'<text x="{svg.n(x + 12)}" y="{svg.n(y)}">{escape(name)}</text>')
        x += 34 + 7.2 * len(name)
    return drawn


def draw_rows(
    path: Path, title: str, description: str, series: Sequence[str], panels: Sequence[Rows], unit: str
) -> None:
    """Write a chart of dots in rows: one panel below the other, all on the same scale."""
    dots = [dot for one in panels for row in one.rows.values() for dot in row if dot is not None]
    ends = [e for d in dots for e in (d.value, d.low, d.high) if e is not None]
    ends += [goal for one in panels for goal in one.goals.values()]
    margin = (max(ends) - min(ends)) * 0.04 or 0.01
    left = 32 + 7.4 * max(len(label) for one in panels for label in one.rows)
    scale = svg.Scale(min(ends) - margin, max(ends) + margin, left, WIDE - 20)
    drawn = _legend(series, 24) if len(series) > 1 else []
    y = 44.0 if len(series) > 1 else 18.0
    for one in panels:
        if one.title:
            drawn.append(f'<text class="head" x="12" y="{svg.n(y + 10)}">{escape(one.title)}</text>')
            y += 22
        top, bottom = y - 2, y + ROW * len(one.rows)
        for tick in svg.nice_ticks(scale.low, scale.high, 6):
            drawn.append(f'<path class="grid" d="M{svg.n(scale(tick))} {svg.n(top)}V{svg.n(bottom)}"/>')
        for goal in one.goals.values():
            drawn.append(f'<path class="goal" d="M{svg.n(scale(goal))} {svg.n(top)}V{svg.n(bottom)}"/>')
        for label, row in one.rows.items():
            middle = y + ROW / 2
            drawn.append(
                f'<text x="{svg.n(left - 12)}" y="{svg.n(middle + 4)}" text-anchor="end">{escape(label)}</text>'
            )
            for kind, dot in zip(KINDS, row, strict=False):
                if dot is None:
                    continue
                if dot.low is not None and dot.high is not None:
                    low, high = svg.n(scale(dot.low)), svg.n(scale(dot.high))
                    drawn.append(f'<path class="whisker {kind}" d="M{low} {svg.n(middle)}H{high}"/>')
                drawn.append(_shape(kind, scale(dot.value), middle))
            y += ROW
        y += 14
    for tick in svg.nice_ticks(scale.low, scale.high, 6):
        drawn.append(_soft(svg.format_tick(tick), scale(tick), y + 6))
    drawn.append(_soft(unit, (left + WIDE) / 2, y + 26))
    _write(path, title, description, drawn, WIDE, y + 40)


def draw_lines(
    path: Path,
    title: str,
    description: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    labels: tuple[str, str],
) -> None:
    """Write a chart of lines over sizes, on a logarithmic axis, with the values in percent."""
    points = [point for line in lines.values() for point in line]
    high = 330.0
    x = svg.Scale(min(p[0] for p in points), max(p[0] for p in points), 58, WIDE - 24, log=True)
    y = svg.Scale(0, 100, high - 52, 48)
    drawn = _legend(list(lines), 24)
    for tick in (0, 20, 40, 60, 80, 100):
        drawn.append(f'<path class="grid" d="M58 {svg.n(y(tick))}H{svg.n(WIDE - 24)}"/>')
        drawn.append(f'<text class="soft" x="50" y="{svg.n(y(tick) + 4)}" text-anchor="end">{tick}</text>')
    for size in sorted({p[0] for p in points}):
        drawn.append(_soft(f"{size:g}", x(size), high - 32))
    for kind, line in zip(KINDS, lines.values(), strict=False):
        course = "L".join(f"{svg.n(x(a))} {svg.n(y(b))}" for a, b in line)
        drawn.append(f'<path class="line {kind}" style="fill:none" d="M{course}"/>')
        drawn += [_shape(kind, x(a), y(b)) for a, b in line]
    drawn.append(_soft(labels[0], WIDE / 2, high - 10))
    drawn.append(_soft(labels[1], 14, high / 2, f' transform="rotate(-90 14 {svg.n(high / 2)})"'))
    _write(path, title, description, drawn, WIDE, high)


def _write(path: Path, title: str, description: str, drawn: Sequence[str], wide: float, high: float) -> None:
    high = math.ceil(high)
    paper = f'<rect class="paper" width="{svg.n(wide)}" height="{high}" rx="6"/>'
    content = f"<style>{STYLE}</style>{paper}{''.join(drawn)}"
    whole = svg.wrap_svg(path.stem.replace("_", "-"), title, description, content, wide, high)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{whole}\n", encoding="utf-8")
