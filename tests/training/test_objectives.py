"""Objectives against reference implementations and lightly, and the properties that the protocol promises."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from efface.errors import EffaceError
from efface.training.objectives import OBJECTIVES, Barlow, CrossEntropy, Moco, SimClr, SimSiam, VicReg, barlow, vicreg
from efface.training.objectives.shared import swap_second_view
from efface.training.objectives.simclr import nt_xent
from tests import tiny
from tests.reference import alignment_calibration as calibration_reference
from tests.reference import barlow as barlow_reference
from tests.reference import byol as byol_reference
from tests.reference import clip as clip_reference
from tests.reference import cross_entropy as cross_entropy_reference
from tests.reference import moco as moco_reference
from tests.reference import simclr as simclr_reference
from tests.reference import simsiam as simsiam_reference
from tests.reference import vicreg as vicreg_reference

NAMES = sorted(OBJECTIVES)


def batch_of(n=12, augment=tiny.blurred):
    x, y = tiny.images(48)
    return next(tiny.parts(x, y, {"all": (0, n)}, augment)["all"].ordered_batches(n))


def model_of(name, seed=0):
    return tiny.recipe(name).start(seed).eval()


def close(ours, expected, tolerance=1e-5):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(ours.double(), expected, atol=tolerance, rtol=tolerance)


def test_cross_entropy_equals_the_reference():
    model, batch = model_of("cross_entropy"), batch_of()
    logits = model(batch.view(0)).tolist()
    close(model.objective.loss(model, batch).per_example, cross_entropy_reference.loss(logits, batch.y.tolist()))


def test_cross_entropy_distance_equals_the_reference_and_is_zero_on_itself():
    objective = CrossEntropy(temperature=2.5)
    a, b = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).unbind()
    close(objective.distance(a, b), cross_entropy_reference.distance(a.tolist(), b.tolist(), 2.5))
    close(objective.distance(a, a), [0.0] * 6)


def test_simclr_equals_the_reference_and_lightly():
    pytest.importorskip("lightly", reason="lightly is not installed")
    from lightly.loss import NTXentLoss

    model, batch = model_of("simclr"), batch_of()
    a, b = model(batch.view(0)), model(batch.view(1))
    ours = model.objective.loss(model, batch).per_example
    close(ours, simclr_reference.loss(a.tolist(), b.tolist(), 0.2))
    assert ours.mean().item() == pytest.approx(NTXentLoss(temperature=0.2)(a, b).item(), abs=1e-5)


def test_moco_equals_the_reference_and_lightly():
    pytest.importorskip("lightly", reason="lightly is not installed")
    from lightly.loss import NTXentLoss

    model, batch = model_of("moco"), batch_of()
    q, k = model(batch.view(0)), model(batch.view(1), model.momentum_encoder)
    ours = model.objective.loss(model, batch)
    close(ours.per_example, moco_reference.loss(q.tolist(), k.tolist(), model.queue.tolist(), 0.2))
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(48, 8))
    theirs.memory_bank.bank = model.queue.clone() if theirs.memory_bank.bank.shape[0] == 48 else model.queue.T.clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    assert ours.per_example.mean().item() == pytest.approx(theirs(q, k).item(), abs=1e-4)


def test_byol_equals_the_reference_and_lightly():
    pytest.importorskip("lightly", reason="lightly is not installed")
    from lightly.loss import NegativeCosineSimilarity

    model, batch = model_of("byol"), batch_of()
    p = [model.predictor(model(batch.view(i))) for i in (0, 1)]
    t = [model(batch.view(i), model.momentum_encoder) for i in (0, 1)]
    ours = model.objective.loss(model, batch).per_example
    close(ours, byol_reference.loss(p[0].tolist(), p[1].tolist(), t[0].tolist(), t[1].tolist()))
    cosine = NegativeCosineSimilarity()
    theirs = 0.5 * (cosine(p[0], t[1]) + cosine(p[1], t[0]))
    assert ours.mean().item() == pytest.approx(2 + 2 * theirs.item(), abs=1e-5)


def test_simsiam_equals_the_reference_and_lightly():
    pytest.importorskip("lightly", reason="lightly is not installed")
    from lightly.loss import NegativeCosineSimilarity

    model, batch = model_of("simsiam"), batch_of()
    z = [model(batch.view(i)) for i in (0, 1)]
    p = [model.predictor(rows) for rows in z]
    ours = model.objective.loss(model, batch).per_example
    close(ours, simsiam_reference.loss(p[0].tolist(), p[1].tolist(), z[0].tolist(), z[1].tolist()))
    cosine = NegativeCosineSimilarity()
    assert ours.mean().item() == pytest.approx(0.5 * (cosine(p[0], z[1]) + cosine(p[1], z[0])).item(), abs=1e-5)


def test_simsiam_stops_the_gradient_of_the_target():
    """The gradient is the one of predictions against projections that were computed before and are constants."""
    model, batch = model_of("simsiam"), batch_of()
    target = [model(batch.view(i)).detach() for i in (1, 0)]
    p = [model.predictor(model(batch.view(i))) for i in (0, 1)]
    by_hand = -sum(functional.cosine_similarity(a, b) for a, b in zip(p, target, strict=True)).mean() / 2
    ours = model.objective.loss(model, batch).per_example.mean()
    wanted, got = (torch.autograd.grad(loss, [*model.trainable_parameters()]) for loss in (by_hand, ours))
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def pair(rows=9, dim=4, seed=0):
    a, b = torch.randn(2, rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind()
    return a * torch.tensor([0.2, 0.7, 1.0, 3.0]), 0.8 * a + 0.3 * b


def test_barlow_parts_equal_the_reference():
    a, b = pair()
    expected = barlow_reference.parts(lambda w: barlow_reference.whole(a.tolist(), b.tolist(), 0.1, w), len(a))
    close(barlow.per_example_losses(a, b, 0.1), expected, 1e-7)


def test_vicreg_parts_equal_the_reference_where_some_dimensions_are_narrow_and_some_wide():
    a, b = pair()
    assert {bool(wide) for wide in a.std(0) > 1} == {False, True}
    expected = barlow_reference.parts(lambda w: vicreg_reference.whole(a.tolist(), b.tolist(), w), len(a))
    close(VicReg().contributions(a, b), expected, 1e-6)


@pytest.mark.parametrize("rows", [2, 12])
def test_barlow_and_vicreg_have_the_published_loss_as_their_mean(rows):
    pytest.importorskip("lightly", reason="lightly is not installed")
    from lightly.loss import BarlowTwinsLoss, VICRegLoss

    theirs = {"barlow": BarlowTwinsLoss(lambda_param=0.1), "vicreg": VICRegLoss()}
    for name, loss in theirs.items():
        model, batch = model_of(name), batch_of(rows)
        ours = model.objective.loss(model, batch).per_example
        assert ours.shape == (rows,)
        assert ours.mean().item() == pytest.approx(
            loss(model(batch.view(0)), model(batch.view(1))).item(), rel=1e-5, abs=1e-5
        )


@pytest.mark.parametrize("name", ["barlow", "vicreg"])
def test_the_gradient_of_an_anchored_part_is_its_share_of_the_batch_gradient(name):
    """B ∂L/∂a_i: nothing is lost by holding means, variances and correlations constant."""
    a, b = (z.requires_grad_() for z in pair())
    if name == "barlow":
        (expected,) = torch.autograd.grad(barlow.per_example_losses(a, b, 0.1).mean(), a)
        with torch.no_grad():
            batchwide = barlow.CorrelationStatistics.of(a, b, 0.1)
        ours = batchwide.influence(a, b)
    else:
        (expected,) = torch.autograd.grad(VicReg().contributions(a, b).mean(), a)
        with torch.no_grad():
            batchwide = vicreg.CovarianceStatistics.of(a, 25.0, 1.0)
        ours = 25.0 * (a - b).square().mean(-1) + batchwide.influence(a)
    (gradient,) = torch.autograd.grad(ours.sum(), a)
    torch.testing.assert_close(gradient, expected * len(a))


@pytest.mark.parametrize("name", ["barlow", "vicreg", "clip", "cross_entropy", "moco"])
def test_an_anchored_loss_at_the_batch_s_own_view_is_the_loss(name):
    model, batch = model_of(name), batch_of()
    with torch.no_grad():
        ours = model.objective.anchor_loss(model, batch)(batch.view(0))
        torch.testing.assert_close(ours, model.objective.loss(model, batch).per_example, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["barlow", "vicreg"])
def test_parts_pass_gradcheck(name):
    a, b = (z.requires_grad_() for z in pair(5))
    loss = (lambda u, v: barlow.per_example_losses(u, v, 0.1)) if name == "barlow" else VicReg().contributions
    assert torch.autograd.gradcheck(loss, (a, b))
    assert torch.autograd.gradgradcheck(lambda u, v: loss(u, v).square().sum(), (a, b))


@pytest.mark.parametrize("name", ["barlow", "vicreg"])
def test_a_batch_of_one_has_no_correlations_and_says_so(name):
    model, batch = model_of(name), batch_of(1)
    with pytest.raises(EffaceError, match="the batch has one example"):
        model.objective.loss(model, batch)


def test_planted_bugs_in_simsiam_barlow_and_vicreg_are_far_from_the_reference():
    a, b = pair()
    u, v = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (a, b))
    wrong = u.T @ v / len(a) - torch.eye(4, dtype=a.dtype)
    right = barlow_reference.whole(a.tolist(), b.tolist(), 0.1)
    assert abs(float(0.1 * wrong.square().sum()) - right) > 1e-2, "the diagonal weighed as the rest"
    diagonal, across = wrong.diagonal().square().sum(), wrong.square().sum()
    assert float(diagonal + 0.1 * (across - diagonal)) == pytest.approx(right, abs=1e-9)

    def vicreg_of(correction):
        result = 25 * (a - b).square().mean()
        for z in (a, b):
            c = torch.cov(z.T, correction=correction)
            result += 12.5 * (1 - (c.diagonal() + 1e-4).sqrt()).relu().mean()
            result += (c.square().sum() - c.diagonal().square().sum()) / 4
        return float(result)

    right = vicreg_reference.whole(a.tolist(), b.tolist())
    assert vicreg_of(1) == pytest.approx(right, abs=1e-9)
    assert abs(vicreg_of(0) - right) > 1e-2, "biased covariances"

    model, batch = model_of("simsiam"), batch_of()
    z = [model(batch.view(i)) for i in (0, 1)]
    p = [model.predictor(rows) for rows in z]
    ours = model.objective.loss(model, batch).per_example
    one_way, unpredicted = -functional.cosine_similarity(p[0], z[1]), -functional.cosine_similarity(*z)
    assert min(float((ours - slip).detach().abs().max()) for slip in (one_way, unpredicted)) > 1e-3
    through = -sum(functional.cosine_similarity(p[i], z[1 - i]) for i in (0, 1)).mean() / 2
    slopes = [torch.autograd.grad(loss, model.head[0].weight)[0] for loss in (ours.mean(), through)]
    assert float((slopes[0] - slopes[1]).abs().max()) > 1e-3, "a gradient through the target"


def test_identical_and_uncorrelated_views_cost_barlow_nothing():
    z = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    torch.testing.assert_close(barlow.per_example_losses(z, z, 0.1), torch.zeros(4, dtype=z.dtype), atol=1e-4, rtol=0)


def test_simclr_anchor_equals_the_reference():
    model, batch = model_of("simclr"), batch_of()
    a, b = model(batch.view(0)), model(batch.view(1))
    x = batch.view(0) * 0.9
    with torch.no_grad():
        ours = model.objective.anchor_loss(model, batch)(x)
    close(ours, simclr_reference.anchored(model(x).tolist(), a.tolist(), b.tolist(), 0.2))


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
    loss = model.objective.anchor_loss(model, batch)
    x = batch.view(0).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x)[3], x)
    rows = gradient.flatten(1).abs().sum(1)
    assert rows[3] > 0
    assert rows[[i for i in range(12) if i != 3]].max() == 0


PAIRED = [name for name in NAMES if OBJECTIVES[name].contrasts_pairs]


def contrast_of(name, further=4):
    """A model in evaluation mode, a batch, some other images, and the contrastive terms."""
    model, batch = model_of(name), batch_of()
    x, y = tiny.images(48)
    part = tiny.parts(x, y, {"others": (20, 20 + further)}, tiny.blurred)["others"]
    others = part.batch(part.ids, torch.Generator().manual_seed(3))
    return model, batch, others, model.objective.contrastive_terms(model, batch, others)


@pytest.mark.parametrize("name", PAIRED)
def test_the_parts_of_a_contrast_add_up_to_the_loss(name):
    model, batch, _, parts = contrast_of(name)
    outcome = model.objective.loss(model, batch)
    torch.testing.assert_close(parts.repel - parts.attract, outcome.per_example, atol=1e-5, rtol=1e-5)
    assert (parts.carry is None) == (outcome.carry is None)
    if outcome.carry is not None:
        torch.testing.assert_close(parts.carry, outcome.carry, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", PAIRED)
def test_the_parts_of_a_contrast_equal_the_reference(name):
    model, batch, others, parts = contrast_of(name)
    target, views = model.momentum_encoder or model, [batch.view(0), batch.view(1)]
    captions = [model.encode_text(batch.text).tolist(), model.scale.exp().item()] if name == "clip" else []
    z, t = [[model(view, tower).tolist() for view in views] for tower in (model, target)]
    expected = {
        "clip": lambda: clip_reference.parts(z[0], *captions),
        "simclr": lambda: calibration_reference.simclr_parts(*z, 0.2),
        "moco": lambda: calibration_reference.moco_parts(z[0], t[1], model.queue.tolist(), 0.2),
        "byol": lambda: calibration_reference.byol_parts([model.predictor(model(view)).tolist() for view in views], t),
        "simsiam": lambda: calibration_reference.simsiam_parts([model.predictor(model(v)).tolist() for v in views], t),
    }[name]()
    close(torch.stack([parts.attract, parts.repel], 1), expected)
    further = model.encode_text(others.text) if name == "clip" else model(others.view(1), target)
    close(parts.partners, [simclr_reference.unit(row) for row in further.tolist()])
    torch.testing.assert_close(parts.anchor.norm(dim=1), torch.ones(12))
    assert parts.partners.requires_grad == (name in ("clip", "simclr"))


@pytest.mark.parametrize("name", PAIRED)
def test_other_partners_do_not_enter_the_loss_and_may_be_none(name):
    some, none = contrast_of(name)[3], contrast_of(name, further=0)[3]
    assert none.partners.shape == (0, 8)
    for part in ("anchor", "attract", "repel"):
        torch.testing.assert_close(getattr(some, part), getattr(none, part), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if not OBJECTIVES[name].contrasts_pairs])
def test_an_objective_that_compares_no_pairs_raises(name):
    model, batch = model_of(name), batch_of()
    with pytest.raises(EffaceError, match="compares no pairs"):
        model.objective.contrastive_terms(model, batch, batch)


def test_corrupted_labels_are_all_wrong_and_corrupted_views_come_from_other_images():
    batch, rng = batch_of(), torch.Generator().manual_seed(1)
    wrong = CrossEntropy().corrupt_targets(batch, rng)
    assert (wrong.y != batch.y).all()
    other = swap_second_view(batch, rng)
    assert torch.equal(other.view(0), batch.view(0))
    same = [torch.equal(a, b) for a, b in zip(other.view(1), batch.view(1), strict=True)]
    assert not any(same)


def test_one_outlier_changes_its_own_loss_most():
    a = functional.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    b = a.clone()
    b[5] = -b[5]
    assert nt_xent(a, b, 0.5).argmax() == 5


def test_cross_entropy_without_classes_is_an_error():
    with pytest.raises(EffaceError, match="at least two classes"):
        CrossEntropy().build_model(nn.Flatten(), 4, 0, torch.zeros(1), torch.ones(1))


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
    predictor = tiny.recipe("simsiam", objective=SimSiam(dim=6, bottleneck=3)).start(0).predictor
    assert [layer.out_features for layer in predictor if isinstance(layer, nn.Linear)] == [3, 6]
    losses = [
        barlow.per_example_losses(*pair(), weight).mean().item() for weight in (Barlow().weight, 2 * Barlow().weight)
    ]
    assert losses[0] < losses[1]
    for field in ("weight", "spread", "covariance"):
        less = VicReg(**{field: 0.0}).contributions(*pair()).mean()
        assert less < VicReg().contributions(*pair()).mean() - 1e-3, field
