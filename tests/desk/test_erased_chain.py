"""Runs of several requests whose ids were erased, some or all of them, are still audited."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from efface.desk.forgotten import ForgottenIds
from efface.desk.run_ids import SELECTOR_GONE, replace_ids
from efface.errors import EffaceError
from efface.runs import audit, train
from tests.desk.conftest import QUICK, TINY

RUNS = ("original", "first", "second")
KINDS = {"random": ("@random:8", "@random:12"), "class": ("@class:3", "@class:5"), "both": ("@class:3", "@random:12")}


@pytest.fixture(scope="module", params=KINDS)
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original and two requests, one after the other."""
    home = tmp_path_factory.mktemp(request.param)
    train.pretrain_run(home / "original", TINY | {"device": "cpu"})
    for before, name, forget in zip(RUNS, RUNS[1:], KINDS[request.param], strict=False):
        asked = {"forget": forget, "method": QUICK["method"], "device": "cpu"}
        train.unlearn_run(home / before, home / name, asked)
    return home


def parts_of(run: Path) -> dict[str, list[str]]:
    """The ids of the parts of a run."""
    return json.loads((run / "split.json").read_text())["parts"]


@pytest.mark.parametrize("which", ["none", "some of the last", "the last", "the first", "both"])
def test_all_requests_are_judged_whichever_of_them_was_erased(chain, tmp_path, which):
    home = shutil.copytree(chain, tmp_path / "chain")
    for name, before in zip(RUNS[1:], RUNS, strict=False):  # the copy is where the original was
        path = home / name / "config.yaml"
        path.write_text(path.read_text().replace(str(chain / before), str(home / before)))
    first, last = (parts_of(home / name)["forget"] for name in RUNS[1:])
    ids = {"none": [], "some of the last": last[:6], "the last": last, "the first": first, "both": first + last}[which]
    for name in RUNS:
        replace_ids(home / name, ForgottenIds(b"k" * 32, ids, ()))
    settings = {"watch": QUICK["audit"]["watch"], "device": "cpu"}
    if which in ("the last", "both"):
        stored = json.loads((home / "second" / "split.json").read_text())["provenance"]
        assert stored["selector"] == SELECTOR_GONE and "seed" not in stored
        with pytest.raises(EffaceError, match="to forget are not in the data"):  # there is nothing to look at
            audit.audit_run(home / "second", settings)
        return
    judged = [audit.audit_run(home / "second", settings) for _ in range(2)]
    assert all(one.sequence is not None for one in judged)
    assert judged[0].sequence.count == len({*first, *last}) and judged[0].sequence == judged[1].sequence
