"""A network of the user's own: built by a function that they name, and by nobody else."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from efface.errors import EffaceError
from efface.interop.checkpoint_file import read_foreign
from efface.interop.model_file import digest_weights
from efface.runs import train
from efface.runs.embed import embed_checkpoint
from efface.runs.model_description import describe_model, use_model_file, use_model_to_embed
from efface.tasks import Task, run_tasks
from efface.training.checkpoint import read_meta
from efface.training.networks import own_module
from efface.training.networks.backbones import Backbone
from tests.commands import JUDGED, refused
from tests.runs.test_adoption import FEW, SPLIT, colored

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.look = nn.Conv2d(3, width, 5, 2, 2)
        self.calm = nn.BatchNorm2d(width)
        self.tell = nn.Linear(width, 3)

    def see(self, x):
        return self.calm(self.look(x)).relu().mean((2, 3))

    def forward(self, x):
        return self.tell(self.see(x))

def build(width=8):
    return Net(width)

def wrong():
    return "no module"
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A trained network of the user's own, saved as a state dict, and its data."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(own_module, "_allowed", set())
    monkeypatch.delitem(sys.modules, "their_net", raising=False)
    (tmp_path / "their_net.py").write_text(CODE, encoding="utf-8")
    x, y = colored()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    import their_net  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    net = their_net.build(width=12)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    images, labels = (torch.from_numpy(x[:120]).float() / 255 - 0.5) / 0.5, torch.from_numpy(y[:120])
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(net.state_dict(), tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth", str(tmp_path / "data.npz")


OPTIONS = {"width": 12, "features": "see", "head": "tell"}


def settings_for(data: str) -> dict:
    recipe = {"mean": 0.5, "std": 0.5, "backbone": {"options": OPTIONS}}
    return {"data": data, "recipe": recipe, "device": "cpu"}


def test_in_and_back(theirs: tuple[Path, str], tmp_path: Path) -> None:
    path, data = theirs
    asked = {"split": SPLIT, "forget": "@random:9", "method": FEW, "objective": "cross_entropy"}
    start, settings, _ = use_model_file(settings_for(data) | asked, Path("their_net:build"), path)
    train.unlearn_run(start, tmp_path / "out", settings)
    import their_net  # pyright: ignore[reportMissingImports]

    net = their_net.build(width=12)
    back = tmp_path / "out" / "foreign" / "theirs.pth"
    net.load_state_dict(torch.load(back, weights_only=True))
    assert list(read_foreign(back).container.state) == list(read_foreign(path).container.state)
    x = (torch.from_numpy(colored()[0]).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        features = net.eval().see(x).numpy()
    run, settings, _ = use_model_to_embed({"data": data, "device": "cpu"}, Path("their_net:build"), tmp_path / "out")
    embed_checkpoint(run, tmp_path / "v.npz", settings, everything=True)
    assert np.abs(np.load(tmp_path / "v.npz")["embeddings"] - features).max() < 1e-4


def test_a_description_is_no_consent_but_the_function_beside_it_is(theirs: tuple[Path, str], tmp_path: Path) -> None:
    path, data = theirs
    file = tmp_path / "model.yaml"
    start, settings, _ = use_model_file(settings_for(data), Path("their_net:build"), path)
    describe_model(start, file, settings | {"split": SPLIT, "objective": "cross_entropy"})
    own_module._allowed.clear()
    asked: dict = {"forget": "@random:9", "method": FEW, "device": "cpu"}
    start, settings, _ = use_model_file(asked, None, file)
    with pytest.raises(EffaceError, match=r"no consent.*--model their_net:build"):
        train.unlearn_run(start, tmp_path / "out", settings)
    start, settings, _ = use_model_file(asked, Path("their_net:build"), file)
    train.unlearn_run(start, tmp_path / "out", settings)


def test_the_desk_asks_for_the_same_consent_in_each_call(theirs: tuple[Path, str], tmp_path: Path, efface) -> None:
    """A chain that begins with such a network: planned and run with --model, in parts of a batch, and not without."""
    path, data = theirs
    asked = {"split": SPLIT, "objective": "cross_entropy"}
    start, settings, _ = use_model_file(settings_for(data), Path("their_net:build"), path)
    describe_model(start, tmp_path / "model.yaml", settings | asked)
    train.unlearn_run(start, tmp_path / "one", settings | asked | {"forget": "@random:9", "method": FEW})
    desk = ["--desk", tmp_path / "desk"]

    def verb(*words: object) -> tuple[int, str, str]:
        own_module._allowed.clear()
        return efface("request", *words, *desk)

    assert verb("model", tmp_path / "one")[0] == 0
    assert verb("add", "R1", "--forget", "@random:5", "--model", tmp_path / "model.yaml")[0] == 0
    plan = ["plan", "R1", "--method", "finetune", "--set", "method.epochs=1", "--set", "recipe.micro_batch=8"]
    plan += ["--device", "cpu", "--set", "audit.watch={views: 2, gradient: false, bank: 20, cap: 20, test_cap: 20}"]
    named = ["--model", "their_net:build"]
    refused(verb(*plan), "nobody named it", "add --model their_net:build")
    assert verb(*plan, *named)[0] == 0
    refused(verb("run"), "nobody named it", "add --model their_net:build")
    assert verb("run", *named, "--model", tmp_path / "model.yaml")[0] in JUDGED
    made = read_meta(tmp_path / "desk" / "runs" / "0001")
    assert made["recipe"]["micro_batch"] == 8 and made["handed_back"]
    (tmp_path / "other.yaml").write_text((tmp_path / "model.yaml").read_text().replace(digest_weights(path), "f" * 64))
    refused(verb("add", "R2", "--forget", "@random:5", "--model", tmp_path / "other.yaml"), "describes another")


def _read_consent(home: Path) -> None:
    (home / "names").write_text(",".join(sorted(own_module._allowed)), encoding="utf-8")


def test_consent_goes_along_into_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_module, "_allowed", {"their_net:build"})
    run_tasks([Task("a", own_module.with_own_modules(_read_consent), (tmp_path,))], jobs=1)
    assert (tmp_path / "names").read_text(encoding="utf-8") == "their_net:build"


def test_a_run_folder_alone_runs_no_code(theirs: tuple[Path, str], tmp_path: Path) -> None:
    path, data = theirs
    asked = {"split": SPLIT, "forget": "@random:9", "method": FEW, "objective": "cross_entropy"}
    start, settings, _ = use_model_file(settings_for(data) | asked, Path("their_net:build"), path)
    train.unlearn_run(start, tmp_path / "out", settings)
    own_module._allowed.clear()
    with pytest.raises(EffaceError, match=r"no consent.*--model their_net:build"):
        embed_checkpoint(tmp_path / "out", tmp_path / "v.npz", {"data": data, "device": "cpu"})
    with pytest.raises(EffaceError, match="no consent"):
        Backbone(name="python:os:system", options={"command": "false"}).build(3, (8, 8))


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("their_net:nothing", {}, "cannot be called"),
        ("no_such_package_here:build", {}, "cannot be called"),
        ("their_net:wrong", {}, "returned a str"),
        ("their_net:build", {"features": "hear"}, "without a method 'hear'"),
        ("their_net:build", {"head": "nose"}, "no part called 'nose'"),
        ("their_net:build", {"depth": 3}, "cannot be called"),
    ],
)
def test_what_is_wrong_is_said(theirs: tuple[Path, str], name: str, options: dict, word: str) -> None:
    own_module.allow_own_module(name)
    with pytest.raises(EffaceError, match=word):
        Backbone(name=f"python:{name}", options=options).build(3, (16, 16))


def test_a_name_must_name_a_function() -> None:
    for name in ("build", "a:b:c", "a b:c", "../x:y", ":build"):
        with pytest.raises(EffaceError, match="names no function"):
            own_module.allow_own_module(name)
