"""Small panels of vector graphics, drawn by hand: the same bytes for the same numbers.

A panel is about as wide as a phone, so that its letters stay readable everywhere; a wide page shows several
in a row. Colors are the page's (CSS classes); what tells lines apart is their dash pattern, width and marker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH, HEIGHT = 304.0, 200.0
Point = tuple[float, float]


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) from ``low`` to ``high``, ends included."""
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
    """A tick's label: no trailing zeros, a true minus."""
    small = value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e6)
    text = f"{value:.0e}" if small else f"{round(value, 6):,.6g}"
    if small:
        digits, power = text.split("e")
        text = f"{digits}e{int(power)}"
    return text.replace(",", "\u2009").replace("-", "\u2212")


@dataclass(frozen=True)
class Scale:
    """From numbers to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixels of ``value``; on a logarithmic scale whatever lies below its low end is put there."""
        low, high, v = self.low, self.high, value
        if self.log:
            low, high, v = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = (v - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True, eq=False)
class Panel:
    """One plot: scales, and what is drawn on them, back to front."""

    x: Scale
    y: Scale
    width: float = WIDTH
    height: float = HEIGHT
    drawn: list[str] = field(default_factory=list)

    @staticmethod
    def of(
        x: Point, y: Point, *, log: bool = False, left: float = 46, bottom: float = 38, height: float = HEIGHT
    ) -> Panel:
        """A panel whose axes run over the two ranges."""
        return Panel(Scale(*x, left, WIDTH - 10, log), Scale(*y, height - bottom, 10, log), WIDTH, height)

    def add(self, element: str) -> None:
        """Draw an element in front of the others."""
        self.drawn.append(element)

    def axes(
        self,
        xlabel: str,
        ylabel: str,
        xticks: Sequence[float],
        yticks: Sequence[float],
        label: Callable[[float], str] = format_tick,
    ) -> None:
        """Ticks, their labels, faint lines across, and what the axes measure."""
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
        """Words at pixels."""
        named = f' class="{kind}"' if kind else ""
        self.add(f'<text{named} x="{n(x)}" y="{n(y)}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, points: Sequence[Point], kind: str) -> None:
        """A line through points, clipped to nothing: give points inside the ranges."""
        if points:
            self.add(f'<path class="line {kind}" d="{self.path(points)}"/>')

    def area(self, points: Sequence[Point], kind: str) -> None:
        """A filled outline."""
        if points:
            self.add(f'<path class="area {kind}" d="{self.path(points)}Z"/>')

    def path(self, points: Sequence[Point]) -> str:
        """The path data through points."""
        return "M" + "L".join(f"{n(self.x(x))} {n(self.y(y))}" for x, y in points)

    def mark(self, x: float, y_pixels: float, kind: str) -> None:
        """A marker: ``subject`` a full circle, ``original`` an empty one, ``oracle`` an empty diamond."""
        self.add(marker(self.x(x), y_pixels, kind))

    def whisker(self, low: float, high: float, y_pixels: float) -> None:
        """An interval with ends."""
        a, b, y = n(self.x(low)), n(self.x(high)), y_pixels
        self.add(f'<path class="whisker" d="M{a} {n(y)}H{b}M{a} {n(y - 4)}v8M{b} {n(y - 4)}v8"/>')

    def svg(self, name: str, title: str, description: str) -> Markup:
        """The finished graphic; ``name`` must differ from every other's on the page."""
        return wrap_svg(name, title, description, "".join(self.drawn), self.width, self.height)


def marker(x: float, y: float, kind: str) -> str:
    """A marker at pixels."""
    if kind == "oracle":
        return f'<path class="mark oracle" d="M{n(x)} {n(y - 5)}l5 5l-5 5l-5 -5z"/>'
    return f'<circle class="mark {kind}" cx="{n(x)}" cy="{n(y)}" r="{4.5 if kind == "subject" else 4}"/>'


def wrap_svg(name: str, title: str, description: str, content: str, width: float, height: float) -> Markup:
    """An SVG element with its title and description for those who cannot see it."""
    size = f'viewBox="0 0 {n(width)} {n(height)}" width="{n(width)}" height="{n(height)}"'
    return Markup(
        f'<svg class="plot" role="img" aria-labelledby="{name}-t {name}-d" {size} '
        f'xmlns="http://www.w3.org/2000/svg"><title id="{name}-t">{escape(title)}</title>'
        f'<desc id="{name}-d">{escape(description)}</desc>{content}</svg>'
    )


def draw_key_line(kind: str) -> Markup:
    """A short piece of line as it is drawn, for a key."""
    return Markup(
        '<svg class="sample" viewBox="0 0 28 12" width="28" height="12" aria-hidden="true">'
        f'<path class="line {kind}" d="M1 6H27"/></svg>'
    )


def draw_key_marker(kind: str) -> Markup:
    """A marker as it is drawn, for a key."""
    return Markup('<svg class="keymark" width="12" height="12" aria-hidden="true">{}</svg>').format(
        Markup(marker(6, 6, kind))
    )


def n(pixels: float) -> str:
    """Pixels to a tenth: finer cannot be seen, and is not the same on every machine."""
    text = f"{round(pixels, 1) + 0.0:.1f}"
    return text.removesuffix(".0")
