"""Format numbers for readers: three decimals, typographic minus signs, thin spaces between thousands."""

from __future__ import annotations

DASH = "\u2013"
MINUS = "\u2212"
THIN = "\u2009"


def format_number(value: float | None, digits: int = 3) -> str:
    """Format a measurement: ``digits`` decimals, fewer if it is large, scientific if it is tiny; a dash for None."""
    if value is None:
        return DASH
    if isinstance(value, int):
        return format_count(value)
    if value == 0:
        return "0"
    size = abs(value)
    if size < 0.5 * 10**-digits:
        text = f"{value:.1e}".replace("e-0", "e-")
    elif size >= 1e6:
        text = f"{value:.2e}".replace("e+0", "e").replace("e+", "e")
    else:
        text = f"{value:,.{digits if size < 10 else 1 if size < 1000 else 0}f}".replace(",", THIN)
    return text.replace("-", MINUS)


def format_count(value: int) -> str:
    """Format a whole number with thin spaces between its thousands."""
    return f"{value:,}".replace(",", THIN).replace("-", MINUS)
