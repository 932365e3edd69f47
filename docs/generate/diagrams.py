"""The diagrams of the concept pages and the decision chart, as SVG files that need nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import escape
from research.paths import DOCS

from efface.reporting.figures import svg

FIGURES = DOCS / "figures"
STYLE = (
    "text{font:14px system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',Arial,sans-serif;fill:#1b1d20}"
    ".bold{font-weight:600}.small{font-size:12px}.soft{fill:#585d64}.mono{font-family:ui-monospace,Menlo,Consolas,"
    "'Liberation Mono',monospace;font-size:13px}.paper{fill:#fff}.box{fill:#f4f5f6;stroke:#8a9099}"
    ".ask{fill:#fff;stroke:#0b57a4;stroke-width:1.5}.good{fill:#e4f3e8;stroke:#2c7a3f}.bad{fill:#fbe9e2;stroke:#b3430b}"
    ".open{fill:#f4f5f6;stroke:#8a9099;stroke-dasharray:4 3}.arrow{fill:none;stroke:#585d64;stroke-width:1.5}"
    ".tip{fill:#585d64}.axis{stroke:#585d64}.one{fill:#0b57a4}.other{fill:#fff;stroke:#b3430b;stroke-width:1.6}"
    "@media(prefers-color-scheme:dark){text{fill:#e7e9ec}.soft{fill:#a3a9b1}.paper{fill:#1b1d20}"
    ".box{fill:#26292e;stroke:#6d747d}.ask{fill:#1b1d20;stroke:#7db6f2}.good{fill:#1d3324;stroke:#7fce94}"
    ".bad{fill:#3a241b;stroke:#f0a37a}.open{fill:#26292e;stroke:#6d747d}.arrow,.axis{stroke:#a3a9b1}.tip{fill:#a3a9b1}"
    ".one{fill:#7db6f2}.other{fill:#1b1d20;stroke:#f0a37a}}"
)


@dataclass
class Drawing:
    """Boxes, arrows and text on a sheet of fixed size."""

    width: float
    height: float
    drawn: list[str] = field(default_factory=list)

    def text(self, text: str, x: float, y: float, *, anchor: str = "middle", kind: str = "") -> None:
        """Write one line of text."""
        named = f' class="{kind}"' if kind else ""
        self.drawn.append(f'<text{named} x="{svg.n(x)}" y="{svg.n(y)}" text-anchor="{anchor}">{escape(text)}</text>')

    def box(self, lines: Sequence[str], x: float, y: float, wide: float, high: float, kind: str = "box") -> None:
        """Draw a box centered at a point; its first line is bold."""
        at = f'x="{svg.n(x - wide / 2)}" y="{svg.n(y - high / 2)}" width="{svg.n(wide)}" height="{svg.n(high)}"'
        self.drawn.append(f'<rect class="{kind}" {at} rx="7"/>')
        start = y - 9 * (len(lines) - 1) + 5
        for i, line in enumerate(lines):
            self.text(line, x, start + 18 * i, kind="bold" if i == 0 else "small soft")

    def arrow(
        self, points: Sequence[tuple[float, float]], label: str = "", *, at: tuple[float, float] = (8, -6)
    ) -> None:
        """Draw an arrow through points, with a label beside its middle."""
        course = "L".join(f"{svg.n(a)} {svg.n(b)}" for a, b in points)
        self.drawn.append(f'<path class="arrow" d="M{course}"/>')
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 or 1.0
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        left = (x1 - 9 * dx - 5 * dy, y1 - 9 * dy + 5 * dx)
        right = (x1 - 9 * dx + 5 * dy, y1 - 9 * dy - 5 * dx)
        tip = " ".join(f"{svg.n(a)},{svg.n(b)}" for a, b in ((x1, y1), left, right))
        self.drawn.append(f'<polygon class="tip" points="{tip}"/>')
        if label:
            (a0, b0), (a1, b1) = points[0], points[1]
            self.text(label, (a0 + a1) / 2 + at[0], (b0 + b1) / 2 + at[1], anchor="start", kind="small soft")

    def write(self, path: Path, title: str, description: str) -> None:
        """Write the file."""
        paper = f'<rect class="paper" width="{svg.n(self.width)}" height="{svg.n(self.height)}" rx="6"/>'
        content = f"<style>{STYLE}</style>{paper}{''.join(self.drawn)}"
        name = path.stem.replace("_", "-")
        whole = svg.wrap_svg(name, title, description, content, self.width, self.height)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{whole}\n", encoding="utf-8")


def overview() -> None:
    """What goes in and what comes out."""
    sheet = Drawing(760, 250)
    sheet.box(["your checkpoint", "and the data it saw"], 110, 70, 180, 64)
    sheet.box(["what to forget", "a list of ids, a person"], 110, 180, 180, 64)
    sheet.box(["efface unlearn", "one of the methods"], 345, 70, 170, 64, "ask")
    sheet.box(["efface audit", "attacks the result"], 345, 180, 170, 64, "ask")
    sheet.box(["unlearned checkpoint", "in its own layout"], 610, 70, 220, 64, "good")
    sheet.box(["verdict, record, report", "and what they cannot show"], 610, 180, 220, 64, "good")
    sheet.arrow([(200, 70), (258, 70)])
    sheet.arrow([(200, 180), (230, 180), (230, 84), (258, 84)])
    sheet.arrow([(430, 70), (498, 70)])
    sheet.arrow([(345, 102), (345, 146)])
    sheet.arrow([(430, 180), (498, 180)])
    sheet.write(
        FIGURES / "overview.svg",
        "What goes in and what comes out",
        "A checkpoint and a list of examples go into efface unlearn, which gives an unlearned checkpoint; efface audit "
        "attacks it and gives a verdict, a record and a report.",
    )


def zones() -> None:
    """Where an interval must lie for each verdict."""
    sheet = Drawing(760, 330)
    low, high = 300.0, 735.0
    scale = svg.Scale(0.3, 0.7, low, high)
    rows = [
        ("removed", 0.503, 0.028, "the whole interval is inside"),
        ("residue", 0.612, 0.040, "clearly above: still remembered"),
        ("over-forgotten", 0.392, 0.040, "clearly below: too unfamiliar"),
        ("inconclusive", 0.525, 0.085, "too wide to say"),
    ]
    a, b = scale(0.45), scale(0.55)
    sheet.drawn.append(f'<rect class="good" x="{svg.n(a)}" y="46" width="{svg.n(b - a)}" height="230"/>')
    sheet.text("like never trained on", (a + b) / 2, 36, kind="small soft")
    for i, (word, middle, half, why) in enumerate(rows):
        y = 84 + 52 * i
        sheet.drawn.append(
            f'<path class="arrow" d="M{svg.n(scale(middle - half))} {y}H{svg.n(scale(middle + half))}"/>'
        )
        sheet.drawn.append(f'<circle class="one" cx="{svg.n(scale(middle))}" cy="{y}" r="5.5"/>')
        sheet.text(word, 20, y - 1, anchor="start", kind="bold")
        sheet.text(why, 20, y + 17, anchor="start", kind="small soft")
    sheet.drawn.append(f'<path class="axis" d="M{low} 276H{high}"/>')
    for value in (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7):
        sheet.text(f"{value:g}", scale(value), 294, kind="small")
    sheet.text("share of pairs that the attack gets right; 0.5 is guessing", (low + high) / 2, 318, kind="small soft")
    sheet.write(
        FIGURES / "verdict_zones.svg",
        "Where the interval must lie",
        "Removed: the interval lies within 0.45 to 0.55. Residue: clearly above. Over-forgotten: clearly below. "
        "Inconclusive: it crosses a limit.",
    )


def levels() -> None:
    """Who has which models."""
    sheet = Drawing(760, 300)
    rows = [
        ("A0", "the model before and after", "what anybody with the model can see", 1),
        ("A1", "and models retrained without the examples", "what is left of an example that is easy for everybody", 3),
        ("A2", "and many pairs: unlearned and retrained", "judges the method, not one checkpoint", 6),
        ("A3", "and coins, thrown before training", "a lower bound on the leak, without comparable examples", 0),
    ]
    for i, (name, has, why, models) in enumerate(rows):
        y = 44 + 66 * i
        sheet.box([name], 50, y, 64, 48, "ask")
        for j in range(models):
            sheet.drawn.append(f'<circle class="{"one" if j == 0 else "other"}" cx="{112 + 22 * j}" cy="{y}" r="8"/>')
        if not models:
            for j in range(4):
                sheet.drawn.append(f'<circle class="other" cx="{112 + 22 * j}" cy="{y}" r="8"/>')
                sheet.text("01"[j % 2], 112 + 22 * j, y + 4, kind="small")
        sheet.text(has, 262, y - 4, anchor="start", kind="bold")
        sheet.text(why, 262, y + 16, anchor="start", kind="small soft")
    sheet.write(
        FIGURES / "levels.svg",
        "Levels of evidence",
        "A0: the model before and after. A1: also models retrained without the examples. A2: also many pairs of an "
        "unlearned and a retrained model. A3: coins thrown before training.",
    )


def references() -> None:
    """Why a reference model is subtracted."""
    sheet = Drawing(760, 250)
    sheet.text("one forgotten example, scored by", 20, 34, anchor="start", kind="soft")
    sheet.box(["the unlearned model", "score 0.9"], 130, 90, 200, 56)
    sheet.box(["models that never saw it", "scores 0.7, 0.8, 0.9: mean 0.8"], 130, 180, 220, 56, "open")
    sheet.arrow([(240, 90), (320, 90), (320, 128), (372, 128)])
    sheet.arrow([(240, 180), (320, 180), (320, 142), (372, 142)])
    sheet.box(["what is left", "0.9 − 0.8 = 0.1"], 450, 135, 150, 56, "ask")
    sheet.arrow([(526, 135), (572, 135)])
    sheet.box(["compared with", "never-trained examples,", "scored the same way"], 656, 135, 166, 76, "good")
    sheet.write(
        FIGURES / "references.svg",
        "What a reference is for",
        "The mean score of models that never saw an example is subtracted, so that an easy example does not look like "
        "a remembered one.",
    )


def bank() -> None:
    """Each model of a bank is trained on a random half."""
    sheet = Drawing(760, 300)
    sheet.text("training examples of the original", 400, 30, kind="small soft")
    halves = ["11010010", "00101101", "01100101", "10011010"]
    for row, half in enumerate(halves):
        y = 74 + 46 * row
        sheet.text(f"model {row + 1}", 30, y + 5, anchor="start")
        for column, inside in enumerate(half):
            kind = "good" if inside == "1" else "open"
            x = 150 + 64 * column
            sheet.drawn.append(f'<rect class="{kind}" x="{x}" y="{y - 16}" width="52" height="32" rx="5"/>')
            sheet.text("in" if inside == "1" else "out", x + 26, y + 5, kind="small")
    sheet.drawn.append('<rect class="ask" fill-opacity="0" x="336" y="50" width="64" height="196" rx="8"/>')
    sheet.text("to be forgotten:", 368, 268, kind="small soft")
    sheet.text("models 2 and 3 never saw it", 368, 286, kind="small bold")
    sheet.write(
        FIGURES / "bank.svg",
        "A reference bank",
        "Four models, in complementary pairs, each trained on a random half of the examples. For an example to be "
        "forgotten, the models that were trained without it are its references.",
    )


def rehearsals() -> None:
    """Many requests like the real one."""
    sheet = Drawing(760, 270)
    sheet.box(["the original"], 90, 135, 130, 48)
    for i in range(4):
        y = 40 + 46 * i
        sheet.box([f"rehearsal {i + 1}"] if i < 3 else ["... and 37 more"], 320, y, 170, 34, "ask" if i < 3 else "open")
        sheet.arrow([(155, 135), (200, 135), (200, y), (234, y)])
        sheet.arrow([(406, y), (450, y), (450, 98), (478, 98)])
    sheet.box(["the real request", "three pictures"], 320, 232, 170, 46, "good")
    sheet.arrow([(155, 135), (200, 135), (200, 232), (234, 232)])
    sheet.box(["all their examples", "120 together decide:", "is the procedure clean?"], 610, 98, 260, 76, "box")
    sheet.box(["is it one of them?", "its few examples and its effect"], 610, 232, 260, 50, "box")
    sheet.arrow([(406, 232), (478, 232)])
    sheet.arrow([(610, 138), (610, 206)])
    sheet.write(
        FIGURES / "rehearsals.svg",
        "Rehearsals",
        "From the original, forty requests like the real one are unlearned in the same way. All their examples "
        "together decide whether the procedure is clean; the real request is checked to be one of them.",
    )


def choose() -> None:
    """Which method to try first."""
    sheet = Drawing(760, 560)
    ask, out = 200.0, 560.0
    questions = [
        (["Can you afford to", "train again?"], "yes", ["retrain", "exact; nothing else is"]),
        (
            ["A whole class, or", "a large group?"],
            "yes",
            ["alignment_calibration", "for encoders and image-text models;", "neggrad for a class of a classifier"],
        ),
        (["An image-text", "model?"], "yes", ["salun", "keeps most of the retrieval"]),
        (["A classifier?"], "yes", ["margin_matching with backbone 0", "or random_labels, salun: cheaper"]),
        (
            ["Hundreds of unseen", "examples like them?"],
            "yes",
            ["margin_matching", "removes the trace, spares the rest"],
        ),
    ]
    for i, (question, label, answer) in enumerate(questions):
        y = 54 + 98 * i
        sheet.box(question, ask, y, 210, 62, "ask")
        sheet.arrow([(ask + 105, y), (out - 150, y)], label, at=(-10, -7))
        sheet.box(answer, out, y, 300, 62 if len(answer) < 3 else 70, "good")
        if i:
            sheet.arrow([(ask, y - 67), (ask, y - 31)], "no", at=(8, 4))
    y = 54 + 98 * 4
    sheet.arrow([(ask, y + 31), (ask, y + 61)], "no", at=(8, 4))
    sheet.box(["alignment_calibration or finetune", "and expect a trace"], ask + 20, y + 84, 290, 46, "open")
    sheet.text("Then audit. If it says residue: --method auto,", out, y + 76, kind="small soft")
    sheet.text("more strength, or retrain.", out, y + 94, kind="small soft")
    sheet.write(
        FIGURES / "which_method.svg",
        "Which method to try first",
        "Can you train again: retrain. A person, class or group: alignment_calibration, for a classifier's class "
        "neggrad. An image-text model: salun. A classifier: margin_matching with backbone 0, random_labels or salun. "
        "Hundreds of unseen examples: margin_matching. Otherwise alignment_calibration or finetune.",
    )


def architecture() -> None:
    """The packages in layers."""
    sheet = Drawing(760, 620)
    rows = [
        [("cli", "parses options, prints, sets exit codes")],
        [("bench", "compares methods over a grid")],
        [("runs", "verbs on run folders")],
        [("api", "the same verbs in memory")],
        [("interop", "other libraries' checkpoints"), ("reporting", "record, report, figures")],
        [("unlearning", "the methods, how they are run"), ("auditing", "observations to a verdict")],
        [("training", "model, objectives, loop, checkpoints")],
        [("data", "examples, splits, selectors; NumPy only")],
        [("tasks, config, files, schema, stats, errors", "")],
    ]
    for i, row in enumerate(rows):
        y = 40 + 67 * i
        centers = [380.0] if len(row) == 1 else [235.0, 525.0]
        for (name, what), x in zip(row, centers, strict=True):
            sheet.box([name, what] if what else [name], x, y, 330 if len(row) == 1 else 270, 46)
        if i:
            before = [380.0] if len(rows[i - 1]) == 1 else [235.0, 525.0]
            for x in centers if len(centers) > len(before) else before:
                sheet.arrow([(x, y - 44), (x, y - 23)])
    sheet.write(
        FIGURES / "architecture.svg",
        "The packages in layers",
        "cli, bench, runs, api; interop and reporting; unlearning and auditing; training; data; and the base modules. "
        "A package may import every layer below its own.",
    )


def main() -> None:
    """Draw all diagrams."""
    for draw in (overview, zones, levels, references, bank, rehearsals, choose, architecture):
        draw()


if __name__ == "__main__":
    main()
