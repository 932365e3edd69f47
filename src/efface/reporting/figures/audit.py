"""The figures of the report, drawn from observations, findings and the training log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup

from efface import stats
from efface.auditing import signals
from efface.auditing.evidence import Evidence, Finding
from efface.auditing.observations import Observations
from efface.auditing.signal_verdict import SignalVerdict
from efface.reporting.figures import svg
from efface.reporting.figures.svg import Panel
from efface.reporting.wording import SIGNAL_PLACES

HISTOGRAM_BINS, ROC_POINTS = 28, 160
LOWEST_RATE = 1e-3
"""Lower end of the logarithmic ROC axes, unless there are too few examples to resolve it."""
LOOK_PHASE = "look"
"""Phase of the log lines that early stopping writes: see :mod:`efface.training.history`."""
MODELS = {"original": "Before", "subject": "After", "oracle": "Retrained"}
PART_LABELS = {"forget": "forget", "holdout": "never trained on", "retain": "retained"}


@dataclass(frozen=True)
class Plot:
    """One panel with its title and an optional note."""

    title: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """Panels that belong together, with one key and one caption.

    ``key`` pairs a drawn sample with its label.
    """

    plots: tuple[Plot, ...]
    caption: str
    key: tuple[tuple[Markup, str], ...] = ()


INTERVALS, AXIS = (
    "How well the attack detects the forgotten examples",
    "share right: 0.5 is guessing",
)
WHISKERS = "Whiskers: intervals of %(width)s. Band: %(low)s to %(high)s."


def draw_intervals(
    judged: Sequence[SignalVerdict],
    delta: float,
    alpha: float,
    gettext: Callable[[str], str] = str,
    number: Callable[[str], str] = str,
) -> Markup:
    """Draw the AUC of each signal before and after with its interval, and the band that counts as removed.

    Args:
        judged: Verdicts on the signals.
        delta: Half the width of the band around 0.5.
        alpha: Error rate of the verdict.
        gettext: Translates the texts.
        number: Writes a number as the language does.

    """
    before, after = gettext("before"), gettext("after")
    values = [v for s in judged for v in (*s.power, s.value, *s.deciding)]
    low, high = min(0.5 - 2 * delta, *values), max(0.5 + 2 * delta, *values)
    low, high = max(0.0, low - 0.02), min(1.0, high + 0.02)
    row, top = 24.0, 22.0
    height = top + len(judged) * (2 * row + 20) + 40
    panel = Panel(
        svg.Scale(low, high, 54, svg.WIDTH - 10),
        svg.Scale(0, 1, height - 40, top),
        svg.WIDTH,
        height,
    )
    a, b = panel.x(max(low, 0.5 - delta)), panel.x(min(high, 0.5 + delta))
    panel.text(gettext("removed"), (a + b) / 2, top - 9)
    panel.axes(gettext(AXIS), "", svg.nice_ticks(low, high), [], label=lambda tick: number(svg.format_tick(tick)))
    said: list[str] = []
    for i, one in enumerate(judged):
        base = top + i * (2 * row + 20) + 14
        panel.text(gettext(SIGNAL_PLACES.get(one.signal, one.signal)), 8, base, anchor="start", kind="name")
        edge, tall = svg.n(base + 5), svg.n(2 * row - 2)
        panel.add(f'<rect class="band" x="{svg.n(a)}" y="{edge}" width="{svg.n(b - a)}" height="{tall}"/>')
        panel.add(f'<path class="line chance" d="M{svg.n(panel.x(0.5))} {edge}v{tall}"/>')
        for j, (when, kind, (v, lo, hi)) in enumerate(
            ((before, "original", one.power), (after, "subject", (one.value, *one.deciding)))
        ):
            at = base + 16 + j * row
            panel.text(when, 8, at + 4, anchor="start")
            panel.whisker(lo, hi, at)
            panel.mark(v, at, kind)
        shares = number(f"{one.power[0]:.3f}"), number(f"{one.value:.3f}")
        said.append(f"{one.signal}: {before} {shares[0]}, {after} {shares[1]} ({gettext(one.word)})")
    width = f"{100 * (1 - alpha):g} % {before}, {100 * (1 - 2 * alpha):g} % {after}"
    band = {"low": number(f"{0.5 - delta:g}"), "high": number(f"{0.5 + delta:g}")}
    said.append(gettext(WHISKERS) % {"width": number(width), **band})
    return panel.svg("intervals", gettext(INTERVALS), ". ".join(said))


# ---- scores ----


def build_evidence(observations: Mapping[str, Observations]) -> Evidence | None:
    """Combine observations by role to evidence; None if the original or the subject is missing."""
    if "original" not in observations or "subject" not in observations:
        return None
    subject = observations["subject"]
    oracles = [o for name, o in observations.items() if name.startswith("oracle") and o.model != subject.model]
    return Evidence(observations["original"], subject, tuple(oracles))


def draw_histograms(evidence: Evidence, signal: str) -> Figure:
    """Draw the scores of forgotten, never-trained and retained examples before, after and retrained, on shared axes."""
    groups: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in MODELS}
    for name, observed, _ in evidence.models():
        for part in PART_LABELS:
            if signals.has_signal(observed, part, signal):
                groups[name.split(" ")[0]].setdefault(part, []).append(signals.scores(observed, part, signal))
    every = np.concatenate([v for parts in groups.values() for many in parts.values() for v in many])
    low, high = (float(v) for v in np.quantile(every, (0.002, 0.998)))
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    shares = {
        name: {part: np.mean([counted(v, edges) for v in many], axis=0) for part, many in parts.items()}
        for name, parts in groups.items()
    }
    top = max(float(s.max()) for parts in shares.values() for s in parts.values()) * 1.08
    plots: list[Plot] = []
    for name, parts in shares.items():
        if not parts:
            continue
        panel = Panel.of((low, high), (0.0, top))
        panel.axes(
            "score (higher: more like a trained-on example)",
            "share of examples, %",
            svg.nice_ticks(low, high),
            svg.nice_ticks(0, top, 4),
        )
        said: list[str] = []
        for part in ("retain", "holdout", "forget"):
            if part in parts:
                outline(panel, edges, parts[part], part)
                middle = float(np.mean([np.median(v) for v in groups[name][part]]))
                said.append(f"median of {PART_LABELS[part]} {middle:.3g}")
        many = len(evidence.oracles)
        title = MODELS[name] + (f" (mean of {many})" if name == "oracle" and many > 1 else "")
        plots.append(Plot(title, panel.svg(f"hist-{slug(signal)}-{name}", f"{signal}, {title}", "; ".join(said))))
    key = tuple((svg.draw_key_line(part), label) for part, label in PART_LABELS.items() if part in shares["subject"])
    caption = "Raw scores. Values outside the axis are counted in the outermost bars."
    return Figure(tuple(plots), caption, key)


def counted(scores: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Percentage of the scores in each bin; values outside the edges count in the outermost bins."""
    inside = np.clip(scores, edges[0], edges[-1])
    return 100 * np.histogram(inside, edges)[0] / len(scores)


