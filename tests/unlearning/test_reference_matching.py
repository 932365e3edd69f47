"""Reference matching: loss, gradients and running means against the reference implementation; whose target is whose."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from efface import api
from efface.training.loop import Run
from efface.training.objectives import OBJECTIVES
from efface.unlearning.margins import Embeddings, compute_margins
from efface.unlearning.matching import UnseenBatch, UnseenBatches
from efface.unlearning.methods import ReferenceMatching
from efface.unlearning.methods.reference_matching import ExampleMeans, find_slopes
from efface.unlearning.targets import MarginTargets
from tests import tiny
from tests.auditing.bank_worlds import World
from tests.reference import reference_matching as reference
from tests.unlearning import test_margin_matching as margin_matching

SPACES = ("backbone", "output")


def targets_for(ids, margins, valid_ids=(), valid=None):
    """Targets of forgotten and of unseen examples."""
    of_valid = {space: torch.zeros(max(1, len(valid_ids))) for space in SPACES} if valid is None else valid
    return MarginTargets(torch.as_tensor(ids), margins, "0" * 64, 0.1, torch.as_tensor(valid_ids), of_valid)


def world(name):
    """A teacher and a model of one shape, a batch each of F, R and V, and a target for each of F."""
    teacher, model, *batches = margin_matching.world(name)
    rng = torch.Generator().manual_seed(3)
    drawn = {space: torch.randn(12, generator=rng) for space in SPACES}
    return teacher, model, *batches, targets_for(range(12), drawn)


def terms_of(method, teacher, model, forgotten, retained, unseen, targets, slope=1.0):
    """The terms of a first step."""
    distances = {space: method.distance(space, targets, slope) for space in SPACES}
    with torch.no_grad():
        known = Embeddings.of(teacher, unseen)
    return method.terms(teacher, model, forgotten, retained, UnseenBatch(unseen, known), distances, {})


def margins_of(teacher, model, forgotten, retained, unseen):
    """Margins of F, R and V under the model and of R and V under the teacher, by space, as lists."""
    with torch.no_grad():
        now = compute_margins(model, forgotten + retained + unseen, len(unseen), 0.1)
        before = compute_margins(teacher, retained + unseen, len(unseen), 0.1)
    found = {}
    for space in SPACES:
        f, r, v = now[space].split([len(forgotten), len(retained), len(unseen)])
        r0, v0 = before[space].split([len(retained), len(unseen)])
        found[space] = [one.double().tolist() for one in (f, r, v, r0, v0)]
    return found


def targets_of(targets, space):
    """Id to target."""
    return dict(zip(targets.ids.tolist(), targets.margins[space].double().tolist(), strict=True))


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_loss_matches_the_reference_implementation(name):
    teacher, model, forgotten, retained, unseen, targets = world(name)
    valid = {space: torch.tensor([0.5, 0.1, -0.3]) for space in SPACES}
    targets = dataclasses.replace(targets, valid=valid)
    method = ReferenceMatching(backbone=2.0, output=3.0, hold=0.7, multiplier=0.2, individual=0.4)
    found = terms_of(method, teacher, model, forgotten, retained, unseen, targets, slope=0.7)
    known, ids, held = margins_of(teacher, model, forgotten, retained, unseen), forgotten.ids.tolist(), 0.0
    for space, weight in (("backbone", 2.0), ("output", 3.0)):
        f, r, v, r0, v0 = known[space]
        wanted = reference.expected(targets_of(targets, space), [0.5, 0.1, -0.3], 0.7)
        expected = weight * reference.space_loss(f, v, v0, ids, wanted, [], 0.8, 0.2, 0.4)
        assert float(found[space].detach()) == pytest.approx(expected, rel=1e-3)
        held += reference.hold(r, r0, v0)
    assert float(found["hold"].detach()) == pytest.approx(0.7 * held, rel=1e-3)
    assert set(found) == {"backbone", "output", "hold"}


def slopes_of(distance, targets=None):
    """Derivatives of one space's penalty by the margins of F and of R, and what the reference needs for its own."""
    *shown, drawn = world("simclr")
    f, r, v, _, v0 = margins_of(*shown)["backbone"]
    leaves = [torch.tensor(one, dtype=torch.float64, requires_grad=True) for one in (f, r)]
    ids = shown[2].ids
    sigma = torch.tensor(v0, dtype=torch.float64).std()
    distance.targets = targets or drawn
    distance.expected = distance.targets.margins["backbone"]
    term = distance.penalize(ids, *leaves, torch.tensor(v, dtype=torch.float64), sigma)
    term.backward()
    return term, leaves, (f, r, v, v0), ids.tolist(), distance.targets


