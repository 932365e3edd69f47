"""The report page of an audit: one self-contained HTML file from the record, the observations and the log.

The first page is for the data owner, followed by a part for the engineer and a part for the researcher. Every number
comes from the record, the observations or the training log; whatever is missing is reported as missing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from efface.auditing import signals
from efface.auditing.evidence import Cost, Finding
from efface.auditing.observations import Observations
from efface.auditing.signal_verdict import SignalVerdict
from efface.auditing.verdict import Verdict
from efface.reporting.facts import CheckpointFacts
from efface.reporting.figures import audit, curves
from efface.reporting.figures.forget_retain import draw_forget_retain
from efface.reporting.format import template_environment
from efface.reporting.record import HANDED_BACK, Record
from efface.reporting.translation import ENGLISH, load_catalog
from efface.reporting.wording import SIGNAL_PLACES, wording_for
from efface.training.history import describe_search, describe_stopping

REPORT = "report.html"
COPIES = ("decoded pictures in ", "shard ")
"""How the names of stores of pictures begin, among what unlearning took care of."""
NETWORK = ("backbone", "head", "text", "scale", "buffers", "bookkeeping", "marker", "precision")
"""Parts of a file of another library that are the unlearned network itself, or hold nothing of images."""


def report_name(language: str) -> str:
    """Name of the report's file: ``report.html``, or ``report.de.html`` for another language than English."""
    return REPORT if language == ENGLISH else f"report.{language}.html"


def render_report(
    record: Record,
    observations: Mapping[str, Observations],
    log: Sequence[Mapping[str, Any]],
    *,
    language: str = ENGLISH,
) -> str:
    """Render the report as one HTML page, without scripts or network access. Equal arguments give equal bytes.

    Args:
        record: The sealed record.
        observations: By role: ``original``, ``subject``, ``oracle 1`` ... Scores are drawn only if the first two
            are given.
        log: Lines of the training log, with ``step``, ``phase``, ``lr`` and ``terms``.
        language: Language of the first page: ``en`` or ``de``. The technical parts stay in English.

    Returns:
        The page.

    Raises:
        EffaceError: There is no catalogue of that language.

    Example:
        >>> page = render_report(Record.load(folder), {}, [])  # doctest: +SKIP

    """
    verdict, judged, subject = record.verdict, record.verdict.signals, record.checkpoints.get("subject")
    utility = [f for f in record.findings if f.name.startswith("utility.")]
    catalog = load_catalog(language)
    gettext = catalog.gettext
    style = resources.files("efface.reporting").joinpath("templates/report.css").read_text(encoding="utf-8")
    seen = audit.build_evidence(observations)
    drawn = [s.signal for s in judged if seen is not None and signals.has_signal(seen.subject, "forget", s.signal)]
    return template_environment(language).get_template("report.html").render(
        record=record,
        verdict=verdict,
        words=wording_for(verdict).translated(gettext),
        style=Markup(style),
        intervals=(
            audit.draw_intervals(judged, verdict.delta, verdict.alpha, gettext, catalog.number) if judged else None
        ),
        scores=[(s, audit.draw_histograms(seen, s), audit.draw_roc(seen, s)) for s in drawn] if seen else [],
        plane=draw_forget_retain(seen, drawn, verdict.delta) if seen else None,
        observed=_observed(observations),
        training=audit.draw_training(log),
        relearned=curves.draw_relearning(record.findings),
        looked=curves.draw_stopping(subject.stopped) if subject else None,
        ending=_ending(subject),
        utility=utility,
        utility_figure=audit.draw_utility(utility),
        at={one.name: one for one in record.findings},
        each=_each(record.findings, judged),
        groups=_groups(record.findings),
        seeds=_seeds(record.findings),
        cost=_cost(record.cost),
        forget=record.request.count,
        model=_model_name(record),
        deployed=_deployed(record),
        limits=_plain_limits(verdict),
        useful=_usefulness(record.findings),
        held=record.split.sizes.get("holdout"),
        oracles=[name for name in record.checkpoints if name.startswith("oracle")],
        remains=_remains(subject),
        config=json.dumps(record.config, indent=2, ensure_ascii=False),
    )  # fmt: skip


def _model_name(record: Record) -> str:
    """The original as its owner knows it: folder and file of its weights."""
    path = PurePath(record.checkpoints["original"].file) if "original" in record.checkpoints else PurePath()
    return "/".join(path.parts[-2:])


def _plain_limits(verdict: Verdict) -> list[str]:
    """The limits for the first page: without the controls, and with the places of signals for their names."""
    found: list[str] = []
    for limit in verdict.limits:
        if limit.startswith("Control ("):
            continue  # they are listed for the engineer
        for name, place in SIGNAL_PLACES.items():
            limit = re.sub(rf"(?<![\w.-])(?<!be ){re.escape(name)}\b", place, limit)
        found.append(limit[:1].upper() + limit[1:])
    return found


