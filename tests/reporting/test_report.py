"""The report page is well formed, self-contained, reproducible, escaped, complete and consistent with the record."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from efface import stats
from efface.auditing.evidence import Cost
from efface.auditing.formatting import format_number
from efface.auditing.signal_verdict import SignalVerdict
from efface.auditing.verdict import EXIT_CODES
from efface.reporting.figures import audit, svg
from efface.reporting.format import format_duration
from efface.reporting.page import render_report
from efface.reporting.record import Record
from efface.reporting.wording import BLIND, WORDINGS, wording_for
from tests import records
from tests.records import EVIL, Case

VOID = {"meta", "br", "hr", "input", "link", "img"}
DRAWN = {"path", "circle", "rect"}


class Page(HTMLParser):
    """The parsed elements of a page; tags that do not match raise."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[tuple[float, str]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in DRAWN, f"<{tag}/> is not HTML"
        self.found.append((tag, dict(attrs)))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute comes twice: {attrs}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words += data
        if self.open and self.open[-1] == "data":
            value = self.found[-1][1]["value"]
            assert value is not None
            self.data.append((float(value), data))


def page(case: Case) -> str:
    return render_report(case.record, case.observations, case.log)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The pages of all cases."""
    return {name: page(make()) for name, make in records.CASES.items()}


def digest(text: str) -> str:
    """SHA-256 of a page."""
    return hashlib.sha256(text.encode()).hexdigest()


def squeezed(text: str) -> str:
    """The text with single spaces."""
    return " ".join(text.split())


def numbers_of(value: Any) -> set[float]:
    """All numbers in a JSON-serializable value."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return set()
    if isinstance(value, (int, float)):
        return {float(value)}
    inner = value.values() if isinstance(value, dict) else value
    return set().union(*(numbers_of(one) for one in inner))


@pytest.mark.parametrize("name", records.CASES)
class TestEveryPage:
    def test_is_well_formed_and_accessible(self, pages: dict[str, str], name: str):
        seen = Page(pages[name])
        assert pages[name].startswith("<!DOCTYPE html>")
        ids = [a["id"] for _, a in seen.found if "id" in a]
        assert len(set(ids)) == len(ids)
        for tag, attributes in seen.found:
            for pointer in (attributes.get("aria-labelledby") or "").split():
                assert pointer in ids
            if (attributes.get("href") or "").startswith("#"):
                assert (attributes["href"] or "")[1:] in ids
            if tag == "svg":
                assert attributes.get("aria-hidden") == "true" or attributes.get("role") == "img"
        tags = [tag for tag, _ in seen.found]
        assert tags.count("svg") == pages[name].count("aria-hidden") + tags.count("desc")
        levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(b <= a + 1 for a, b in pairwise(levels)), "a heading level is skipped"
        boxed = re.findall(r'<div class="scroll"[^>]*>\s*<table', pages[name])
        assert len(boxed) == tags.count("table"), "a table would widen a phone's page"

    def test_is_self_contained(self, pages: dict[str, str], name: str):
        seen = Page(pages[name])
        assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in seen.found}
        for _, attributes in seen.found:
            assert not {"src", "srcset", "xlink:href"} & set(attributes)
            assert re.match("#|findings\\.json#/[0-9]+$", attributes.get("href") or "#")
            assert not any(key.startswith("on") for key in attributes)
        style = pages[name].split("<style>")[1].split("</style>")[0]
        assert "url(" not in style and "@import" not in style and "http" not in style
        assert "default-src 'none'" in pages[name]

    def test_is_the_same_every_time(self, pages: dict[str, str], name: str):
        assert page(records.CASES[name]()) == pages[name]

    def test_shows_the_verdict_and_its_wording(self, pages: dict[str, str], name: str):
        record = records.CASES[name]().record
        words, text = wording_for(record.verdict), squeezed(Page(pages[name]).words)
        for said in (
            words.headline,
            words.meaning,
            words.then.replace("`", ""),  # set as code
            record.verdict.sentence,
            *record.verdict.limits,
        ):
            assert squeezed(said) in text
        for other in (*WORDINGS.values(), BLIND):
            assert other is words or other.headline not in text
        assert f"{record.verdict.word.capitalize()}. {words.headline}" in text

    def test_shows_only_numbers_of_the_record(self, pages: dict[str, str], name: str):
        record = records.CASES[name]().record
        known = numbers_of(record.model_dump(mode="json"))
        full = record.cost.get("oracle")
        known |= {one.seconds / full.seconds for one in record.cost.values()} if full else set()
        for one in record.findings:
            seeds = one.details.get("oracles", [])
            known |= {float(np.mean(seeds)), float(np.std(seeds, ddof=1))} if len(seeds) > 1 else set()
        shown = Page(pages[name]).data
        for value, text in shown:
            assert any(abs(value - one) <= 1e-12 * max(1, abs(one)) for one in known), f"{value} is not the record's"
            if not text.endswith(("s", "min", "h")):
                read = float(text.replace("\u2009", "").replace("\u2212", "-"))
                assert read == pytest.approx(value, rel=0.05, abs=5.1e-4)
        values = {value for value, _ in shown}
        for one in record.findings:
            wanted = (one.value, one.original, one.oracle, *(one.interval or ()))
            assert {v for v in wanted if v is not None} <= values
        for one in record.verdict.signals:
            assert {*one.power, one.value, one.low, one.high} <= values

    def test_makes_no_promises_and_contains_no_ids(self, pages: dict[str, str], name: str):
        text = pages[name].lower()
        for promise in ("verified", "guarantee", "compliant", "complies", "gdpr"):
            assert promise not in text
        assert "train/0" not in text and "forget/0" not in text


