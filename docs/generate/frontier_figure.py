"""The figures of docs/results/frontier.md: trace of F against the loss of the retained examples, one dot per model.

python -m docs.generate.frontier_figure    docs/figures/frontier*.svg, from the results of frontier and unseen
"""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from benchmarks.machine import read_json
from research.frontier import ABLATION, FAMILIES, RESULT
from research.paths import DOCS
from research.unseen import RESULT as UNSEEN
from research.worlds import CLASSIFIERS

from efface.reporting.figures import svg
from efface.reporting.figures.svg import Panel

PICTURE, OF_CLASSIFIERS, LARGER = (DOCS / "figures" / f"frontier{name}.svg" for name in ("", "_classifiers", "_2000"))
STYLE = (
    "text{font:11px sans-serif;fill:#222}.name{font-weight:600}.letter{font-weight:700}.grid{stroke:#ddd}"
    ".paper{fill:#fff}.axis,.tick{stroke:#222}.area{fill:#0b57a41f;stroke:#0b57a4;stroke-dasharray:3 2}"
    ".dot{fill:#777}.ours{fill:#0b57a4}.oracle{fill:none;stroke:#222;stroke-width:1.3}.original{fill:none;stroke:#222}"
    "@media(prefers-color-scheme:dark){text{fill:#eee}.grid{stroke:#444}.axis,.tick,.oracle,.original{stroke:#eee}"
    ".paper{fill:#1b1d20}.ours{fill:#7db6f2}.area{stroke:#7db6f2}.dot{fill:#aaa}}"
)
OURS = ("margin_matching", "half the steps", "margin_matching, logits", "batches of 100")
WIDE, HIGH, LINE = 310.0, 232.0, 15.0


def kind(label: str) -> str:
    """The CSS class of a model's dots."""
    if label == "original" or label.startswith("oracle"):
        return label.split("-")[0]
    return "ours" if label in OURS else "dot"


def panel(family: str, space: str, rows: dict[str, Any], letters: dict[str, str]) -> Panel:
    """One family in one space: dots for seeds, a letter at the mean."""
    every = [(x, y) for row in rows.values() for x, y in zip(row[space]["each"], row[space]["fall"], strict=True)]
    xs, ys = zip(*every, strict=True)
    drawn = Panel.of(
        (min(*xs, 0.45) - 0.02, max(*xs, 0.55) + 0.02), (min(ys) - 0.01, max(ys) + 0.02), left=54, height=HIGH - 22
    )
    x, y = drawn.x, drawn.y
    box = [(0.45, -0.03), (0.55, -0.03), (0.55, 0.03), (0.45, 0.03)]
    drawn.area([(a, max(b, y.low)) for a, b in box], "box")
    drawn.axes("A1 of F: 0.5 is the goal", "R fell by", svg.nice_ticks(x.low, x.high), svg.nice_ticks(y.low, y.high, 4))
    for label, row in rows.items():
        points = list(zip(row[space]["each"], row[space]["fall"], strict=True))
        for a, b in points:
            drawn.add(f'<circle class="{kind(label)}" cx="{svg.n(x(a))}" cy="{svg.n(y(b))}" r="2.2"/>')
        if points:
            a, b = (sum(values) / len(points) for values in zip(*points, strict=True))
            drawn.text(letters[label], x(a) + 5, y(b) - 4, kind="letter")
    drawn.text(f"{family}, {space.split('.')[0]}", (x.start + x.end) / 2, 2, kind="name")
    return drawn


def spaces_of(rows: dict[str, Any]) -> list[str]:
    """Backbone and output, as a family's rows have them."""
    return [key for key in next(iter(rows.values())) if key.endswith(".margin")]


def draw(families: dict[str, Any], path: Path) -> None:
    """Two panels for each family, and a legend of the letters."""
    left = set(ABLATION) - set(OURS)
    families = {name: {k: row for k, row in rows.items() if k not in left} for name, rows in families.items()}
    labels = list(dict.fromkeys(label for rows in families.values() for label in rows))
    letters = {label: (ascii_uppercase + ascii_lowercase)[i] for i, label in enumerate(labels)}
    parts = []
    for i, (family, rows) in enumerate(families.items()):
        for j, space in enumerate(spaces_of(rows)):
            made = panel(family, space, rows, letters)
            parts.append(f'<g transform="translate({j * WIDE:.0f} {14 + i * HIGH:.0f})">{"".join(made.drawn)}</g>')
    top, half = 14 + len(families) * HIGH + 12, -(-len(labels) // 2)
    for i, label in enumerate(labels):
        at = f'x="{12 + (i // half) * WIDE:.0f}" y="{top + (i % half) * LINE:.0f}"'
        parts.append(f'<text {at}><tspan class="letter">{letters[label]}</tspan> {label}</text>')
    size = top + half * LINE
    said = "AUC of the forgotten against how far the retained fell below retrained models, by method and seed."
    paper = f'<rect class="paper" width="{svg.n(2 * WIDE)}" height="{svg.n(size)}" rx="6"/>'
    whole = svg.wrap_svg("frontier", "Frontier", said, f"<style>{STYLE}</style>{paper}{''.join(parts)}", 2 * WIDE, size)
    path.write_text(str(whole) + "\n", encoding="utf-8")


def main() -> None:
    """Encoders, classifiers, and encoders of more images."""
    found = read_json(RESULT)["families"]
    draw({name: rows for name, rows in found.items() if name not in CLASSIFIERS}, PICTURE)
    draw({name: rows for name, rows in found.items() if name in CLASSIFIERS}, OF_CLASSIFIERS)
    cases = read_json(UNSEEN)["cases"]
    draw({name: cases[f"2000, {name}"]["rows"] for name in FAMILIES}, LARGER)


if __name__ == "__main__":
    main()
