"""CoUn's term against a reference implementation, what it must not change, and every method run with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efface import api, config
from efface.errors import EffaceError
from efface.training.loop import Run
from efface.training.model import Model, share_features
from efface.training.objectives import CrossEntropy
from efface.training.objectives import with_contrast as module
from efface.training.objectives.with_contrast import WithContrast, cross_view
from efface.training.optim import Optim, Schedule
from efface.unlearning.methods import METHODS, AlignmentCalibration, Coun, Finetune, Method, NegGrad, Retrain, Scrub
from efface.unlearning.protocol import Needs
from tests import tiny
from tests.reference import coun as coun_reference
from tests.reference import with_contrast as reference
from tests.unlearning.test_common_checks import HOME, data, recipe_for, small

NAMES = sorted(tiny.SMALL)
EXACT = torch.float64
OPTIM = Optim(lr=0.05, momentum=0.0, weight_decay=0.0, schedule=Schedule.CONSTANT)
CUTS = {"forget": (0, 12), "retain": (12, 48)}


def parts_of(augment=tiny.blurred, n=48):
    x, y = tiny.images(n)
    return tiny.parts(x, y, CUTS, augment)


def wrapped(name, **fields):
    model = tiny.recipe(name).start(0).eval()
    return model, WithContrast(model.objective, **fields), next(parts_of()["retain"].ordered_batches(10))


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_inner_one_and_the_term(name):
    model, objective, batch = wrapped(name, weight=0.7, tau=0.3)
    features = [model.features(batch.view(number)).tolist() for number in (0, 1)]
    expected = model.objective.loss(model, batch).per_example.double() + 0.7 * torch.tensor(
        reference.term(*features, 0.3), dtype=EXACT
    )
    torch.testing.assert_close(objective.loss(model, batch).per_example.double(), expected, atol=1e-4, rtol=1e-5)


def own_negatives(z, other, tau):
    """Planted: views of the same kind among the negatives."""
    return cross_view(z, other, tau) + (z @ z.T / tau).logsumexp(1)


def one_direction(z, other, tau):
    """Planted: only the direction from first to second view."""
    return nn.functional.cross_entropy(z @ other.T / tau, torch.arange(len(z)), reduction="none")


@pytest.mark.parametrize("slip", [own_negatives, one_direction])
def test_a_planted_slip_is_seen(slip, monkeypatch):
    monkeypatch.setattr(module, "cross_view", slip)
    with pytest.raises(AssertionError, match="not close"):
        test_the_loss_is_the_inner_one_and_the_term("cross_entropy")


def test_the_term_passes_gradcheck_through_both_views():
    generator = torch.Generator().manual_seed(0)
    z, other = (torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: cross_view(a, b, 0.5), (z, other))
    for gradient in torch.autograd.grad(cross_view(z, other, 0.5).sum(), (z, other)):
        assert gradient.abs().min() > 0


def test_agreeing_views_of_orthogonal_images_cost_nearly_nothing_and_collapse_the_log_of_the_batch_twice():
    apart, same = torch.eye(5), torch.ones(5, 5)
    assert cross_view(apart, apart, 0.05).max() < 1e-4
    torch.testing.assert_close(cross_view(same, same, 0.1), 2 * torch.full((5,), 5.0).log())


@pytest.mark.parametrize("name", NAMES)
def test_zero_weight_is_the_inner_objective_bit_by_bit(name):
    model, objective, batch = wrapped(name, weight=0.0)
    assert torch.equal(objective.loss(model, batch).per_example, model.objective.loss(model, batch).per_example)


def test_the_term_is_taken_over_the_chosen_examples_only():
    model, _, batch = wrapped("cross_entropy")
    chosen = torch.zeros(48, dtype=torch.bool)
    chosen[batch.ids[[1, 4, 7]]] = True
    term = WithContrast(model.objective, only=chosen).term(model, batch)
    features = [model.features(batch.view(number)[[1, 4, 7]]).tolist() for number in (0, 1)]
    torch.testing.assert_close(
        term[[1, 4, 7]].double(), torch.tensor(reference.term(*features, 0.1), dtype=EXACT), atol=1e-4, rtol=1e-4
    )
    assert term[[0, 2, 3, 5, 6, 8, 9]].abs().max() == 0
    assert WithContrast(model.objective, only=torch.zeros(48, dtype=torch.bool)).term(model, batch).abs().max() == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_anchored_loss_at_the_anchor_moves_as_the_loss_does(name):
    """Of the term alone: its gradient with respect to one image's view, all other views held constant."""
    model, objective, batch = wrapped(name, weight=0.7, tau=0.3)
    inner = model.objective.anchor_loss(model, batch)
    x = batch.view(0).clone().requires_grad_()
    anchored = objective.anchor_loss(model, batch)(x) - inner(x)
    features = [model.features(batch.view(number)).tolist() for number in (0, 1)]
    expected = 0.7 * torch.tensor(reference.term(*features, 0.3), dtype=EXACT)
    torch.testing.assert_close(anchored.double(), expected, atol=1e-4, rtol=1e-4)
    rows = torch.autograd.grad(anchored[3], x)[0].flatten(1).abs().sum(1)
    assert rows[3] > 0 and rows[[i for i in range(10) if i != 3]].max() < 1e-6


