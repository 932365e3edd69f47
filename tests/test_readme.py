"""What the README tells people to type is what the program takes."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import typer

from efface import api, cli
from efface.auditing.verdict import EXIT_CODES
from efface.reporting.record import Record
from efface.training import defaults
from efface.training.networks.backbones import Backbone
from efface.unlearning.methods import METHODS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for _, block in BLOCKS for line in block.splitlines() if line.startswith("efface ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_understood(line):
    verb, *words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(cli.app).commands[verb]
    while words and words[0] in getattr(command, "commands", {}):
        verb, *words = words
        command = command.commands[verb]
    context = command.make_context(verb, words)
    assert context.params


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
