"""Report: a record, the observations and the log as one page that needs nothing else.

Page one is for whoever answers for the data, then comes the engineer's part, then the researcher's. Every
number on the page is the record's, the observations' or the log's; what is missing is said to be missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from efface import curves, figures, signals, stats
from efface.audits import Cost, Finding
from efface.looks import searched, sentence
from efface.observations import Observations
from efface.plane import plane
from efface.record import CheckpointFacts, Record
from efface.verdict import SignalVerdict
from efface.words import PLACES, SYMBOLS, words_of

REPORT = "report.html"
DASH = "\u2013"
MINUS = "\u2212"
THIN = "\u2009"


# ---- how things are written ----


def number(value: float | None, digits: int = 3) -> str:
    """A measurement: three decimals, fewer if it is large, powers of ten if it is tiny; a true minus."""
    if value is None:
        return DASH
    if isinstance(value, int):
        return count(value)
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


def count(value: int) -> str:
    """A whole number with thin spaces between its thousands."""
    return f"{value:,}".replace(",", THIN).replace("-", MINUS)


def data(value: float | None, digits: int = 3) -> Markup:
    """A number as it is read, with its full value in the markup for machines."""
    if value is None:
        return Markup('<span class="absent">{}</span>').format(DASH)
    return Markup('<data value="{}">{}</data>').format(repr(value), number(value, digits))


def ceiling(value: float | None) -> Markup:
    """The largest leak that could be shown, rounded down as the verdict's limits have it."""
    if value is None:
        return data(value)
    return Markup('<data value="{}">{:g}</data>').format(repr(value), stats.rounded_down(value))


def span(interval: Sequence[float] | None) -> Markup:
    """An interval."""
    if interval is None:
        return Markup('<span class="absent">{}</span>').format(DASH)
    return Markup('<span class="span">{} to {}</span>').format(data(interval[0]), data(interval[1]))


def digest(value: str | None) -> Markup:
    """A digest that can be copied whole, and breaks anywhere."""
    return Markup("<code class=digest>{}</code>").format(value) if value else Markup("<span class=absent>none</span>")


def short(value: str | None) -> Markup:
    """The first twelve characters of a digest, which tell two apart."""
    if not value:
        return Markup('<span class="absent">none</span>')
    bare = value.rpartition(":")[2]
    return Markup('<code title="{}">{}</code>').format(value, bare[:12])


def moment(value: datetime) -> str:
    """Date and time to the minute."""
    return value.strftime("%Y-%m-%d %H:%M ") + (value.tzname() or "")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def pairs_right(auc: float) -> str:
    """An AUC as what it is: of a hundred pairs, how many the attack gets right."""
    return f"{100 * auc:.1f}"


def percent(share: float) -> str:
    """A share in percent, without trailing zeros and without the sign."""
    return f"{100 * share:.6g}"


def share(value: float | None) -> str:
    """A share in percent, to a tenth."""
    return DASH if value is None else f"{100 * value:.1f}"


def pretty(value: Any) -> str:
    """A setting as its author would write it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ---- what the page is made of ----


def render(record: Record, observations: Mapping[str, Observations], log: Sequence[Mapping[str, Any]]) -> str:
    """One self-contained page: no script, no network, the same bytes for the same arguments.

    ``observations``: ``original``, ``subject``, ``oracle 1`` ...; without the first two no scores are drawn.
    ``log``: records with ``step``, ``phase``, ``lr`` and ``terms``.
    """
    verdict, signs, subject = record.verdict, record.verdict.signals, record.checkpoints.get("subject")
    useful = [f for f in record.findings if f.name.startswith("utility.")]
    style = resources.files("efface").joinpath("templates/report.css").read_text(encoding="utf-8")
    seen = figures.evidence_of(observations)
    drawn = [s.signal for s in signs if seen is not None and signals.has(seen.subject, "forget", s.signal)]
    return environment().get_template("report.html").render(
        record=record,
        verdict=verdict,
        words=words_of(verdict),
        style=Markup(style),
        intervals=figures.intervals(signs, verdict.delta, verdict.alpha) if signs else None,
        scores=[(s, figures.histograms(seen, s), figures.roc(seen, s)) for s in drawn] if seen else [],
        plane=plane(seen, drawn, verdict.delta) if seen else None,
        observed=_observed(observations),
        training=figures.training(log),
        relearned=curves.relearned(record.findings),
        looked=curves.looked(subject.stopped) if subject else None,
        ending=_ending(subject),
        utility=useful,
        utility_figure=figures.utility(useful),
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


@cache
def environment() -> Environment:
    """The templates of pages, with the ways in which numbers are written."""
    made = Environment(
        loader=PackageLoader("efface", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "number": number, "count": count, "data": data, "span": span, "digest": digest, "short": short,
        "ceiling": ceiling, "moment": moment, "duration": duration, "pairs_right": pairs_right, "pretty": pretty,
        "plural": plural, "percent": percent, "anchor": anchor, "linked": linked, "share": share,
    }  # fmt: skip
    names: dict[str, Any] = {"SYMBOLS": SYMBOLS, "PLACES": PLACES, "wanted": wanted}
    made.filters.update(filters)
    made.globals.update(names)
    return made


def plural(value: int, one: str, many: str = "") -> str:
    """``1 example``, ``2 examples``."""
    return f"{count(value)} {one if value == 1 else many or one + 's'}"


def wanted(one: SignalVerdict) -> str:
    """What would decide an open signal."""
    if one.word != "inconclusive":
        return ""
    if one.needed is None:
        return "no number of forgotten examples would decide with these never-trained examples"
    return f"about {count(one.needed)} forgotten examples would decide"


@dataclass(frozen=True)
class Group:
    """One audit's findings, each with the number of its note (0: none), and the notes, each once."""

    name: str
    place: int
    findings: tuple[tuple[Finding, int, int], ...]
    """Each with the number of its note and its place in ``findings.json``."""
    notes: tuple[str, ...]


