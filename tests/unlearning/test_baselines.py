"""Baselines against their reference implementations, on models with closed-form gradients; and planted bugs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efface.errors import EffaceError
from efface.training import loop
from efface.training.gradients import flatten_parts, unflatten_vector
from efface.training.loop import Run, frozen_copy
from efface.training.objectives import CrossEntropy
from efface.training.optim import Optim
from efface.unlearning.methods import BadTeacher, Finetune, L1Sparse, RandomLabels, SalUn
from efface.unlearning.methods.bad_teacher import redraw_weights
from tests import tiny
from tests.reference import bad_teacher as bad_teacher_reference
from tests.reference import descent
from tests.reference import gradients as gradients_reference
from tests.reference import l1_sparse as l1_sparse_reference
from tests.reference import random_labels as random_labels_reference
from tests.reference import salun as salun_reference
from tests.unlearning.test_methods import CUTS, OPTIM, agrees, rows, unlearn, weights

RETAIN = {"epochs": 1, "batch_size": 10, "optim": OPTIM}
BOTH = RETAIN | {"forget_batch_size": 9}


@pytest.fixture
def world():
    x, y = tiny.images(48)
    return tiny.parts(x, y, CUTS), (x.reshape(48, -1) / 255.0).astype(np.float64), y


def vector(model):
    return flatten_parts(model, model.trainable_parameters()).detach().double().numpy()


def batches(parts, run):
    """The three batches of R, and the batch of F of each of their steps."""
    cycle, forget = run.rng("forget"), []
    while len(forget) < 3:
        forget += rows(parts["forget"], 9, cycle)
    return rows(parts["retain"], 10, run.rng("retain", 0)), forget[:3]


def differs(model, expected):
    """Check that a planted bug in the reference implementation is caught."""
    with pytest.raises(AssertionError):
        agrees(model, expected)


# l1_sparse


def test_l1_sparse_matches_the_reference_implementation(world):
    parts, _, _ = world
    retain, start = rows(parts["retain"], 10, Run(seed=7).rng("retain", 0)), weights(tiny.linear_softmax())
    ours = unlearn(L1Sparse(weight=0.01, **RETAIN), parts)

    def reference(**bug):
        steps = l1_sparse_reference.steps(retain, 0.01, **bug)
        return descent.run(*start, steps, descent.cosine(0.1, 3), 0.9, 0.01)

    agrees(ours, reference())
    differs(ours, reference(fade=False))
    differs(ours, reference(total=2))


@pytest.mark.parametrize("objective", sorted(tiny.SMALL))
def test_l1_sparse_without_weight_is_finetuning_bit_for_bit(objective):
    recipe = tiny.recipe(objective)
    x, y = tiny.images(48)
    parts = tiny.parts(x, y, {"retain": (0, 48)}, recipe.views)
    ends = [
        method.unlearn(recipe.start(5), tiny.given(method, parts, recipe), Run(seed=1)).digest()
        for method in (Finetune(epochs=1), L1Sparse(weight=0.0, epochs=1))
    ]
    assert ends[0] == ends[1]


def test_l1_sparse_makes_weights_smaller(world):
    parts, _, _ = world
    sizes = [np.abs(vector(unlearn(L1Sparse(weight=w, **RETAIN), parts))).sum() for w in (0.0, 0.03)]
    assert sizes[1] < 0.9 * sizes[0]


# random_labels


def wrong_labels(parts, forget_rows, rng):
    """The labels that the method trains on: those of F, corrupted together with the first of a batch of R."""
    result = []
    for batch, gone in zip(parts["retain"].batches(10, Run(seed=7).rng("retain", 0)), forget_rows, strict=True):
        some = batch.rows(0, 9)
        result.append(CrossEntropy().corrupt_targets(some + gone, rng).rows(len(some)).y.numpy())
    return result


def forget_batches(parts):
    cycle = parts["forget"].cycle(9, Run(seed=7).rng("forget"))
    return [next(cycle) for _ in range(3)]


def random_label_batches(parts):
    """What random labels trains on: batches of R, and batches of F with their own labels and with wrong ones."""
    retain, forget = batches(parts, Run(seed=7))
    wrong = wrong_labels(parts, forget_batches(parts), Run(seed=7).rng("wrong"))
    return retain, forget, [(x, y) for (x, _), y in zip(forget, wrong, strict=True)]


def test_random_labels_matches_the_reference_implementation(world):
    parts, _, _ = world
    start = weights(tiny.linear_softmax())
    retain, forget, wrong = random_label_batches(parts)
    assert all((y != own).all() for (_, y), (_, own) in zip(wrong, forget, strict=True))
    ours = unlearn(RandomLabels(weight=0.6, **BOTH), parts)

    def reference(shown, weight):
        steps = random_labels_reference.steps(retain, shown, weight)
        return descent.run(*start, steps, descent.cosine(0.1, 3), 0.9, 0.01)

    agrees(ours, reference(wrong, 0.6))
    differs(ours, reference(forget, 0.6))
    differs(ours, reference(wrong, 0.0))


def shown_to(monkeypatch, parts, objective="cross_entropy", **fields):
    """The batches that the objective is shown for F, one per step."""
    recipe = tiny.recipe(objective)
    cls, seen = type(recipe.objective), []
    loss = cls.loss
    monkeypatch.setattr(cls, "loss", lambda self, m, batch: (seen.append(batch), loss(self, m, batch))[1])
    method = RandomLabels(**BOTH | fields)
    method.unlearn(recipe.start(0), tiny.given(method, parts), Run(seed=7))
    return seen[1::2]


def test_a_whole_class_gets_labels_of_other_classes(monkeypatch):
    x, y = tiny.images(48)
    parts = tiny.parts(x, np.sort(y), {"forget": (0, 16), "retain": (16, 48)})
    alone = next(parts["forget"].ordered_batches(16))
    planted = CrossEntropy().corrupt_targets(alone, torch.Generator())
    assert torch.equal(planted.y, alone.y), "planted: corrupted without R, a class keeps its label"
    for batch in shown_to(monkeypatch, parts):
        assert (batch.y[batch.ids < 16] != 0).all()


@pytest.mark.parametrize("objective", sorted(set(tiny.SMALL) - {"clip", "cross_entropy"}))
def test_a_single_example_finds_another_image_s_view(monkeypatch, objective):
    x, y = tiny.images(48)
    parts = tiny.parts(x, y, {"forget": (0, 1), "retain": (1, 48)})
    for batch in shown_to(monkeypatch, parts, objective):
        own = int((batch.ids == 0).nonzero())
        assert torch.equal(batch.view(0)[own], batch.clean[own])
        assert not torch.equal(batch.view(1)[own], batch.clean[own])


# salun


def test_salun_matches_the_reference_implementation(world):
    parts, x, y = world
    model = tiny.linear_softmax()
    start, shape = weights(model), model.head.weight.shape
    slope = sum(gradients_reference.of_one(*start, row, label) for row, label in zip(x[:9], y[:9], strict=True))
    retain, _, wrong = random_label_batches(parts)
    ours = unlearn(SalUn(keep=0.4, weight=0.6, **BOTH), parts)

    def reference(mask):
        steps = random_labels_reference.steps(retain, wrong, 0.6)
        split = mask[:-3].reshape(shape), mask[-3:]
        return salun_reference.run(*start, steps, descent.cosine(0.1, 3), 0.9, 0.01, *split)

    mask = salun_reference.mask(slope, 0.4)
    agrees(ours, reference(mask))
    differs(ours, reference(~mask))
    differs(ours, reference(np.ones_like(mask)))
    before = np.concatenate([start[0].ravel(), start[1]])
    np.testing.assert_array_equal(vector(ours)[~mask], before[~mask])
    assert (vector(ours)[mask] != before[mask]).all()


def check_that_salun_chooses_over_the_whole_model(objective):
    """Half of the weights stay bit-identical, in spite of momentum and weight decay, and not half of each layer."""
    recipe = tiny.recipe(objective)
    x, y = tiny.images(48)
    parts = tiny.parts(x, y, {"forget": (0, 12), "retain": (12, 48)}, recipe.views)
    method, model = SalUn(epochs=2, optim=Optim(lr=0.05, weight_decay=0.01)), recipe.start(3)
    before = [weight.detach().clone() for weight in model.trainable_parameters()]
    after = method.unlearn(model, tiny.given(method, parts, recipe), Run(seed=1)).trainable_parameters()
    same = [int((a == b).sum()) for a, b in zip(before, after, strict=True)]
    total = sum(weight.numel() for weight in before)
    assert total // 2 <= sum(same) <= 0.52 * total
    shares = [count / weight.numel() for count, weight in zip(same, before, strict=True)]
    assert max(shares) - min(shares) > 0.3, "half of each layer"


@pytest.mark.parametrize("objective", sorted(tiny.SMALL))
def test_salun_leaves_half_of_the_weights_bit_identical(objective):
    check_that_salun_chooses_over_the_whole_model(objective)


def test_a_salun_threshold_per_layer_is_seen(monkeypatch):
    """Planted: the largest half of each layer's gradient."""

    def mask(self, model, gradient, run):
        weights = model.trainable_parameters()
        chosen = [torch.zeros(weight.numel(), dtype=torch.bool) for weight in weights]
        for mask, slope in zip(chosen, unflatten_vector(model, gradient.abs()), strict=True):
            mask[slope.flatten().topk(mask.numel() // 2).indices] = True
        return {weight: mask.view_as(weight) for weight, mask in zip(weights, chosen, strict=True)}

    monkeypatch.setattr(SalUn, "mask", mask)
    with pytest.raises(AssertionError, match="half of each layer"):
        check_that_salun_chooses_over_the_whole_model("simclr")


def test_a_salun_mask_that_weight_decay_undoes_is_seen(monkeypatch):
    """Planted: gradients off the mask are 0, but the weights are not restored after the update."""
    step = loop.train_step

    def mask_gradients(model, batch, terms, optimizer, run, *, phase="train", only=None):
        handles = [weight.register_hook(lambda g, mask=mask: g * mask) for weight, mask in (only or {}).items()]
        try:
            return step(model, batch, terms, optimizer, run, phase=phase)
        finally:
            for handle in handles:
                handle.remove()

    monkeypatch.setattr(loop, "train_step", mask_gradients)
    with pytest.raises(AssertionError):
        check_that_salun_chooses_over_the_whole_model("simclr")


def test_salun_keeping_everything_is_random_labels(world):
    parts, _, _ = world
    ends = [unlearn(method, parts).digest() for method in (SalUn(keep=1.0, **BOTH), RandomLabels(**BOTH))]
    assert ends[0] == ends[1]
    for keep in (0.0, 1.1):
        with pytest.raises(EffaceError, match=r"SalUn\.keep' cannot be"):
            SalUn(keep=keep)


# bad_teacher


def test_bad_teacher_matches_the_reference_implementation(world):
    parts, _, _ = world
    method, model = BadTeacher(weight=0.7, **BOTH), tiny.linear_softmax()
    start, bad = weights(model), weights(method.build_bad_teacher(model, tiny.given(method, parts), Run(seed=7)))
    retain, forget = ([x for x, _ in shown] for shown in batches(parts, Run(seed=7)))
    ours = unlearn(method, parts)

    def reference(good, bad, weight=0.7):
        steps = bad_teacher_reference.steps(retain, forget, good, bad, weight)
        return descent.run(*start, steps, descent.cosine(0.1, 3), 0.9, 0.01)

    agrees(ours, reference(start, bad))
    differs(ours, reference(bad, start))
    differs(ours, reference(start, start))
    differs(ours, reference(start, bad, 0.0))


def test_the_bad_teacher_of_a_known_recipe_is_a_fresh_start_but_not_the_original_s():
    recipe, method = tiny.recipe("moco"), BadTeacher()
    x, y = tiny.images(24)
    given = tiny.given(method, tiny.parts(x, y, {"forget": (0, 8), "retain": (8, 24)}), recipe)
    original = recipe.start(5)
    bad = method.build_bad_teacher(original, given, Run(seed=5))
    assert not bad.training and not any(weight.requires_grad for weight in bad.parameters())
    scale = [float(m.backbone.conv1.weight.detach().std()) for m in (bad, original)]
    assert scale[0] == pytest.approx(scale[1], rel=0.3)
    old, new = ([w for name, w in m.named_parameters() if name.startswith("head")] for m in (original, bad))
    alike = torch.corrcoef(torch.stack([torch.cat([w.detach().flatten() for w in both]) for both in (old, new)]))[0, 1]
    assert float(alike) < 0.5, "the original's seed starts from the original's own weights"


@pytest.mark.parametrize("objective", sorted(tiny.SMALL))
def test_redrawn_weights_remember_only_mean_and_deviation(objective):
    model = tiny.recipe(objective).start(0)
    with torch.no_grad():
        model(torch.rand(8, 1, 8, 8))
    before = model.digest()
    fresh = redraw_weights(model, torch.Generator().manual_seed(0))
    assert model.digest() == before
    for old, new in zip(model.parameters(), fresh.parameters(), strict=True):
        if old.numel() > 500:
            old, new = old.detach(), new.detach()
            assert float(new.mean()) == pytest.approx(float(old.mean()), abs=0.2 * float(old.std()))
            assert float(new.std()) == pytest.approx(float(old.std()), rel=0.2)
            assert abs(float(torch.corrcoef(torch.stack([old.flatten(), new.flatten()]))[0, 1])) < 0.2
    means = [value for name, value in fresh.state_dict().items() if name.endswith("running_mean")]
    assert not any(mean.any() for mean in means)
    assert fresh(torch.rand(4, 1, 8, 8)).isfinite().all()


def test_it_agrees_with_the_bad_teacher_on_forgotten_and_with_the_checkpoint_on_retained_examples(world):
    parts, _, y = world
    train = tiny.parts(parts["forget"].x.numpy(), y, {"retain": (0, 39)})
    tuned = Finetune(epochs=150, batch_size=39, optim=Optim(lr=0.5, weight_decay=0.0))
    model = tuned.unlearn(tiny.linear_softmax(), tiny.given(tuned, train), Run())
    method = BadTeacher(epochs=300, batch_size=30, forget_batch_size=9, optim=Optim(lr=0.3, weight_decay=0.0))
    given = tiny.given(method, parts)
    bad = method.build_bad_teacher(model, given, Run())
    after = method.unlearn(frozen_copy(model).requires_grad_(True), given, Run())
    distances = {}
    for name in ("forget", "retain"):
        x = next(parts[name].ordered_batches(39)).clean
        with torch.no_grad():
            pairs = [(teacher, student) for student in (model, after) for teacher in (model, bad)]
            distances[name] = [model.objective.distance(teacher(x), student(x)).mean() for teacher, student in pairs]
    assert distances["forget"][3] < 0.1 * distances["forget"][1]
    assert distances["retain"][2] < 0.1 * distances["retain"][1]
