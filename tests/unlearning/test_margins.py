"""Margins and the gap between them: values against the reference implementation, gradients, and what noise does."""

from __future__ import annotations

import pytest
import torch

from efface.unlearning.margins import (
    GapPenalty,
    RunningMean,
    compute_margins,
    contrastive_margin,
    label_margin,
    margin_gap,
    pair_margin,
)
from tests import tiny
from tests.reference import margin_matching as reference


def test_agreement_matches_the_reference_implementation_and_leaves_an_example_out_of_its_own_bank():
    rng = torch.Generator().manual_seed(0)
    first, second = (torch.randn(7, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    found = contrastive_margin(first, second, 3, 0.3)
    assert found.tolist() == pytest.approx(reference.agreement(first.tolist(), second.tolist(), 3, 0.3))
    assert found.tolist() != pytest.approx(reference.agreement(first.tolist(), second.tolist(), 7, 0.3))


def test_a_pair_s_margin_matches_the_reference_implementation():
    """Planted: a caption that is among the others it is compared with."""
    rng = torch.Generator().manual_seed(0)
    first, second, captions = (torch.randn(9, 4, generator=rng, dtype=torch.float64) for _ in range(3))
    expected = reference.of_pair(first.tolist(), second.tolist(), captions.tolist(), 4, 0.3)
    assert pair_margin((first, second), captions, 4, 0.3).tolist() == pytest.approx(expected)


def test_further_rows_of_the_bank_count_as_those_of_the_batch_and_are_nobody_s_own():
    rng = torch.Generator().manual_seed(5)
    first, second, more, more2 = (torch.randn(n, 4, generator=rng, dtype=torch.float64) for n in (9, 9, 6, 6))
    expected = reference.agreement(first.tolist(), second.tolist(), 3, 0.3, others=[*more.tolist(), *more2.tolist()])
    found = contrastive_margin(first, second, 3, 0.3, torch.cat([more, more2]))
    assert found.tolist() == pytest.approx(expected)
    wide = torch.cat([first[:6], more, first[6:]]), torch.cat([second[:6], more2, second[6:]])
    assert contrastive_margin(*wide, 9, 0.3)[:6].tolist() == pytest.approx(found[:6].tolist()), "as a bank of nine"
    captions, others = (torch.randn(n, 4, generator=rng, dtype=torch.float64) for n in (9, 5))
    expected = reference.of_pair(first.tolist(), second.tolist(), captions.tolist(), 3, 0.3, others=others.tolist())
    assert pair_margin((first, second), captions, 3, 0.3, others).tolist() == pytest.approx(expected)


def test_an_image_text_model_s_output_is_the_pair_as_in_its_audit():
    """Planted: the margin among images, which says nothing about which caption was learned with which image."""
    x, y = tiny.images(40, seed=1)
    batch = tiny.parts(x, y, {"valid": (0, 40)}, tiny.blurred)["valid"].batch(torch.arange(40), torch.Generator())
    model = tiny.recipe("clip").start(0).eval()
    with torch.no_grad():
        found = compute_margins(model, batch, 30, 0.1)["output"]
        captions = model.encode_text(batch.captions())
        images = [model.project(model.features(batch.view(number))) for number in (0, 1)]
    expected = reference.of_pair(*(one.double().tolist() for one in (*images, captions)), 30, 0.1)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_label_s_margin_matches_the_reference_implementation_and_stays_finite():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    assert label_margin(logits, labels).tolist() == pytest.approx(reference.of_label(logits.tolist(), labels.tolist()))
    assert label_margin(torch.tensor([[1e4, 0.0]]), torch.tensor([0])).isfinite().all()


def test_the_gap_has_the_value_of_unseen_and_the_gradient_of_retained_examples():
    f, r, v = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    value = margin_gap(f, r, v)
    assert float(value.detach()) == pytest.approx(reference.gap(f.tolist(), v.tolist()))
    value.backward()
    assert f.grad.tolist() == pytest.approx([0.25] * 4) and r.grad.tolist() == pytest.approx([-0.25] * 4)
    assert v.grad is None, "unseen examples would be trained on"


def test_a_gap_s_running_mean_matches_the_reference_implementation_and_decides_the_push():
    values = [0.5, -0.2, -0.9, 0.3, -0.4, 0.8]
    for penalty in GapPenalty:
        running = RunningMean(0.7)
        for step, value in enumerate(values):
            now = torch.tensor(value, dtype=torch.float64, requires_grad=True)
            found = running.update(2 * now, penalty)
            mean = reference.running([2 * one for one in values[: step + 1]], 0.7)
            (slope,) = torch.autograd.grad(found, now)
            hinge = penalty is GapPenalty.HINGE
            assert float(found.detach()) == pytest.approx(max(0.0, mean) if hinge else mean**2)
            assert float(slope) == pytest.approx((2.0 if mean > 0 else 0.0) if hinge else 4 * mean)


def test_a_gap_s_multiplier_matches_the_reference_implementation():
    values, running = [0.5, -0.2, -0.9, 0.3, -0.4, 0.8], RunningMean(0.7, 0.25)
    for step, value in enumerate(values):
        now = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        found = running.update(now, GapPenalty.SQUARE)
        (slope,) = torch.autograd.grad(found, now)
        expected = reference.pulled(values[: step + 1], 0.7, 0.25)
        assert (float(found.detach()), float(slope)) == pytest.approx(expected)


@pytest.mark.parametrize(("rate", "least", "most"), [(0.0, 0.2, 0.4), (0.1, -0.02, 0.02)])
def test_the_multiplier_leaves_nothing_of_a_gap_that_the_square_alone_leaves(rate, least, most):
    """Planted: something that pulls back to a gap of 1, as the task and the hold do."""
    running, gap = RunningMean(0.8, rate), torch.ones((), dtype=torch.float64, requires_grad=True)
    for _ in range(300):
        (slope,) = torch.autograd.grad(2 * running.update(gap, GapPenalty.SQUARE) + (gap - 1) ** 2, gap)
        gap = (gap - 0.05 * slope).detach().requires_grad_()
    assert least < float(gap.detach()) < most


def test_the_square_draws_a_gap_below_zero_up_again_and_the_hinge_does_not():
    """Planted: a gap that noise has pushed below 0. The hinge is the ratchet that makes small requests stand out."""
    for penalty, expected in ((GapPenalty.SQUARE, -1.0), (GapPenalty.HINGE, 0.0)):
        now = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(RunningMean(0.9).update(now, penalty), now)
        assert float(slope) == pytest.approx(expected)


def test_noise_around_zero_pushes_the_hinge_down_and_leaves_the_square_where_it_is():
    """A walk in one number: the gap itself, measured with noise; nothing but the penalty moves it."""
    ends = {}
    for penalty in GapPenalty:
        noise, gap = torch.Generator().manual_seed(0), torch.zeros((), dtype=torch.float64, requires_grad=True)
        running = RunningMean(0.9)
        for _ in range(400):
            measured = gap + 0.14 * torch.randn((), generator=noise, dtype=torch.float64)
            (slope,) = torch.autograd.grad(running.update(measured, penalty), gap)
            gap = (gap - 0.02 * slope).detach().requires_grad_()
        ends[penalty] = float(gap.detach())
    assert abs(ends[GapPenalty.SQUARE]) < 0.05 < -ends[GapPenalty.HINGE]


def test_one_batch_s_noise_does_not_push_the_hinge_and_without_memory_it_would():
    """Planted: a true gap of -0.1 that is measured with a standard deviation of 0.14."""
    noise = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pushes = {}
    for memory in (0.0, 0.9):
        running = RunningMean(memory)
        measured = [running.update(-0.1 + 0.14 * one, GapPenalty.HINGE) for one in noise[:100]]
        pushes[memory] = sum(float(one) > 0 for one in measured)
    assert pushes[0.0] > 15 and pushes[0.9] < 5


def test_what_lowers_everybody_s_margin_alike_has_no_gradient():
    """Planted: with the gradient of F alone, a shift that all share would be pushed."""
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    f, r, v = (torch.randn(4, dtype=torch.float64) + shift for _ in range(3))
    (ours,) = torch.autograd.grad(margin_gap(f, r, v), shift)
    assert float(ours) == pytest.approx(0)
    f = torch.randn(4, dtype=torch.float64) + shift
    (hinge,) = torch.autograd.grad(f.mean() - v.detach().mean(), shift)
    assert float(hinge) == pytest.approx(1)
