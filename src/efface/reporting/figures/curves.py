"""Figures over training steps: the checks of early stopping, and relearning."""

from __future__ import annotations

from collections.abc import Sequence

from efface.auditing.evidence import Finding
from efface.reporting.figures import svg
from efface.reporting.figures.audit import Figure, Plot, slug
from efface.reporting.figures.svg import Panel
from efface.training.history import StoppingCheck, StoppingResult

TRAINED_ON = {"retain": "the retained examples", "forget": "the forgotten examples"}


def draw_relearning(findings: Sequence[Finding]) -> Figure | None:
    """Draw one panel per signal and training data, from ``relearn.*.steps``; None without relearning."""
    found = [one for one in findings if one.name.startswith("relearn.") and one.details.get("curves")]
    if not found:
        return None
    plots = tuple(_plot_relearning(one) for one in found)
    retrained = any(name != "subject" for one in found for name in one.details["curves"])
    key = (
        (svg.draw_key_line("subject"), "unlearned"),
        *(((svg.draw_key_line("oracle"), "retrained"),) if retrained else ()),
    )
    caption = (
        "AUC of forgotten against never-trained examples while a copy of the model is trained further. Dashed line: "
        "the original. A signal that returns after training on retained examples only was hidden, not removed. "
        "Training on the forgotten examples brings it back in every model; only a faster return than in the retrained "
        "models is evidence of a trace."
    )
    return Figure(plots, caption, (*key, (svg.draw_key_line("original"), "original")))


def _plot_relearning(one: Finding) -> Plot:
    part, signal = one.name.removeprefix("relearn.").removesuffix(".steps").split(".", 1)
    curves = one.details["curves"]
    every = [v for curve in curves.values() for v in (*curve["auc"], curve["original"])]
    low, high = min(0.45, *every) - 0.02, max(0.55, *every) + 0.02
    steps = curves["subject"]["steps"]
    panel = Panel.of((steps[0], steps[-1]), (low, high))
    panel.axes("step", "AUC", svg.nice_ticks(steps[0], steps[-1], 4), svg.nice_ticks(low, high, 4))
    panel.line([(steps[0], 0.5), (steps[-1], 0.5)], "chance")
    level = curves["subject"]["original"]
    panel.line([(steps[0], level), (steps[-1], level)], "original")
    for name, curve in sorted(curves.items(), key=lambda item: item[0] == "subject"):
        points = list(zip(map(float, curve["steps"]), curve["auc"], strict=True))
        panel.line(points, "subject" if name == "subject" else "oracle")
    said = "; ".join(f"{name} {curve['auc'][0]:.3f} to {curve['auc'][-1]:.3f}" for name, curve in curves.items())
    title = f"{signal}, trained on {TRAINED_ON.get(part, part)}"
    return Plot(title, panel.svg(f"relearn-{slug(one.name)}", title, said), said)


def draw_stopping(stopped: StoppingResult | None) -> Figure | None:
    """Draw one panel per space: AUC of F and R against validation examples at each check; None without checks."""
    if stopped is None or stopped.blind:
        return None
    plots = tuple(_plot_checks(space, stopped.looks, stopped.step, stopped.delta) for space in stopped.looks[0].forget)
    caption = (
        "AUC of the margins against validation examples at each check; at 0.5 they cannot be distinguished. Shade: the "
        "interval, corrected for the number of checks. Thin dashed lines: "
        f"0.5 ± {stopped.delta:g}. The circle marks the selected state. The audit uses other examples."
    )
    key = ((svg.draw_key_line("forget"), "forgotten"), (svg.draw_key_line("retain"), "retained"))
    return Figure(plots, caption, key)


def _plot_checks(space: str, looks: Sequence[StoppingCheck], chosen: int, delta: float) -> Plot:
    steps, forget = [float(look.step) for look in looks], [look.forget[space] for look in looks]
    retain = [look.retain[space] for look in looks]
    every = [value for three in forget for value in three] + retain
    low, high = min(0.45, *every) - 0.02, max(0.55, *every) + 0.02
    panel = Panel.of((steps[0], max(steps[-1], steps[0] + 1)), (low, high))
    panel.axes("step", "AUC", svg.nice_ticks(steps[0], steps[-1], 4), svg.nice_ticks(low, high, 4))
    up, down = ([(x, three[i]) for x, three in zip(steps, forget, strict=True)] for i in (2, 1))
    panel.area(up + down[::-1], "spread")
    for level in (0.5 - delta, 0.5 + delta):
        panel.line([(steps[0], level), (steps[-1], level)], "chance")
    panel.line(list(zip(steps, retain, strict=True)), "retain")
    panel.line([(x, three[0]) for x, three in zip(steps, forget, strict=True)], "forget")
    given = [three[0] for look, three in zip(looks[1:], forget[1:], strict=True) if look.step == chosen]
    if given:
        panel.mark(float(chosen), panel.y(given[-1]), "subject")
    said = f"forget {forget[0][0]:.3f} to {forget[-1][0]:.3f}, retained {retain[0]:.3f} to {retain[-1]:.3f}"
    return Plot(space, panel.svg(f"looks-{slug(space)}", f"{space}: checks on validation examples", said), said)
