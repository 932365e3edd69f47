"""Draw a square matrix as a heat map."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from efface.auditing.formatting import format_number
from efface.reporting.figures import svg

SHADES = 10
"""Number of shades between no color and full color."""
SIDE, TOP = 280.0, 12.0


def heatmap(name: str, title: str, values: np.ndarray, most: float, divide: int | None = None) -> Markup:
    """Draw a matrix as a heat map, one path per shade.

    Args:
        name: Id of the graphic; must be unique on the page.
        title: Title for screen readers.
        values: Matrix ``[n, n]``. Positive values have the accent color, negative values the text color.
        most: Absolute value with full color.
        divide: Draw a line after this number of rows and columns.

    """
    n, left = len(values), (svg.WIDTH - SIDE) / 2
    cell = SIDE / n
    level = np.zeros_like(values) if most <= 0 else np.clip(values / most, -1, 1)
    shade = np.rint(np.abs(level) * SHADES).astype(int)
    drawn: list[str] = []
    for positive in (True, False):
        for step in range(1, SHADES + 1):
            cells = np.argwhere((shade == step) & ((level > 0) == positive))
            if len(cells):
                path = "".join(_cell(left + cell * j, TOP + cell * i, cell) for i, j in cells)
                kind = "warm" if positive else "cold"
                drawn.append(f'<path class="heat {kind}" fill-opacity="{step / SHADES:g}" d="{path}"/>')
    if divide is not None and 0 < divide < n:
        at, end = cell * divide, SIDE
        drawn.append(
            f'<path class="axis" d="M{svg.n(left + at)} {svg.n(TOP)}v{svg.n(end)}'
            f'M{svg.n(left)} {svg.n(TOP + at)}h{svg.n(end)}"/>'
        )
    drawn.append(f'<path class="axis" d="M{svg.n(left)} {svg.n(TOP)}h{svg.n(SIDE)}v{svg.n(SIDE)}h{svg.n(-SIDE)}z"/>')
    off = values[~np.eye(n, dtype=bool)]
    said = f"{n} by {n}; mean of the diagonal {format_number(float(np.diag(values).mean()))}, "
    said += f"elsewhere {format_number(float(off.mean()))}"
    return svg.wrap_svg(name, title, said, "".join(drawn), svg.WIDTH, SIDE + 2 * TOP)


def _cell(x: float, y: float, side: float) -> str:
    return f"M{svg.n(x)} {svg.n(y)}h{svg.n(side)}v{svg.n(side)}h{svg.n(-side)}z"
