"""Reference matching: loss, gradients and running means against the reference implementation; whose target is whose."""

from __future__ import annotations

import pytest
import torch

from efface.training.objectives import OBJECTIVES
from efface.unlearning.margins import Embeddings, compute_margins_beside
from efface.unlearning.methods import ReferenceMatching
from efface.unlearning.methods.reference_matching import ExampleMeans, collect_rows
from efface.unlearning.targets import MarginTargets
from tests import tiny
from tests.reference import margin_matching as margins_reference
from tests.reference import reference_matching as reference
from tests.unlearning import test_margin_matching as margin_matching

SPACES = ("backbone", "output")


def world(name):
    """A teacher and a model of one shape, a batch each of F, R and V, and a target for each of F."""
    teacher, model, *batches = margin_matching.world(name)
    rng = torch.Generator().manual_seed(3)
    drawn = {space: torch.randn(12, generator=rng) for space in SPACES}
    return teacher, model, *batches, MarginTargets(torch.arange(12), drawn, "0" * 64, 0.1)


def fresh_means(count=12, memory=0.9):
    """Running means of each example, before the first step."""
    return {space: ExampleMeans(count, memory) for space in SPACES}


def margins_of(teacher, model, forgotten, retained, unseen):
    """Margins of F, R and V under the model and of R and V under the teacher, by space, as lists."""
    with torch.no_grad():
        now, v = compute_margins_beside(model, forgotten + retained, unseen, 0.1)
        r0, v0 = compute_margins_beside(teacher, retained, unseen, 0.1)
    found = {}
    for space in SPACES:
        f, r = now[space].tensor_split([len(forgotten)])
        found[space] = [one.double().tolist() for one in (f, r, v[space], r0[space], v0[space])]
    return found


def targets_of(targets, space):
    """Id to target."""
    return dict(zip(targets.ids.tolist(), targets.margins[space].double().tolist(), strict=True))


def test_margins_beside_a_bank_match_the_reference_implementation():
    _, model, forgotten, _, unseen, _ = world("simclr")
    with torch.no_grad():
        found, bank = compute_margins_beside(model, forgotten, unseen, 0.1)
        shown = Embeddings.of(model, forgotten + unseen)
    for space, views in (("backbone", shown.features), ("output", shown.outputs)):
        first, second = (view.double().tolist() for view in views)
        expected = margins_reference.agreement(first, second, len(unseen), 0.1)
        assert torch.cat([found[space], bank[space]]).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_loss_matches_the_reference_implementation(name):
    teacher, model, forgotten, retained, unseen, targets = world(name)
    method = ReferenceMatching(backbone=2.0, output=3.0, hold=0.7)
    found = method.terms(teacher, model, forgotten, retained, unseen, targets, fresh_means())
    known, ids, held = margins_of(teacher, model, forgotten, retained, unseen), forgotten.ids.tolist(), 0.0
    for space, weight in (("backbone", 2.0), ("output", 3.0)):
        f, r, v, r0, v0 = known[space]
        expected = weight * reference.space_loss(f, v, v0, ids, targets_of(targets, space), [], 0.9)
        assert float(found[space].detach()) == pytest.approx(expected, rel=1e-3)
        held += reference.hold(r, r0, v0)
    assert float(found["hold"].detach()) == pytest.approx(0.7 * held, rel=1e-3)
    assert set(found) == {"backbone", "output", "hold"}


def slopes_of(monkeypatch, means, targets=None):
    """Derivatives of the backbone's term by the margins of F and of R, and what the reference needs for its own."""
    teacher, model, forgotten, retained, unseen, drawn = world("simclr")
    targets = targets or drawn
    known, leaves = margins_of(teacher, model, forgotten, retained, unseen), {}

    def given(which, batch, bank, tau):
        f, r, v, r0, v0 = (torch.tensor(one, dtype=torch.float64) for one in known["backbone"])
        if which is teacher:
            return dict.fromkeys(SPACES, r0), dict.fromkeys(SPACES, v0)
        leaves["f"], leaves["r"] = f.requires_grad_(), r.requires_grad_()
        return dict.fromkeys(SPACES, torch.cat([f, r])), dict.fromkeys(SPACES, v)

    monkeypatch.setattr("efface.unlearning.methods.reference_matching.compute_margins_beside", given)
    method = ReferenceMatching(backbone=1.0, output=0.0, hold=0.0)
    term = method.terms(teacher, model, forgotten, retained, unseen, targets, means)["backbone"]
    term.backward()
    return term, leaves, known["backbone"], forgotten.ids.tolist(), targets


