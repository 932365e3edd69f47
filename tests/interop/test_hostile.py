"""Malicious and broken files on the command line: message, exit code, and that no code in them is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from efface.interop.checkpoint_file import read_foreign
from tests import hostile
from tests.hostile import CASES, Hostile


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_message_and_exit_code(case: Hostile, pictures: Path, tmp_path: Path):
    code, said, went_off = hostile.tried(case, tmp_path, pictures)
    assert not went_off
    assert (code, case.says in said) == (case.exit, True), said
    assert "Traceback" not in said
    if code:
        assert said.startswith("error:") and not (tmp_path / "out").exists()


def test_the_planted_code_would_run_if_loaded(tmp_path: Path):
    torch.load(hostile.bomb(tmp_path), weights_only=False)
    assert (tmp_path / hostile.MARK).exists()


def test_a_bfloat16_file_is_exported_in_bfloat16(pictures: Path, tmp_path: Path):
    case = next(case for case in CASES if case.name == "bfloat16")
    assert hostile.tried(case, tmp_path, pictures)[0] == 0
    after = read_foreign(tmp_path / "out" / "foreign" / "moco.pth.tar").container.state
    assert {value.dtype for value in after.values() if value.is_floating_point()} == {torch.bfloat16}
    purged = json.loads((tmp_path / "out" / "meta.json").read_text())["purged"]
    assert purged["foreign.precision"] == "rounded to bfloat16, as the file has it"
