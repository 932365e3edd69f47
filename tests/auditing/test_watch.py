"""Observing: same views for any batch size and order, an unchanged model, and signals of reference implementations."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from efface import api
from efface.auditing.observations import Observations
from efface.auditing.observers.model_observer import ModelObserver
from efface.auditing.observers.observe import observe_model, sample_by_key, select_positions
from efface.auditing.observers.settings import ObservationSettings
from efface.data import array_files
from efface.data.dataset import Data
from efface.data.split import Split
from efface.errors import EffaceError
from tests import tiny
from tests.reference import clip as reference

WATCH = ObservationSettings(views=3, bank=8, batch_size=7)


def world(name="simclr", n=72, order=None):
    x, y = tiny.images(n)
    keys, text = np.array([f"k{i:03d}" for i in range(n)]), tiny.captions(y)
    order = np.arange(n) if order is None else order
    data = Data.from_arrays(
        x[order], y[order], keys[order], classes=("a", "b", "c"), text=[text[i] for i in order], name="tiny"
    )
    at = np.argsort(order)
    cuts = {"forget": (0, 10), "retain": (10, 40), "valid": (40, 50), "holdout": (50, 62), "test": (62, 72)}
    split = Split(**{part: np.sort(at[a:b]) for part, (a, b) in cuts.items()}, provenance={"random": True})
    recipe = tiny.recipe(name)
    return recipe.start(3), data, split, recipe.views


def by_key(observed, part, name):
    return observed.of(part, name)[np.argsort(observed.of(part, "keys"))]


@pytest.mark.parametrize("name", sorted(tiny.SMALL))
def test_the_model_is_bit_identical_afterwards(name):
    model, data, split, views = world(name)
    model.train()
    model.backbone.bn1.eval()
    before, modes = model.digest(), [module.training for module in model.modules()]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    observe_model(model, data, split, views, WATCH)
    assert model.digest() == before
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["simclr", "cross_entropy"])
def test_batch_size_and_order_change_nothing(name):
    model, data, split, views = world(name)
    first = observe_model(model, data, split, views, WATCH)
    second = observe_model(model, data, split, views, dataclasses.replace(WATCH, batch_size=64))
    order = np.random.default_rng(0).permutation(72)
    _, shuffled, other, _ = world(name, order=order)
    third = observe_model(model, shuffled, other, views, WATCH)
    for key in first.arrays:
        part, _, array = key.partition("/")
        if array in ("keys", "labels"):
            continue
        for again in (second, third):
            np.testing.assert_allclose(by_key(first, part, array), by_key(again, part, array), atol=2e-5, err_msg=key)


def test_signals_equal_the_reference_implementation():
    model, data, split, views = world()
    seen = observe_model(model, data, split, views, WATCH)
    model.eval()
    look = ModelObserver(model, data, views, WATCH, None)
    banked = sample_by_key(data, split.valid, 8)
    with torch.no_grad():
        z = [[model(view[None])[0].tolist() for view in example] for example in look.views_of(split.forget, 3)]
        bank = [model(view)[0].tolist() for view in look.views_of(banked, 1)]

    def cosine(a, b):
        return sum(p * q for p, q in zip(a, b, strict=True)) / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))

    for i, example in enumerate(z):
        pairs = [cosine(example[a], example[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
        np.testing.assert_allclose(seen.of("forget", "projector.pairs")[i], pairs, atol=1e-4)
        crowd = [math.log(sum(math.exp(cosine(view, other) / 0.1) for other in bank)) for view in example]
        margin = sum(pairs) / 3 / 0.1 - sum(crowd) / 3
        assert seen.of("forget", "projector.margin")[i] == pytest.approx(margin, abs=2e-3)
        norm = sum(math.sqrt(sum(v * v for v in view)) for view in example) / 3
        assert seen.of("forget", "projector.norm")[i] == pytest.approx(norm, rel=1e-4)


def test_signals_of_a_pair_equal_the_reference_implementation():
    model, data, split, views = world("clip")
    seen = observe_model(model, data, split, views, WATCH)
    look = ModelObserver(model.eval(), data, views, WATCH, None)
    banked = sample_by_key(data, split.valid, 8)
    with torch.no_grad():
        z = [[model(view[None])[0].tolist() for view in example] for example in look.views_of(split.forget, 3)]
        own, bank = (model.encode_text([data.text[row] for row in rows]).tolist() for rows in (split.forget, banked))
        prompts = model.encode_text(["a", "b", "c"]).numpy()
    for i, example in enumerate(z):
        similarity, margin = reference.similarity_and_margin(example, own[i], bank, 0.1)
        assert seen.of("forget", "pair.similarity")[i] == pytest.approx(similarity, abs=1e-4)
        assert seen.of("forget", "pair.margin")[i] == pytest.approx(margin, abs=2e-3)
    np.testing.assert_allclose(seen.of("forget", "text"), own, atol=1e-5)
    np.testing.assert_allclose(seen.of("prompts", "text"), prompts, atol=1e-5)
    assert seen.has("test", "image") and seen.has("valid", "text") and not seen.has("test", "pair.margin")


def test_a_valid_pair_is_compared_with_every_other_caption_of_the_bank():
    model, data, split, views = world("clip")
    seen = observe_model(model, data, split, views, dataclasses.replace(WATCH, valid=True))
    look = ModelObserver(model.eval(), data, views, WATCH, None)
    banked = sample_by_key(data, split.valid, 8)
    with torch.no_grad():
        z = [[model(view[None])[0].tolist() for view in example] for example in look.views_of(split.valid, 3)]
        own = model.encode_text([data.text[row] for row in split.valid]).tolist()
    margins = seen.of("valid", "pair.margin")
    for i, (row, example) in enumerate(zip(split.valid, z, strict=True)):
        bank = model.encode_text([data.text[other] for other in banked if other != row]).tolist()
        _, margin = reference.similarity_and_margin(example, own[i], bank, 0.1)
        back = math.log(8 / 7) if row in banked else 0
        assert margins[i] == pytest.approx(margin - back, abs=2e-3)


def test_what_stands_around_a_name_is_a_setting_and_must_have_a_place_for_it():
    model, data, split, views = world("clip")
    first, second = (
        observe_model(model, data, split, views, dataclasses.replace(WATCH, prompt=p)) for p in ("{}", "an {}")
    )
    assert np.abs(first.of("prompts", "text") - second.of("prompts", "text")).max() > 1e-3
    with pytest.raises(EffaceError, match="no place for a name"):
        ObservationSettings(prompt="a picture")


def test_an_image_text_model_is_observed_through_captions():
    model, data, split, views = world("clip")
    with pytest.raises(EffaceError, match="through captions"):
        observe_model(model, dataclasses.replace(data, text=None), split, views, WATCH)


def test_an_over_fitted_model_flattens_its_members():
    recipe = tiny.recipe("cross_entropy", epochs=60, batch_size=20)
    _, data, split, _ = world("cross_entropy")
    noise = np.random.default_rng(0).integers(0, 3, len(data))  # labels that can only be learnt by heart
    data = dataclasses.replace(data, y=noise)
    trained = api.pretrain(data, split, recipe=recipe, device="cpu")
    seen = api.observe(trained, data, split, WATCH, device="cpu")
    assert np.median(seen.of("forget", "gradient_norm")) < np.median(seen.of("holdout", "gradient_norm"))


def test_large_parts_are_sampled_by_key_and_forget_and_holdout_never():
    _, data, split, _ = world()
    rows = select_positions(split, dataclasses.replace(WATCH, cap=9, test_cap=4), data)
    assert {part: len(found) for part, found in rows.items() if len(found)} == {
        "forget": 10, "holdout": 12, "retain": 9, "valid": 9, "test": 4, "control": 9,
    }  # fmt: skip
    order = np.random.default_rng(0).permutation(72)
    _, shuffled, other, _ = world(order=order)
    again = select_positions(other, dataclasses.replace(WATCH, cap=9, test_cap=4), shuffled)
    assert sorted(data.keys[rows["retain"]]) == sorted(shuffled.keys[again["retain"]])


@pytest.mark.parametrize("kind", ["simclr", "cross_entropy", "clip"])
def test_a_scratch_folder_changes_no_bit_and_stays_empty(tmp_path, monkeypatch, kind):
    model, data, split, views = world(kind)
    first = observe_model(model, data, split, views, WATCH, scratch=tmp_path)
    assert not first.mapped  # small arrays stay in memory
    monkeypatch.setattr(array_files, "MAPPED_BYTES", 0)
    second = observe_model(model, data, split, views, WATCH, scratch=tmp_path)
    assert isinstance(second.arrays["forget/features"], np.memmap)
    assert not list(tmp_path.iterdir())
    assert first.digest == second.digest
    for key, value in first.arrays.items():
        np.testing.assert_array_equal(value, second.arrays[key])


@pytest.mark.parametrize("mapped", [False, True])
def test_observations_survive_the_disk(tmp_path, monkeypatch, mapped):
    model, data, split, views = world()
    seen = observe_model(model, data, split, views, WATCH)
    seen.save(tmp_path / "o.npz")
    if mapped:
        monkeypatch.setattr(array_files, "MAPPED_BYTES", 0)
    again = Observations.load(tmp_path / "o.npz")
    assert again.mapped == mapped
    assert (again.model, again.split, again.meta, again.digest) == (seen.model, seen.split, seen.meta, seen.digest)
    assert again.arrays.keys() == seen.arrays.keys()
    assert all(value.flags.aligned for value in again.arrays.values())
    with np.load(tmp_path / "o.npz") as plain:  # what other programs see
        for name, value in again.arrays.items():
            np.testing.assert_array_equal(plain[name], value)


def test_observations_as_numpy_writes_them_are_read_and_not_mapped_out_of_place(tmp_path, monkeypatch):
    model, data, split, views = world()
    seen = observe_model(model, data, split, views, WATCH)
    seen.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as stored:
        np.savez(tmp_path / "old.npz", **stored)
    monkeypatch.setattr(array_files, "MAPPED_BYTES", 0)
    old = Observations.load(tmp_path / "old.npz")
    assert old.digest == seen.digest
    assert all(value.flags.aligned for value in old.arrays.values())


def test_mapped_observations_that_were_edited_are_refused(tmp_path, monkeypatch):
    path, features = tmp_path / "o.npz", np.random.default_rng(0).normal(size=(50, 200)).astype(np.float32)
    Observations("m", "s", {"forget/keys": np.arange(50).astype(str), "forget/features": features}).save(path)
    monkeypatch.setattr(array_files, "MAPPED_BYTES", 0)
    assert Observations.load(path).mapped
    content = path.read_bytes()
    at = content.index(features.tobytes()) + features.nbytes // 2
    path.write_bytes(content[:at] + np.float32(1.5).tobytes() + content[at + 4 :])
    with pytest.raises(EffaceError, match="edited or damaged"):
        Observations.load(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(EffaceError, match="cannot be read"):
        Observations.load(path)


def test_one_view_or_no_bank_is_an_error():
    with pytest.raises(EffaceError, match="views' cannot be 1"):
        ObservationSettings(views=1)
    model, data, split, views = world()
    with pytest.raises(EffaceError, match="bank"):
        observe_model(model, data, dataclasses.replace(split, valid=split.valid[:3]), views, WATCH)
