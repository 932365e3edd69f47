"""Margin matching: the loss against the reference implementation, the rows of its steps, and what it costs."""

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
    compute_margins,
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


@pytest.mark.parametrize(("objective", "expected"), [("simclr", 4.0), ("cross_entropy", 1.0), ("clip", 1.0)])
def test_the_output_weighs_less_where_it_is_what_the_model_answers_with(objective: str, expected: float):
    model = tiny.recipe(objective).start(0)
    assert MarginMatching().weights(model) == {"backbone": 1.0, "output": expected}
    assert MarginMatching(output=0.0).weights(model)["output"] == 0.0
    assert MarginMatching(output=2.0).weights(model)["output"] == 2.0
    assert MarginMatching(penalty=GapPenalty.HINGE).weights(model)["output"] == 4.0, "as in earlier versions"


def test_image_text_models_take_twice_as_many_steps():
    x, y = tiny.images(96)
    parts = tiny.parts(x, y, {"forget": (0, 16), "retain": (16, 64), "valid": (64, 96)})
    long, short = ({"epochs": epochs, "batch_size": 24} for epochs in (2000, 50))
    for objective, expected in (("simclr", 50), ("clip", 100)):
        assert (
            MarginMatching().count_steps(tiny.given(MarginMatching(), parts, tiny.recipe(objective, **long)).sizes)
            == expected
        )
        assert (
            MarginMatching().count_steps(tiny.given(MarginMatching(), parts, tiny.recipe(objective, **short)).sizes)
            == 10
        )
    hinge = MarginMatching(penalty=GapPenalty.HINGE)
    assert hinge.count_steps(tiny.given(hinge, parts, tiny.recipe("clip", **long)).sizes) == 50


def test_the_number_of_steps_is_bounded_by_what_retraining_takes():
    """An original of few steps allows up to a tenth of them, a long one a twentieth."""
    x, y = tiny.images(2096)
    method = MarginMatching()
    parts = tiny.parts(x, y, {"forget": (0, 12), "retain": (12, 60), "valid": (60, 80)})
    for epochs, expected in ((50, 10), (100, 20), (2000, 49)):
        recipe = tiny.recipe(epochs=epochs, batch_size=24)
        assert method.count_steps(tiny.given(method, parts, recipe).sizes) == expected
    many = tiny.parts(x, y, {"forget": (0, 2000), "retain": (2000, 2048), "valid": (2048, 2096)})
    assert method.count_steps(tiny.given(method, many, tiny.recipe(epochs=2000, batch_size=24)).sizes) == 200
    assert method.count_steps(tiny.given(method, many).sizes) == 298
    longer = MarginMatching(epochs=7, steps=3)
    assert longer.count_steps(tiny.given(longer, parts, tiny.recipe(batch_size=24)).sizes) == 14
    assert MarginMatching(steps=3).count_steps(tiny.given(method, parts, tiny.recipe(batch_size=24)).sizes) == 3