def test_every_verdict_word_has_its_own_text_and_symbol():
    assert set(WORDINGS) == set(EXIT_CODES)
    for field in ("symbol", "headline", "meaning"):
        assert len({getattr(words, field) for words in WORDINGS.values()}) == len(WORDINGS)
    shown = {make().record.verdict.word for make in records.CASES.values()}
    assert shown == set(EXIT_CODES), "the cases do not cover every word"


def test_too_little_evidence_and_a_blind_attack_have_different_texts(pages: dict[str, str]):
    assert WORDINGS["inconclusive"].headline in pages["small"] and BLIND.headline not in pages["small"]
    assert BLIND.headline in pages["blind"] and "This signal is not evidence" in pages["blind"]


def test_hostile_names_are_escaped(pages: dict[str, str]):
    assert "<script" not in pages["evil"].lower() and EVIL not in pages["evil"]
    assert Page(pages["evil"]).words.count(EVIL) > 10
    assert "x" * 200 in pages["evil"], "long values are shown whole"


def test_the_same_in_another_process():
    code = (
        "from tests import records; from tests.reporting import test_report as t; "
        "print(t.digest(t.page(records.classifier())))"
    )
    here = digest(page(records.classifier()))
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == here


def test_missing_content_is_reported_as_missing(pages: dict[str, str]):
    case = records.blind()
    empty = {
        "checkpoints": {},
        "findings": (),
        "config": {},
        "lineage": (),
        "cost": {},
        "log": None,
        "changes": (),
    }
    bare = squeezed(Page(render_report(case.record.model_copy(update=empty), {}, [])).words)
    for said in (
        "The weights were not compared",
        "Utility was not measured",
        "The record contains no training cost",
        "the record contains no checkpoint",
        "for which the record contains no digest",
        "there are no histograms and no ROC curves",
        "There is no retrained reference (level A0).",
        "There is no training log",
        "The record contains no findings",
        "The record contains no configuration",
    ):
        assert said.lower() in bare.lower()
    assert "no labels" in bare
    text = squeezed(Page(pages["blind"]).words)
    assert "There are no labels to measure accuracy with" in text
    assert "Retraining was not run" in pages["small"] and "Retraining was not run" not in pages["oracles"]


def test_tables_per_seed_only_where_there_are_seeds(pages: dict[str, str]):
    assert "oracle 5</th>" in pages["oracles"] and "over the 5 retrained models" in pages["oracles"]
    assert "Comparison with the retrained model" in pages["classifier"]
    assert "There is only one retrained model" in pages["classifier"]
    assert "oracle 1</th>" not in pages["removed"]


def test_every_term_of_the_log_is_drawn(pages: dict[str, str]):
    for name in ("removed", "evil"):
        case = records.CASES[name]()
        drawn = Page(pages[name]).words
        for line in case.log:
            assert all(f"{line['phase']}: {term}" in drawn for term in line["terms"])
        assert "learning rate" in drawn


def test_disgorgement_is_not_met_by_unlearning():
    case = records.removed()
    request = case.record.request.model_copy(update={"goal": "Disgorgement"})
    assert "meets this goal" in render_report(case.record.model_copy(update={"request": request}), {}, [])
    assert "meets this goal" not in page(case)