def fresh(**settings):
    """Errors in the backbone, before the first step; the targets are set later."""
    none = targets_for(range(12), {"backbone": torch.zeros(12)})
    return ReferenceMatching(**settings).distance("backbone", none)


def test_gradients_match_the_reference_implementation_also_after_earlier_steps():
    distance, earlier = fresh(multiplier=0.3, individual=0.4, memory=0.7), []
    for _ in range(3):
        term, leaves, (f, r, v, v0), ids, targets = slopes_of(distance)
        own, settings = targets_of(targets, "backbone"), (earlier, 0.7, 0.3, 0.4)
        assert float(term.detach()) == pytest.approx(reference.space_loss(f, v, v0, ids, own, *settings))
        of_f, of_r = reference.slopes(f, r, v, v0, ids, own, *settings)
        assert leaves[0].grad.tolist() == pytest.approx(of_f)
        assert leaves[1].grad.tolist() == pytest.approx(of_r)
        earlier.append(list(zip(ids, reference.errors(f, v, ids, own, reference.spread(v0)), strict=True)))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_gradient_is_that_of_the_equation_by_finite_differences(alpha):
    """In a first step running means are the errors themselves; the multiplier is a constant of each step, here 0."""
    _, leaves, (f, _, v, v0), ids, targets = slopes_of(fresh(multiplier=0, individual=alpha))
    own, step = targets_of(targets, "backbone"), 1e-5
    for at in range(len(f)):
        up, down = list(f), list(f)
        up[at] += step
        down[at] -= step
        high, low = (reference.space_loss(one, v, v0, ids, own, [], 0.8, 0, alpha) for one in (up, down))
        assert float(leaves[0].grad[at]) == pytest.approx((high - low) / (2 * step), rel=1e-4)


def test_with_alpha_1_and_no_multiplier_it_is_the_mean_of_each_example_s_square():
    term, _, (f, _, v, v0), ids, targets = slopes_of(fresh(multiplier=0, individual=1))
    found = reference.errors(f, v, ids, targets_of(targets, "backbone"), reference.spread(v0))
    assert float(term.detach()) == pytest.approx(sum(one**2 for one in found) / len(found))


def test_an_example_at_its_target_is_not_moved_and_below_it_is_drawn_up():
    _, _, (f, _, v, _), ids, _ = slopes_of(fresh())
    mean, wanted = sum(v) / len(v), torch.zeros(12, dtype=torch.float64)
    wanted[ids] = torch.tensor(f, dtype=torch.float64) - mean
    at_target = targets_for(range(12), {"backbone": wanted})
    term, leaves, *_ = slopes_of(fresh(), at_target)
    assert float(term.detach()) == pytest.approx(0, abs=1e-12) and leaves[0].grad.abs().max() < 1e-7
    higher = targets_for(range(12), {"backbone": wanted + 1})
    _, leaves, *_ = slopes_of(fresh(), higher)
    assert (leaves[0].grad < 0).all(), "a step down the slope must raise the margin"


