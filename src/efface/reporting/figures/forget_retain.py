"""The plane of forgotten against retained examples: what is still detected, and what was lost along the way."""

from __future__ import annotations

from collections.abc import Sequence

from efface import stats
from efface.auditing import signals
from efface.auditing.evidence import Evidence, mean_measured
from efface.auditing.observations import Observations
from efface.reporting.figures import svg
from efface.reporting.figures.audit import MODELS, Figure, Plot, describe_references, slug
from efface.reporting.figures.svg import Panel

WITHIN = 0.03
"""Fall of the retained examples' AUC up to which the figure draws a model as inside; the verdict does not use it."""


def draw_forget_retain(evidence: Evidence, names: Sequence[str], delta: float) -> Figure | None:
    """Draw one panel per signal; None if no signal was measured on both forgotten and retained examples.

    Args:
        evidence: Observations of original, subject and oracles.
        names: Signals to draw.
        delta: Half the width of the band around 0.5 that counts as removed.

    """
    plots = tuple(plot for name in names if (plot := _plot(evidence, name, delta)))
    if not plots:
        return None
    reference = "the retrained models" if evidence.oracles else "the original"
    score = f"score minus the mean of {describe_references(evidence)}" if evidence.references else "raw score"
    caption = (
        f"Further right, the forgotten examples still stand out ({score}). Further up, the retained examples stand out "
        f"less than in {reference}, so they were forgotten too. Dashed: 0.5 ± {delta:g} horizontally, ± {WITHIN:g} "
        "vertically; the verdict uses only the horizontal axis."
    )
    shown = [kind for kind in MODELS if kind != "oracle" or evidence.calibration or len(evidence.oracles) > 1]
    return Figure(plots, caption, tuple((svg.draw_key_marker(kind), MODELS[kind].lower()) for kind in shown))


def forget_retain_point(
    evidence: Evidence, observed: Observations, others: Sequence[Observations], signal: str
) -> svg.Point | None:
    """The position of a model in the plane.

    Args:
        evidence: Observations of original, subject and oracles.
        observed: Observations of the model.
        others: Observations of the retrained models to compare with; empty to compare with the original.
        signal: The signal.

    Returns:
        AUC of the forgotten examples, and how far the AUC of the retained examples lies below that of ``others`` (or
        of the original); None if the signal was not measured.

    """
    compared = evidence.oracles if evidence.calibration else others  # a bank's models never saw what was retained
    references = [signals.score_pair(one, "retain", signal) for one in compared or (evidence.original,)]
    retained = signals.score_pair(observed, "retain", signal)
    if retained is None or not all(references) or not signals.has_signal(observed, "holdout", signal):
        return None
    if others:
        sides = [signals.calibrated_scores(observed, others, part, signal) for part in ("forget", "holdout")]
    else:
        sides = [signals.scores(observed, part, signal) for part in ("forget", "holdout")]
    expected = mean_measured(stats.auc(*pair) for pair in references if pair)
    return None if expected is None else (stats.auc(*sides), expected - stats.auc(*retained))


def _plot(evidence: Evidence, signal: str, delta: float) -> Plot | None:
    found: list[tuple[str, svg.Point]] = []
    for name, observed, others in evidence.models():
        kind = name.split(" ")[0]
        if (others or not evidence.references) and (at := forget_retain_point(evidence, observed, others, signal)):
            found.append((kind, at))
    if "subject" not in dict(found):
        return None
    xs, ys = zip(*(at for _, at in found), strict=True)
    low, high = min(0.5 - 1.5 * delta, *xs) - 0.02, max(0.5 + 1.5 * delta, *xs) + 0.02
    panel = Panel.of((low, high), (min(-1.5 * WITHIN, *ys) - 0.01, max(1.5 * WITHIN, *ys) + 0.01), left=54)
    corners = [(0.5 - delta, -WITHIN), (0.5 + delta, -WITHIN), (0.5 + delta, WITHIN), (0.5 - delta, WITHIN)]
    panel.axes(
        "AUC of forgotten: 0.5 is guessing",
        "fall of the AUC of retained",
        svg.nice_ticks(low, high),
        svg.nice_ticks(panel.y.low, panel.y.high, 4),
    )
    panel.line([*corners, corners[0]], "chance")
    for kind, (x, y) in reversed(found):
        panel.mark(x, panel.y(y), kind)
    said = "; ".join(f"{MODELS[kind].lower()} {x:.3f}, fell by {y:.3f}" for kind, (x, y) in found)
    said = said.replace("-", "\u2212")
    return Plot(signal, panel.svg(f"plane-{slug(signal)}", f"{signal}: forgotten and retained examples", said), said)
