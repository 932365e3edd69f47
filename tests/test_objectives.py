"""Objectives against their slow twins, against lightly, and the properties that the protocol promises."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from efface.errors import EffaceError
from efface.objectives import OBJECTIVES, CrossEntropy, Moco, SimClr
from efface.objectives.protocol import foreign_view
from efface.objectives.simclr import nt_xent
from tests import tiny
from tests.reference import alignment_calibration as calibration_twin
from tests.reference import byol as byol_twin
from tests.reference import cross_entropy as cross_entropy_twin
from tests.reference import moco as moco_twin
from tests.reference import simclr as simclr_twin

NAMES = sorted(OBJECTIVES)


def batch_of(n=12, augment=tiny.blurred):
    x, y = tiny.images(48)
    return next(tiny.parts(x, y, {"all": (0, n)}, augment)["all"].in_order(n))


def model_of(name, seed=0):
    return tiny.recipe(name).start(seed).eval()


def close(ours, twin, tolerance=1e-5):
    torch.testing.assert_close(ours.double(), torch.tensor(twin, dtype=torch.float64), atol=tolerance, rtol=tolerance)


def test_cross_entropy_equals_its_twin():
    model, batch = model_of("cross_entropy"), batch_of()
    logits = model(batch.view(0)).tolist()
    close(model.objective.loss(model, batch).per_example, cross_entropy_twin.loss(logits, batch.y.tolist()))


def test_cross_entropy_distance_equals_its_twin_and_is_zero_on_itself():
    objective = CrossEntropy(temperature=2.5)
    a, b = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).unbind()
    close(objective.distance(a, b), cross_entropy_twin.distance(a.tolist(), b.tolist(), 2.5))
    close(objective.distance(a, a), [0.0] * 6)


def test_simclr_equals_its_twin_and_lightly():
    from lightly.loss import NTXentLoss

    model, batch = model_of("simclr"), batch_of()
    a, b = model(batch.view(0)), model(batch.view(1))
    ours = model.objective.loss(model, batch).per_example
    close(ours, simclr_twin.loss(a.tolist(), b.tolist(), 0.2))
    assert ours.mean().item() == pytest.approx(NTXentLoss(temperature=0.2)(a, b).item(), abs=1e-5)


def test_moco_equals_its_twin_and_lightly():
    from lightly.loss import NTXentLoss

    model, batch = model_of("moco"), batch_of()
    q, k = model(batch.view(0)), model(batch.view(1), model.twin)
    ours = model.objective.loss(model, batch)
    close(ours.per_example, moco_twin.loss(q.tolist(), k.tolist(), model.queue.tolist(), 0.2))
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(48, 8))
    theirs.memory_bank.bank = model.queue.clone() if theirs.memory_bank.bank.shape[0] == 48 else model.queue.T.clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    assert ours.per_example.mean().item() == pytest.approx(theirs(q, k).item(), abs=1e-4)


def test_byol_equals_its_twin_and_lightly():
    from lightly.loss import NegativeCosineSimilarity

    model, batch = model_of("byol"), batch_of()
    p = [model.predictor(model(batch.view(i))) for i in (0, 1)]
    t = [model(batch.view(i), model.twin) for i in (0, 1)]
    ours = model.objective.loss(model, batch).per_example
    close(ours, byol_twin.loss(p[0].tolist(), p[1].tolist(), t[0].tolist(), t[1].tolist()))
    cosine = NegativeCosineSimilarity()
    theirs = 0.5 * (cosine(p[0], t[1]) + cosine(p[1], t[0]))
    assert ours.mean().item() == pytest.approx(2 + 2 * theirs.item(), abs=1e-5)


def test_simclr_anchor_equals_its_twin():
    model, batch = model_of("simclr"), batch_of()
    a, b = model(batch.view(0)), model(batch.view(1))
    x = batch.view(0) * 0.9
    with torch.no_grad():
        ours = model.objective.anchored(model, batch)(x)
    close(ours, simclr_twin.anchored(model(x).tolist(), a.tolist(), b.tolist(), 0.2))


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_called_twice_gives_the_same_values_and_leaves_the_state_alone(name):
    model, batch = model_of(name), batch_of()
    before = copy.deepcopy(model.state_dict())
    first, second = (model.objective.loss(model, batch).per_example for _ in range(2))
    assert first.shape == (12,)
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], atol=0, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_anchored_loss_depends_on_its_own_image_only(name):
    model, batch = model_of(name), batch_of()
    loss = model.objective.anchored(model, batch)
    x = batch.view(0).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x)[3], x)
    rows = gradient.flatten(1).abs().sum(1)
    assert rows[3] > 0
    assert rows[[i for i in range(12) if i != 3]].max() == 0


PAIRED = [name for name in NAMES if OBJECTIVES[name].paired]


def contrast_of(name, further=4):
    """A model in evaluation mode, a batch, some other images, and what the objective says of them."""
    model, batch = model_of(name), batch_of()
    x, y = tiny.images(48)
    part = tiny.parts(x, y, {"others": (20, 20 + further)}, tiny.blurred)["others"]
    others = part.batch(part.ids, torch.Generator().manual_seed(3))
    return model, batch, others, model.objective.contrast(model, batch, others)


@pytest.mark.parametrize("name", PAIRED)
def test_the_parts_of_a_contrast_add_up_to_the_loss(name):
    model, batch, _, parts = contrast_of(name)
    outcome = model.objective.loss(model, batch)
    torch.testing.assert_close(parts.repel - parts.attract, outcome.per_example, atol=1e-5, rtol=1e-5)
    assert (parts.carry is None) == (outcome.carry is None)
    if outcome.carry is not None:
        torch.testing.assert_close(parts.carry, outcome.carry, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", PAIRED)
def test_the_parts_of_a_contrast_equal_their_twins(name):
    model, batch, others, parts = contrast_of(name)
    twin, views = model.twin or model, [batch.view(0), batch.view(1)]
    z, t = [[model(view, tower).tolist() for view in views] for tower in (model, twin)]
    expected = {
        "simclr": lambda: calibration_twin.simclr_parts(*z, 0.2),
        "moco": lambda: calibration_twin.moco_parts(z[0], t[1], model.queue.tolist(), 0.2),
        "byol": lambda: calibration_twin.byol_parts([model.predictor(model(view)).tolist() for view in views], t),
    }[name]()
    close(torch.stack([parts.attract, parts.repel], 1), expected)
    close(parts.partners, [simclr_twin.unit(row) for row in model(others.view(1), twin).tolist()])
    torch.testing.assert_close(parts.anchor.norm(dim=1), torch.ones(12))
    assert parts.partners.requires_grad == (model.twin is None)


@pytest.mark.parametrize("name", PAIRED)
def test_further_partners_are_compared_with_nothing_and_may_be_none(name):
    some, none = contrast_of(name)[3], contrast_of(name, further=0)[3]
    assert none.partners.shape == (0, 8)
    for part in ("anchor", "attract", "repel"):
        torch.testing.assert_close(getattr(some, part), getattr(none, part), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if not OBJECTIVES[name].paired])
def test_an_objective_that_compares_no_pairs_says_so(name):
    model, batch = model_of(name), batch_of()
    with pytest.raises(EffaceError, match="compares no pairs"):
        model.objective.contrast(model, batch, batch)


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_the_twin_receives_no_gradient_and_follows_by_momentum(name):
    model, batch = model_of(name), batch_of()
    model.objective.loss(model, batch).per_example.mean().backward()
    assert all(parameter.grad is None for parameter in model.twin.parameters())
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.5)
    pairs = list(zip(model.twin.backbone.parameters(), model.backbone.parameters(), strict=True))
    expected = [moco_twin.follow(t.flatten().tolist(), o.flatten().tolist(), 0.99) for t, o in pairs]
    model.objective.advance(model, None)
    for (twin, _), wanted in zip(pairs, expected, strict=True):
        close(twin.flatten(), wanted)


def test_the_queue_moves_only_in_advance_and_holds_normalized_keys():
    model, batch = model_of("moco"), batch_of()
    before = model.queue.clone()
    outcome = model.objective.loss(model, batch)
    assert torch.equal(model.queue, before)
    model.objective.advance(model, None)
    assert torch.equal(model.queue, before)
    model.objective.advance(model, outcome.carry)
    close(model.queue, moco_twin.enqueue(before.tolist(), outcome.carry.tolist()))
    torch.testing.assert_close(model.queue.norm(dim=1), torch.ones(48))


def test_purging_moco_leaves_no_old_key_and_no_old_twin():
    model, batch = model_of("moco"), batch_of()
    old = model.queue.clone()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.1)
    done = model.objective.purge(model, [batch])
    assert set(done) == {"twin", "queue"}
    assert not any((row == old).all(1).any() for row in model.queue)
    for twin, own in zip(model.twin.backbone.parameters(), model.backbone.parameters(), strict=True):
        assert torch.equal(twin, own)
        assert twin.data_ptr() != own.data_ptr()


def test_purging_without_retained_examples_says_so():
    model = model_of("moco")
    assert "random" in model.objective.purge(model, [])["queue"]


def test_scrambled_labels_are_all_wrong_and_scrambled_views_never_their_own():
    batch, rng = batch_of(), torch.Generator().manual_seed(1)
    wrong = CrossEntropy().scramble(batch, rng)
    assert (wrong.y != batch.y).all()
    other = foreign_view(batch, rng)
    assert torch.equal(other.view(0), batch.view(0))
    same = [torch.equal(a, b) for a, b in zip(other.view(1), batch.view(1), strict=True)]
    assert not any(same)


def test_one_loud_example_changes_its_own_loss_most():
    a = functional.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    b = a.clone()
    b[5] = -b[5]
    assert nt_xent(a, b, 0.5).argmax() == 5


def test_cross_entropy_without_classes_is_an_error():
    with pytest.raises(EffaceError, match="at least two classes"):
        CrossEntropy().equip(nn.Flatten(), 4, 0, torch.zeros(1), torch.ones(1))


def test_nt_xent_passes_gradcheck():
    a, b = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda u, v: nt_xent(functional.normalize(u, dim=1), functional.normalize(v, dim=1), 0.3), (a, b)
    )


def test_an_all_agreeing_batch_gives_the_log_of_the_number_of_candidates():
    z = torch.ones(5, 3) / 3**0.5
    torch.testing.assert_close(nt_xent(z, z, 0.1), torch.full((5,), 9.0).log())


def test_fields_reach_the_model():
    model = tiny.recipe("simclr", objective=SimClr(dim=5, hidden=7)).start(0)
    assert [layer.out_features for layer in model.head if isinstance(layer, nn.Linear)] == [7, 5]
    assert tiny.recipe("moco", objective=Moco(queue=9, dim=5)).start(0).queue.shape == (9, 5)
