"""One call loads a foreign checkpoint: file, recipe, model, and everything that was assumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from efface import interop
from efface.errors import EffaceError
from efface.interop.architecture import IMAGENET
from efface.runs.run import load_data
from efface.training.networks.backbones import Backbone
from tests import foreign
from tests.adoption import DEEP, efface_file, moco_file, swav_file, trained


def test_everything_that_was_assumed_is_in_the_notes(pictures: Path, tmp_path: Path):
    path = swav_file(trained("simclr", layers=DEEP), tmp_path)
    loaded = interop.load_checkpoint(path, load_data({"data": str(pictures)}))
    assert loaded.file.layout.name == "swav" and loaded.guessed_objective and loaded.objective == "simclr"
    assert loaded.recipe.backbone == loaded.architecture.backbone == Backbone(name="resnet8", width=8, stride=1)
    assert (loaded.recipe.mean, loaded.recipe.std) == IMAGENET
    assert loaded.notes == (
        "nothing says what it was trained with; taken to be simclr (else: --objective)",
        "stem assumed: stride 1, padding 1, no max-pool (shapes do not show them)",
        "normalization assumed: ImageNet's mean and standard deviation",
    )


@pytest.mark.parametrize(
    ("recipe", "word"),
    [({"mean": [0.5] * 3, "std": [0.5] * 3}, "normalization"), ({"backbone": {"stride": 1}}, "stem assumed")],
)
def test_what_the_user_states_is_not_noted_as_assumed(pictures: Path, tmp_path: Path, recipe: dict, word: str):
    path = moco_file(trained("moco", queue=24), tmp_path)
    data = load_data({"data": str(pictures)})
    assert any(note.startswith(word) for note in interop.load_checkpoint(path, data).notes)
    loaded = interop.load_checkpoint(path, data, recipe=recipe)
    assert not any(note.startswith(word) for note in loaded.notes)
    assert not loaded.guessed_objective and loaded.objective == "moco"


def test_a_backbone_needs_no_head_if_only_the_backbone_is_loaded(pictures: Path, tmp_path: Path):
    torch.save(foreign.resnet().state_dict(), tmp_path / "body.pth")
    data = load_data({"data": str(pictures)})
    with pytest.raises(EffaceError, match="has a backbone but no head"):
        interop.load_checkpoint(tmp_path / "body.pth", data)
    for options in ({"backbone_only": True}, {"fresh_head": True}):
        loaded = interop.load_checkpoint(tmp_path / "body.pth", data, **options)
        stored = torch.load(tmp_path / "body.pth", weights_only=True)
        assert all(torch.equal(value, stored[name]) for name, value in loaded.model.backbone.state_dict().items())
        assert any("starts untrained" in note for note in loaded.notes) == ("fresh_head" in options)


def test_the_seed_draws_the_parts_that_the_file_does_not_have(pictures: Path, tmp_path: Path):
    torch.save(foreign.resnet().state_dict(), tmp_path / "body.pth")
    data = load_data({"data": str(pictures)})
    digests = [
        interop.load_checkpoint(tmp_path / "body.pth", data, fresh_head=True, seed=seed).model.digest()
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_options_of_an_objective_do_not_matter_for_the_backbone(pictures: Path, tmp_path: Path):
    path = efface_file(trained("moco", queue=24), tmp_path)
    recipe = {"backbone": {"stride": 1}, "objective": {"name": "moco", "queue": 24}}
    loaded = interop.load_checkpoint(
        path, load_data({"data": str(pictures)}), objective="moco", recipe=recipe, backbone_only=True
    )
    images = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(loaded.model.eval().features(images), trained("moco", queue=24).features(images))
