"""Draw small plots as SVG, without a plotting library: equal numbers give equal bytes.

A panel is about as wide as a phone screen, so that its text stays readable; a wide page shows several in a row.
Colors come from CSS classes of the page; lines are distinguished by dash pattern, width and marker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH, HEIGHT = 304.0, 200.0
Point = tuple[float, float]


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from ``low`` to ``high`` inclusive, ``about`` as many as asked."""
    rough = (high - low) / max(1, about)
    if not rough > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    ticks: list[float] = []
    for unit in (10 * power, 5 * power, 2 * power, power):
        first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
        finer = [i * unit for i in range(first, last + 1)]
        if len(ticks) >= 2 and len(finer) > about + 1:
            break
        ticks = finer
    return ticks


def decade_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from ``low`` to ``high``."""
    return [10.0**e for e in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]


def format_tick(value: float) -> str:
    """The label of a tick, without trailing zeros and with a true minus sign."""
    small = value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e6)
    text = f"{value:.0e}" if small else f"{round(value, 6):,.6g}"
    if small:
        digits, power = text.split("e")
        text = f"{digits}e{int(power)}"
    return text.replace(",", "\u2009").replace("-", "\u2212")


@dataclass(frozen=True)
class Scale:
    """A mapping from numbers to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel position of ``value``; a logarithmic scale clips values below its low end."""
        low, high, v = self.low, self.high, value
        if self.log:
            low, high, v = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = (v - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True, eq=False)
class Panel:
    """One plot: two scales and the elements drawn on them, back to front.

    Example:
        >>> panel = Panel.of((0.0, 1.0), (0.0, 1.0))
        >>> panel.line([(0.0, 0.0), (1.0, 1.0)], "chance")
        >>> markup = panel.svg("diagonal", "Diagonal", "from 0 to 1")

    """

    x: Scale
    y: Scale
    width: float = WIDTH
    height: float = HEIGHT
    drawn: list[str] = field(default_factory=list)

    @staticmethod
    def of(
        x: Point, y: Point, *, log: bool = False, left: float = 46, bottom: float = 38, height: float = HEIGHT
    ) -> Panel:
        """Build a panel whose axes cover the ranges ``x`` and ``y``."""
        return Panel(Scale(*x, left, WIDTH - 14, log), Scale(*y, height - bottom, 10, log), WIDTH, height)

    def add(self, element: str) -> None:
        """Add an SVG element in front of the others."""
        self.drawn.append(element)

    def axes(
        self,
        xlabel: str,
        ylabel: str,
        xticks: Sequence[float],
        yticks: Sequence[float],
        label: Callable[[float], str] = format_tick,
    ) -> None:
        """Draw ticks, tick labels, horizontal grid lines and axis labels."""
        x0, x1, y0, y1 = self.x.start, self.x.end, self.y.start, self.y.end
        for tick in yticks:
            at = self.y(tick)
            self.add(f'<path class="grid" d="M{n(x0)} {n(at)}H{n(x1)}"/>')
            self.text(label(tick), x0 - 6, at + 4, anchor="end")
        for tick in xticks:
            at = self.x(tick)
            self.add(f'<path class="tick" d="M{n(at)} {n(y0)}v4"/>')
            self.text(label(tick), at, y0 + 16)
        self.add(f'<path class="axis" d="M{n(x0)} {n(y0)}H{n(x1)}"/>')
        self.text(xlabel, (x0 + x1) / 2, y0 + 32, kind="label")
        if ylabel:
            middle = (y0 + y1) / 2
            turned = f'transform="rotate(-90 11 {n(middle)})"'
            at = f'x="11" y="{n(middle)}" text-anchor="middle" {turned}'
            self.add(f'<text class="label" {at}>{escape(ylabel)}</text>')

    def text(self, text: str, x: float, y: float, *, anchor: str = "middle", kind: str = "") -> None:
        """Draw text at a pixel position."""
        named = f' class="{kind}"' if kind else ""
        self.add(f'<text{named} x="{n(x)}" y="{n(y)}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, points: Sequence[Point], kind: str) -> None:
        """Draw a line through points, which must lie inside the ranges (lines are not clipped)."""
        if points:
            self.add(f'<path class="line {kind}" d="{self.path(points)}"/>')

    def area(self, points: Sequence[Point], kind: str) -> None:
        """Draw a filled polygon."""
        if points:
            self.add(f'<path class="area {kind}" d="{self.path(points)}Z"/>')

    def path(self, points: Sequence[Point]) -> str:
        """The SVG path data through points."""
        return "M" + "L".join(f"{n(self.x(x))} {n(self.y(y))}" for x, y in points)

    def mark(self, x: float, y_pixels: float, kind: str) -> None:
        """Draw a filled circle (``subject``), an empty circle (``original``) or an empty diamond (``oracle``)."""
        self.add(marker(self.x(x), y_pixels, kind))

    def whisker(self, low: float, high: float, y_pixels: float) -> None:
        """Draw an interval with end caps."""
        a, b, y = n(self.x(low)), n(self.x(high)), y_pixels
        self.add(f'<path class="whisker" d="M{a} {n(y)}H{b}M{a} {n(y - 4)}v8M{b} {n(y - 4)}v8"/>')

    def svg(self, name: str, title: str, description: str) -> Markup:
        """The finished SVG element; ``name`` must be unique on the page."""
        return wrap_svg(name, title, description, "".join(self.drawn), self.width, self.height)


def marker(x: float, y: float, kind: str) -> str:
    """The SVG element of a marker at a pixel position."""
    if kind == "oracle":
        return f'<path class="mark oracle" d="M{n(x)} {n(y - 5)}l5 5l-5 5l-5 -5z"/>'
    return f'<circle class="mark {kind}" cx="{n(x)}" cy="{n(y)}" r="{4.5 if kind == "subject" else 4}"/>'


def wrap_svg(name: str, title: str, description: str, content: str, width: float, height: float) -> Markup:
    """Wrap content in an SVG element with a title and a description for screen readers."""
    size = f'viewBox="0 0 {n(width)} {n(height)}" width="{n(width)}" height="{n(height)}"'
    return Markup(
        f'<svg class="plot" role="img" aria-labelledby="{name}-t {name}-d" {size} '
        f'xmlns="http://www.w3.org/2000/svg"><title id="{name}-t">{escape(title)}</title>'
        f'<desc id="{name}-d">{escape(description)}</desc>{content}</svg>'
    )


def draw_key_line(kind: str) -> Markup:
    """A short sample of a line, for a key."""
    return Markup(
        '<svg class="sample" viewBox="0 0 28 12" width="28" height="12" aria-hidden="true">'
        f'<path class="line {kind}" d="M1 6H27"/></svg>'
    )


def draw_key_marker(kind: str) -> Markup:
    """A sample of a marker, for a key."""
    return Markup('<svg class="keymark" width="12" height="12" aria-hidden="true">{}</svg>').format(
        Markup(marker(6, 6, kind))
    )


def n(pixels: float) -> str:
    """Format pixels with one decimal: finer is invisible, and differs between machines."""
    text = f"{round(pixels, 1) + 0.0:.1f}"
    return text.removesuffix(".0")
