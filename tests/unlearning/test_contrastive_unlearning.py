"""Contrastive unlearning: the loss against its reference implementation, the order of batches, and the stop rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from efface.errors import EffaceError
from efface.training.batch import Subset
from efface.training.loop import Run
from efface.training.optim import Optim, Schedule
from efface.unlearning.methods import ContrastiveUnlearning
from efface.unlearning.methods import contrastive_unlearning as module
from efface.unlearning.methods.contrastive_unlearning import push_and_pull
from efface.unlearning.predictions import measure_accuracy
from tests import tiny
from tests.reference import contrastive_unlearning as reference
from tests.reference import descent
from tests.unlearning.test_methods import agrees, weights

OPTIM = Optim(lr=0.05, weight_decay=0.01, schedule=Schedule.CONSTANT)
CUTS = {"forget": (0, 18), "retain": (18, 66), "valid": (66, 96)}


def parts_of(whole=False, cuts=CUTS):
    """Of three classes; where ``whole``, F is all of class 2 that was trained on."""
    x, y = tiny.images(96)
    parts = tiny.parts(x, y, cuts, tiny.still)
    if not whole:
        return parts
    train, labels = torch.arange(66), torch.from_numpy(y[:66])
    sets = {"forget": train[labels == 2], "retain": train[labels != 2]}
    return parts | {name: replace(parts[name], ids=ids) for name, ids in sets.items()}


def unlearn(method, parts=None, model=None, recipe=None):
    records = []
    model = model or tiny.recipe("cross_entropy").start(0)
    model = method.unlearn(model, tiny.given(method, parts or parts_of(), recipe), Run(seed=7, log=records.append))
    return model, [r for r in records if "lr" in r], [r for r in records if "lr" not in r]


def rows(seed=0, n=7, m=9, d=4):
    generator = torch.Generator().manual_seed(seed)
    z, others = (torch.randn(k, d, dtype=torch.float64, generator=generator) for k in (n, m))
    return torch.nn.functional.normalize(z, dim=1), torch.nn.functional.normalize(others, dim=1)


CASES = {
    "both kinds of partner": ([0, 1, 2, 0, 1, 2, 0], [0, 1, 2, 0, 1, 2, 0, 1, 2]),
    "a class that is gone": ([2] * 7, [0, 1] * 4 + [0]),
    "some anchors without a partner to push from": ([0, 3, 1, 3, 2, 0, 1], [0, 1, 2, 0, 1, 2, 0, 1, 2]),
    "some anchors without a partner to pull to": ([0, 0, 1, 0, 1, 0, 2], [0] * 9),
    "nobody has a partner to pull to": ([1] * 7, [1] * 9),
}


@pytest.mark.parametrize("case", CASES)
def test_the_loss_matches_the_reference_implementation_and_is_finite_with_its_gradient(case):
    y, other_y = CASES[case]
    z, others = rows()
    z.requires_grad_(), others.requires_grad_()
    ours = module.push_and_pull(z, others, torch.tensor(y), torch.tensor(other_y), 0.7)
    assert float(ours.detach()) == pytest.approx(reference.loss(z.tolist(), y, others.tolist(), other_y, 0.7), abs=1e-9)
    for gradient in torch.autograd.grad(ours, (z, others)):
        assert gradient.isfinite().all()
    assert torch.autograd.gradcheck(
        lambda a, b: push_and_pull(a, b, torch.tensor(y), torch.tensor(other_y), 0.7), (z, others)
    )


def weighted(z, others, y, other_y, tau):
    """Planted: the push weighted by (|N| + |P|) / |N|."""
    similar, same = z @ others.T / tau, y[:, None] == other_y[None]
    many = (~same).sum(1)
    push = similar.masked_fill(~same, -torch.inf).logsumexp(1) * same.shape[1] / many
    return (push - (similar * ~same).sum(1) / many).mean()


def unguarded(z, others, y, other_y, tau):
    """Planted: anchors without a partner are not handled."""
    similar, same = z @ others.T / tau, y[:, None] == other_y[None]
    push = similar.masked_fill(~same, -torch.inf).logsumexp(1)
    return (push - (similar * ~same).sum(1) / (~same).sum(1)).mean()


@pytest.mark.parametrize(
    ("bug", "case"),
    [
        (weighted, "both kinds of partner"),
        (unguarded, "a class that is gone"),
        (unguarded, "some anchors without a partner to push from"),
        (unguarded, "nobody has a partner to pull to"),
    ],
)
def test_planted_bugs_in_the_loss_are_seen(bug, case, monkeypatch):
    monkeypatch.setattr(module, "push_and_pull", bug)
    with pytest.raises(AssertionError):
        test_the_loss_matches_the_reference_implementation_and_is_finite_with_its_gradient(case)


def test_the_slope_at_an_anchor_points_at_its_own_class_and_away_from_the_others():
    """Orthogonal partners: descent moves the anchor away from each of its class and towards each of the others."""
    others, labels = torch.eye(6), torch.tensor([0, 0, 0, 1, 1, 1])
    z = torch.full((1, 6), 6**-0.5, requires_grad=True)
    (slope,) = torch.autograd.grad(push_and_pull(z, others, torch.tensor([0]), labels, 0.7), z)
    torch.testing.assert_close(slope[0], torch.tensor([1.0, 1, 1, -1, -1, -1]) / 3 / 0.7)


def test_terms_of_a_step_match_the_reference_implementation_on_the_models_own_features():
    method, parts = ContrastiveUnlearning(weight=2.0, task_weight=0.5), parts_of()
    model = tiny.recipe("cross_entropy").start(0).train()
    forgotten, retained = next(parts["forget"].ordered_batches(12)), next(parts["retain"].ordered_batches(24))
    step = method.terms(model, forgotten)(retained)
    z, others = (part.tolist() for part in model.features((forgotten + retained).view(0)).tensor_split([12]))
    expected = 2.0 * reference.loss(z, forgotten.y.tolist(), others, retained.y.tolist(), 0.7)
    assert float(step.terms["apart"].detach()) == pytest.approx(expected, abs=1e-4)
    task = model.objective.loss(model, forgotten + retained).per_example[12:].mean()
    assert float(step.terms["task"].detach()) == pytest.approx(0.5 * float(task.detach()), abs=1e-5)
    assert step.extra_examples == 12


def test_both_batches_share_their_batch_statistics_and_update_the_running_ones_once():
    """Planted: two passes, each with statistics of its own."""
    method, parts = ContrastiveUnlearning(), parts_of()
    model = tiny.recipe("cross_entropy").start(0).train()
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    before = int(norm.num_batches_tracked)
    forgotten, retained = next(parts["forget"].ordered_batches(12)), next(parts["retain"].ordered_batches(24))
    found = float(method.terms(model, forgotten)(retained).terms["apart"].detach())
    assert int(norm.num_batches_tracked) == before + 1
    z, others = (torch.nn.functional.normalize(model.features(b.view(0)), dim=1) for b in (forgotten, retained))
    apart = 3 * float(push_and_pull(z, others, forgotten.labels(), retained.labels(), 0.7).detach())
    assert abs(found - apart) > 1e-3


def record_batches(monkeypatch):
    """Ids of the batches that the task of each step was taken over."""
    seen = []
    terms = ContrastiveUnlearning.terms

    def recording(self, model, forgotten):
        inner = terms(self, model, forgotten)
        return lambda batch: (seen.append((tuple(forgotten.ids.tolist()), tuple(batch.ids.tolist()))), inner(batch))[1]

    monkeypatch.setattr(ContrastiveUnlearning, "terms", recording)
    return seen


def test_each_batch_of_f_meets_omega_fresh_batches_of_r(monkeypatch):
    seen = record_batches(monkeypatch)
    monkeypatch.setattr(ContrastiveUnlearning, "stop_rule", lambda *_: lambda model: False)
    unlearn(ContrastiveUnlearning(epochs=2, batch_size=8, omega=3))
    assert [forgotten for forgotten, _ in seen] == [forgotten for forgotten, _ in seen[::3] for _ in range(3)]
    assert len(seen) == 2 * 3 * 3
    first_pass = [row for _, retained in seen[:6] for row in retained]
    assert sorted(first_pass) == list(range(18, 66)), "six batches of 8 are one pass over R"
    assert len({retained for _, retained in seen}) == len(seen)


def test_the_same_first_batches_of_r_each_time_are_seen(monkeypatch):
    """Planted: an iterator over R that restarts for each batch of F."""

    class Restarting:
        def __init__(self, part, size, rng):
            self.part, self.size, self.state, self.rng = part, size, rng.get_state(), rng

        def __iter__(self):
            return self.part.batches(self.size, self.rng.set_state(self.state))

    monkeypatch.setattr(Subset, "cycle", lambda self, size, rng: Restarting(self, size, rng))
    with pytest.raises(AssertionError):
        test_each_batch_of_f_meets_omega_fresh_batches_of_r(monkeypatch)


def test_zero_weight_is_fine_tuning_on_the_same_schedule():
    method = ContrastiveUnlearning(weight=0.0, epochs=1, batch_size=9, omega=2, optim=OPTIM)
    parts, run, start = parts_of(), Run(seed=7), weights(tiny.linear_softmax())
    batches = parts["retain"].cycle(9, run.rng("retain"))
    steps = []
    for _ in range(4):
        batch = next(batches)
        x, y = batch.clean.flatten(1).double().numpy(), batch.y.numpy()
        steps.append(lambda w, b, x=x, y=y: descent.task_gradient(w, b, x, y))
    model, _, _ = unlearn(method, parts, tiny.linear_softmax())
    agrees(model, descent.run(*start, steps, [0.05] * 4, 0.9, 0.01))


@pytest.mark.parametrize("whole", [False, True])
def test_it_ends_when_the_stop_rule_is_met_and_logs_what_it_measured(whole):
    method = ContrastiveUnlearning(epochs=60, batch_size=20, omega=4, optim=Optim(lr=0.05, clip=5.0))
    recipe, parts = tiny.recipe("cross_entropy", epochs=25, batch_size=16), parts_of(whole)
    from efface.training.loop import fit

    train = replace(parts["retain"], ids=torch.arange(66))
    model = fit(recipe.start(1), train, recipe, Run(seed=1))
    before, classes = measure_accuracy(model, parts["forget"])
    assert before > 0.9 and classes == 3
    model, steps, checks = unlearn(method, parts, model)
    assert [check["met"] for check in checks] == [False] * (len(checks) - 1) + [True] and len(checks) < 60
    last = checks[-1] | checks[-1]["terms"]
    assert last["accuracy"] <= last["bound"] and last["step"] == steps[-1]["step"]
    if whole:
        assert (last["form"], last["on"], last["bound"]) == ("class", "valid", 1 / 3)
    else:
        assert (last["form"], last["on"], last["of"]) == ("samples", "forget", 18)
        assert measure_accuracy(model, parts["forget"])[0] == last["accuracy"]


def test_a_rule_that_is_never_met_ends_at_the_given_length_and_says_so(monkeypatch):
    monkeypatch.setattr(module, "measure_accuracy", lambda model, part: (1.0 if part.name == "forget" else 0.5, 3))
    _, steps, checks = unlearn(ContrastiveUnlearning(epochs=3, batch_size=9, omega=1))
    assert len(steps) == 6 and [check["met"] for check in checks] == [False] * 3


@pytest.mark.parametrize("whole", [False, True])
def test_the_rule_uses_f_and_a_share_of_valid_alone(whole, monkeypatch):
    """No other examples are among the inputs of a method."""
    measured, method, parts = {}, ContrastiveUnlearning(epochs=1, batch_size=20), parts_of(whole)
    monkeypatch.setattr(
        module,
        "measure_accuracy",
        lambda model, part: (measured.setdefault(part.name, set(part.ids.tolist())), (0.5, 3))[1],
    )
    unlearn(method, parts)
    assert measured["valid"] <= set(range(66, 96))
    if whole:
        assert set(measured) == {"valid"} and {row % 3 for row in measured["valid"]} == {2}
    else:
        assert len(measured["valid"]) == 15 and measured["forget"] == set(range(18))


def test_without_an_unseen_example_of_the_class_the_rule_says_that_it_used_f():
    parts = parts_of(whole=True)
    few = replace(parts["valid"], ids=parts["valid"].ids[torch.arange(30) % 3 != 2])
    _, _, checks = unlearn(ContrastiveUnlearning(epochs=1), parts | {"valid": few})
    assert (checks[0]["form"], checks[0]["on"], checks[0]["of"]) == ("class", "forget", 22)


def test_accuracy_is_of_plain_images_in_evaluation_mode_and_moves_nothing():
    model = tiny.recipe("cross_entropy").start(0).train()
    part = replace(parts_of()["forget"], augment=lambda x, generator: x * torch.nan)
    before = model.digest()
    accuracy, _ = measure_accuracy(model, part)
    assert model.digest() == before and all(m.training for m in model.modules())
    x, y = tiny.images(96)
    guessed = model.eval()(torch.from_numpy(x[:18]).float() / 255).argmax(1)
    assert accuracy == int((guessed == torch.from_numpy(y[:18])).sum()) / 18


@pytest.mark.parametrize(("whole", "size"), [(True, 64), (False, 128)])
def test_the_papers_batch_sizes(whole, size, monkeypatch):
    asked = []
    monkeypatch.setattr(Subset, "count_batches", lambda self, n: (asked.append(n), -(-len(self) // n))[1])
    unlearn(ContrastiveUnlearning(epochs=1), parts_of(whole))
    assert size in asked


def test_by_default_its_length_depends_on_the_forgotten_examples_alone(monkeypatch):
    monkeypatch.setattr(ContrastiveUnlearning, "stop_rule", lambda *_: lambda model: False)
    for epochs, size in ((40, 8), (4000, 4)):
        recipe = tiny.recipe("cross_entropy", epochs=epochs, batch_size=size)
        _, steps, _ = unlearn(ContrastiveUnlearning(batch_size=18), recipe=recipe)
        assert len(steps) == 10 * 4


def test_it_works_on_a_transformers_pooled_features():
    model = tiny.recipe("cross_entropy", backbone=tiny.VIT).start(0)
    before = model.digest()
    model, steps, checks = unlearn(ContrastiveUnlearning(epochs=1, batch_size=9, omega=2), model=model)
    assert model.digest() != before and len(steps) == 4 and len(checks) == 1
    assert all("apart" in step["terms"] for step in steps)


@pytest.mark.parametrize("wrong", [{"watch": 0.0}, {"watch": 2.0}, {"tau": 0.0}, {"omega": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(EffaceError, match=r"ContrastiveUnlearning\.\w+' cannot be"):
        ContrastiveUnlearning(**wrong)