def test_a_changed_record_changes_the_page():
    record: Record = records.residue().record
    before = render_report(record, {}, [])
    first = replace(
        record.verdict.signals[0],
        value=0.6137,
        low=0.6011,
        high=0.6301,
        corrected=(0.5931, 0.6418),
        power=(0.8129, 0.7513, 0.8746),
    )
    verdict = replace(record.verdict, signals=(first, *record.verdict.signals[1:]), delta=0.07)
    cost = {"subject": Cost(731, 8377, 9.25)}
    after = render_report(record.model_copy(update={"verdict": verdict, "cost": cost}), {}, [])
    before, after = (text + squeezed(Page(text).words) for text in (before, after))
    for said in (
        "0.614",
        "81.3 of 100",
        "61.4 after",
        "59.3 and 64.2",
        "within 7 of 50",
        ">731<",
        "8\u2009377",
        "9.2 s",
    ):
        assert said in after and said not in before
    assert record.digest() in before


def test_a_ceiling_is_rounded_down_and_in_one_way_only():
    case = records.residue()
    at = {one.name: one for one in case.record.findings}
    bound = at["ceiling.epsilon"].value
    assert bound is not None
    shown, near = f"{int(10 * bound) / 10:g}", f"{bound:.3f}"
    text = squeezed(Page(page(case)).words)
    assert f"no leak above ε = {shown} could" in text and f"at most ε = {shown}" in text
    assert any(f"at most {shown} in the measure" in limit for limit in case.record.verdict.limits)
    assert near not in text and near != shown


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (1.25, 0.5, "of 1.250 before, 0.500 is left"),
        (0.5625, 0.75, "before 0.562, now 0.750 (between 0.125 and 2.000): more than before."),
        (-0.5, -0.25, "before \u22120.500, now \u22120.250 (between 0.125 and 2.000): more than before."),
        (0.5, -0.25, "before 0.500, now \u22120.250 (between 0.125 and 2.000)."),
    ],
)
def test_the_most_remembered_example_is_described_correctly(before: float, now: float, said: str):
    record = records.oracles().record
    first = {"item": "x", "residual": now, "low": 0.125, "high": 2.0, "p": 0.5, "original": before}
    found = [
        replace(one, value=now, original=before, details=one.details | {"worst": [first]})
        if one.name.endswith(".worst")
        else one
        for one in record.findings
    ]
    assert said in squeezed(Page(render_report(record.model_copy(update={"findings": tuple(found)}), {}, [])).words)


def test_lines_differ_without_color():
    style = resources.files("efface.reporting").joinpath("templates/report.css").read_text(encoding="utf-8")
    screen = style.split("@media print")[0]
    for kinds in (("subject", "original", "oracle", "chance"), ("forget", "holdout", "retain")):
        dashes = [re.search(r"stroke-dasharray: ([^;}]*)", rule(screen, f".line.{kind}")) for kind in kinds]
        assert dashes[0] is None and len({d.group(1) for d in dashes[1:] if d}) == len(kinds) - 1
    assert "prefers-color-scheme: dark" in screen


def rule(style: str, selector: str) -> str:
    """The body of a CSS rule."""
    return style.split(selector + " {")[1].split("}")[0]


# ---- figures ----


def test_intervals_are_drawn_at_the_right_position():
    one = SignalVerdict("a.b", (0.9, 0.85, 0.95), True, 0.5, 0.45, 0.55, 0.5, "removed", None)
    drawn = str(audit.draw_intervals([one], 0.05, 0.05))
    assert EVIL not in str(audit.draw_intervals([replace(one, signal=EVIL)], 0.05, 0.05))
    subject = re.search(r'class="mark subject" cx="([\d.]+)"', drawn)
    chance = re.search(r'class="line chance" d="M([\d.]+)', drawn)
    band = re.search(r'class="band" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn)
    whiskers = re.findall(r'class="whisker" d="M([\d.]+) [\d.]+H([\d.]+)', drawn)
    assert subject and chance and band and subject.group(1) == chance.group(1)
    assert float(whiskers[1][0]) == pytest.approx(float(band.group(1)), abs=0.11)
    assert float(whiskers[1][1]) == pytest.approx(float(band.group(1)) + float(band.group(2)), abs=0.21)
    assert float(whiskers[0][0]) > float(subject.group(1))


def test_histograms_count_every_score():
    edges = np.linspace(0, 1, 5)
    shares = audit.counted(np.array([-9.0, 0.1, 0.3, 0.99, 1.0, 7.0]), edges)
    assert shares.tolist() == pytest.approx([200 / 6, 100 / 6, 0, 300 / 6])


@pytest.mark.parametrize("low", [0.0, 0.01])
def test_roc_points(low: float):
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.5, 1, 900), rng.normal(size=1000)
    points = np.array(audit.roc_points(members, others, low))
    assert (np.diff(points, axis=0) >= 0).all() and points.min() >= low and tuple(points[-1]) == (1, 1)
    assert len(points) <= audit.ROC_POINTS + 2
    if low == 0:
        area = np.trapezoid(points[:, 1], points[:, 0])
        assert area == pytest.approx(stats.auc(members, others), abs=0.01)
    perfect = audit.roc_points(np.array([2.0, 3.0]), np.array([0.0, 1.0]), 0.0)
    assert (0.0, 1.0) in perfect


