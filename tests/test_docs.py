"""What the README and the pages say is true: commands exist and run, Python runs, tables match, links lead somewhere.

Every command in a code block is parsed by the command line itself. Those of the README and of the guides in ``RUN``
also run, one after the other in one folder, with options that make them tiny.
"""

from __future__ import annotations

import csv
import re
import shlex
import tomllib
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from efface import api, cli
from efface.auditing.audits import AUDITS
from efface.auditing.verdict import EXIT_CODES
from efface.reporting.record import Record
from efface.training import defaults
from efface.training.networks.backbones import Backbone
from efface.unlearning.methods import METHODS
from tests.commands import JUDGED, call

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PLACEHOLDER = re.compile(r"\.\.\.|\[OPTIONS\]|\$ID|\$\{|\bNAME\b|\bBUNDLE\b")
"""A command with one of these is a form to fill in; its options are parsed anyway where it is whole otherwise."""


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of every code block of a page."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def commands(page: str) -> list[str]:
    """The commands of efface in the code blocks of a page, also those behind a prompt."""
    lines = [line.removeprefix("$ ") for _, block in blocks(page) for line in block.splitlines()]
    return [line for line in lines if re.match(r"efface [a-z]", line)]


EVERY = [(page, line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), [(p, c) for p, c in EVERY if not PLACEHOLDER.search(c)])
def test_every_command_is_understood(page: str, line: str):
    verb, *words = shlex.split(line, comments=True)[1:]
    known = typer.main.get_command(cli.app).commands
    assert verb in known, f"{page}: there is no verb {verb}"
    command = known[verb]
    while words and words[0] in getattr(command, "commands", {}):
        verb, *words = words
        command = command.commands[verb]
    assert command.make_context(verb, words) is not None


@pytest.mark.parametrize(("page", "line"), [(p, c) for p, c in EVERY if PLACEHOLDER.search(c)])
def test_verbs_and_options_of_forms_exist(page: str, line: str):
    words = line.split()[1:]
    command = typer.main.get_command(cli.app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"{page}: {line}"
    options = {name for one in command.params for name in one.opts} | {"--help"}
    named = {word.strip("[],.") for word in shlex.split(line, comments=True) if word.lstrip("[").startswith("--")}
    assert named <= options, page


def test_there_are_commands_to_check():
    assert len(EVERY) > 60
    assert {"README.md", "docs/quickstart.md", "docs/guides/one_request.md"} <= {page for page, _ in EVERY}


# ---- commands run ----

RUN = ("README.md", "docs/guides/one_request.md", "docs/guides/more_evidence.md", "docs/guides/only_embeddings.md")
"""Pages whose commands run in this order; a command that stands in several of them runs once."""
NOT_RUN = {"efface demo": "three minutes; tests/runs/test_demo.py has a tiny one"}
"""Beginning of a command to the reason why it is not run."""
SIZES = "split={train: 60, valid: 30, holdout: 40, test: 30}"
SMALL = {
    "pretrain": [
        *("--set", SIZES, "--set", "recipe.backbone={width: 4, stride: 2}"),
        *("--set", "recipe.epochs=1", "--set", "recipe.batch_size=20"),
    ],
    "audit": ["--set", "watch={views: 2, bank: 20}"],
    "relearn": ["--steps", "2", "--every", "1", "--set", "watch={views: 2, bank: 20}"],
    "canaries plan": ["--count", "20"],
    "references": ["--count", "2", "--jobs", "1"],
}
"""What is appended to the commands of a verb."""


def verb_of(line: str) -> tuple[str, list[str]]:
    """The verb, with the second word of a verb that has two, and the words behind it."""
    words = shlex.split(line, comments=True)[1:]
    count = 2 if words[0] == "canaries" else 1
    return " ".join(words[:count]), words[count:]


def prepare(home: Path) -> None:
    """The files that a reader has: pictures, and embeddings."""
    rng = np.random.default_rng(0)
    for folder, count in (("pictures", 200), ("my-own-pictures", 30)):
        (home / folder).mkdir()
        for number in range(count):
            image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            image.save(home / folder / f"{number:03d}.png")
    for name in ("before", "after", "control-before", "control-after"):
        np.save(home / f"{name}.npy", rng.normal(size=(20, 2, 8)))


def test_the_commands_run(tmp_path, monkeypatch):
    """Those of the README and of three guides, on tiny pictures, in one folder."""
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    todo = list(dict.fromkeys(shlex.join(shlex.split(line, comments=True)) for page in RUN for line in commands(page)))
    assert all(any(line.startswith(start) for line in todo) for start in NOT_RUN)
    todo = [line for line in todo if not line.startswith(tuple(NOT_RUN))]
    todo.sort(key=lambda line: verb_of(line)[0] != "canaries plan")  # the coins fall before anything is trained
    for line in todo:
        verb, words = verb_of(line)
        more = SMALL.get(verb, []) if "--embeddings" not in words else []
        if verb == "pretrain":
            more = [*more, "--set", "split.canaries=canaries"]
        assert call(*verb.split(), *words, *more, "--quiet") in JUDGED, line
        if verb == "canaries plan":
            (tmp_path / "ids.txt").write_text((tmp_path / "canaries" / "included.txt").read_text())
    assert (tmp_path / "runs" / "forgotten" / "checkpoint.safetensors").exists()
    assert Record.load(tmp_path / "runs" / "forgotten").verdict.level == "A1"


def test_image_text_commands_run(tmp_path, monkeypatch):
    """The commands of the guide on image-text models that need no other library."""
    rng = np.random.default_rng(0)
    (tmp_path / "emoji").mkdir()
    with (tmp_path / "emoji" / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("key", "path", "caption", "group"))
        for number in range(200):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"emoji/{number}.png")
            group = "country-flag" if number % 4 == 0 else "animal"
            rows.writerow((number, f"{number}.png", f"{group} {number % 7}", group))
    monkeypatch.chdir(tmp_path)
    whole = commands("docs/guides/image_text.md")
    todo = [line for line in whole if "open_clip" not in line and "clip/" not in line]
    assert len(todo) == 4
    for line in todo:
        verb, words = verb_of(line)
        assert call(verb, *words, *SMALL.get(verb, []), "--quiet") in JUDGED, line
    assert (tmp_path / "runs" / "no-flags" / "report.html").exists()


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_python_example_runs(page, tmp_path, monkeypatch):
    (block,) = [text for language, text in blocks(page) if language == "python"]
    short = partial(defaults.default_recipe, epochs=1, batch_size=64, backbone=Backbone(width=8))
    monkeypatch.setattr(api, "default_recipe", short)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert Record.load(tmp_path / "runs" / "x").request.selector == "@random:0.1"