def outline(panel: Panel, edges: np.ndarray, shares: np.ndarray, part: str) -> None:
    """Draw a histogram as a step line, filled for the forget set."""
    stairs = [(float(edges[0]), 0.0)]
    for left, right, share in zip(edges[:-1], edges[1:], shares, strict=True):
        stairs += [(float(left), float(share)), (float(right), float(share))]
    stairs.append((float(edges[-1]), 0.0))
    if part == "forget":
        panel.area(stairs, part)
    panel.line(stairs, part)


# ---- ROC ----


def draw_roc(evidence: Evidence, signal: str) -> Figure:
    """Draw the ROC of forget against holdout on linear and logarithmic axes, for the score that the verdict uses."""
    calibrated = bool(evidence.references)
    curves: list[tuple[str, str, np.ndarray, np.ndarray]] = []
    for name, observed, others in evidence.models():
        kind = name.split(" ")[0]
        if (calibrated and not others) or not signals.has_signal(observed, "holdout", signal):
            continue
        if calibrated:
            sides = [signals.calibrated_scores(observed, others, part, signal) for part in ("forget", "holdout")]
        else:
            sides = [signals.scores(observed, part, signal) for part in ("forget", "holdout")]
        curves.append((name, kind, sides[0], sides[1]))
    lowest = max(LOWEST_RATE, *(1 / max(len(m), len(o), 2) for _, _, m, o in curves))
    plots: list[Plot] = []
    said = "; ".join(f"{name} AUC {stats.auc(m, o):.3f}" for name, _, m, o in curves)
    for log in (False, True):
        low = lowest if log else 0.0
        panel = Panel.of((low, 1.0), (low, 1.0), log=log, height=240)
        ticks = svg.decade_ticks(low, 1.0) if log else [0, 0.25, 0.5, 0.75, 1.0]
        panel.axes("false-positive rate", "true-positive rate", ticks, ticks)
        panel.line([(low, low), (1.0, 1.0)], "chance")
        for _, kind, members, others in reversed(curves):
            panel.line(roc_points(members, others, low), kind)
        title = "logarithmic axes" if log else "linear axes"
        name = f"roc-{slug(signal)}-{'log' if log else 'lin'}"
        plots.append(Plot(title.capitalize(), panel.svg(name, f"ROC of {signal}, {title}", said)))
    return Figure(tuple(plots), roc_caption(evidence, lowest), roc_key(curves))


