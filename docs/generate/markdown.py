"""What all generated pages share: rows of tables, figures with their spread, and the line that says what made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MISSING = "–"
"""In a cell where nothing was measured."""


def table_head(*titles: str) -> list[str]:
    """The first two lines of a table."""
    return ["|" + "".join(f" {title} |" if title else " |" for title in titles), "|---" * len(titles) + "|"]


def table_row(*cells: object) -> str:
    """One line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def figure(value: dict[str, Any] | None, digits: int = 3) -> str:
    """Mean ± standard deviation; without the latter where there is one value only."""
    if value is None:
        return MISSING
    sd = "" if value["sd"] is None else f" ± {value['sd']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{sd}"


def percent(value: dict[str, Any] | None, unit: str = "") -> str:
    """Mean ± standard deviation of shares, in percent, with ``unit`` behind."""
    if value is None:
        return MISSING
    return f"{figure({key: value[key] and 100 * value[key] for key in ('mean', 'sd')}, 1)}{unit}"


def spread(found: dict[str, Any], digits: int = 2) -> str:
    """Median (minimum to maximum) of timings, with spaces between thousands."""
    middle, least, most = (f"{found[key]:,.{digits}f}".replace(",", " ") for key in ("median", "least", "most"))
    return f"{middle} ({least} to {most})"


def mean_and_range(values: Sequence[float], digits: int) -> str:
    """Mean (smallest to largest); without the latter where there is one value only."""
    if not values:
        return MISSING
    mean, least, most = (f"{value:.{digits}f}" for value in (sum(values) / len(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({least} to {most})"


def made_by(machine: dict[str, Any], command: str | None = None, note: str = "") -> str:
    """The command (by default the one that was recorded), the processor and the version of torch."""
    typed = f"`{machine['command']}`" if command is None else command
    return f"Made by {typed}; {machine['cpu']}, torch {machine['torch']}{note and ', ' + note}."
