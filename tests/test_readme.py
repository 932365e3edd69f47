"""What the README says is true: its commands run, its Python runs, its tables match the code.

The commands run in the order of the page, but that canaries are planned before anything is trained. Options that make
them tiny are appended. ``PARSED_ONLY`` lists the commands whose options are only parsed, and why.
"""

from __future__ import annotations

import csv
import re
import shlex
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from efface import api, cli
from efface.auditing.verdict import EXIT_CODES
from efface.reporting.record import Record
from efface.training import defaults
from efface.training.networks.backbones import Backbone
from efface.unlearning.methods import METHODS
from tests.commands import call

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for _, block in BLOCKS for line in block.splitlines() if line.startswith("efface ")]
PARSED_ONLY = {
    "efface bench examples/five-minutes.yaml": "minutes, and its dry run times real steps; tests/bench has a tiny grid",
    "efface unlearn  clip/": "it needs a checkpoint of open_clip; tests/training/test_open_clip.py unlearns one",
}
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


def command_of(line: str) -> tuple[str, list[str]]:
    """The verb, with the second word of a verb that has two, and the words behind it."""
    words = shlex.split(line, comments=True)[1:]
    count = 2 if words[0] == "canaries" else 1
    return " ".join(words[:count]), words[count:]


def why_parsed_only(line: str) -> str | None:
    """The reason why a command is not run; None if it is."""
    return next((reason for start, reason in PARSED_ONLY.items() if line.startswith(start)), None)


def prepare(home: Path) -> None:
    """The files that a reader of the README has: pictures, a manifest with captions, embeddings."""
    rng = np.random.default_rng(0)
    (home / "emoji").mkdir()
    for folder in ("pictures", "emoji"):
        (home / folder).mkdir(exist_ok=True)
        for number in range(200):
            image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            image.save(home / folder / f"{number:03d}.png")
    with (home / "emoji" / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("key", "path", "caption", "group"))
        for number in range(200):
            group = "country-flag" if number % 4 == 0 else "animal"
            rows.writerow((number, f"{number:03d}.png", f"{group} {number % 7}", group))
    for name in ("before", "after", "control-before", "control-after"):
        np.save(home / f"{name}.npy", rng.normal(size=(20, 2, 8)))


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_understood(line):
    verb, *words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(cli.app).commands[verb]
    while words and words[0] in getattr(command, "commands", {}):
        verb, *words = words
        command = command.commands[verb]
    context = command.make_context(verb, words)
    assert context.params


def test_the_commands_run(tmp_path, monkeypatch):
    """All but those in ``PARSED_ONLY``, on tiny pictures, one after the other in one folder."""
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    todo = [line for line in COMMANDS if not why_parsed_only(line)]
    assert all(any(line.startswith(start) for line in COMMANDS) for start in PARSED_ONLY)
    todo.sort(key=lambda line: command_of(line)[0] != "canaries plan")  # the coins fall before anything is trained
    for line in todo:
        verb, words = command_of(line)
        more = SMALL.get(verb, []) if "--embeddings" not in words else []
        if verb == "pretrain" and "pictures/" in words:
            more = [*more, "--set", "split.canaries=canaries"]
        assert call(*verb.split(), *words, *more, "--quiet") in (0, 3, 4), line
        if verb == "canaries plan":
            (tmp_path / "ids.txt").write_text((tmp_path / "canaries" / "included.txt").read_text())
    for run in ("forgotten", "no-flags"):
        assert (tmp_path / "runs" / run / "checkpoint.safetensors").exists()
    assert Record.load(tmp_path / "runs" / "forgotten").verdict.level == "A1"


def test_the_python_example_runs(tmp_path, monkeypatch):
    (block,) = [text for language, text in BLOCKS if language == "python"]
    short = partial(defaults.default_recipe, epochs=1, batch_size=64, backbone=Backbone(width=8))
    monkeypatch.setattr(api, "default_recipe", short)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert Record.load(tmp_path / "runs" / "x").request.selector == "@random:0.1"


def test_the_tables_are_true():
    for word, code in EXIT_CODES.items():
        assert f"| `{word}` | {code} |" in README
    for name, method in METHODS.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.endswith(f"| {', '.join(method.needs.names())} |")


def names_in(text: str) -> set[str]:
    """Dotted names of the package in backticks, without ``efface.``: ``unlearning.inputs.build_inputs``."""
    packages = "|".join(path.parent.name for path in (ROOT / "src" / "efface").glob("*/__init__.py"))
    found = set(re.findall(rf"`(?:efface\.)?((?:{packages}|api)\.\w+(?:\.\w+)*)`", text))
    return {name for name in found if not name.endswith((".html", ".json", ".yaml", ".csv"))}


PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != "docs/faults.md"]
)  # it names settings, as data.limit
def test_names_in_the_pages_exist(page):
    for name in names_in((ROOT / page).read_text(encoding="utf-8")):
        found, *rest = name.split(".")
        place = import_module(f"efface.{found}")
        for part in rest:
            if not hasattr(place, part):
                import_module(f"{place.__name__}.{part}")
            place = getattr(place, part)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert "://" in target or (ROOT / page).parent.joinpath(target).exists(), target