def test_constant_scores_can_be_drawn():
    case = records.small()
    flat = {
        name: type(o)(
            o.model,
            o.split,
            {k: np.zeros_like(v) if "margin" in k else v for k, v in o.arrays.items()},
            o.meta,
        )
        for name, o in case.observations.items()
    }
    Page(render_report(case.record, flat, case.log))


def test_training_curves_pause_where_the_phase_pauses_and_leave_out_what_is_not_finite():
    steps = np.array([0.0, 1, 2, 3, 50, 51, 52, 53])
    found = audit.runs(steps, np.arange(8.0), 0.0, 100.0)
    assert [len(run) for run in found] == [4, 4] and found[1][0] == (50.0, 4.0, 4.0, 4.0)
    gathered = audit.runs(np.arange(1600.0), np.arange(1600.0), 0.0, 1600.0)
    assert len(gathered) == 1 and gathered[0][0] == (4.5, 0.0, 4.5, 9.0)
    log = [{"step": i, "phase": "p", "terms": {"t": float("nan") if i == 2 else 1.0}} for i in range(1, 5)]
    drawn = audit.draw_training(log)
    assert drawn is not None and "not finite and not shown: 1" in drawn.plots[0].note
    assert audit.draw_training([{"step": 1, "phase": "p", "terms": {"t": 1.0}}]) is not None
    assert audit.draw_training([{"step": 1, "terms": {}}]) is None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 4.1), (1.36, 1.79), (0.05, 0.0501), (-1e6, 3e6)])
def test_ticks(low: float, high: float):
    ticks = svg.nice_ticks(low, high, 3)
    assert 2 <= len(ticks) <= 8 and low - 1e-9 <= ticks[0] and ticks[-1] <= high * (1 + 1e-9) + 1e-9
    assert len({svg.format_tick(tick) for tick in ticks}) == len(ticks)


def test_number_formats():
    assert format_number(0.0) == "0" and format_number(None) == "\u2013" and format_number(-0.1234) == "\u22120.123"
    assert (
        format_number(12.345) == "12.3" and format_number(1234.5) == "1\u2009234" and format_number(2.5e7) == "2.50e7"
    )
    assert format_number(0.0004) == "4.0e\u22124" and format_number(1234567) == "1\u2009234\u2009567"
    assert [format_duration(s) for s in (3.0, 180.0, 9000.0)] == ["3.0 s", "3.0 min", "2.5 h"]
    assert svg.format_tick(0.001) == "0.001" and svg.format_tick(-2000) == "\u22122\u2009000" and svg.n(-0.01) == "0"


def test_no_torch():
    code = "import sys, efface.reporting.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("lost", [False, True])
def test_a_model_that_is_worse_is_named_beside_the_verdict(lost: bool) -> None:
    """Above the request, with its numbers; what is lost is said in place of it."""
    made = records.removed()
    said = "accuracy of its own head 4.9 points less on retained examples (0.541, before 0.590)"
    changes = {"utility_worse": said} if not lost else {"utility_lost": said, "utility_worse": said}
    record = made.record.model_copy(update={"verdict": replace(made.record.verdict, **changes)})
    top = squeezed(page(replace(made, record=record))).partition("What to do.")[0]
    assert said[1:] in top
    assert ("worse at its own task than before" in top) == (not lost)
    assert ("no longer as useful as before" in top) == lost
    assert "own task" not in squeezed(page(made)).partition("What to do.")[0]


def test_too_few_examples_to_tell_a_loss_are_named_beside_the_verdict() -> None:
    made = records.removed()
    said = "accuracy of its own head 1.7 points less on 175 examples never trained on"
    record = made.record.model_copy(update={"verdict": replace(made.record.verdict, utility_undecided=said)})
    top = squeezed(page(replace(made, record=record))).partition("What to do.")[0]
    assert said[1:] in top and "There are too few examples to tell whether the model is worse" in top
