"""Copies in disguise: hidden units in another order, rotated, scaled, with noise. A copy is no retrained reference."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from efface import api
from efface.auditing.observers.settings import ObservationSettings
from efface.data.dataset import Data
from efface.errors import EffaceError
from efface.runs import provenance
from efface.runs.provenance import feature_distance, require_no_copy, weight_distance
from efface.training.checkpoint import Checkpoint
from tests import disguises, tiny

SPLIT: dict[str, Any] = {"train": 60, "valid": 20, "holdout": 30, "test": 30}


@pytest.fixture(scope="module")
def data():
    return Data.from_arrays(*tiny.images(140))


def pretrain(data, name, seed, epochs=4):
    return api.pretrain(
        data, api.split(data, **SPLIT), recipe=tiny.recipe(name, epochs=epochs), seed=seed, device="cpu"
    )


@pytest.fixture(scope="module")
def encoder(data) -> Checkpoint:
    return pretrain(data, "simclr", 0)


def with_model(checkpoint, model):
    return replace(checkpoint, model=model)


def check(reference, original, nearest=provenance.NEAREST):
    role: Any = SimpleNamespace(load=lambda: original, weights=Path("original.pt"))
    require_no_copy(Path("reference.pt"), reference, {"original": role}, nearest)


@pytest.mark.parametrize("name", ["simclr", "cross_entropy"])
def test_a_disguise_computes_the_same(data, name):
    original = pretrain(data, name, 0).model.eval()
    x = torch.from_numpy(data.x[:20]).float() / 255
    with torch.no_grad():
        assert torch.allclose(disguises.permute_units(original)(x), original(x), atol=1e-4)
        if name == "simclr":
            a, b = (torch.nn.functional.normalize(m(x)) for m in (disguises.rotate_projector(original), original))
            assert torch.allclose(a @ a.T, b @ b.T, atol=1e-5)


def test_a_permuted_copy_has_other_weights_and_the_same_features(encoder):
    disguised = with_model(encoder, disguises.permute_units(encoder.model))
    far = weight_distance(disguised.model, encoder.model)
    assert far is not None and far > provenance.NEAREST, "this is what the check of weights lets through"
    assert feature_distance(disguised, encoder) == pytest.approx(0, abs=1e-3)
    with pytest.raises(
        EffaceError, match=r"its features are those of the original within [\d.e-]+ %, but for a rotation"
    ):
        check(disguised, encoder)
    with pytest.raises(EffaceError, match="its features are those of the original"):
        check(disguised, encoder, provenance.NEAREST_RUN)


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_a_permuted_near_copy_is_a_copy_too(encoder, noise):
    disguised = with_model(encoder, disguises.permute_units(encoder.model, noise=noise))
    with pytest.raises(EffaceError, match="its features are those of the original"):
        check(disguised, encoder)


def test_another_training_run_is_no_copy(data, encoder):
    for seed in (1, 2):
        other = pretrain(data, "simclr", seed)
        apart = feature_distance(other, encoder)
        assert apart is not None and apart > 0.4
        check(other, encoder)
    untrained = with_model(encoder, encoder.recipe.start(7).eval())
    check(untrained, encoder)


def test_a_run_retrained_from_the_same_random_weights_passes(data, encoder):
    """Measured on digits: 0.66 after 60 epochs, 0.58 after 160."""
    split = api.split(data, "@random:20", **SPLIT)
    longer = pretrain(data, "simclr", 0, epochs=40)
    check(api.unlearn(longer, data, split, "retrain", seed=0, device="cpu"), longer, provenance.NEAREST_RUN)


def test_rotated_features_are_the_same_features(encoder):
    """The comparison itself: rotation, scale, order, scale of each unit make no difference, another map does."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(128, 6))
    a -= a.mean(axis=0)
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert provenance._procrustes_distance(a, 5 * a @ q) == pytest.approx(0, abs=1e-6)
    b = rng.normal(size=(128, 6))
    assert provenance._procrustes_distance(a, b - b.mean(axis=0)) > 0.8
    assert provenance._procrustes_distance(a, a * [1, 1, 1, 1, 1, 30.0]) > 0.3, (
        "why units are also compared at variance 1"
    )


def test_what_cannot_be_compared_is_not_compared(encoder):
    other = replace(encoder, recipe=replace(encoder.recipe, size=(16, 16)))
    assert feature_distance(encoder, other) is None
    constant = copy.deepcopy(encoder.model)
    with torch.no_grad():
        for value in constant.backbone.parameters():
            value.zero_()
    assert feature_distance(encoder, with_model(encoder, constant)) is None


def test_comparing_leaves_a_model_as_it_was(encoder):
    model = copy.deepcopy(encoder.model).train()
    before = model.digest()
    feature_distance(with_model(encoder, model), encoder)
    assert model.training and model.digest() == before


@pytest.mark.parametrize("disguise", [partial(disguises.permute_units, scaled=False), disguises.rotate_projector])
def test_no_signal_changes_with_an_order_or_a_rotation(data, encoder, disguise):
    """So no verdict and no finding does: what was not unlearned is residue in any order of its units."""
    a, b = observed(data, encoder, disguise(encoder.model))
    for name, value in a.arrays.items():
        if name.endswith((".margin", ".pairs")):
            assert np.allclose(value, b.arrays[name], atol=1e-3), name


def test_units_scaled_one_by_one_change_the_backbone_alone(data, encoder):
    """Cosines of the backbone's features depend on the scale of each unit: why the projector decides too."""
    a, b = observed(data, encoder, disguises.permute_units(encoder.model))
    name = "forget/{}.margin"
    assert np.allclose(a.arrays[name.format("projector")], b.arrays[name.format("projector")], atol=1e-3)
    assert not np.allclose(a.arrays[name.format("backbone")], b.arrays[name.format("backbone")], atol=0.1)


def observed(data, encoder, other):
    """Observations of the encoder, and of the same with another model."""
    split = api.split(data, "@random:20", **SPLIT)
    settings = ObservationSettings(views=2, bank=20, gradient=False)
    models = (encoder.model, other)
    return [api.observe(with_model(encoder, model), data, split, settings, device="cpu") for model in models]