def test_gradients_match_the_reference_implementation_also_after_earlier_steps(monkeypatch):
    means, earlier = fresh_means(), []
    for _ in range(3):
        _, leaves, (f, r, v, _, v0), ids, targets = slopes_of(monkeypatch, means)
        own = targets_of(targets, "backbone")
        of_f, of_r = reference.slopes(f, r, v, v0, ids, own, earlier, 0.9)
        assert leaves["f"].grad.tolist() == pytest.approx(of_f)
        assert leaves["r"].grad.tolist() == pytest.approx(of_r)
        earlier.append(list(zip(ids, reference.errors(f, v, ids, own, reference.spread(v0)), strict=True)))


def test_the_gradient_is_that_of_the_equation_by_finite_differences(monkeypatch):
    """In a first step the running mean is the error itself, so the slope by F is that of the mean square."""
    _, leaves, (f, _, v, _, v0), ids, targets = slopes_of(monkeypatch, fresh_means())
    own, step = targets_of(targets, "backbone"), 1e-5
    for at in range(len(f)):
        up, down = list(f), list(f)
        up[at] += step
        down[at] -= step
        high, low = (reference.space_loss(one, v, v0, ids, own, [], 0.9) for one in (up, down))
        assert float(leaves["f"].grad[at]) == pytest.approx((high - low) / (2 * step), rel=1e-4)


def test_unseen_examples_have_no_gradient():
    """With one, V is drawn to the forgotten examples and is no unseen yardstick any more."""
    teacher, model, forgotten, retained, unseen, targets = world("simclr")
    for batch in (forgotten, unseen):
        for view in (batch.view(0), batch.view(1)):
            view.requires_grad_()
    terms = ReferenceMatching().terms(teacher, model, forgotten, retained, unseen, targets, fresh_means())
    sum(terms.values()).backward()
    assert all(view.grad is not None and view.grad.any() for view in (forgotten.view(0), forgotten.view(1)))
    assert all(view.grad is None for view in (unseen.view(0), unseen.view(1)))


def test_an_example_at_its_target_is_not_moved_and_below_it_is_drawn_up(monkeypatch):
    _, _, (f, _, v, _, _), ids, _ = slopes_of(monkeypatch, fresh_means())
    level, wanted = sum(v) / len(v), torch.zeros(12, dtype=torch.float64)
    wanted[ids] = torch.tensor(f, dtype=torch.float64) - level
    at_target = MarginTargets(torch.arange(12), {"backbone": wanted, "output": wanted}, "0" * 64, 0.1)
    term, leaves, *_ = slopes_of(monkeypatch, fresh_means(), at_target)
    assert float(term.detach()) == pytest.approx(0, abs=1e-12) and leaves["f"].grad.abs().max() < 1e-7
    higher = MarginTargets(torch.arange(12), {"backbone": wanted + 1, "output": wanted + 1}, "0" * 64, 0.1)
    _, leaves, *_ = slopes_of(monkeypatch, fresh_means(), higher)
    assert (leaves["f"].grad < 0).all(), "a step down the slope must raise the margin"


def test_each_example_has_its_own_target_in_whatever_order_the_batch_comes():
    teacher, model, forgotten, retained, unseen, targets = world("simclr")
    turned = forgotten.rows(2, 5) + forgotten.rows(0, 2)
    alike = [
        ReferenceMatching(hold=0.0).terms(teacher, model, batch, retained, unseen, targets, fresh_means())
        for batch in (forgotten, turned)
    ]
    for space in SPACES:
        assert float(alike[0][space].detach()) == pytest.approx(float(alike[1][space].detach()), rel=1e-4)
    swapped = MarginTargets(targets.ids, {k: v.flip(0) for k, v in targets.margins.items()}, "0" * 64, 0.1)
    other = ReferenceMatching(hold=0.0).terms(teacher, model, forgotten, retained, unseen, swapped, fresh_means())
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


def test_a_small_subset_comes_several_times_until_there_are_enough_rows():
    x, y = tiny.images(96, seed=1)
    few = tiny.parts(x, y, {"forget": (0, 3)}, tiny.blurred)["forget"]
    batch = next(collect_rows(few.cycle(10, torch.Generator().manual_seed(0)), 10))
    counts = torch.bincount(batch.ids)
    assert len(batch) == 10 and counts.tolist() in ([4, 3, 3], [3, 4, 3], [3, 3, 4])
    assert not torch.equal(batch.view(0)[0], batch.view(0)[3]), "the same views again"


def test_a_weight_of_zero_leaves_a_space_out():
    shown = world("moco")
    *shown, targets = shown
    assert set(ReferenceMatching(backbone=0.0).terms(*shown, targets, fresh_means())) == {"output", "hold"}
    assert ReferenceMatching(backbone=0.0, output=0.0).terms(*shown, targets, fresh_means()) == {}
