"""The common checks: promises that every method keeps on every objective."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import pkgutil

import pytest
import torch

from efface import config
from efface.errors import DivergenceError, EffaceError
from efface.training.checkpoint import Checkpoint
from efface.training.loop import Run
from efface.training.objectives import OBJECTIVES, Moco
from efface.training.optim import Optim
from efface.training.shards import Shards
from efface.unlearning.inputs import require_fit
from efface.unlearning.methods import METHODS, Method
from efface.unlearning.protocol import MethodInputs, Needs
from tests import reference, tiny


def applies(method, objective):
    """Whether a method works on checkpoints of an objective, by what it declares."""
    needs, trained = METHODS[method].needs, OBJECTIVES[objective]
    return (trained.needs_labels or Needs.LABELS not in needs) and (trained.contrasts_pairs or Needs.PAIRS not in needs)


CELLS = [(method, objective) for method in sorted(METHODS) for objective in sorted(OBJECTIVES)]
CELLS, IDLE = [c for c in CELLS if applies(*c)], [c for c in CELLS if not applies(*c)]
HOME = {method: next(o for o in ("simclr", "cross_entropy") if applies(method, o)) for method in METHODS}
"""One objective that each method works on."""
CUTS = {"forget": (0, 12), "retain": (12, 60), "valid": (60, 80)}
CHOICES = {Method: METHODS}
STRONG = Optim(lr=0.05, clip=5.0)
OWN = {"ssd": {"alpha": 1.0}, "influence": {"iterations": 4}}
"""Settings that a method needs to show an effect on an untrained network, or to be quick."""
CLOSED_FORM = {"damp", "influence", "ssd"}
"""Methods without optimizer steps: the momentum encoder is copied, the queue stays until it is purged."""


def small(name):
    """The method with its defaults, but short: two epochs at a rate that moves the weights."""
    fields = {f.name for f in dataclasses.fields(METHODS[name])}
    wanted = {"epochs": 2, "retain_epochs": 1, "batch_size": 24, "forget_batch_size": 8, "optim": STRONG}
    if "base" in fields:
        wanted["base"] = small("finetune")
    return METHODS[name](**{key: value for key, value in wanted.items() if key in fields} | OWN.get(name, {}))


def data(shift=0):
    x, y = tiny.images(96, seed=1)
    recipe = tiny.recipe()
    cuts = {
        name: (a + shift if name == "forget" else a, b + shift if name == "forget" else b)
        for name, (a, b) in CUTS.items()
    }
    return tiny.parts(x, y, cuts, recipe.views)


def recipe_for(method, objective, **changed):
    """A tiny recipe whose backbone the method works on."""
    kind = {"backbone": tiny.VIT} if Needs.ATTENTION in method.needs else {}
    kind |= {"shards": Shards(count=2, slices=2)} if Needs.SHARDS in method.needs else {}
    return tiny.recipe(objective, **kind, **changed)


def unlearned(method, objective, parts=None, seed=3, log=lambda record: None, *, bf16=False):
    recipe = recipe_for(method, objective, epochs=1)
    model = recipe.start(11)
    model.bf16 = bf16
    given = tiny.given(method, parts or data(), recipe)
    return method.unlearn(model, given, Run(seed=seed, log=log, bf16=bf16))


def trace(method, objective, parts=None):
    """All that a run can be told by: the weights afterwards, and every line of the log."""
    records = []
    return unlearned(method, objective, parts, log=records.append).digest(), records


@functools.cache
def plain(method, objective):
    """Digest and log of the small method on unchanged data."""
    return trace(small(method), objective)


@pytest.mark.parametrize(("method", "objective"), CELLS)
def test_same_seed_same_weights_and_the_global_generator_is_untouched(method, objective):
    torch.manual_seed(0)
    first, _ = plain(method, objective)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert unlearned(small(method), objective).digest() == first
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("method", "objective"), CELLS)
def test_the_sets_that_are_declared_matter_and_the_others_do_not(method, objective):
    chosen, start = small(method), data()
    for name in ("forget", "retain", "valid"):
        swapped = dict(start)
        swapped[name] = dataclasses.replace(start[name], ids=torch.arange(80, 80 + min(16, len(start[name]))))
        weights, log = trace(chosen, objective, swapped)
        declared = Needs[name.upper()] in chosen.needs
        assert ((weights, log) != plain(method, objective)) == declared, name
        stops = any(record["phase"] == "stop_rule" for record in log)
        if declared and not (stops and name == "valid"):  # it may measure other values and still stop at the same time
            assert weights != plain(method, objective)[0], name


@pytest.mark.parametrize(("method", "objective"), IDLE)
def test_a_checkpoint_of_the_wrong_kind_is_refused_with_the_methods_that_fit(method, objective):
    recipe = tiny.recipe(objective)
    with pytest.raises(
        EffaceError, match=f"{method} works on .*, and this .* '{objective}'.*on any checkpoint: .*finetune"
    ):
        require_fit(method, METHODS[method].needs, Checkpoint(recipe.start(0), recipe))


def test_every_method_has_a_reference_implementation():
    found = {module.name for module in pkgutil.iter_modules(reference.__path__)}
    assert not set(METHODS) - found


@pytest.mark.parametrize("method", sorted(m for m in METHODS if Needs.ATTENTION in METHODS[m].needs))
def test_a_backbone_without_attention_is_refused_and_a_transformer_is_not(method):
    for backbone in (tiny.VIT, tiny.recipe().backbone):
        recipe = tiny.recipe(HOME[method], backbone=backbone)
        start, needs = Checkpoint(recipe.start(0), recipe), METHODS[method].needs
        if backbone is tiny.VIT:
            require_fit(method, needs, start)
        else:
            with pytest.raises(EffaceError, match=f"{method} needs a transformer.*ResNet"):
                require_fit(method, needs, start)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_what_was_not_declared_is_unreachable(method):
    chosen = small(method)
    given = MethodInputs(chosen.needs, data(), None)
    for name in ("forget", "retain", "valid"):
        if Needs[name.upper()] not in chosen.needs:
            with pytest.raises(EffaceError, match="without declaring"):
                getattr(given, name)


NUDGED = {
    "alpha": 1.5, "gamma": 0.2, "beta": 0.5, "weight": 2.0, "stay": 3.0, "third_party": 1.0, "epochs": 3,
    "ascent_epochs": 1, "batch_size": 6, "forget_batch_size": 4, "optim": Optim(lr=0.02), "wrt": "embedding",
    "match": "square", "target": 0.1, "penalty": "hinge", "train_on": "forget", "keep": 0.3, "strength": 0.5,
    "loss_free": True, "slices": 1, "steps": 3, "of": "output", "at": "interpolate",
    "against": "data", "damping": 30.0, "iterations": 2, "scale": 0.5, "hessian_batches": 2,
    "task_weight": 0.3, "tau": 0.2, "omega": 2, "watch": 0.2,
    "base": {"name": "neggrad"}, "mask": "low", "ratio": 0.5, "forget_epochs": 1, "retain_epochs": 2,
    "backbone": 0.7, "output": 0.7, "hold": 30.0, "memory": 0.0, "multiplier": 2.0, "individual": 3.0, "alignment": 5.0,
    "line_search": False, "compared": 20, "averaged": 0.0,
    "erase": 3.0, "distill": 30.0, "temperature": 1.0, "budget": 1.0001, "examples": 4,
}  # fmt: skip
WITH = {"target": {"match": "square"}, "steps": {"epochs": None}}
"""What else must be set for a field to have an effect."""


@pytest.mark.parametrize(
    ("method", "field"), [(m, f.name) for m in sorted(METHODS) for f in dataclasses.fields(METHODS[m])]
)
def test_no_field_is_dead(method, field):
    base = config.dump(small(method), CHOICES) | WITH.get(field, {})
    first = config.parse_choice(METHODS, base, "method", CHOICES)
    nudge = dataclasses.asdict(NUDGED[field]) if dataclasses.is_dataclass(NUDGED[field]) else NUDGED[field]
    second = config.parse_choice(METHODS, base | {field: nudge}, "method", CHOICES)
    unchanged = trace(first, HOME[method]) if field in WITH else plain(method, HOME[method])
    weights, log = trace(second, HOME[method])
    assert weights != unchanged[0] or (field == "watch" and log != unchanged[1])


@pytest.mark.parametrize(("method", "objective"), CELLS)
def test_the_log_has_every_term_by_name_and_each_is_finite(method, objective):
    _, records = plain(method, objective)
    steps = [record["step"] for record in records if "lr" in record]
    assert records and steps == list(range(1, len(steps) + 1))
    assert bool(steps) == (method not in CLOSED_FORM)
    for record in records:
        assert record["phase"]
        assert record["terms"] or "lr" not in record
        assert all(math.isfinite(value) for value in record["terms"].values())
        assert record["total"] == pytest.approx(sum(record["terms"].values()))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_under_bfloat16_autocast_it_does_much_the_same_and_the_weights_stay_float32(method):
    objective, records, once = HOME[method], [], small(method)
    if hasattr(once, "epochs"):  # one pass: a stop rule may end a second one or not
        once = dataclasses.replace(once, epochs=1)
    model = unlearned(once, objective, log=records.append, bf16=True)
    full = unlearned(once, objective).state_dict()
    assert all(math.isfinite(value) for record in records for value in record["terms"].values())
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            apart, scale = (value - full[name]).norm(), full[name].norm()
            assert apart <= 0.25 * scale + 0.05, name


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_run_counts_what_it_cost(method):
    """Steps are optimizer steps; a closed form has none, but it counts its examples and its time."""
    chosen, run = small(method), Run(seed=3)
    recipe = recipe_for(chosen, HOME[method])
    chosen.unlearn(recipe.start(11), tiny.given(chosen, data(), recipe), run)
    assert bool(run.training_cost.steps) == (method not in CLOSED_FORM)
    assert run.training_cost.examples >= 24 and run.training_cost.seconds > 0


@pytest.mark.parametrize("method", sorted(m for m in METHODS if not METHODS[m].exact and m != "gradient_ascent"))
def test_defaults_cost_at_most_a_twentieth_of_the_oracle_s_steps(method):
    """100 epochs of 2 steps; gradient_ascent and scrub also count passes over the few forgotten examples.

    margin_matching and reference_matching may take a tenth of the steps of retraining if those are as few as here, and
    contrastive_unlearning and purge make passes over F, however few steps retraining took.
    """
    over_f = {"contrastive_unlearning": 0.15, "purge": 0.1}
    most = ({"margin_matching": 0.1, "reference_matching": 0.1} | over_f).get(method, 0.05)
    chosen, run = METHODS[method](), Run()
    recipe = recipe_for(chosen, HOME[method], epochs=100, batch_size=30)
    chosen.unlearn(recipe.start(11), tiny.given(chosen, data(), recipe), run)
    assert run.training_cost.steps - 2 * (method == "scrub") <= most * 100 * 2


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_loss_that_is_not_finite_stops_and_names_its_term(method):
    chosen = small(method)
    parts = data()
    broken = {
        name: dataclasses.replace(part, augment=lambda x, generator: x * torch.nan) for name, part in parts.items()
    }
    with pytest.raises(DivergenceError) as caught:
        unlearned(chosen, HOME[method], broken)
    assert caught.value.terms and any(value != value for value in caught.value.terms.values())


@pytest.mark.parametrize("method", sorted(METHODS))
def test_config_round_trip(method):
    plain = config.dump(small(method), CHOICES)
    assert plain["name"] == method
    assert config.parse_choice(METHODS, copy.deepcopy(plain), "method", CHOICES) == small(method)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_file_explains_itself(method):
    import sys

    text = sys.modules[METHODS[method].__module__].__doc__
    for word in ("θ", "Source", "Departures", "Tests cover"):
        assert word in text
    assert all(line for *_, line in config.describe_fields(METHODS[method])), "a field without a docstring"


@pytest.mark.parametrize(
    ("method", "objective"), [(m, o) for m, o in CELLS if o in ("moco", "byol") and not METHODS[m].exact]
)
def test_the_twin_follows(method, objective):
    recipe = tiny.recipe(objective)
    before = recipe.start(11)
    after = unlearned(small(method), objective)
    pairs = zip(before.momentum_encoder.parameters(), after.momentum_encoder.parameters(), strict=True)
    encoder_moved = [not torch.equal(a, b) for a, b in pairs]
    towers = [[*model.backbone.parameters(), *model.head.parameters()] for model in (before, after)]
    moved = [not torch.equal(a, b) for a, b in zip(*towers, strict=True)]
    assert any(moved) and encoder_moved == moved, "the momentum encoder moves exactly where the network did"
    if method in CLOSED_FORM:
        assert all(torch.equal(a, b) for a, b in zip(towers[1], after.momentum_encoder.parameters(), strict=True))
    assert {p.data_ptr() for p in after.momentum_encoder.parameters()}.isdisjoint(
        {p.data_ptr() for p in after.backbone.parameters()}
    )


@pytest.mark.parametrize("method", sorted(m for m, o in CELLS if o == "moco" and Needs.FORGET in METHODS[m].needs))
def test_no_key_of_a_forgotten_example_enters_the_queue(method, monkeypatch):
    """All forgotten images are black, so their keys are equal: no batch of new keys may hold the same key twice."""
    parts = data()
    x = parts["forget"].x.clone()
    x[:12] = 0
    parts = {name: dataclasses.replace(part, x=x, augment=tiny.still) for name, part in parts.items()}
    carried = []
    after_step = Moco.after_step
    monkeypatch.setattr(
        Moco, "after_step", lambda self, m, carry: (carried.append(carry), after_step(self, m, carry))[1]
    )
    before = tiny.recipe("moco").start(11).queue
    after = unlearned(small(method), "moco", parts)
    assert bool(carried) == (method not in CLOSED_FORM)
    if all(keys is None for keys in carried):
        assert torch.equal(after.queue, before)
    for keys in carried:
        assert keys is None or len(keys.unique(dim=0)) == len(keys)


def test_the_check_above_can_fail(monkeypatch):
    """Planted: NegGrad carries the keys of its whole mixed batch."""
    from efface.training.batch import LossOutput

    monkeypatch.setattr(LossOutput, "rows", lambda self, a, b=None: LossOutput(self.per_example[a:b], self.carry))
    with pytest.raises(AssertionError):
        test_no_key_of_a_forgotten_example_enters_the_queue("neggrad", monkeypatch)
