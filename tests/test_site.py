"""The documentation site builds strictly, and a reader's browser asks no other server for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docs.generate import site as hooks
from mkdocs.structure.files import Files

from tests.accessibility import CUT_LABELS, look_at_files

ROOT = Path(__file__).parents[1]
LOADED = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=["']?(https?:)?//""")


def build(out: Path, *options: str, config: str = "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    """Build the site into a folder."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", str(out), *options]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(out)
    assert done.returncode == 0, done.stderr
    return out


def test_nothing_is_loaded_from_another_server(site: Path):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 80
    for page in pages:
        assert not LOADED.search(page.read_text(encoding="utf-8")), page
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"url\(['\"]?(https?:)?//|@import ['\"]?http", text), style


def test_the_reference_has_signatures_and_fields(site: Path):
    page = (site / "reference" / "api" / "efface.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", page)
    assert 'id="efface.unlearn"' in page or 'id="efface.api.unlearn"' in page
    assert "Parameters:" in text
    assert "Raises:" in text
    assert ":class:" not in text
    assert ":func:" not in text


def test_numbers_stay_on_one_line_and_code_as_it_is():
    hard = "\N{NO-BREAK SPACE}"
    html = '<td>0.5 ± 0.1</td><p>2 000 of 5 %, 3 of 4</p><svg viewBox="0 0 24 24"/><code>a 1 2</code><th></th>'
    shown = hooks.on_page_content(html, None, None, Files([]))
    assert f"0.5{hard}±{hard}0.1" in shown and f"2{hard}000 of 5{hard}%, 3 of 4" in shown
    assert 'viewBox="0 0 24 24"' in shown and "a 1 2" in shown and "<td></td>" in shown


@pytest.mark.parametrize(
    ("text", "raised"), [("### A\n#### B\n### C\n", "## A\n### B\n## C\n"), ("## A\n### B\n", "## A\n### B\n")]
)
def test_no_heading_skips_a_level(text: str, raised: str):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="results/bench.md"))
    assert hooks.on_page_markdown(f"# T\n\n{text}", page, None, Files([])) == f"# T\n\n{raised}"


@pytest.mark.parametrize("broken", ["[x](nowhere.md)", "[x](quickstart.md#no-such-part)", "::: efface.no_such_name"])
def test_a_broken_link_or_reference_fails_the_build(broken: str, tmp_path: Path):
    """A small site with the same settings, one page of which is broken."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Start\n\n[next](quickstart.md)\n", encoding="utf-8")
    (docs / "quickstart.md").write_text("# Quickstart\n\n::: efface.load\n", encoding="utf-8")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    head = settings[: settings.index("\nnav:")] + "\nnav: [index.md, quickstart.md]\n"
    head = head.replace("docs_dir: docs", f"docs_dir: {docs}").replace("hooks: [docs/generate/site.py]\n", "")
    head = (
        head.replace("extra_css: [stylesheets/site.css]\n", "")
        .replace("extra_javascript: [javascripts/focus.js]\n", "")
        .replace("paths: [src]", f"paths: [{ROOT / 'src'}]")
    )
    head = head.replace("[docs/generate/docstrings.py:", f"[{ROOT}/docs/generate/docstrings.py:")
    (tmp_path / "mkdocs.yml").write_text(head, encoding="utf-8")
    assert build(tmp_path / "site", config=str(tmp_path / "mkdocs.yml")).returncode == 0
    with (docs / "index.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{broken}\n")
    assert build(tmp_path / "site", config=str(tmp_path / "mkdocs.yml")).returncode != 0


LOOKED_AT = (
    "index",
    "guides/one_request",
    "concepts/verdict",
    "reference/api/efface",
    "results/emoji",
    "notebooks/first_request",
)
"""Pages of several kinds."""


def test_axe_finds_nothing_and_no_page_is_wider_than_the_screen(site: Path, browser: Any):
    pages = {name.replace("/", "-"): site / f"{name}.html" for name in LOOKED_AT}
    assert look_at_files(browser, pages, within=".md-content") == {}  # around it is the theme's


def test_no_label_of_a_figure_is_cut(browser: Any):
    page, cut = browser.new_page(), dict[str, list[str]]()
    for figure in sorted((ROOT / "docs" / "figures").glob("*.svg")):
        page.set_content(figure.read_text(encoding="utf-8"))
        assert page.evaluate("document.querySelectorAll('svg text').length"), figure
        assert page.locator("svg > rect.paper").count() == 1, f"{figure.name} cannot be read on another background"
        cut |= {figure.name: found} if (found := page.evaluate(CUT_LABELS)) else {}
    page.close()
    assert cut == {}