@pytest.mark.parametrize(("rate", "least", "most"), [(0.0, 0.1, 0.5), (0.2, -0.02, 0.02)])
def test_the_multiplier_leaves_nothing_where_the_square_alone_rests_at_a_part_of_the_distance(rate, least, most):
    """Planted: a task that pulls each margin back to where it was, 1 above its target."""
    targets = targets_for(range(4), {"backbone": torch.zeros(4)})
    distance = ReferenceMatching(multiplier=rate, individual=0).distance("backbone", targets)
    margins, zeros = torch.ones(4, dtype=torch.float64, requires_grad=True), torch.zeros(4, dtype=torch.float64)
    for _ in range(200):
        loss = 2 * distance.penalize(torch.arange(4), margins, zeros, zeros, torch.tensor(1.0))
        (slope,) = torch.autograd.grad(loss + (margins - 1).square().mean(), margins)
        margins = (margins - 0.2 * slope).detach().requires_grad_()
    assert least < float(margins.detach().mean()) < most


def test_each_example_has_its_own_target_in_whatever_order_the_batch_comes():
    teacher, model, forgotten, retained, unseen, targets = world("simclr")
    turned = forgotten.rows(2, 5) + forgotten.rows(0, 2)
    method = ReferenceMatching(hold=0.0, individual=1.0)
    alike = [terms_of(method, teacher, model, batch, retained, unseen, targets) for batch in (forgotten, turned)]
    for space in SPACES:
        assert float(alike[0][space].detach()) == pytest.approx(float(alike[1][space].detach()), rel=1e-4)
    swapped = targets_for(targets.ids, {k: v.flip(0) for k, v in targets.margins.items()})
    other = terms_of(method, teacher, model, forgotten, retained, unseen, swapped)
    assert float(other["output"].detach()) != pytest.approx(float(alike[0]["output"].detach()), rel=1e-2)


def test_positions_that_do_not_start_at_0_find_their_targets():
    targets = targets_for([3, 40, 700], {})
    assert targets.rows(torch.tensor([700, 3, 3, 40])).tolist() == [2, 0, 0, 1]


def test_running_means_match_the_reference_implementation_and_an_absent_example_keeps_its_own():
    rng = torch.Generator().manual_seed(0)
    means, steps = ExampleMeans(6, 0.7), []
    for drawn in ([0, 1, 2], [1, 1, 3], [5, 0, 1], [2, 2, 2], [1, 0, 4]):
        rows, now = torch.tensor(drawn), torch.randn(3, generator=rng, dtype=torch.float64)
        steps.append(list(zip(drawn, now.tolist(), strict=True)))
        expected = reference.means(steps, 0.7)
        assert means.update(rows, now).tolist() == pytest.approx([expected[i] for i in drawn])


def test_a_weight_of_zero_leaves_a_space_out():
    *shown, targets = world("moco")
    assert set(terms_of(ReferenceMatching(backbone=0.0), *shown, targets)) == {"output", "hold"}
    assert terms_of(ReferenceMatching(backbone=0.0, output=0.0), *shown, targets) == {}


def test_the_slope_is_that_of_least_squares_on_the_unseen_examples_by_their_ids():
    rng = torch.Generator().manual_seed(4)
    ids, (known, noise) = torch.tensor([2, 9, 30, 31, 77, 90]), torch.randn(2, 6, generator=rng)
    targets = targets_for([0], {}, ids, {"backbone": known, "output": -known})
    order = torch.tensor([4, 0, 3, 1])  # only some of them are looked at, in another order
    margins = 0.6 * known[order] + 0.1 * noise[order] + 5
    expected = reference.slope(known[order].double().tolist(), margins.double().tolist())
    assert 0.3 < expected < 1
    assert targets.slope("backbone", ids[order], margins) == pytest.approx(expected)
    assert targets.slope("output", ids[order], margins) == 0, "targets that point the wrong way say nothing"
    assert targets.slope("backbone", ids[order], 30 * margins) == 1
    alike = targets_for([0], {}, ids, {"backbone": torch.ones(6)})
    assert alike.slope("backbone", ids, torch.randn(6, generator=rng)) == 0


