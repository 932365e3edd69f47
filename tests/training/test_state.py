"""State beside the weights: momentum encoder and queue, how they move, are purged and are stored."""

from __future__ import annotations

import pytest
import torch

from efface.training.model import digest
from tests import tiny
from tests.reference import moco as moco_reference


def batch_of(n=12):
    x, y = tiny.images(48)
    return next(tiny.parts(x, y, {"all": (0, n)}, tiny.blurred)["all"].ordered_batches(n))


def model_of(name, seed=0):
    return tiny.recipe(name).start(seed).eval()


def close(ours, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_the_momentum_encoder_receives_no_gradient_and_moves_by_momentum(name):
    model, batch = model_of(name), batch_of()
    model.objective.loss(model, batch).per_example.mean().backward()
    assert all(parameter.grad is None for parameter in model.momentum_encoder.parameters())
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.5)
    pairs = list(zip(model.momentum_encoder.backbone.parameters(), model.backbone.parameters(), strict=True))
    expected = [moco_reference.update_ema(t.flatten().tolist(), o.flatten().tolist(), 0.99) for t, o in pairs]
    model.objective.after_step(model, None)
    for (averaged, _), wanted in zip(pairs, expected, strict=True):
        close(averaged.flatten(), wanted)


def test_the_queue_moves_only_after_a_step_and_holds_normalized_keys():
    model, batch = model_of("moco"), batch_of()
    before = model.queue.clone()
    outcome = model.objective.loss(model, batch)
    assert torch.equal(model.queue, before)
    model.objective.after_step(model, None)
    assert torch.equal(model.queue, before)
    model.objective.after_step(model, outcome.carry)
    close(model.queue, moco_reference.enqueue(before.tolist(), outcome.carry.tolist()))
    torch.testing.assert_close(model.queue.norm(dim=1), torch.ones(48))


def test_purging_moco_leaves_no_old_key_and_no_old_momentum_encoder():
    model, batch = model_of("moco"), batch_of()
    old = model.queue.clone()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.1)
    done = model.objective.purge(model, [batch])
    assert set(done) == {"twin", "queue"}
    assert not any((row == old).all(1).any() for row in model.queue)
    for reset, online in zip(model.momentum_encoder.backbone.parameters(), model.backbone.parameters(), strict=True):
        assert torch.equal(reset, online)
        assert reset.data_ptr() != online.data_ptr()


def test_the_momentum_encoder_is_stored_as_twin_and_a_reload_round_trips():
    model = model_of("moco")
    names = list(model.state_dict())
    assert any(name.startswith("twin.backbone.") for name in names) and "twin.head.0.weight" in names
    assert not any("momentum_encoder" in name for name in names)
    stored = {name.replace("momentum_encoder.", "twin."): value for name, value in model.named_parameters()}
    stored |= {name.replace("momentum_encoder.", "twin."): value for name, value in model.named_buffers()}
    assert stored.keys() == set(names) and model.digest() == digest(stored)
    other = model_of("moco", seed=1)
    assert other.digest() != model.digest()
    other.load_state_dict(model.state_dict())
    assert other.digest() == model.digest()
    for loaded, saved in zip(other.momentum_encoder.parameters(), model.momentum_encoder.parameters(), strict=True):
        assert torch.equal(loaded, saved)


def test_purging_without_retained_examples_says_so():
    model = model_of("moco")
    assert "random" in model.objective.purge(model, [])["queue"]
