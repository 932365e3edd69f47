"""Completion in the shell: verbs and options are offered, without loading torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def complete(words: str) -> str:
    """What zsh is offered after the words: one line with a name and its help for each."""
    code = (
        "import sys; sys.argv = ['efface']; from efface import cli\n"
        "try: cli.main()\n"
        "finally: assert 'torch' not in sys.modules, 'completion would be slow'"
    )
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "_EFFACE_COMPLETE": "complete_zsh",
        "_TYPER_COMPLETE_ARGS": words,
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("words", "offered", "other"),
    [
        ("efface unl", "unlearn", "pretrain"),
        ("efface unlearn runs/x --meth", "--method", "--oracle"),
        ("efface canaries g", "guess", "unlearn"),
    ],
)
def test_what_fits_is_offered(words: str, offered: str, other: str):
    found = complete(words)
    assert offered in found
    assert other not in found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_printed(shell: str):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "_EFFACE_COMPLETE": f"source_{shell}",
    }
    code = "import sys; sys.argv = ['efface']; from efface import cli; cli.main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "_EFFACE_COMPLETE" in done.stdout, done.stderr
