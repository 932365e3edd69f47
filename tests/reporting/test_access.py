"""The report for people who use a screen reader, a phone, a dark screen or paper, in every language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from efface.reporting.page import render_report
from efface.reporting.translation import DECIMAL_MARKS
from tests import records
from tests.accessibility import look_at_files


def test_axe_finds_nothing_and_no_label_is_cut(tmp_path: Path, browser: Any):
    case, pages = records.residue(), dict[str, Path]()
    for language in DECIMAL_MARKS:
        path = pages[f"report-{language}"] = tmp_path / f"{language}.html"
        path.write_text(render_report(case.record, case.observations, case.log, language=language), encoding="utf-8")
    assert look_at_files(browser, pages) == {}