@dataclass(frozen=True)
class RemainingCopies:
    """What else may hold the forgotten examples, as far as the run knows it."""

    parts: tuple[str, ...] = ()
    """Parts of the model that remember training images, and what was done with each."""
    caches: tuple[str, ...] = ()
    """Decoded pictures and shards, and what was done with each."""


def _remains(subject: CheckpointFacts | None) -> RemainingCopies:
    """Sort what unlearning did with everything but the network itself."""
    parts, caches = list[str](), list[str]()
    for name, what in (subject.purged if subject else {}).items():
        if name.startswith(COPIES):
            caches.append(f"{name} {what}")
        elif name not in {f"foreign.{part}" for part in NETWORK}:
            shown = "momentum encoder" if name == "foreign.twin" else name.removeprefix("foreign.")
            parts.append(f"{shown.replace('_', ' ')} {what}")
    return RemainingCopies(tuple(parts), tuple(caches))


def _usefulness(findings: Sequence[Finding]) -> list[tuple[str, Finding]]:
    """How often the model is right on examples that it never saw, and on retained ones: at its own task, if known."""
    at = {one.name: one for one in findings if one.value is not None and one.original is not None}
    for name in ("accuracy", "knn20"):
        found = [(part, at[f"utility.{name}.{part}"]) for part in ("test", "retain") if f"utility.{name}.{part}" in at]
        if found:
            return found
    return []


def _deployed(record: Record) -> list[tuple[str, str]]:
    """The files of weights that can replace the old ones, with their SHA-256: those handed back, or else the run's."""
    back = {name: digest for name, digest in record.files.items() if name.startswith(HANDED_BACK)}
    subject = record.checkpoints.get("subject")
    if back or subject is None:
        return sorted(back.items())
    return [(PurePath(subject.file).name, subject.sha256)] if subject.file else []


@dataclass(frozen=True)
class FindingGroup:
    """The findings of one audit, and their notes without repetitions."""

    name: str
    place: int
    findings: tuple[tuple[Finding, int, int], ...]
    """Each finding with the number of its note (0: no note) and its index in ``findings.json``."""
    notes: tuple[str, ...]


def _groups(findings: Sequence[Finding]) -> list[FindingGroup]:
    """Group findings by audit, in their order."""
    grouped: dict[str, list[tuple[int, Finding]]] = {}
    for row, one in enumerate(findings):
        grouped.setdefault(one.name.partition(".")[0], []).append((row, one))
    groups: list[FindingGroup] = []
    for place, (name, members) in enumerate(grouped.items(), 1):
        texts = ["; ".join(part for part in (one.unit, one.note) if part) for _, one in members]
        notes = tuple(dict.fromkeys(note for note in texts if note))
        numbers = (notes.index(note) + 1 if note else 0 for note in texts)
        rows = tuple((one, number, row) for (row, one), number in zip(members, numbers, strict=True))
        groups.append(FindingGroup(name, place, rows, notes))
    return groups


@dataclass(frozen=True)
class ExampleEvidence:
    """Evidence about single examples from one signal; None for what was not measured."""

    signal: str
    beyond: Finding
    residual: Finding | None
    worst: Finding | None
    risen: Finding | None
    rise: Finding | None
    figure: audit.Figure | None


def _each(findings: Sequence[Finding], judged: Sequence[SignalVerdict]) -> list[ExampleEvidence]:
    """The evidence of each signal, starting with the signal on which most forgotten examples stand out."""
    at = {one.name: one for one in findings}
    found: list[ExampleEvidence] = []
    for one in judged:
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
    """One metric of the subject, the original and each oracle, with mean and standard deviation over the oracles."""

    name: str
    subject: float
    original: float | None
    oracles: tuple[float, ...]
    mean: float
    deviation: float | None


def _seeds(findings: Sequence[Finding]) -> list[MetricBySeed]:
    """One row for each metric of the oracle gap; empty without oracles."""
    rows: list[MetricBySeed] = []
    for one in findings:
        values = one.details.get("oracles")
        if one.name.startswith("oracle_gap.") and values:
            count = len(values)
            mean = math.fsum(values) / count
            deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1)) if count > 1 else None
            name, details = one.name.removeprefix("oracle_gap."), one.details
            rows.append(MetricBySeed(name, details["subject"], details.get("original"), tuple(values), mean, deviation))
    return rows


def _ending(subject: CheckpointFacts | None) -> list[str]:
    """Sentences on how the method was chosen and why it stopped; empty without a search and early stopping."""
    if subject is None:
        return []
    search = [describe_search(subject.search)] if subject.search else []
    return search + ([describe_stopping(subject.stopped)] if subject.stopped else [])


def _cost(cost: Mapping[str, Cost]) -> list[tuple[str, Cost, float | None]]:
    """Rows of the cost table: label, cost, and time as a fraction of the time of retraining."""
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
    """For each model its name and digest, and the number of observed examples of each part and its size."""
    return [
        (name, o.model, [(p, n, o.meta.get("whole", {}).get(p)) for p, n in _counts(o).items()])
        for name, o in observations.items()
    ]


def _counts(observed: Observations) -> dict[str, int]:
    return {part: n for part in audit.PART_LABELS if (n := observed.count(part))}
