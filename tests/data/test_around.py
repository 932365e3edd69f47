"""A split around the training examples of an imported checkpoint, and the forward pass of lightly's own ResNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from efface.data import sources
from efface.data.dataset import Data
from efface.data.split import partition_around_training
from efface.errors import EffaceError
from efface.runs import audit, run, train
from efface.runs.run import Sizes
from tests import foreign, tiny
from tests.adoption import QUICK, imported, moco_file, trained


def data() -> Data:
    return Data.from_arrays(*tiny.images(60), keys=[f"k{n}" for n in range(60)])


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    (tmp_path / "trained.txt").write_text("\n".join(f"k{n}" for n in range(0, 60, 2)))
    return tmp_path / "trained.txt"


def test_training_examples_are_in_no_other_part(keys: Path):
    split = partition_around_training(data(), str(keys), valid=5, holdout=0.5, test=10)
    assert split.retain.tolist() == list(range(0, 60, 2))
    sizes = {"forget": 0, "retain": 30, "valid": 5, "holdout": 15, "spare": 0, "test": 10}
    assert split.sizes() | {"spare": 0} == sizes
    assert not set(split.retain) & {*split.valid, *split.holdout, *split.test}
    assert all(position % 2 for part in (split.valid, split.holdout, split.test) for position in part)


def test_the_test_part_takes_what_the_others_leave(keys: Path):
    """So that everything that was never trained on is used; a number that was given stays as it is."""
    sizes = Sizes(valid=5, holdout=0.5, trained=str(keys)).divide(data(), 0).sizes()
    assert (sizes["valid"], sizes["holdout"], sizes["test"]) == (5, 15, 10)
    assert Sizes(valid=5, holdout=10, test=3, trained=str(keys)).divide(data(), 0).sizes()["test"] == 3
    assert Sizes(valid=20, holdout=10, trained=str(keys)).divide(data(), 0).sizes()["test"] == 0
    assert Sizes().divide(data(), 0).sizes()["test"] == 6


def test_the_draw_depends_on_keys_and_seed_alone(keys: Path):
    original = data()
    shuffled = original.take(np.random.default_rng(0).permutation(60))
    digest = partition_around_training(original, str(keys), seed=3).digest(original)
    assert partition_around_training(shuffled, str(keys), seed=3).digest(shuffled) == digest
    assert partition_around_training(original, str(keys), seed=4).digest(original) != digest


def test_too_many_unseen_examples_are_refused(keys: Path):
    with pytest.raises(EffaceError, match=r"30 examples besides the 30 trained ones, but 31 are requested"):
        partition_around_training(data(), str(keys), valid=1, holdout=20, test=10)


def test_an_imported_run_says_which_examples_it_assumes_to_be_trained_on(pictures: Path, tmp_path: Path):
    path = moco_file(trained("moco", queue=24), tmp_path)
    names = sources.load(str(pictures)).keys[:90].tolist()
    (tmp_path / "seen.txt").write_text("\n".join(names))
    sizes = {"valid": 30, "holdout": 30, "test": 30}
    settings = {"data": str(pictures), "forget": "@random:12", "method": QUICK, "device": "cpu"}
    messages: list[str] = []
    known = settings | {"split": {**sizes, "trained": str(tmp_path / "seen.txt")}}
    train.unlearn_run(path, tmp_path / "known", known, progress=run.Progress(say=messages.append))
    assert not any("nothing says what it was trained on" in message for message in messages)
    split = run.open_run(tmp_path / "known").split
    assert sorted({*split.forget, *split.retain}) == list(range(90))
    (tmp_path / "seen.txt").unlink()
    watch = {"watch": {"views": 2, "gradient": False}, "device": "cpu"}
    assert audit.audit_run(tmp_path / "known", watch).verdict.level == "A0"
    train.unlearn_run(path, tmp_path / "assumed", settings, progress=run.Progress(say=messages.append))
    assert any("nothing says what it was trained on; taken to be 126 of 180" in one for one in messages), messages


def test_children_of_lightlys_own_resnet_have_no_relu_after_the_stem(pictures: Path, tmp_path: Path):
    pytest.importorskip("lightly", reason="lightly is not installed")
    from lightly.models.modules.heads import SimCLRProjectionHead
    from lightly.models.resnet import ResNetGenerator

    children = list(ResNetGenerator("resnet-9", width=1 / 8).children())[:-1]
    body, head = nn.Sequential(*children, nn.AdaptiveAvgPool2d(1)).eval(), SimCLRProjectionHead(64, 16, 8).eval()
    torch.save(foreign.Owner(backbone=body, projection_head=head).state_dict(), tmp_path / "simclr.pth")
    model = imported(tmp_path / "simclr.pth", pictures).model.eval()
    x = torch.rand(3, 3, 8, 8)
    z = body((x - model.mean) / model.std).flatten(1)
    torch.testing.assert_close(model.features(x), z)
    torch.testing.assert_close(model(x), head(z))
