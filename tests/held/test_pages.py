"""Names are escaped on every page, and every page forbids scripts and network access."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from efface.runs.audit_embeddings import audit_embeddings
from tests import records
from tests.reporting.test_report import page
from tests.test_structure import PACKAGE

EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;'"
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
TEMPLATES = sorted((PACKAGE / "reporting" / "templates").glob("*.html"))


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def check(text: str) -> None:
    """Check that a page runs and loads nothing, whatever the names on it are."""
    tags = Tags(text).found
    policies = [attrs["content"] for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [POLICY]
    order = [tag for tag, attrs in tags if tag in ("style", "body") or attrs.get("http-equiv")]
    assert order[0] == "meta", "the policy comes before what it is about"
    for tag, attrs in tags:
        assert tag not in ("script", "img", "iframe", "object", "embed", "link", "base", "form"), tag
        assert not [name for name in attrs if name.startswith("on") or name == "src"], attrs
        assert not str(attrs.get("href") or "#").lower().startswith(("javascript:", "data:", "vbscript:"))


@pytest.mark.parametrize("case", ["evil"])
def test_reports(case):
    check(page(records.CASES[case]()))


def test_embeddings_with_a_hostile_file_name(tmp_path: Path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{EVIL.replace('/', ' ')}{i}.npy" for i in range(2)]
    for path in paths:
        np.save(path, rng.normal(size=(30, 2, 6)))
    audit_embeddings(paths, None, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    check(text)
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_templates_trust_no_value(template: Path):
    text = template.read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe\b|autoescape\s+false", text)
    if "<html" in text:
        assert f'content="{POLICY}"' in text


def test_the_check_can_fail():
    good = page(records.evil())
    for bad in (
        good.replace("<main", f"{EVIL}<main", 1),
        good.replace(POLICY, POLICY + "; script-src 'self'"),
        good.replace("<main", '<a href="javascript:alert(1)">x</a><main', 1),
    ):
        assert bad != good
        with pytest.raises(AssertionError):
            check(bad)