def describe_references(evidence: Evidence) -> str:
    """Name the models whose mean score is subtracted."""
    if evidence.calibration:
        return f"{len(evidence.calibration)} models of the reference bank that never saw the example"
    return "the retrained model" if len(evidence.oracles) == 1 else f"{len(evidence.oracles)} retrained models"


def roc_caption(evidence: Evidence, lowest: float) -> str:
    """The caption of the ROC figure: the score and the lower end of the logarithmic axes."""
    models = describe_references(evidence)
    score = f"the score minus the mean score of {models}" if evidence.references else "the raw score"
    single = len(evidence.oracles) == 1 and not evidence.calibration
    few = " (a single retrained model has no others for comparison, so it has no curve)" if single else ""
    return (
        f"Forgotten against never-trained examples, using {score}, as the verdict does{few}. "
        f"The logarithmic axes start at {lowest:.2g}; lower rates are drawn at the edge."
    )


def roc_key(curves: Sequence[tuple[str, str, np.ndarray, np.ndarray]]) -> tuple[tuple[Markup, str], ...]:
    """The key of the ROC figure: one line per kind of model with its AUC, and the diagonal."""
    rows: list[tuple[Markup, str]] = []
    for kind, label in MODELS.items():
        aucs = [stats.auc(m, o) for _, k, m, o in curves if k == kind]
        if aucs:
            many = f" ({len(aucs)} models, {min(aucs):.3f} to {max(aucs):.3f})" if len(aucs) > 1 else ""
            rows.append((svg.draw_key_line(kind), f"{label.lower()}: AUC {np.mean(aucs):.3f}{many}"))
    return (*rows, (svg.draw_key_line("chance"), "guessing"))


def roc_points(members: np.ndarray, nonmembers: np.ndarray, low: float) -> list[svg.Point]:
    """Points of a ROC curve inside the axes, about ``ROC_POINTS`` at most."""
    fpr, tpr, _ = stats.roc(members, nonmembers)
    kept = np.flatnonzero(np.append(True, (np.diff(fpr) > 0) | (np.diff(tpr) > 0)))
    if len(kept) > ROC_POINTS:
        rates = np.geomspace(max(low, 1e-4), 1, ROC_POINTS) if low > 0 else np.linspace(0, 1, ROC_POINTS)
        kept = np.unique(np.append(0, np.searchsorted(fpr, rates, side="right") - 1))
    points = [(max(float(fpr[i]), low), max(float(tpr[i]), low)) for i in kept]
    return points if points[-1] == (1.0, 1.0) else [*points, (1.0, 1.0)]


# ---- example by example ----