def test_the_method_in_the_guide_is_the_one_that_is_tested():
    """CONTRIBUTING.md's example is executed by tests/unlearning/test_plugins.py; the guide shows the same."""
    (method,) = [text for language, text in blocks("CONTRIBUTING.md") if language == "python"]
    assert method in (ROOT / "docs/guides/add_a_method.md").read_text(encoding="utf-8")


# ---- what pages say ----


@pytest.mark.parametrize("page", ["README.md", "docs/concepts/verdict.md"])
def test_the_table_of_verdicts_is_true(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for word, code in EXIT_CODES.items():
        assert f"| `{word}` | {code} |" in text


def test_every_method_and_audit_has_its_page_and_its_needs():
    index = (ROOT / "docs/methods/index.md").read_text(encoding="utf-8")
    for name, method in METHODS.items():
        row = next(line for line in index.splitlines() if line.startswith(f"| [{name}]({name}.md) |"))
        assert row.endswith(f"| {', '.join(method.needs.names()) or 'nothing'} |")
    for kind, known in (("methods", METHODS), ("audits", AUDITS)):
        assert {p.stem for p in (ROOT / "docs" / kind).glob("*.md")} == {"index", *known}


def test_the_readme_is_short_and_plain():
    """At most 80 lines, and none of the letters that are explained later."""
    assert len(README.splitlines()) <= 80
    assert not re.search(r"[\u0370-\u03ff]|\bA[0-3]\b|\bAUC\b|(?<![\w.])[FRVH](?![\w.])", README)


def test_every_extra_is_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = [line for line in (ROOT / "docs/guides/install.md").read_text(encoding="utf-8").splitlines() if "|" in line]
    named = {name for line in table for name in re.findall(r"`([\w-]+)`", line.split("|")[1])}
    assert named == set(project["optional-dependencies"]) - {"test", "dev", "docs", "notebooks"}


def result_pages() -> list[Path]:
    """The pages of the site's part "Results", but for its index."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    part = text[text.index("  - Results:\n") : text.index("  - Attacks on us:")]
    return [ROOT / "docs" / name for name in re.findall(r"- (\S+\.md)$", part, re.MULTILINE)][1:]


def test_results_open_with_three_lines_and_a_figure():
    pages = result_pages()
    assert {path for path in (ROOT / "docs" / "results").glob("*.md") if path.stem != "index"} <= set(pages)
    for path in pages:
        text = path.read_text(encoding="utf-8")
        head = re.match(r"# .*\n\n\*\*In short\.\*\*\n\n1\. .*\n2\. .*\n3\. .*\n\n!\[.+\]\((.+\.svg)\)\n", text)
        assert head, path.name
        assert (path.parent / head[1]).exists()


def names_in(text: str) -> set[str]:
    """Dotted names of the package in backticks, without ``efface.``: ``unlearning.inputs.build_inputs``."""
    packages = "|".join(path.parent.name for path in (ROOT / "src" / "efface").glob("*/__init__.py"))
    found = set(re.findall(rf"`(?:efface\.)?((?:{packages}|api)\.\w+(?:\.\w+)*)`", text))
    return {name for name in found if not name.endswith((".html", ".json", ".yaml", ".csv"))}


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/faults.md"])  # it names settings
def test_names_in_the_pages_exist(page):
    for name in names_in((ROOT / page).read_text(encoding="utf-8")):
        found, *rest = name.split(".")
        place = import_module(f"efface.{found}")
        for part in rest:
            if not hasattr(place, part):
                import_module(f"{place.__name__}.{part}")
            place = getattr(place, part)


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert "://" in target or (ROOT / page).parent.joinpath(target).exists(), target


def test_the_counts_of_the_claims_are_those_of_the_figure():
    """The first line of the page says in words what its generated figure shows."""
    figure = (ROOT / "docs/figures/claims.svg").read_text(encoding="utf-8")
    holds, undecided, fails = (int(re.search(rf"{word}: (\d+)", figure)[1]) for word in  # type: ignore[index]
                               ("holds here", "undecided here", "does not hold here"))  # fmt: skip
    page = (ROOT / "docs/results/claims.md").read_text(encoding="utf-8")
    assert f"{holds} hold, {undecided} are undecided and {fails} do not hold" in page
