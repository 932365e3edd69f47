"""Methods of other packages: found in every process, named in records; broken ones are errors, never left out."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import efface
from efface import unlearning
from efface.errors import EffaceError
from efface.reporting.record import Record
from efface.training.checkpoint import Checkpoint
from efface.unlearning.methods import METHODS, Finetune
from efface.unlearning.plugins import get_plugin_origin
from efface.unlearning.protocol import Needs
from tests.commands import JUDGED, TINY

CONTRIBUTING = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
SHRINK = next(block for block in re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL) if "class Shrink" in block)
"""The method that CONTRIBUTING.md shows."""


def installed(home: Path, *points: str) -> dict[str, str]:
    """Environment variables of a process in which a package with these entry points is installed."""
    (home / "shrinking.py").write_text(f"{SHRINK}\n\nNOTHING = 3\n", encoding="utf-8")
    facts = home / "shrinking_methods-1.2.dist-info"
    facts.mkdir(exist_ok=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: shrinking-methods\nVersion: 1.2\n")
    (facts / "entry_points.txt").write_text("\n".join(["[efface.methods]", *points, ""]))
    paths = [str(home), *([os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def call(environment: dict[str, str], *words: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of efface in a new process."""
    command = [sys.executable, "-m", "efface", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_face_exports_what_it_lists():
    assert all(getattr(unlearning, name) is not None for name in unlearning.__all__)
    assert set(unlearning.__all__) == set(unlearning._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'Methods'"):
        _ = unlearning.Methods


def test_the_method_of_the_guide_imports_public_names_alone():
    imported = [node for node in ast.walk(ast.parse(SHRINK)) if isinstance(node, ast.ImportFrom)]
    ours = {node.module: {one.name for one in node.names} for node in imported if str(node.module).startswith("efface")}
    assert set(ours) == {"efface.unlearning"} and ours["efface.unlearning"] <= set(unlearning.__all__)


def test_an_installed_method_is_one_more_method_and_the_record_names_its_package(tmp_path):
    environment = installed(tmp_path, "shrink = shrinking:Shrink")
    rows = json.loads(call(environment, "methods", "--json").stdout)
    assert rows["shrink"] == {
        "needs": ["retain"],
        "idea": "Shrink: make all weights a little smaller, then fine-tune",
        "origin": "shrinking-methods 1.2",
    }
    assert "origin" not in rows["finetune"] and len(rows) == len(METHODS) + 1
    assert "shrinking-methods 1.2" in call(environment, "methods").stdout
    page = call(environment, "methods", "shrink").stdout
    assert "θ ← (1 - share) θ" in page and "taken away" in page and "shrinking-methods 1.2" in page
    first, run, oracle = (tmp_path / name for name in ("original", "run", "oracle"))
    pretrained = call(
        environment, "pretrain", "--data", "digits", "--objective", "simclr", "--out", first, "--quiet", *TINY
    )
    assert pretrained.returncode == 0, pretrained.stderr
    for method, out in (("shrink", run), ("retrain", oracle)):
        words = ["unlearn", first, "--forget", "@random:0.2", "--method", method, "--out", out, "--quiet"]
        unlearned = call(environment, *words)
        assert unlearned.returncode == 0, unlearned.stderr
    audited = call(environment, "audit", run, "--oracle", oracle, "--quiet")
    assert audited.returncode in JUDGED, audited.stderr
    facts = Record.load(run).checkpoints
    assert facts["subject"].origin == "shrinking-methods 1.2"
    method = facts["subject"].method
    assert (method["name"], method["share"], method["optim"]["lr"]) == ("shrink", 0.01, 0.01)
    assert Checkpoint.load(run).training_cost.steps == 3, "48 retained examples in batches of 20, one epoch"
    assert [one.origin for role, one in facts.items() if role != "subject"] == ["", ""]
    assert (run / "report.html").read_text(encoding="utf-8").count("shrinking-methods 1.2") == 2


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("shrink = shrinking:Shrunk", "AttributeError"),
        ("shrink = not_there:Shrink", "No module named"),
        ("shrink = shrinking:NOTHING", "is not a method"),
        ("shrink = shrinking:Needs", "is not a method"),
        ("finetune = shrinking:Shrink", "a method called 'finetune' already"),
        ("auto = shrinking:Shrink", "a method called 'auto' already"),
        ("Shrink = shrinking:Shrink", "lower-case"),
    ],
)
def test_a_broken_plugin_is_an_error(tmp_path, point, message):
    answer = call(installed(tmp_path, point), "methods")
    assert answer.returncode == 2
    assert message in answer.stderr and "shrinking-methods 1.2" in answer.stderr and "uninstall" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_package_may_be_imported_before_efface(tmp_path):
    environment = installed(tmp_path, "shrink = shrinking:Shrink")
    code = "import shrinking, efface.api; assert efface.api.METHODS['shrink'] is shrinking.Shrink"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_run_as_a_module_does_nothing_in_the_processes_of_a_bench():
    for module in ("efface", "efface.__main__"):
        runpy.run_module(module, run_name="__mp_main__")


@dataclass(frozen=True, kw_only=True)
class Mine:
    """A method of this file."""

    needs: ClassVar[Needs] = Needs.RETAIN
    exact: ClassVar[bool] = False

    def unlearn(self, model, inputs, run):
        return model


def test_a_method_that_is_not_registered_has_no_name(tmp_path, monkeypatch):
    data = efface.load("digits", limit=200)
    split = efface.split(data, forget="@random:0.2", train=60, valid=20, holdout=60, test=40, seed=0)
    recipe = efface.api.default_recipe(data, "simclr", epochs=1, batch_size=30)
    start = efface.pretrain(data, split, recipe=recipe, device="cpu")
    with pytest.raises(EffaceError, match=r"Mine has no name.*METHODS\['a_name'\] = Mine"):
        efface.unlearn(start, data, split, Mine(), device="cpu")
    monkeypatch.setitem(METHODS, "mine", Mine)
    for method in (Mine(), "mine"):
        made = efface.unlearn(start, data, split, method, device="cpu")
        assert (made.method, made.origin) == ({"name": "mine"}, "module tests.unlearning.test_plugins")
    assert get_plugin_origin(Finetune) == ""