def draw_residuals(signal: str, curve: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the residual memory of each forgotten example with its interval, in descending order."""
    value, low, high = (np.asarray(curve[name], dtype=np.float64) for name in ("residual", "low", "high"))
    count = len(value)
    panel = Panel.of((0.0, max(1.0, count - 1.0)), (min(0.0, float(low.min())), max(0.0, float(high.max()))))
    panel.axes(
        "forgotten examples, most remembered first",
        "residual memory",
        [],
        svg.nice_ticks(panel.y.low, panel.y.high, 4),
    )
    panel.area([*enumerate(high.tolist()), *reversed(list(enumerate(low.tolist())))], "spread")
    panel.line([(0.0, 0.0), (panel.x.high, 0.0)], "chance")
    panel.line(list(enumerate(value.tolist())), "subject")
    above = int((low > 0).sum())
    said = f"from {value[0]:.3g} to {value[-1]:.3g}; the interval of {above} of {count} lies above 0"
    drawn = panel.svg(f"residuals-{slug(signal)}", f"Residual memory of each forgotten example, {signal}", said)
    caption = (
        "Residual memory: the score minus its mean over the retrained models, minus the same of never-trained "
        "examples. Shade: intervals that contain 0 for 95 % of never-trained examples."
    )
    return Figure((Plot(signal, drawn, said.replace("-", "\u2212")),), caption)


# ---- utility and training ----


def draw_utility(findings: Sequence[Finding]) -> Markup | None:
    """Draw each accuracy before, after and retrained, one row per measure; None if nothing was measured."""
    shown = [f for f in findings if f.unit == "share" and f.value is not None]
    if not shown:
        return None
    row, top = 36.0, 8.0
    height = top + row * len(shown) + 42
    panel = Panel(
        svg.Scale(0, 1, 10, svg.WIDTH - 14),
        svg.Scale(0, 1, height - 40, top),
        svg.WIDTH,
        height,
    )
    panel.axes("share of correct examples", "", [0, 0.25, 0.5, 0.75, 1], [])
    said: list[str] = []
    for i, one in enumerate(shown):
        at = top + row * i + 26
        panel.text(one.name.removeprefix("utility."), 10, at - 12, anchor="start", kind="name")
        panel.add(f'<path class="grid" d="M10 {svg.n(at)}H{svg.n(svg.WIDTH - 14)}"/>')
        if one.interval:
            panel.whisker(*one.interval, at)
        values = {"original": one.original, "oracle": one.oracle, "subject": one.value}
        for kind, value in values.items():
            if value is not None:
                panel.mark(value, at, kind)
        numbers = ", ".join(f"{MODELS[k].lower()} {v:.3f}" for k, v in values.items() if v is not None)
        said.append(f"{one.name}: {numbers}")
    return panel.svg("utility", "Utility", ". ".join(said))


def draw_training(log: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw every loss term of every phase over the steps, and the learning rate; None without a log."""
    series: dict[str, list[tuple[float, float]]] = {}
    for i, line in enumerate(log):
        step = float(line.get("step", i + 1))
        phase = str(line.get("phase", "train"))
        if phase == LOOK_PHASE:
            continue  # no losses; drawn by efface.reporting.figures.curves.draw_stopping
        for term, value in line.get("terms", {}).items():
            series.setdefault(f"{phase}: {term}", []).append((step, float(value)))
        if line.get("lr") is not None:
            series.setdefault("learning rate", []).append((step, float(line["lr"])))
    if not series:
        return None
    rate = series.pop("learning rate", None)
    series |= {"learning rate": rate} if rate else {}
    first, last = min(p[0][0] for p in series.values()), max(p[-1][0] for p in series.values())
    plots = tuple(draw_loss_curve(i, name, points, first, last) for i, (name, points) in enumerate(series.items()))
    caption = (
        "One panel per loss term, after weighting. Each panel has its own vertical axis. "
        "Where several steps share a pixel, the line shows their mean and the shade their range."
    )
    return Figure(plots, caption)


def draw_loss_curve(i: int, name: str, points: Sequence[tuple[float, float]], first: float, last: float) -> Plot:
    """Draw one term over the steps; values that are not finite are left out."""
    steps, values = (np.array(v, dtype=np.float64) for v in zip(*points, strict=True))
    finite = np.isfinite(values)
    omitted = int((~finite).sum())
    steps, values = steps[finite], values[finite]
    note = f"values that are not finite and not shown: {omitted}" if omitted else ""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    pad = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    low, high = low - pad, high + pad
    panel = Panel.of((first, last if last > first else first + 1), (low, high), height=150)
    panel.axes("step", "", svg.nice_ticks(first, last, 4), svg.nice_ticks(low, high, 3))
    for run in runs(steps, values, first, last):
        if any(top > bottom for _, bottom, _, top in run):
            up, down = [(x, top) for x, _, _, top in run], [(x, bottom) for x, bottom, _, _ in run]
            panel.area(up + down[::-1], "spread")
        panel.line([(x, mean) for x, _, mean, _ in run], "subject")
    summary = f"first {values[0]:.4g}, last {values[-1]:.4g}, {len(values)} steps" if len(values) else ""
    said = "; ".join(one for one in (summary.replace("-", "\u2212"), note) if one)
    return Plot(name, panel.svg(f"term-{i}", name, said), said)


def runs(
    steps: np.ndarray, values: np.ndarray, first: float, last: float
) -> list[list[tuple[float, float, float, float]]]:
    """Group values by position on the axis as ``(step, lowest, mean, highest)``, and split where a phase paused."""
    if not len(values):
        return []
    place = np.minimum(np.floor((steps - first) / max(last - first, 1.0) * ROC_POINTS), ROC_POINTS - 1)
    cuts = np.flatnonzero(np.diff(place)) + 1
    gathered = [
        (float(x.mean()), float(v.min()), float(v.mean()), float(v.max()))
        for x, v in zip(np.split(steps, cuts), np.split(values, cuts), strict=True)
    ]
    apart = np.diff([x for x, *_ in gathered])
    pauses = np.flatnonzero(apart > 4 * np.median(apart)) + 1 if len(apart) else []
    ends = [0, *(int(p) for p in pauses), len(gathered)]
    return [gathered[i:j] for i, j in pairwise(ends)]


def slug(text: str) -> str:
    """Turn a name into an id for the page, of ASCII letters, digits and hyphens."""
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in text)
