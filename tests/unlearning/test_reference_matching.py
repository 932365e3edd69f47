"""Reference matching: loss, gradients and running means against the reference implementation; whose target is whose."""

from __future__ import annotations

import pytest
import torch

from efface.training.objectives import OBJECTIVES
from efface.unlearning.margins import Embeddings, compute_margins
from efface.unlearning.methods import ReferenceMatching
from efface.unlearning.methods.reference_matching import ExampleMeans
from efface.unlearning.targets import MarginTargets
from tests.reference import reference_matching as reference
from tests.unlearning import test_margin_matching as margin_matching

SPACES = ("backbone", "output")


def world(name):
    """A teacher and a model of one shape, a batch each of F, R and V, and a target for each of F."""
    teacher, model, *batches = margin_matching.world(name)
    rng = torch.Generator().manual_seed(3)
    drawn = {space: torch.randn(12, generator=rng) for space in SPACES}
    return teacher, model, *batches, MarginTargets(torch.arange(12), drawn, "0" * 64, 0.1)


def terms_of(method, teacher, model, forgotten, retained, unseen, targets):
    """The terms of a first step."""
    with torch.no_grad():
        known = Embeddings.of(teacher, unseen)
    distances = {space: method.distance(space, targets) for space in SPACES}
    return method.terms(teacher, model, forgotten, retained, unseen, known, distances)


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
    method = ReferenceMatching(backbone=2.0, output=3.0, hold=0.7, multiplier=0.2, individual=0.4)
    found = terms_of(method, teacher, model, forgotten, retained, unseen, targets)
    known, ids, held = margins_of(teacher, model, forgotten, retained, unseen), forgotten.ids.tolist(), 0.0
    for space, weight in (("backbone", 2.0), ("output", 3.0)):
        f, r, v, r0, v0 = known[space]
        expected = weight * reference.space_loss(f, v, v0, ids, targets_of(targets, space), [], 0.8, 0.2, 0.4)
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
    term = distance.penalize(ids, *leaves, torch.tensor(v, dtype=torch.float64), sigma)
    term.backward()
    return term, leaves, (f, r, v, v0), ids.tolist(), distance.targets


def fresh(**settings):
    """Errors in the backbone, before the first step; the targets are set later."""
    none = MarginTargets(torch.arange(12), {}, "0" * 64, 0.1)
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
    at_target = MarginTargets(torch.arange(12), {"backbone": wanted}, "0" * 64, 0.1)
    term, leaves, *_ = slopes_of(fresh(), at_target)
    assert float(term.detach()) == pytest.approx(0, abs=1e-12) and leaves[0].grad.abs().max() < 1e-7
    higher = MarginTargets(torch.arange(12), {"backbone": wanted + 1}, "0" * 64, 0.1)
    _, leaves, *_ = slopes_of(fresh(), higher)
    assert (leaves[0].grad < 0).all(), "a step down the slope must raise the margin"


@pytest.mark.parametrize(("rate", "least", "most"), [(0.0, 0.1, 0.5), (0.2, -0.02, 0.02)])
def test_the_multiplier_leaves_nothing_where_the_square_alone_rests_at_a_part_of_the_distance(rate, least, most):
    """Planted: a task that pulls each margin back to where it was, 1 above its target."""
    targets = MarginTargets(torch.arange(4), {"backbone": torch.zeros(4)}, "0" * 64, 0.1)
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
    swapped = MarginTargets(targets.ids, {k: v.flip(0) for k, v in targets.margins.items()}, "0" * 64, 0.1)
    other = terms_of(method, teacher, model, forgotten, retained, unseen, swapped)
    assert float(other["output"].detach()) != pytest.approx(float(alike[0]["output"].detach()), rel=1e-2)


def test_positions_that_do_not_start_at_0_find_their_targets():
    targets = MarginTargets(torch.tensor([3, 40, 700]), {}, "0" * 64, 0.1)
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
