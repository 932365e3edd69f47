"""Alignment calibration: its loss against the reference implementation, its batches, and its coefficients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from efface.training.loop import Run
from efface.training.objectives import OBJECTIVES
from efface.unlearning.methods import AlignmentCalibration
from efface.unlearning.methods.alignment_calibration import add_rows, mix_batches
from tests import tiny
from tests.reference import alignment_calibration as reference
from tests.reference import clip as clip_reference

PAIRED = [name for name in sorted(OBJECTIVES) if OBJECTIVES[name].contrasts_pairs]
CUTS = {"forget": (0, 12), "retain": (12, 60)}


def parts_of(forget=12, augment=tiny.blurred):
    x, y = tiny.images(60)
    return tiny.parts(x, y, {"forget": (0, forget), "retain": (forget, 60)}, augment)


def build_step(name, method, retained=8, forgotten=4):
    """A model in evaluation mode, a mixed batch, its forgotten rows, and the step's terms."""
    model, parts = tiny.recipe(name).start(0).eval(), parts_of()
    rng = torch.Generator().manual_seed(1)
    forget = parts["forget"].batch(torch.arange(forgotten), rng)
    other = parts["forget"].batch(torch.arange(forgotten) + 6, rng)
    batch = parts["retain"].batch(torch.arange(12, 12 + retained), rng) + forget.pair_with(other)
    return model, batch, forget, method.terms(model, batch, forget, 0.2, method.alpha)


def parts_and_embeddings(name, model, batch, forget):
    z = [model(batch.view(number)).tolist() for number in (0, 1)]
    if name == "clip":
        parts = clip_reference.parts(z[0], model.encode_text(batch.text).tolist(), model.scale.exp().item())
        return parts, z[0], model.encode_text(forget.text).tolist()
    if name == "simclr":
        return reference.simclr_parts(*z, 0.2), z[0], model(forget.view(2)).tolist()
    t = [model(batch.view(number), model.momentum_encoder).tolist() for number in (0, 1)]
    thirds = model(forget.view(2), model.momentum_encoder).tolist()
    if name == "moco":
        return reference.moco_parts(z[0], t[1], model.queue.tolist(), 0.2), z[0], thirds
    p = [model.predictor(model(batch.view(number))).tolist() for number in (0, 1)]
    parts = reference.simsiam_parts(p, t) if name == "simsiam" else reference.byol_parts(p, t)
    return parts, p[0], thirds