def test_a_view_that_both_losses_use_goes_through_the_backbone_once():
    model, objective, batch = wrapped("cross_entropy")
    seen = []
    hook = model.backbone.register_forward_hook(lambda *_: seen.append(1))
    objective.loss(model, batch)
    assert len(seen) == 2
    hook.remove()
    with share_features(model), share_features(model):
        first = model.features(batch.view(0))
        assert model.features(batch.view(0)) is first
        with torch.no_grad():
            without = model.features(batch.view(1))
        assert model.features(batch.view(1)) is not without
    assert model.features(batch.view(0)) is not first


@pytest.mark.parametrize("name", NAMES)
def test_a_wrapped_objective_is_one_of_its_kind(name):
    recipe = tiny.recipe(name)
    objective = WithContrast(recipe.objective)
    model = tiny.recipe(name, objective=objective).start(0)
    assert (objective.needs_labels, objective.contrasts_pairs) == (
        recipe.objective.needs_labels,
        recipe.objective.contrasts_pairs,
    )
    assert model.objective is objective and model.digest() == recipe.start(0).digest()
    a, b = torch.randn(2, 5, 3)
    assert torch.equal(objective.distance(a, b), recipe.objective.distance(a, b))
    assert objective.purge(model, ()) == recipe.objective.purge(recipe.start(0), ())


def run(method, name="cross_entropy", parts=None, log=lambda record: None):
    recipe = tiny.recipe(name)
    parts = parts or parts_of(recipe.views)
    return method.unlearn(recipe.start(3), tiny.given(method, parts, recipe), Run(seed=5, log=log))


BASES = [
    Finetune(epochs=2, batch_size=12),
    NegGrad(epochs=1, batch_size=12, forget_batch_size=6),
    Scrub(epochs=2, batch_size=12, forget_batch_size=6),
]


@pytest.mark.parametrize("base", BASES, ids=lambda base: type(base).__name__)
@pytest.mark.parametrize("name", NAMES)
def test_weight_zero_is_the_base_method_and_any_other_is_not(base, name):
    plain = run(base, name).digest()
    assert run(Coun(base=base, weight=0.0), name).digest() == plain
    assert run(Coun(base=base, weight=0.5), name).digest() != plain


IGNORES_RETAINED_LOSS = {"bad_teacher", "damp", "gradient_ascent", "purge"}
"""Methods that never read the objective's loss of a retained example."""


@pytest.mark.parametrize("name", sorted(m for m in METHODS if Needs.RECIPE not in METHODS[m].needs))
def test_every_method_uses_the_term_or_raises_that_it_cannot(name):
    objective, base = HOME[name], small(name)
    recipe, records = recipe_for(base, objective), []

    def after(method):
        given = tiny.given(method, data(), recipe)
        return method.unlearn(recipe.start(3), given, Run(seed=5, log=records.append)).digest()

    alone = after(base)
    assert after(Coun(base=base, weight=0.0)) == alone
    if name in IGNORES_RETAINED_LOSS:
        with pytest.raises(EffaceError, match=f"was never used: {type(base).__name__}"):
            after(Coun(base=base))
        return
    assert after(Coun(base=base)) != alone
    note = records[-1]
    assert note["phase"] == "coun" and note["losses"] > 0 and note["terms"]["first"] > 0


def test_the_callback_receives_the_unweighted_term():
    model, _, batch = wrapped("cross_entropy")
    terms = []
    objective = WithContrast(model.objective, 0.3, 0.3, on_term=terms.append)
    objective.loss(model, batch)
    features = [model.features(batch.view(number)).tolist() for number in (0, 1)]
    assert terms[0].tolist() == pytest.approx(reference.term(*features, 0.3), abs=1e-4) and not terms[0].requires_grad


def test_it_works_with_a_method_that_reads_the_contrastive_terms():
    base = AlignmentCalibration(epochs=1, batch_size=12)
    assert run(Coun(base=base, weight=0.0), "moco").digest() == run(base, "moco").digest()
    assert run(Coun(base=base), "moco").digest() != run(base, "moco").digest()


def test_the_term_of_a_mixed_batch_never_sees_a_forgotten_example(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "cross_view", lambda z, other, tau: (seen.append(len(z)), cross_view(z, other, tau))[1])
    shown = []
    term = WithContrast.term
    monkeypatch.setattr(WithContrast, "term", lambda self, m, batch: (shown.append(batch.ids), term(self, m, batch))[1])
    run(Coun(base=BASES[1]))
    assert [int((ids >= 12).sum()) for ids in shown] == seen and max(map(len, shown)) > max(seen)


