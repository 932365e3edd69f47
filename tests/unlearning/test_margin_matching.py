"""Margin matching: margins and loss against the reference implementation; where gradients flow and where not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from efface.errors import EffaceError
from efface.training.loop import Run, fit
from efface.training.objectives import OBJECTIVES
from efface.unlearning.margins import (
    Embeddings,
    GapPenalty,
    RunningMean,
    compute_margins,
    contrastive_margin,
    label_margin,
    margin_gap,
    pair_margin,
)
from efface.unlearning.matching import MatchedMargins, UnseenBatch, UnseenBatches
from efface.unlearning.methods import MarginMatching
from tests import tiny
from tests.reference import margin_matching as reference

CUTS = {"forget": (0, 12), "retain": (12, 60), "valid": (60, 80)}


def world(name):
    """Two models of one shape, and a batch each of F, R and V."""
    x, y = tiny.images(96, seed=1)
    parts = tiny.parts(x, y, CUTS, tiny.blurred)
    rng = torch.Generator().manual_seed(2)
    batches = [parts[part].batch(torch.arange(a, a + 5), rng) for part, (a, _) in CUTS.items()]
    teacher, model = tiny.recipe(name).start(1).eval(), tiny.recipe(name).start(0).eval()
    return teacher, model, *batches


def terms_of(method, teacher, model, forgotten, retained, unseen):
    """The terms of a first step."""
    with torch.no_grad():
        known = Embeddings.of(teacher, unseen)
    gaps = method.distances(None, None), method.alignment_gaps()
    return method.terms(teacher, model, forgotten, retained, UnseenBatch(unseen, known), *gaps)


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


@pytest.mark.parametrize(("compared", "others"), [(0, 0), (10, 0), (11, 1), (35, 3), (10_000, 4)])
def test_the_bank_of_a_step_has_further_rows_of_v_in_new_views_and_none_of_its_own_twice(compared, others):
    """50 of V in five batches of ten: at most four others are left, whatever is asked for."""
    x, y = tiny.images(60, seed=1)
    valid = tiny.parts(x, y, {"valid": (0, 50)}, tiny.blurred)["valid"]
    batches = UnseenBatches(tiny.recipe().start(0).eval(), valid, 10, Run(seed=0), compared)
    seen = []
    for step in range(7):
        unseen = batches.take()
        assert torch.equal(unseen.batch.ids, batches.chunks[step % 5]) and len(unseen) == 10 + 10 * others
        if not others:
            assert unseen.more is None and unseen.more_known is None
            continue
        numbers = [(step + 1 + number) % 5 for number in range(others)]
        assert unseen.more.ids.tolist() == [row for number in numbers for row in batches.chunks[number].tolist()]
        assert not set(unseen.more.ids.tolist()) & set(unseen.batch.ids.tolist())
        known = torch.cat([batches.embed(number).outputs[1] for number in numbers])
        assert torch.equal(unseen.more_known.outputs[1], known)
        first = unseen.more.ids.tolist().index(int(unseen.more.ids.min()))
        seen.append(float(unseen.more.view(0)[first].sum()))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("name", ["simclr", "clip", "cross_entropy"])
def test_further_rows_reach_every_margin_of_a_step(name):
    teacher, model, forgotten, retained, unseen = world(name)
    x, y = tiny.images(40, seed=9)
    part = tiny.parts(x, y, {"valid": (0, 12)}, tiny.blurred)["valid"]
    more = part.batch(torch.arange(12), torch.Generator())
    method = MarginMatching(backbone=2.0, output=3.0, hold=0.7, alignment=0.0)
    with torch.no_grad():
        known, more_known = Embeddings.of(teacher, unseen), Embeddings.of(teacher, more)
    batch = UnseenBatch(unseen, known, more, more_known)
    found = method.terms(teacher, model, forgotten, retained, batch, method.distances(None, None), {})
    with torch.no_grad():
        one_view, shown = Embeddings.of_one_view(model, more), Embeddings.of(model, forgotten + retained + unseen)
    both = Embeddings.of(model, more)
    assert torch.allclose(torch.cat(one_view.features), both.features[0], atol=1e-5), "one view of each is enough"
    assert torch.allclose(torch.cat(one_view.outputs), both.outputs[0], atol=1e-5)
    now = shown.margins(5, method.tau, one_view)
    joint = compute_margins(teacher, retained + more + unseen, 17, method.tau)
    before = {k: torch.cat([v[:5], v[17:]]).detach() for k, v in joint.items()}
    spaces = []
    for space in ("backbone", "output"):
        (f, r, v), (r0, v0) = now[space].split(5), before[space].split(5)
        spaces.append(tuple(part.tolist() for part in (f, r, v, r0, v0)))
    expected = reference.loss(0.0, spaces, (2.0, 3.0), 0.7, "square", method.multiplier)
    assert float(sum(found.values()).detach()) == pytest.approx(expected, rel=1e-4)


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


@pytest.mark.parametrize("penalty", list(GapPenalty))
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_loss_matches_the_reference_implementation(name, penalty):
    teacher, model, forgotten, retained, unseen = world(name)
    method = MarginMatching(backbone=2.0, output=3.0, hold=0.7, penalty=penalty, multiplier=0.3, alignment=0.5)
    found = terms_of(method, teacher, model, forgotten, retained, unseen)
    spaces = []
    now = {k: v.detach() for k, v in compute_margins(model, forgotten + retained + unseen, 5, method.tau).items()}
    before = {k: v.detach() for k, v in compute_margins(teacher, retained + unseen, 5, method.tau).items()}
    for space in ("backbone", "output"):
        f, r, v = (part.tolist() for part in now[space].split(5))
        r0, v0 = (part.tolist() for part in before[space].split(5))
        spaces.append((f, r, v, r0, v0))
    expected = reference.loss(0.0, spaces, (2.0, 3.0), 0.7, penalty.value, 0.3)
    if penalty is GapPenalty.SQUARE:
        expected += reference.alignment(cosines(teacher, model, forgotten, unseen), (2.0, 3.0), 0.5, 0.3)
    assert float(sum(found.values()).detach()) == pytest.approx(expected, rel=1e-4)
    assert set(found) == {"backbone", "output", "hold"} | ({"alignment"} if penalty is GapPenalty.SQUARE else set())


def cosines(teacher, model, forgotten, unseen):
    """Cosines of the views of F and V under the model and of V under the teacher, by space, as lists."""
    found = []
    for space in ("features", "outputs"):
        shown = []
        for one, batch in ((model, forgotten), (model, unseen), (teacher, unseen)):
            with torch.no_grad():
                views = getattr(Embeddings.of(one, batch), space)
            shown.append(reference.aligned(*(view.double().tolist() for view in views)))
        if space == "features" or not (model.objective.needs_labels or model.objective.needs_captions):
            found.append(shown)
    return found


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


def test_retained_examples_are_held_from_below_only():
    teacher, model, forgotten, retained, unseen = world("simclr")
    same = terms_of(MarginMatching(), teacher, teacher, forgotten, retained, unseen)
    assert float(same["hold"].detach()) == pytest.approx(0, abs=1e-8)
    down = terms_of(MarginMatching(), teacher, model, forgotten, retained, unseen)
    up = terms_of(MarginMatching(), model, teacher, forgotten, retained, unseen)
    assert float(down["hold"].detach()) > 0 and float(up["hold"].detach()) > 0


@pytest.mark.parametrize(("name", "times"), [("simclr", 1), ("cross_entropy", 1), ("clip", 16)])
def test_image_text_models_are_held_more_firmly_unless_a_weight_is_given(name, times):
    shown = world(name)
    by_default, once = (terms_of(method, *shown)["hold"] for method in (MarginMatching(), MarginMatching(hold=1.0)))
    assert (
        float(by_default.detach()) == pytest.approx(times * float(once.detach()), rel=1e-5) and float(once.detach()) > 0
    )


def test_a_weight_of_zero_leaves_a_space_out_and_without_any_it_is_fine_tuning():
    teacher, model, forgotten, retained, unseen = world("moco")
    shown = teacher, model, forgotten, retained, unseen
    assert set(terms_of(MarginMatching(backbone=0.0), *shown)) == {"output", "alignment", "hold"}
    assert terms_of(MarginMatching(backbone=0.0, output=0.0), *shown) == {}
    assert set(terms_of(MarginMatching(alignment=0.0), *shown)) == {"backbone", "output", "hold"}


def test_it_brings_the_gap_of_overfitted_examples_down_and_keeps_that_of_the_retained():
    x, y = tiny.images(96, seed=1)
    recipe = tiny.recipe("simclr", epochs=40, views=tiny.recipe().views)
    parts = tiny.parts(x, y, CUTS, tiny.blurred)
    model = recipe.start(0)
    train = dataclasses.replace(parts["retain"], ids=torch.arange(60))
    model = fit(model, train, recipe, Run())
    log = []
    usual = MarginMatching()
    method = dataclasses.replace(usual, epochs=30, batch_size=24, optim=dataclasses.replace(usual.optim, lr=4e-3))
    method.unlearn(model, tiny.given(method, parts, recipe), Run(log=log.append))
    log = [row for row in log if row["phase"] == "train"]
    means = [[sum(row["terms"][k] for row in rows) for k in ("backbone", "output")] for rows in (log[:8], log[-8:])]
    assert sum(means[1]) < 0.75 * sum(means[0])


def record_rows(monkeypatch):
    """Ids of F, R and V of every step."""
    seen, whole = [], MatchedMargins.terms

    def terms(self, teacher, model, forgotten, retained, unseen, *more):
        seen.append([batch.ids.tolist() for batch in (forgotten, retained, unseen.batch)])
        return whole(self, teacher, model, forgotten, retained, unseen, *more)

    monkeypatch.setattr(MatchedMargins, "terms", terms)
    return seen


def test_a_step_has_rows_of_f_v_and_r_and_those_of_r_are_in_the_batch_of_the_task(monkeypatch):
    x, y = tiny.images(240, seed=1)
    seen = record_rows(monkeypatch)
    for forgotten, size, expected in ((8, 12, (12, 12, 12)), (40, 20, (20, 20, 20)), (40, 60, (60, 50, 60))):
        method = MarginMatching(steps=2, batch_size=50, forget_batch_size=size, line_search=False)
        parts = tiny.parts(x, y, {"forget": (0, forgotten), "retain": (40, 140), "valid": (140, 200)})
        run = Run()
        method.unlearn(tiny.recipe().start(0), tiny.given(method, parts, tiny.recipe()), run)
        assert tuple(map(len, seen[-1])) == expected
        f, _, v = expected
        assert run.training_cost.examples == 2 * (50 + f + v), "R's rows are counted once"


def test_the_teacher_sees_every_unseen_example_once_and_the_model_sees_other_views_each_time(monkeypatch):
    """Planted: one pair of views of V for all steps, whose mean margin is as far off at the end as at the start."""
    x, y = tiny.images(240, seed=1)
    parts = tiny.parts(x, y, {"forget": (0, 8), "retain": (40, 140), "valid": (140, 240)}, tiny.blurred)
    embedded, views, whole = [], {}, Embeddings.of.__func__

    def of(cls, model, batch):
        if not any(weight.requires_grad for weight in model.parameters()) and int(batch.ids.min()) >= 140:
            embedded.extend(batch.ids.tolist())
        for row, view in zip(batch.ids.tolist(), batch.view(0), strict=True):
            if row >= 140:
                views.setdefault(row, set()).add(float(view.sum()))
        return whole(cls, model, batch)

    monkeypatch.setattr(Embeddings, "of", classmethod(of))
    method = MarginMatching(steps=9, batch_size=50, forget_batch_size=33, line_search=False)
    method.unlearn(tiny.recipe().start(0), tiny.given(method, parts, tiny.recipe()), Run())
    assert sorted(embedded) == list(range(140, 240))
    assert all(len(found) == 4 for found in views.values()) and len(views) == 100, "three steps each, and the teacher"


def test_its_cost_depends_on_the_forgotten_examples_and_not_on_the_others():
    """Planted: passes over R. Examples of all sets that are read, for 1 and 40 of F beside 96 and 20 000 others."""
    read = {}
    for forgotten, others in ((1, 96), (1, 20_000), (40, 20_000)):
        x, y = tiny.images(forgotten + 64 + others)
        cuts = {"forget": (0, forgotten), "valid": (forgotten, forgotten + 64), "retain": (forgotten + 64, len(x))}
        recipe, run = tiny.recipe(epochs=4000 // -(-others // 16) * 10, batch_size=16), Run()
        method = MarginMatching(forget_batch_size=8)
        method.unlearn(tiny.recipe().start(0), tiny.given(method, tiny.parts(x, y, cuts), recipe), run)
        read[forgotten, others] = run.training_cost.examples
    searched = {1: 200 + 64, 40: 400 + 64}
    assert read[1, 96] == read[1, 20_000] == 48 * (16 + 8 + 8) + searched[1]
    assert read[40, 20_000] == 53 * (16 + 8 + 8) + searched[40]


def test_a_small_f_is_repeated_with_other_views_and_every_example_equally_often():
    x, y = tiny.images(60, seed=1)
    part = tiny.parts(x, y, {"forget": (0, 5)}, tiny.blurred)["forget"]
    batches = part.cycle_full(12, torch.Generator().manual_seed(0))
    found = next(batches)
    assert len(found) == 12 and sorted(found.ids[:5].tolist()) == sorted(found.ids[5:10].tolist()) == [0, 1, 2, 3, 4]
    first, again = (found.view(0)[found.ids == 0][row] for row in (0, 1))
    assert not torch.equal(first, again)
    served = torch.cat([found.ids, *(next(batches).ids for _ in range(4))])
    assert served.bincount().tolist() == [12] * 5


def test_the_hinge_shows_a_small_f_as_it_is(monkeypatch):
    x, y = tiny.images(240, seed=1)
    seen = record_rows(monkeypatch)
    parts = tiny.parts(x, y, {"forget": (0, 5), "retain": (40, 140), "valid": (140, 200)})
    for penalty, expected in ((GapPenalty.HINGE, 5), (GapPenalty.SQUARE, 12)):
        method = MarginMatching(steps=1, forget_batch_size=12, line_search=False, penalty=penalty)
        method.unlearn(tiny.recipe().start(0), tiny.given(method, parts, tiny.recipe()), Run())
        assert len(seen[-1][0]) == expected


def test_batches_of_one_size_waste_no_example_of_a_larger_subset():
    x, y = tiny.images(60, seed=1)
    part = tiny.parts(x, y, {"forget": (0, 50)})["forget"]
    batches = part.cycle_full(40, torch.Generator().manual_seed(0))
    served = torch.cat([next(batches).ids for _ in range(5)])
    assert served.bincount().tolist() == [4] * 50
    assert not list(tiny.parts(x, y, {"forget": (0, 0)})["forget"].cycle_full(4, torch.Generator()))


def test_too_few_unseen_examples_and_an_impossible_temperature_are_refused():
    x, y = tiny.images(96)
    parts = tiny.parts(x, y, CUTS | {"valid": (60, 61)})
    method = MarginMatching()
    with pytest.raises(EffaceError, match="`valid` has 1"):
        method.unlearn(tiny.recipe().start(0), tiny.given(method, parts, tiny.recipe()), Run())
    with pytest.raises(EffaceError, match=r"tau' cannot be 0.*above 0"):
        MarginMatching(tau=0)
    with pytest.raises(EffaceError, match=r"memory' cannot be 1.*below 1"):
        MarginMatching(memory=1.0)


def test_the_number_of_steps_is_bounded_by_what_retraining_takes():
    """An original of few steps allows up to a tenth of them, a long one a twentieth."""
    x, y = tiny.images(2096)
    method = MarginMatching()
    parts = tiny.parts(x, y, {"forget": (0, 12), "retain": (12, 60), "valid": (60, 80)})
    for epochs, expected in ((50, 10), (100, 20), (2000, 49)):
        recipe = tiny.recipe(epochs=epochs, batch_size=24)
        assert method._steps(tiny.given(method, parts, recipe)) == expected
    many = tiny.parts(x, y, {"forget": (0, 2000), "retain": (2000, 2048), "valid": (2048, 2096)})
    assert method._steps(tiny.given(method, many, tiny.recipe(epochs=2000, batch_size=24))) == 200
    assert method._steps(tiny.given(method, many)) == 298
    longer = MarginMatching(epochs=7, steps=3)
    assert longer._steps(tiny.given(longer, parts, tiny.recipe(batch_size=24))) == 14
    assert MarginMatching(steps=3)._steps(tiny.given(method, parts, tiny.recipe(batch_size=24))) == 3
