"""Report: a record, the observations and the log as one page that needs nothing else.

Page one is for whoever answers for the data, then comes the engineer's part, then the researcher's. Every
number on the page is the record's, the observations' or the log's; what is missing is said to be missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from markupsafe import Markup

from efface.auditing import signals
from efface.auditing.evidence import Cost, Finding
from efface.auditing.observations import Observations
from efface.auditing.verdict import SignalVerdict
from efface.reporting.figures import audit, curves
from efface.reporting.figures.forget_retain import draw_forget_retain
from efface.reporting.format import template_environment
from efface.reporting.record import CheckpointFacts, Record
from efface.reporting.wording import wording_for
from efface.training.history import describe_search, describe_stopping

REPORT = "report.html"


def render_report(record: Record, observations: Mapping[str, Observations], log: Sequence[Mapping[str, Any]]) -> str:
    """One self-contained page: no script, no network, the same bytes for the same arguments.

    ``observations``: ``original``, ``subject``, ``oracle 1`` ...; without the first two no scores are drawn.
    ``log``: records with ``step``, ``phase``, ``lr`` and ``terms``.
    """
    verdict, signs, subject = record.verdict, record.verdict.signals, record.checkpoints.get("subject")
    useful = [f for f in record.findings if f.name.startswith("utility.")]
    style = resources.files("efface.reporting").joinpath("templates/report.css").read_text(encoding="utf-8")
    seen = audit.build_evidence(observations)
    drawn = [s.signal for s in signs if seen is not None and signals.has_signal(seen.subject, "forget", s.signal)]
    return template_environment().get_template("report.html").render(
        record=record,
        verdict=verdict,
        words=wording_for(verdict),
        style=Markup(style),
        intervals=audit.draw_intervals(signs, verdict.delta, verdict.alpha) if signs else None,
        scores=[(s, audit.draw_histograms(seen, s), audit.draw_roc(seen, s)) for s in drawn] if seen else [],
        plane=draw_forget_retain(seen, drawn, verdict.delta) if seen else None,
        observed=_observed(observations),
        training=audit.draw_training(log),
        relearned=curves.draw_relearning(record.findings),
        looked=curves.draw_stopping(subject.stopped) if subject else None,
        ending=_ending(subject),
        utility=useful,
        utility_figure=audit.draw_utility(useful),
        at={one.name: one for one in record.findings},
        each=_each(record.findings, signs),
        groups=_groups(record.findings),
        seeds=_seeds(record.findings),
        cost=_cost(record.cost),
        forget=record.request.count,
        held=record.split.sizes.get("holdout"),
        oracles=[name for name in record.checkpoints if name.startswith("oracle")],
        config=json.dumps(record.config, indent=2, ensure_ascii=False),
    )  # fmt: skip


@dataclass(frozen=True)
class FindingGroup:
    """One audit's findings, each with the number of its note (0: none), and the notes, each once."""

    name: str
    place: int
    findings: tuple[tuple[Finding, int, int], ...]
    """Each with the number of its note and its place in ``findings.json``."""
    notes: tuple[str, ...]


def _groups(findings: Sequence[Finding]) -> list[FindingGroup]:
    """Findings by the audit that made them, in the order they came."""
    grouped: dict[str, list[tuple[int, Finding]]] = {}
    for row, one in enumerate(findings):
        grouped.setdefault(one.name.partition(".")[0], []).append((row, one))
    made: list[FindingGroup] = []
    for place, (name, members) in enumerate(grouped.items(), 1):
        said = ["; ".join(part for part in (one.unit, one.note) if part) for _, one in members]
        notes = tuple(dict.fromkeys(note for note in said if note))
        numbered = (notes.index(note) + 1 if note else 0 for note in said)
        listed = tuple((one, note, row) for (row, one), note in zip(members, numbered, strict=True))
        made.append(FindingGroup(name, place, listed, notes))
    return made


@dataclass(frozen=True)
class ExampleEvidence:
    """One signal's evidence example by example; None where it was not measured."""

    signal: str
    beyond: Finding
    residual: Finding | None
    worst: Finding | None
    risen: Finding | None
    rise: Finding | None
    figure: audit.Figure | None


def _each(findings: Sequence[Finding], signs: Sequence[SignalVerdict]) -> list[ExampleEvidence]:
    """Per signal; the one that tells most of the forgotten first."""
    at = {one.name: one for one in findings}
    found: list[ExampleEvidence] = []
    for one in signs:
        name = f"per_example.{one.signal}"
        if f"{name}.beyond" not in at:
            continue
        residual, worst, risen, rise = (
            at.get(f"{name}.{key}") for key in ("residual", "worst", "retained.risen", "retained.rise")
        )
        drawn = audit.draw_residuals(one.signal, worst.details["curve"]) if worst else None
        found.append(ExampleEvidence(one.signal, at[f"{name}.beyond"], residual, worst, risen, rise, drawn))
    return sorted(found, key=lambda each: -(each.beyond.value or 0))


@dataclass(frozen=True)
class MetricBySeed:
    """One metric of every model: the subject, the original, each oracle, and the oracles' mean and spread."""

    name: str
    subject: float
    original: float | None
    oracles: tuple[float, ...]
    mean: float
    deviation: float | None


def _seeds(findings: Sequence[Finding]) -> list[MetricBySeed]:
    """The oracle gap's metrics, one row each; none without oracles."""
    rows: list[MetricBySeed] = []
    for one in findings:
        seen = one.details.get("oracles")
        if one.name.startswith("oracle_gap.") and seen:
            middle = math.fsum(seen) / len(seen)
            spread = math.sqrt(math.fsum((v - middle) ** 2 for v in seen) / (len(seen) - 1)) if len(seen) > 1 else None
            name, details = one.name.removeprefix("oracle_gap."), one.details
            rows.append(MetricBySeed(name, details["subject"], details.get("original"), tuple(seen), middle, spread))
    return rows


def _ending(subject: CheckpointFacts | None) -> list[str]:
    """How the method was chosen and came to its end, in sentences; none where nobody looked on."""
    if subject is None:
        return []
    chosen = [describe_search(subject.search)] if subject.search else []
    return chosen + ([describe_stopping(subject.stopped)] if subject.stopped else [])


def _cost(cost: Mapping[str, Cost]) -> list[tuple[str, Cost, float | None]]:
    """Who, what it took, and its time as a share of retraining's."""
    full = cost.get("oracle")
    labels = {"subject": "unlearning", "original": "training the original", "oracle": "retraining"}
    return [
        (label, cost[who], cost[who].seconds / full.seconds if full and full.seconds else None)
        for who, label in labels.items()
        if who in cost
    ]


def _observed(
    observations: Mapping[str, Observations],
) -> list[tuple[str, str, list[tuple[str, int, int | None]]]]:
    """Per model: its digest, and of each part how many examples were looked at, of how many."""
    return [
        (name, o.model, [(p, n, o.meta.get("whole", {}).get(p)) for p, n in _counts(o).items()])
        for name, o in observations.items()
    ]


def _counts(observed: Observations) -> dict[str, int]:
    return {part: n for part in audit.PART_LABELS if (n := observed.count(part))}
