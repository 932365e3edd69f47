"""One reference bank serves a whole chain of requests, and a bank of another original serves none of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from efface.auditing.bank_file import save_bank
from efface.auditing.reference_bank import ReferenceBank
from efface.errors import EffaceError
from efface.runs import train
from tests.desk.conftest import TINY

LONGEST = 4
"""Requests in the chain."""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An original and the runs of a chain of requests, each made from the one before."""
    home = tmp_path_factory.mktemp("chain")
    train.pretrain_run(home / "0", TINY | {"device": "cpu"})
    for number in range(1, LONGEST):
        request = {"forget": "@random:5", "method": {"name": "finetune", "epochs": 1}, "device": "cpu"}
        train.unlearn_run(home / str(number - 1), home / str(number), request)
    return [home / str(number) for number in range(LONGEST)]


def write_bank(run: Path, original: str, path: Path) -> Path:
    """Write a bank of random scores for the split of a run, made for the model ``original``."""
    parts = json.loads((run / "split.json").read_text())["parts"]
    keys = np.array([*parts["retain"], *parts["valid"], *parts["holdout"]])
    trained, valid = (np.isin(keys, parts[part]) for part in ("retain", "valid"))
    rng = np.random.default_rng(0)
    half = [trained & (rng.random(len(keys)) < 0.5) for _ in range(2)]
    inside = np.stack([side for one in half for side in (one, trained & ~one)])
    scores = {name: rng.normal(size=inside.shape).astype("f") for name in ("backbone.margin", "logits.margin")}
    same = {"valid": hashlib.sha256("\0".join(sorted(parts["valid"])).encode()).hexdigest()}
    save_bank(ReferenceBank(original, keys, trained, inside, scores, valid, same), path)
    return path


def ask(start: Path, out: Path, bank: Path) -> None:
    """Forget five examples more with a bank."""
    method = {"name": "reference_matching", "steps": 1}
    train.unlearn_run(start, out, {"forget": "@random:5", "bank": str(bank), "device": "cpu", "method": method})


def digest_of(run: Path) -> str:
    """The digest of the weights of a run."""
    return json.loads((run / "meta.json").read_text())["digest"]


@pytest.mark.parametrize("number", range(LONGEST))
def test_the_bank_of_the_original_serves_every_request_of_a_chain(chain, tmp_path, number):
    bank = write_bank(chain[0], digest_of(chain[0]), tmp_path / "bank.npz")
    ask(chain[number], tmp_path / "out", bank)
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["method"]["bank"]


@pytest.mark.parametrize("number", range(LONGEST))
def test_a_bank_of_another_original_serves_no_request_of_it(chain, tmp_path, number):
    bank = write_bank(chain[0], "f" * 64, tmp_path / "bank.npz")
    with pytest.raises(EffaceError, match="another original"):
        ask(chain[number], tmp_path / "out", bank)


def test_a_later_model_of_the_chain_is_no_original_of_an_earlier_one(chain, tmp_path):
    bank = write_bank(chain[0], digest_of(chain[2]), tmp_path / "bank.npz")
    with pytest.raises(EffaceError, match="another original"):
        ask(chain[1], tmp_path / "out", bank)