def test_slopes_are_found_on_every_unseen_example_under_the_checkpoint_as_received():
    """Planted: targets that are twice the margins which the checkpoint itself shows."""
    teacher, *_ = world("simclr")
    x, y = tiny.images(96, seed=1)
    valid = tiny.parts(x, y, margin_matching.CUTS, tiny.blurred)["valid"]
    batches = UnseenBatches(teacher, valid, 10, Run(seed=0))
    shown = {space: torch.zeros(len(valid)) for space in SPACES}
    for number, chunk in enumerate(batches.chunks):
        for space, values in batches.embed(number).margins(len(chunk), 0.1).items():
            shown[space][chunk - 60] = values
    twice = targets_for([0], {}, valid.ids, {space: values * 2 for space, values in shown.items()})
    assert find_slopes(twice, batches, 0.1) == pytest.approx(dict.fromkeys(SPACES, 0.5), rel=1e-4)


@pytest.mark.parametrize(("mean", "b"), [(0.3, 0.4), (3.0, 0.4), (-2.0, 0.0), (0.1, 1.0)])
def test_what_is_expected_of_forgotten_examples_matches_the_reference_implementation(mean, b):
    rng = torch.Generator().manual_seed(1)
    own, valid = torch.randn(7, generator=rng) + mean, torch.randn(30, generator=rng)
    targets = targets_for(range(7), {"backbone": own}, range(30, 60), {"backbone": valid})
    expected = reference.expected(dict(enumerate(own.tolist())), valid.tolist(), b)
    assert targets.expect("backbone", b).tolist() == pytest.approx([expected[i] for i in range(7)], rel=1e-4)


def test_a_mean_that_luck_explains_counts_for_its_slope_and_one_that_is_far_off_counts_whole():
    """Planted: a class that is hard for every model and would be lowered to what ordinary examples have."""
    valid = {"backbone": torch.linspace(-1.7, 1.7, 100)}
    for mean, part in ((-0.3, 0.2), (0.5, 0.2), (-4.0, 1.0)):
        own = {"backbone": mean + torch.tensor([-0.5, 0.0, 0.5, 0.0])}
        found = targets_for(range(4), own, range(10, 110), valid).expect("backbone", 0.2)
        assert float(found.mean()) == pytest.approx(part * mean, rel=0.05)
        assert (found - found.mean()).tolist() == pytest.approx([-0.1, 0, 0.1, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("scored", "wanted", "unit"),
    [((), "projector.margin", 0.1), (("pair.margin",), "pair.margin", 0.1), (("logits.margin",), "logits.margin", 1.0)],
)
def test_targets_of_the_output_are_those_of_the_signal_that_its_audit_looks_at(scored, wanted, unit):
    """Planted: the margin among images for an image-text model; a target of V under another model than F's."""
    drawn = World.of(3, 20, 30).bank(8)
    whole = {**drawn.scores, **dict.fromkeys(scored, 3 * drawn.scores["backbone.margin"] + 1)}
    bank = dataclasses.replace(drawn, scores=whole, valid=np.arange(50) >= 40)
    data = SimpleNamespace(keys=bank.keys)
    split = SimpleNamespace(forget=np.array([3, 7, 11]), valid=np.arange(40, 50))
    found = api.margin_targets(bank, ReferenceMatching(), data, split)
    half = bank.part_for("method")
    for space, name, tau in (("backbone", "backbone.margin", 0.1), ("output", wanted, unit)):
        for ids, targets in ((split.forget, found.margins[space]), (split.valid, found.valid[space])):
            expected = half.targets(bank.keys[ids], name) * tau
            assert targets.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert found.ids.tolist() == [3, 7, 11] and found.valid_ids.tolist() == list(range(40, 50))
    assert found.bank == half.digest != bank.digest
