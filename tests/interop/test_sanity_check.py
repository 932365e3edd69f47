"""The sanity check accepts trained encoders and refuses those that are no better than random weights."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from efface.data.dataset import Data
from efface.errors import EffaceError
from efface.interop.architecture import IMAGENET
from efface.interop.sanity_check import MARGIN, VOTES, _margin, compare_with_random, require_better_than_random
from efface.training.batch import Subset
from efface.training.model import Model
from tests import tiny
from tests.adoption import BODY, MILD, drawn, trained, trained_by


def images(labelled: bool) -> Any:
    x, y = drawn()
    return Subset.of(Data.from_arrays(x, y if labelled else None), np.arange(120), MILD, "probe", torch.device("cpu"))


def compare(model: Model, labelled: bool) -> list[Any]:
    recipe = tiny.recipe("simclr", backbone=BODY, channels=3, mean=IMAGENET[0], std=IMAGENET[1])
    others = [partial(recipe.start, n) for n in (11, 12, 13)]
    return compare_with_random(model, others, images(labelled), torch.Generator().manual_seed(0))


def test_trained_encoders_are_accepted_with_and_without_labels():
    model = trained("cross_entropy")
    before, mode = model.digest(), [module.training for module in model.modules()]
    found = compare(model, labelled=True)
    assert [one.measure for one in found] == [VOTES] and found[0].better and found[0].loaded > 0.9
    assert model.digest() == before and mode == [module.training for module in model.modules()]
    found = compare(trained_by("simclr", 10), labelled=False)
    assert [one.measure for one in found] == [MARGIN] and found[0].better
    assert found[0].images == 120


def test_an_encoder_that_ignores_the_labels_is_accepted_by_its_margin():
    found = compare(trained_by("simclr", 10), labelled=True)
    assert [(one.measure, one.better) for one in found] == [(VOTES, False), (MARGIN, True)]
    require_better_than_random(found, "x", tiny.recipe())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("labelled", [True, False])
def test_random_weights_are_refused(seed: int, labelled: bool):
    recipe = tiny.recipe("simclr", backbone=BODY, channels=3)
    found = compare(recipe.start(seed), labelled)
    with pytest.raises(EffaceError, match=r"sees no more.*normalization \(here mean 0.5.*resnet8.*check=false"):
        require_better_than_random(found, "x", recipe)


def test_a_model_is_not_better_than_itself():
    model = trained("moco", queue=24)
    found = compare_with_random(model, [lambda: model], images(True), torch.Generator().manual_seed(0))
    assert len(found) == 2 and not any(one.better for one in found) and found[0].error == 0


def test_random_networks_are_in_memory_one_at_a_time():
    recipe = tiny.recipe("simclr", backbone=BODY, channels=3, mean=IMAGENET[0], std=IMAGENET[1])
    alive: list[Any] = []

    def made(seed: int) -> Model:
        gc.collect()
        assert not any(one() is not None for one in alive)
        fresh = recipe.start(seed)
        alive.append(weakref.ref(fresh))
        return fresh

    compare_with_random(
        recipe.start(0), [partial(made, n) for n in (1, 2, 3)], images(True), torch.Generator().manual_seed(0)
    )
    assert len(alive) == 6


def test_the_margin_equals_the_reference_implementation():
    a, b = (F.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(n)), dim=1) for n in (0, 1))
    for i, value in enumerate(_margin(a, b)):
        crowd = sum(np.exp(float(a[i] @ b[j]) / 0.1) for j in range(7))
        assert value == pytest.approx(float(a[i] @ b[i]) / 0.1 - np.log(crowd), rel=1e-5)
