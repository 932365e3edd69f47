"""Commands of efface in this process: small settings, calls by their words, and checks of a refusal."""

from __future__ import annotations

import sys

import pytest

from efface import cli

TINY = [
    "--set", "data.limit=300", "--set", "split={train: 60, valid: 60, holdout: 100, test: 60}",
    "--set", "recipe.backbone={width: 8, stride: 1}", "--set", "recipe.batch_size=20", "--set", "recipe.epochs=2",
]  # fmt: skip
"""Settings of `pretrain` under which digits take a second."""
JUDGED = (0, 3, 4, 5)
"""Exit codes with which an audit, or a verb that ends with one, has done its work, whatever its verdict."""


def call(*words: object) -> int:
    """Run a command of efface in this process and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["efface", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    code = stopped.value.code
    return code if isinstance(code, int) else int(bool(code))


def refused(answer: tuple[int, str, str], *expected: str) -> None:
    """Check that a command ended with exit code 2, without a traceback and with ``expected`` on standard error."""
    code, _, err = answer
    assert code == 2, err
    assert "Traceback" not in err
    for words in expected:
        assert words in err, err
