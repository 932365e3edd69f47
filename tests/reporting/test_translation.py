"""The report in other languages: nothing is missing, nothing is left over, and the first page reads well."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from efface.auditing.verdict import EXIT_CODES
from efface.errors import EffaceError
from efface.reporting import format as pages
from efface.reporting import wording
from efface.reporting.facts import Case
from efface.reporting.figures import audit
from efface.reporting.format import template_environment
from efface.reporting.page import render_report
from efface.reporting.translation import DECIMAL_MARKS, ENGLISH, load_catalog
from efface.reporting.wording import Wording
from tests import records
from tests.reporting.test_report import Page, squeezed

FIGURE = {audit.INTERVALS, audit.AXIS, audit.WHISKERS}
OTHERS = [language for language in DECIMAL_MARKS if language != ENGLISH]
TRANSLATED = ("plain.html", "report.html", "parts.html")


def wordings() -> list[Wording]:
    """Every wording of a verdict, also those without a word of their own."""
    found = [one for one in vars(wording).values() if isinstance(one, Wording)]
    return [*found, *wording.WORDINGS.values()]


def messages() -> set[str]:
    """Every message of the first page: of its templates, wordings, words of the verdict, and places of signals."""
    environment: Any = template_environment()
    found = set[str]()
    for name in TRANSLATED:
        text = resources.files("efface.reporting").joinpath(f"templates/{name}").read_text(encoding="utf-8")
        for _, _, message in environment.extract_translations(text):
            found |= {one for one in (message if isinstance(message, tuple) else (message,)) if one}
    for one in wordings():
        found |= {one.headline, one.meaning, one.then}
    return found | set(EXIT_CODES) | set(wording.SIGNAL_PLACES.values()) | {pages.NO_NUMBER, pages.NEEDED} | FIGURE


@pytest.mark.parametrize("language", OTHERS)
def test_a_catalogue_has_every_message_and_no_other(language: str):
    known = load_catalog(language).messages
    assert sorted(messages() - set(known)) == [], "not translated"
    assert sorted(set(known) - messages()) == [], "no longer used"


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_keeps_what_is_filled_in(language: str):
    for message, translation in load_catalog(language).messages.items():
        assert sorted(re.findall(r"%\(\w+\)s|%%", message)) == sorted(re.findall(r"%\(\w+\)s|%%", translation))
        assert translation.strip() == translation and translation


@pytest.mark.parametrize("language", OTHERS)
@pytest.mark.parametrize("name", records.CASES)
def test_a_report_in_another_language_says_the_same(name: str, language: str):
    case = records.CASES[name]()
    text = render_report(case.record, case.observations, case.log, language=language)
    page, english = Page(text), Page(render_report(case.record, case.observations, case.log))
    assert f'<html lang="{language}">' in text
    assert sorted(page.data) == sorted(english.data), "a number differs"
    catalog, words = load_catalog(language), wording.wording_for(case.record.verdict)
    shown = squeezed(page.words)
    for message in (words.headline, words.meaning, words.then, "How sure is this?", "What else must be deleted"):
        assert catalog.gettext(message).replace("`", "") in shown
    first = text[text.index('id="plain"') : text.index('id="engineer"')]
    assert not re.search(r">(?:before|after|removed)<", first), "the figure is in English"
    own = re.sub(r'<(span|strong|li|dd|div) lang="en">.*?</\1>', "", first, flags=re.DOTALL)
    plain = squeezed(re.sub(r"<svg.*?</svg>|<[^>]+>", " ", own, flags=re.DOTALL))
    assert not re.findall(r"\b(?:the|were|examples|forgotten|before|model)\b", plain), "English is left"


def test_german_writes_a_comma():
    case = records.residue()
    text = squeezed(Page(render_report(case.record, case.observations, case.log, language="de")).words)
    assert re.search(r"in \d+,\d von 100 Paaren", text)
    shown = render_report(case.record, case.observations, case.log, language="de")
    figure = shown[shown.index('<svg class="plot"') :].partition("</svg>")[0]
    assert re.search(r">0,\d+</text>", figure) and not re.search(r"\d\.\d", re.sub(r"<[^>]*>", " ", figure))


@pytest.mark.parametrize("language", DECIMAL_MARKS)
@pytest.mark.parametrize("name", records.CASES)
def test_sentences_are_apart(name: str, language: str):
    """A template that trims its lines must not join what stands on two of them."""
    case = records.CASES[name]()
    text = render_report(case.record, case.observations, case.log, language=language)
    first = text[text.index('id="plain"') : text.index('id="engineer"')]
    first = re.sub(r"</?(?:li|p|ul|h3|dl|dt|div|figure|figcaption)\b[^>]*>", " ", first)
    plain = re.sub(r"<(?:code|dd|svg)\b.*?</(?:code|dd|svg)>|<[^>]+>", "", first, flags=re.DOTALL)
    assert re.findall(r"\S*[a-z)%][.:][A-ZÄÖÜ]\S*", plain) == []


def test_an_unknown_language_is_refused():
    with pytest.raises(EffaceError, match="language of the report"):
        load_catalog("klingon")


# ---- the first paragraph ----


@pytest.mark.parametrize("words", wordings(), ids=lambda one: one.headline)
def test_the_first_paragraph_reads_well(words: Wording):
    """Short sentences, no Greek, no term of the field."""
    text = " ".join((words.headline, words.meaning, words.then))
    sentences = [one for one in re.split(r"(?<=[.!?:])\s+", text) if one]
    count = sum(len(one.split()) for one in sentences)
    assert count / len(sentences) <= 20
    assert max(len(one.split()) for one in sentences) <= 35
    assert not re.search(r"[\u0370-\u03ff]|\bAUC\b|\bROC\b|\bA[0-3]\b|epsilon|delta", text)


@pytest.mark.parametrize("name", records.CASES)
def test_the_first_page_is_in_plain_words(name: str):
    """No Greek and no AUC before the list of limits; for the engineer both come with their explanation."""
    case = records.CASES[name]()
    text = render_report(case.record, case.observations, case.log)
    first = text[text.index('id="plain"') : text.index('id="engineer"')]
    plain = re.sub(r"<svg.*?</svg>", "", first[: first.index("What this does not show")], flags=re.DOTALL)
    plain = re.sub(r"<dd[^>]*>.*?</dd>", "", plain, flags=re.DOTALL)  # what the user wrote
    assert not re.search(r"[\u0370-\u03ff]|\bAUC\b|\bROC\b|epsilon", plain)
    assert "50 of 100 right is guessing" in plain
    recorded = text[text.index("The verdict as recorded") :]
    assert "AUC is the share of pairs" in recorded[: recorded.index("</p>")]
    assert "δ is the distance" in recorded[: recorded.index("</p>")]


@pytest.mark.parametrize("name", records.CASES)
def test_the_first_page_names_model_file_and_request(name: str):
    case = records.CASES[name]()
    asked = Case(id="2026-17", received="2026-11-02", due="2026-12-02", handled_by="J. Doe")
    request = case.record.request.model_copy(update={"case": asked})
    back = {"foreign/net.pth": "ab" * 32}
    record = case.record.model_copy(update={"request": request, "files": case.record.files | back})
    first = squeezed(Page(render_report(record, {}, [])).words)
    first = first[: first.index("For the engineer The verdict") if "For the engineer The verdict" in first else None]
    assert all(value in first for value in asked.model_dump().values())
    assert "new file: foreign/net.pth (SHA-256 abababababab)" in first
    text = render_report(case.record, {}, [])
    assert text.count('class="blank"') == (6 if not case.record.request.case.id else 2)
    assert text.count('type="checkbox"') == 8  # what else must be deleted can be ticked off


def test_the_verb_writes_it_beside_the_english_one(tmp_path: Path):
    from efface.reporting.bundle import write_report

    case = records.removed()
    english = write_report(tmp_path, case.record, case.observations, case.log)
    german = write_report(tmp_path, case.record, case.observations, case.log, language="de")
    assert (english.name, german.name) == ("report.html", "report.de.html")
    assert 'lang="de"' in german.read_text(encoding="utf-8")
