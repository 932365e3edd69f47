"""Hooks of the documentation site: pages that are kept elsewhere in the repository, and links to its files.

MkDocs calls these functions (``hooks`` in mkdocs.yml). CONTRIBUTING.md, CHANGELOG.md and the notebooks in ``examples``
become pages; a link from a page to a file outside ``docs`` becomes the name of the file, since the site has no copy.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {"CONTRIBUTING.md": "project/contributing.md", "CHANGELOG.md": "project/changelog.md", "README.md": "index.md"}
"""Files at the root that are pages of the site."""
BREAK = re.compile(r"(?<=\d) (?=[\d%±])|(?<=±) (?=\d)")
"""A space inside of a number: between its digits, before per cent, and around the sign of its deviation."""
WHOLE = re.compile(r"(<pre\b.*?</pre>|<code\b.*?</code>|<[^>]*>)", re.DOTALL)
"""Code, and tags: no text."""
EMPTY_HEADER = re.compile(r"<th([^>]*)></th>")
LINK = re.compile(r"(?<!!)\[([^\]\[]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Put the pages of generated folders into the navigation: ``methods/`` stands for all of them."""
    config["nav"] = [expand(one) for one in config["nav"]]
    return config


def expand(entry: Any) -> Any:
    """Replace ``name: folder/`` by the pages of the folder, its index first."""
    if isinstance(entry, list):
        return [expand(one) for one in entry]
    if isinstance(entry, dict):
        return {name: expand(value) for name, value in entry.items()}
    if entry.endswith("/"):
        pages = sorted(path.name for path in (ROOT / "docs" / entry).glob("*.md"))
        return [f"{entry}{name}" for name in sorted(pages, key=lambda name: name != "index.md")]
    return entry


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are kept outside ``docs``."""
    for name, page in PAGES.items():
        if name != "README.md":
            files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        text = render_notebook(notebook)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links to files of the repository at their page; name the files that have none."""
    here = page.file.src_uri
    home = next((name for name, uri in PAGES.items() if uri == here and name != "README.md"), f"docs/{here}")
    parts = re.split(r"(```.*?```)", markdown, flags=re.DOTALL)
    told = [part for part in parts if not part.startswith("```")]
    deep = next((found[1] for part in told if (found := re.search(r"^##(#*) ", part, re.MULTILINE))), "")
    return "".join(part if part.startswith("```") else relink(raise_headings(part, deep), home, here) for part in parts)


def raise_headings(text: str, deep: str) -> str:
    """Bring headings up where the first one below the title skips a level; ``deep`` has a # for each that it skips."""
    return re.sub(rf"^##{deep}(#*) ", r"##\1 ", text, flags=re.MULTILINE) if deep else text


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Keep numbers on one line, outside of code, and let no empty cell pass for the header of a column."""
    parts = WHOLE.split(EMPTY_HEADER.sub(r"<td\1></td>", html))
    return "".join(part if part.startswith("<") else BREAK.sub("\N{NO-BREAK SPACE}", part) for part in parts)


def relink(text: str, home: str, here: str) -> str:
    """Rewrite the links of a page; ``home`` is its file in the repository, ``here`` its place on the site."""

    def point(found: re.Match[str]) -> str:
        label, path, anchor = found[1], found[2], found[3] or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(home), path))
        if target.startswith("docs/") and target != "docs" and not target.startswith("docs/generate"):
            uri = target.removeprefix("docs/")
        elif target in PAGES:
            uri = PAGES[target]
        elif target.startswith("examples/") and target.endswith(".ipynb"):
            uri = f"notebooks/{Path(target).stem}.md"
        elif (ROOT / target).exists():
            return label if label.strip("`") == target else f"{label} (`{target}`)"
        else:
            return found[0]
        return f"[{label}]({os.path.relpath(uri, posixpath.dirname(here) or '.')}{anchor})"

    return LINK.sub(point, text)


def render_notebook(path: Path) -> str:
    """A notebook as Markdown: its text, and its code in blocks."""
    lines: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).rstrip()
        lines += [source, ""] if cell["cell_type"] == "markdown" else ["```python", source, "```", ""]
    lines += [f"This page is the notebook `examples/{path.name}`; the tests execute it.", ""]
    return "\n".join(lines)