@pytest.mark.parametrize("name", PAIRED)
def test_the_loss_matches_the_reference_implementation(name):
    method = AlignmentCalibration(alpha=0.6, beta=3.0, gamma=1.4)
    model, batch, forget, step = build_step(name, method)
    expected = reference.loss(*parts_and_embeddings(name, model, batch, forget), 8, 0.6, 3.0, 1.4, 0.2)
    assert float(sum(step.terms.values()).detach()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", PAIRED)
def test_a_batch_without_forgotten_examples_is_the_objectives_own_loss_and_finite(name):
    model, batch, _, step = build_step(name, AlignmentCalibration(), forgotten=0)
    assert all(float(step.terms[name].detach()) == 0 for name in ("positive", "negative", "preserve"))
    own = model.objective.loss(model, batch).per_example.mean()
    torch.testing.assert_close(step.terms["task"], own)
    sum(step.terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.trainable_parameters() if p.grad is not None)


@pytest.mark.parametrize("name", PAIRED)
def test_a_batch_of_forgotten_examples_alone_is_finite(name):
    for alpha in (0.0, 1.0):
        step = build_step(name, AlignmentCalibration(alpha=alpha), retained=0)[3]
        assert all(term.isfinite() for term in step.terms.values())


@pytest.mark.parametrize("name", PAIRED)
def test_each_coefficient_weighs_its_own_term(name):
    base = build_step(name, AlignmentCalibration(alpha=1.0, beta=1.0, gamma=1.0))[3].terms
    for field, term in {"beta": "positive", "gamma": "preserve"}.items():
        terms = build_step(name, AlignmentCalibration(**{"alpha": 1.0, "beta": 1.0, "gamma": 1.0, field: 3.0}))[3].terms
        for key, value in terms.items():
            torch.testing.assert_close(value, (3 if key == term else 1) * base[key])
    terms = build_step(name, AlignmentCalibration(alpha=3.0, beta=1.0, gamma=1.0))[3].terms
    torch.testing.assert_close(terms["negative"], 3 * base["negative"] * 12 / 20)
    torch.testing.assert_close(terms["preserve"], base["preserve"] * 12 / 20)
    torch.testing.assert_close(terms["positive"], base["positive"])


def test_with_captions_both_towers_learn_from_every_term_and_partners_are_captions():
    """Both directions: a forgotten image among captions, and the caption it was paired with among images."""
    model, batch, forget, step = build_step("clip", AlignmentCalibration())
    assert batch.text[8:] != forget.text and not set(batch.text[8:]) & set(forget.text)
    towers = {"image": [*model.backbone.parameters()], "text": [*model.text.parameters()]}
    for term in ("task", "negative", "positive", "preserve"):
        for tower, parameters in towers.items():
            found = torch.autograd.grad(step.terms[term], parameters, allow_unused=True, retain_graph=True)
            assert any(g is not None and g.abs().sum() > 0 for g in found), (term, tower)


def test_mocos_third_view_teaches_the_anchor_only():
    model, _, _, step = build_step("moco", AlignmentCalibration())
    step.terms["positive"].backward()
    assert all(p.grad is None for p in model.momentum_encoder.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())


def test_keys_of_retained_examples_alone_are_carried():
    model, batch, _, step = build_step("moco", AlignmentCalibration())
    assert torch.equal(step.carry, model.objective.keys(model, batch.view(1))[:8])


def test_descent_drives_two_views_of_a_forgotten_image_apart():
    model, batch, forget, step = build_step("simclr", AlignmentCalibration())
    parameters = model.trainable_parameters()
    before = float(step.terms["positive"].detach())
    for _ in range(3):
        positive = AlignmentCalibration().terms(model, batch, forget, 0.2, 1.0).terms["positive"]
        gradients = torch.autograd.grad(positive, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(0.01 * gradient)
    assert float(positive.detach()) < before


def pass_of(parts, steps, seed=3):
    given = tiny.given(AlignmentCalibration(), parts)
    return list(mix_batches(given, steps, torch.Generator().manual_seed(seed)))


def test_one_pass_shows_every_example_once_in_mixed_batches():
    batches = pass_of(parts_of(), 4)
    shown = [i for retained, forgotten, _ in batches for i in [*retained.ids.tolist(), *forgotten.ids.tolist()]]
    assert sorted(shown) == list(range(60))
    assert {len(retained) + len(forgotten) for retained, forgotten, _ in batches} == {15}
    assert len({len(forgotten) for _, forgotten, _ in batches}) > 1, "shuffled as a whole, not in fixed proportion"
    assert all((retained.ids >= 12).all() and (forgotten.ids < 12).all() for retained, forgotten, _ in batches)


def test_a_forgotten_image_is_never_its_own_partner_and_every_other_one_may_be():
    partners = {}
    for seed in range(40):
        for _, forgotten, other in pass_of(parts_of(3), 4, seed):
            for a, b in zip(forgotten.ids.tolist(), other.ids.tolist(), strict=True):
                partners.setdefault(a, set()).add(b)
    assert partners == {0: {1, 2}, 1: {0, 2}, 2: {0, 1}}


def test_the_partner_contributes_its_second_view_and_its_text():
    parts = {k: replace(p, text=[f"word {i}" for i in range(60)]) for k, p in parts_of().items()}
    _, forgotten, other = next(b for b in pass_of(parts, 2) if len(b[1]))
    pair, third = forgotten.pair_with(other), forgotten.pair_with(forgotten, number=2)
    assert torch.equal(pair.view(0), forgotten.view(0)) and torch.equal(pair.view(1), other.view(1))
    assert torch.equal(pair.ids, forgotten.ids) and pair.text == other.text
    assert torch.equal(third.view(1), forgotten.view(2)) and third.text == forgotten.text


def run(method, parts, name="simclr"):
    records, recipe = [], tiny.recipe(name, epochs=40, batch_size=16)
    model = method.unlearn(recipe.start(0), tiny.given(method, parts, recipe), Run(seed=2, log=records.append))
    return model, records


def test_a_single_example_has_no_other_to_be_pulled_to():
    _, records = run(AlignmentCalibration(), parts_of(1))
    assert all(record["terms"]["negative"] == 0 for record in records)
    assert any(record["terms"]["positive"] != 0 for record in records)
    assert any(record["terms"]["positive"] == 0 for record in records), "most batches hold no forgotten example"


def test_the_share_of_f_weighs_the_positive_term():
    _, records = run(AlignmentCalibration(beta=1.0, epochs=1, batch_size=48), parts_of(12))
    assert abs(records[0]["terms"]["positive"]) <= 12 / 60


def test_the_default_length_is_a_twentieth_of_the_oracles_steps():
    parts = parts_of()
    _, records = run(AlignmentCalibration(), parts)
    assert len(records) == 0.05 * 40 * parts["retain"].count_batches(16)
    assert {record["lr"] for record in records} == {0.006}


def test_given_rows_of_f_are_in_every_step_and_its_share_does_not_vanish(monkeypatch):
    """Planted: the share of F in the data, which goes to 0 for a small F."""
    parts, seen = parts_of(2), []
    whole = AlignmentCalibration.terms

    def terms(self, model, batch, forgotten, share, alpha):
        seen.append((len(batch), sorted(forgotten.ids.tolist()), round(share, 4)))
        return whole(self, model, batch, forgotten, share, alpha)

    monkeypatch.setattr(AlignmentCalibration, "terms", terms)
    for count, expected in ((5, 5 / (5 + 29)), (None, 2 / 60)):
        seen.clear()
        method = AlignmentCalibration(epochs=1, batch_size=29, forget_batch_size=count)
        method.unlearn(tiny.recipe().start(0), tiny.given(method, parts), Run())
        assert {share for *_, share in seen} == {round(expected, 4)} and len(seen) == 2
        if count:
            assert {length for length, *_ in seen} == {34}
            assert all(ids.count(0) in (2, 3) and len(ids) == 5 for _, ids, _ in seen)


def test_repeated_rows_of_f_have_other_views_and_partners_that_are_not_themselves():
    given = tiny.given(AlignmentCalibration(), parts_of(3))
    for retained, forgotten, other in add_rows(given, 20, 7, torch.Generator().manual_seed(0)):
        assert len(retained) == 19 and len(forgotten) == len(other) == 7
        assert not any(a == b for a, b in zip(forgotten.ids.tolist(), other.ids.tolist(), strict=True))
        first, again = (forgotten.view(0)[forgotten.ids == 0][row] for row in (0, 1))
        assert not torch.equal(first, again)