def _groups(findings: Sequence[Finding]) -> list[Group]:
    """Findings by the audit that made them, in the order they came."""
    grouped: dict[str, list[tuple[int, Finding]]] = {}
    for row, one in enumerate(findings):
        grouped.setdefault(one.name.partition(".")[0], []).append((row, one))
    made: list[Group] = []
    for place, (name, members) in enumerate(grouped.items(), 1):
        said = ["; ".join(part for part in (one.unit, one.note) if part) for _, one in members]
        notes = tuple(dict.fromkeys(note for note in said if note))
        numbered = (notes.index(note) + 1 if note else 0 for note in said)
        listed = tuple((one, note, row) for (row, one), note in zip(members, numbered, strict=True))
        made.append(Group(name, place, listed, notes))
    return made


def anchor(name: str) -> str:
    """Where a finding's row is on the page."""
    return f"f-{figures.slug(name)}"


def linked(value: Any, one: Finding | None) -> Markup:
    """A number as a link to the row of the finding that it is of; plain where there is none."""
    shown = value if isinstance(value, Markup) else data(value)
    if one is None:
        return shown
    return Markup('<a class="number" href="#{}">{}</a>').format(anchor(one.name), shown)


@dataclass(frozen=True)
class Each:
    """One signal's evidence example by example; None where it was not measured."""

    signal: str
    beyond: Finding
    residual: Finding | None
    worst: Finding | None
    risen: Finding | None
    rise: Finding | None
    figure: figures.Figure | None


def _each(findings: Sequence[Finding], signs: Sequence[SignalVerdict]) -> list[Each]:
    """Per signal; the one that tells most of the forgotten first."""
    at = {one.name: one for one in findings}
    found: list[Each] = []
    for one in signs:
        name = f"per_example.{one.signal}"
        if f"{name}.beyond" not in at:
            continue
        residual, worst, risen, rise = (
            at.get(f"{name}.{key}") for key in ("residual", "worst", "retained.risen", "retained.rise")
        )
        drawn = figures.residuals(one.signal, worst.details["curve"]) if worst else None
        found.append(Each(one.signal, at[f"{name}.beyond"], residual, worst, risen, rise, drawn))
    return sorted(found, key=lambda each: -(each.beyond.value or 0))


@dataclass(frozen=True)
class Seeds:
    """One metric of every model: the subject, the original, each oracle, and the oracles' mean and spread."""

    name: str
    subject: float
    original: float | None
    oracles: tuple[float, ...]
    mean: float
    deviation: float | None


def _seeds(findings: Sequence[Finding]) -> list[Seeds]:
    """The oracle gap's metrics, one row each; none without oracles."""
    rows: list[Seeds] = []
    for one in findings:
        seen = one.details.get("oracles")
        if one.name.startswith("oracle_gap.") and seen:
            middle = math.fsum(seen) / len(seen)
            spread = math.sqrt(math.fsum((v - middle) ** 2 for v in seen) / (len(seen) - 1)) if len(seen) > 1 else None
            name, details = one.name.removeprefix("oracle_gap."), one.details
            rows.append(Seeds(name, details["subject"], details.get("original"), tuple(seen), middle, spread))
    return rows


def _ending(subject: CheckpointFacts | None) -> list[str]:
    """How the method was chosen and came to its end, in sentences; none where nobody looked on."""
    if subject is None:
        return []
    chosen = [searched(subject.search)] if subject.search else []
    return chosen + ([sentence(subject.stopped)] if subject.stopped else [])


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
    return {part: n for part in figures.PARTS if (n := observed.count(part))}