def test_the_objective_is_the_originals_again_even_after_an_error():
    model = run(Coun(base=BASES[0]), "moco")
    assert model.objective == tiny.SMALL["moco"]
    recipe = tiny.recipe("cross_entropy")
    model, method = recipe.start(0), Coun(base=BASES[0])
    broken = parts_of(lambda x, generator: x * torch.nan)
    with pytest.raises(EffaceError, match="no longer a finite number"):
        method.unlearn(model, tiny.given(method, broken, recipe), Run())
    assert model.objective is recipe.objective


def test_coun_needs_what_its_base_needs_and_hands_it_no_more():
    assert Coun().needs == Needs.RETAIN
    assert Coun(base=NegGrad()).needs == Needs.RETAIN | Needs.FORGET
    assert METHODS["coun"].needs == Needs.RETAIN

    class Greedy(Finetune):
        def unlearn(self, model, given, run):
            return given.forget

    with pytest.raises(EffaceError, match="without declaring"):
        run(Coun(base=Greedy()))


def test_a_base_that_trains_a_fresh_model_is_refused():
    with pytest.raises(EffaceError, match=r"coun cannot run on Retrain.*method\.base"):
        Coun(base=Retrain())


def test_any_base_can_be_named_in_a_configuration():
    settings = config.override({"name": "coun"}, ["base=neggrad", "base.beta=0.9", "tau=0.5"])
    made = config.parse_choice(METHODS, settings, "method", {Method: METHODS})
    assert made == Coun(base=NegGrad(beta=0.9), tau=0.5)
    assert config.dump(made, {Method: METHODS})["base"]["name"] == "neggrad"
    with pytest.raises(EffaceError, match=r"no base called 'negrad'.*Did you mean 'neggrad'"):
        config.parse_choice(METHODS, {"name": "coun", "base": "negrad"}, "method", {Method: METHODS})


def test_a_checkpoint_of_coun_is_one_of_the_original_objective(tmp_path):
    from efface.data.dataset import Data
    from efface.training.checkpoint import Checkpoint

    x, y = tiny.images(96)
    data = Data.from_arrays(x, y, [str(i) for i in range(96)])
    split = api.split(data, "@random:0.2", valid=0.1, holdout=0.1, test=0.1)
    start = Checkpoint(tiny.recipe("cross_entropy").start(0), tiny.recipe("cross_entropy"))
    after = api.unlearn(start, data, split, "coun", base="neggrad", device="cpu")
    after.save(tmp_path)
    again = Checkpoint.load(tmp_path)
    assert again.model.objective == CrossEntropy()
    assert (again.method["name"], again.method["base"]["name"]) == ("coun", "neggrad")


def test_coun_equals_the_reference():
    """A classifier of linear features, two updates, against descent by central differences in float64."""
    parts = parts_of()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        backbone = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3, bias=False))
        model = Model(backbone, nn.Linear(3, 3), CrossEntropy(), torch.zeros(1), torch.ones(1))
    method = Coun(base=Finetune(epochs=1, batch_size=18, optim=OPTIM), weight=0.6, tau=0.5)
    batches = list(parts["retain"].batches(18, Run(seed=5).rng("retain", 0)))
    numbers = [float(v) for w in (backbone[2].weight, model.head.weight, model.head.bias) for v in w.detach().flatten()]

    def pooled(view):
        return nn.functional.avg_pool2d(view, 2).flatten(1).double().tolist()

    functions = [
        lambda n, b=b: coun_reference.loss(n, (16, 3, 3), pooled(b.view(0)), pooled(b.view(1)), b.y.tolist(), 0.6, 0.5)
        for b in batches
    ]
    expected = coun_reference.descend(numbers, functions, [0.05, 0.05])
    method.unlearn(model, tiny.given(method, parts), Run(seed=5))
    ours = [float(v) for w in (backbone[2].weight, model.head.weight, model.head.bias) for v in w.detach().flatten()]
    assert ours == pytest.approx(expected, abs=2e-5)
    assert max(abs(a - b) for a, b in zip(ours, numbers, strict=True)) > 0.01


def test_it_works_on_a_transformers_pooled_features():
    recipe, method = tiny.recipe("cross_entropy", backbone=tiny.VIT), Coun(base=BASES[0])
    digests = set()
    for weight in (0.0, 1.0):
        given = tiny.given(method, parts_of(recipe.views), recipe)
        digests.add(Coun(base=BASES[0], weight=weight).unlearn(recipe.start(0), given, Run()).digest())
    assert len(digests) == 2


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(EffaceError, match="temperature"):
        WithContrast(CrossEntropy(), tau=0.0)
    with pytest.raises(EffaceError, match="tau' cannot be 0"):
        Coun(tau=0.0)
