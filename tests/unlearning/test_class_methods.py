"""Methods for whole classes (damp, purge) against reference implementations, on trained models, and where they end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from efface import api
from efface.errors import EffaceError
from efface.training.checkpoint import Checkpoint
from efface.training.gradients import compute_gradient
from efface.training.loop import Run, fit
from efface.training.optim import Optim
from efface.unlearning.layer_inputs import record_inputs
from efface.unlearning.methods import Damp, Purge
from efface.unlearning.methods import purge as module
from efface.unlearning.methods.damp import class_means, own_directions, remove_directions, separability
from efface.unlearning.predictions import measure_accuracy, measure_prediction
from tests import tiny
from tests.reference import damp as damp_reference
from tests.reference import purge as purge_reference

EVERYTHING = {"forget": (0, 66), "retain": (0, 66), "valid": (66, 96)}


def class_parts(gone=(2,)):
    """F: what was trained on of some classes; R: the rest."""
    x, y = tiny.images(96)
    parts, train, labels = tiny.parts(x, y, EVERYTHING, tiny.still), torch.arange(66), torch.from_numpy(y[:66])
    inside = torch.isin(labels, torch.tensor(gone))
    return {
        "forget": replace(parts["forget"], ids=train[inside]),
        "retain": replace(parts["retain"], ids=train[~inside]),
        "valid": parts["valid"],
    }


def trained(seed=1, epochs=25):
    recipe = tiny.recipe("cross_entropy", epochs=epochs, batch_size=16)
    everything = replace(class_parts()["retain"], ids=torch.arange(66))
    return fit(recipe.start(seed), everything, recipe, Run(seed=seed))


def unlearn(method, model, parts=None):
    records = []
    run = Run(seed=3, log=records.append)
    return method.unlearn(model, tiny.given(method, parts or class_parts()), run), records


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# damp


@pytest.mark.parametrize("classes", [1, 2])
def test_directions_are_what_forgotten_means_have_beyond_the_span_of_the_others(classes):
    forgotten, retained = normal(7, classes, seed=1), normal(7, 3, seed=2)
    basis = own_directions(forgotten, retained)
    assert basis.shape == (7, classes)
    torch.testing.assert_close(basis.T @ basis, torch.eye(classes, dtype=torch.float64))
    assert (basis.T @ retained).abs().max() < 1e-12, "retained classes share none of it"
    theirs = np.array(damp_reference.directions(forgotten.T.numpy(), retained.T.numpy()))
    np.testing.assert_allclose((basis @ basis.T).numpy(), theirs.T @ theirs, atol=1e-12)


def test_means_that_the_others_explain_have_no_direction_of_their_own():
    retained = normal(7, 3)
    shared = retained @ torch.tensor([[0.5], [1.0], [-2.0]], dtype=torch.float64)
    assert own_directions(shared, retained).shape == (7, 0)
    assert own_directions(torch.cat([shared, normal(7, 1, seed=5)], 1), retained).shape == (7, 1)
    assert own_directions(normal(3, 1, seed=1), normal(3, 3)).shape == (3, 0), "as many inputs as retained classes"


@pytest.mark.parametrize("shift", [0.0, 0.7, 3.0])
def test_the_probe_agrees_with_its_reference_and_is_judged_on_other_rows(shift):
    f, r = normal(21, 5, seed=1) + shift, normal(40, 5, seed=2)
    told = separability(f, r)
    assert told == pytest.approx(damp_reference.probe(f.numpy(), r.numpy()), abs=1e-12)
    assert told > 0.9 if shift == 3 else told < 0.9
    many = normal(12, 60, seed=3), normal(12, 60, seed=4)  # a line tells 12 fitted rows of noise in 60 dimensions apart
    assert separability(*many) < 0.7


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3)])
def test_a_layer_loses_its_response_to_the_directions_and_keeps_that_to_others(layer):
    layer = layer.double()
    basis, before = torch.linalg.qr(normal(6, 2))[0], layer.weight.detach().clone()
    remove_directions(layer, basis, 0.75)
    places = [(before, layer.weight)] if before.dim() == 2 else [
        (before[..., i, j], layer.weight[..., i, j]) for i in range(3) for j in range(3)
    ]  # fmt: skip
    for old, new in places:
        expected = damp_reference.projected(old.numpy(), basis.T.numpy(), 0.75)
        np.testing.assert_allclose(new.detach().numpy(), expected, atol=1e-12)
        torch.testing.assert_close(new @ basis, 0.25 * old @ basis)


@pytest.mark.parametrize("backbone", [None, tiny.VIT])
def test_every_layer_but_the_first_is_projected_by_its_own_depth_and_separability(backbone):
    recipe = tiny.recipe("cross_entropy", **({} if backbone is None else {"backbone": backbone}))
    model, parts = recipe.start(0), class_parts()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    f, r = (parts[name].batch(parts[name].ids, torch.Generator()) for name in ("forget", "retain"))
    with torch.no_grad():
        seen = [record_inputs(model.eval(), batch.view(0)) for batch in (f, r)]
    layers = list(seen[0])
    expected = {}
    for number, layer in enumerate(layers[1:], 1):
        shown = [one[layer].double().numpy() for one in seen]
        basis = damp_reference.directions(
            damp_reference.means(shown[0], f.labels().tolist()), damp_reference.means(shown[1], r.labels().tolist())
        )
        expected[layer] = (len(basis), number)
    after, records = unlearn(Damp(), model)
    logged = {record["layer"]: record["terms"] for record in records if record["phase"] == "project"}
    names = {id(module): name for name, module in after.named_modules()}
    assert len(logged) == len(layers) - 1
    for layer, (count, number) in expected.items():
        assert logged[number]["directions"] == count
        assert 0 <= logged[number]["alpha"] <= number / len(expected)
        moved = not torch.equal(layer.weight, start[f"{names[id(layer)]}.weight"])
        assert moved == (count > 0 and logged[number]["alpha"] > 0)
    untouched = {f"{names[id(layer)]}.weight" for layer in layers[1:]}
    assert all(torch.equal(value, start[name]) for name, value in after.state_dict().items() if name not in untouched)


def test_a_trained_network_loses_the_class_and_no_other():
    model = trained()
    parts = class_parts()
    before = [measure_accuracy(model, parts[name])[0] for name in ("forget", "retain")]
    after, _ = unlearn(Damp(), model)
    assert before == [1.0, 1.0]
    assert measure_accuracy(after, parts["forget"])[0] <= 0.3
    assert measure_accuracy(after, parts["retain"])[0] >= 0.9


def test_class_means_are_columns_in_the_order_of_labels():
    x, labels = normal(9, 4), torch.tensor([2, 0, 2, 0, 2, 2, 0, 0, 2])
    expected = np.stack(damp_reference.means(x.numpy(), labels.tolist()), 1)
    np.testing.assert_allclose(class_means(x, labels).numpy(), expected)


def test_a_request_for_single_examples_is_refused_with_the_class_that_others_share(data_and_split):
    data, split, start = data_and_split
    with pytest.raises(EffaceError, match=r"damp forgets whole classes, and \d+ retained examples are of a class.*low"):
        api.unlearn(start, data, split, "damp")


@pytest.mark.parametrize("method", ["damp", "purge"])
def test_a_class_is_forgotten_by_its_name_and_the_original_stays(data_and_split, method):
    data, _, start = data_and_split
    split = api.split(data, forget="@class:low", train=48, valid=16, holdout=16, test=16)
    before = start.model.digest()
    made = api.unlearn(start, data, split, method, device="cpu")
    assert start.model.digest() == before and made.parent == before and made.model.digest() != before


def test_a_class_of_one_example_is_refused():
    parts = class_parts()
    alone = replace(parts["forget"], ids=parts["forget"].ids[:1])
    with pytest.raises(EffaceError, match="at least 2 examples"):
        unlearn(Damp(), trained(epochs=1), parts | {"forget": alone})


@pytest.fixture
def data_and_split():
    from efface.data.dataset import Data

    x, y = tiny.images(96)
    data = Data.from_arrays(x, y, classes=("low", "middle", "high"))
    split = api.split(data, forget="@random:5", train=48, valid=16, holdout=16, test=16)
    recipe = tiny.recipe("cross_entropy")
    return data, split, Checkpoint(recipe.start(0), recipe)


# purge


@pytest.mark.parametrize("agreeing", [False, True])
def test_a_step_goes_along_the_projected_gradient(agreeing):
    """A model that knows little learns classes 0 and 1 from R: a target of them agrees, one of class 2 does not."""
    method = Purge(erase=0.3, distill=1.5, temperature=2.0)
    teacher, parts = trained(epochs=6).eval(), class_parts()
    model = trained(epochs=6).eval()
    with torch.no_grad():
        for weight in model.trainable_parameters():
            weight.mul_(0.2)
    f, r = (parts[name].batch(parts[name].ids[:8], torch.Generator()) for name in ("forget", "retain"))
    target = torch.tensor([0.5, 0.4, 0.1] if agreeing else [0.1, 0.0, 0.9])
    found = method.terms(teacher, model, f, r, target)
    z, others = model.features(f.view(0)), model.features(r.view(0))
    logits, kept, known = model.project(z), model.project(others), teacher(r.view(0)).detach()
    away = purge_reference.of_forgotten(logits.tolist(), z.tolist(), target.tolist(), others.tolist(), method.erase)
    home = purge_reference.of_retained(
        kept.tolist(), r.labels().tolist(), known.tolist(), method.distill, method.temperature
    )
    assert (found["forget"] + found["erase"]).item() == pytest.approx(away, rel=1e-5)
    slow_f = torch.special.xlogy(target, target).sum() - (target * logits.log_softmax(-1)).sum(-1).mean()
    slow_f = slow_f + method.erase * (z - others.mean(0).detach()).square().mean()
    heat = method.temperature
    p, q = (known / heat).softmax(-1), (kept / heat).log_softmax(-1)
    slow_r = (
        nn.functional.cross_entropy(kept, r.labels()) + method.distill * heat**2 * (p * (p.log() - q)).sum(-1).mean()
    )
    assert slow_r.item() == pytest.approx(home, rel=1e-5)
    forget, retain = (compute_gradient(model, loss, keep=True).double().numpy() for loss in (slow_f, slow_r))
    assert (np.dot(forget, retain) >= 0) == agreeing
    expected = purge_reference.direction(forget, retain)
    stepped = compute_gradient(model, torch.stack(list(found.values())).sum()).double().numpy()
    np.testing.assert_allclose(stepped, expected, atol=1e-5 * np.abs(expected).max())
    if agreeing:
        assert found["project"].item() == 0
    else:
        assert abs(np.dot(stepped, retain)) < 1e-4 * np.linalg.norm(stepped) * np.linalg.norm(retain)


def test_running_statistics_stay_and_the_class_goes_while_the_others_stay():
    model, parts = trained(), class_parts()
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    method = Purge(epochs=40, batch_size=16, optim=Optim(lr=0.01, clip=1.0))
    after, records = unlearn(method, model)
    state = after.state_dict()
    assert before and all(torch.equal(state[name], value) for name, value in before.items())
    last = [record for record in records if record["phase"] == "stop_rule"][-1]
    assert last["met"] and last["terms"]["bound"] == 1 / 3
    assert measure_accuracy(after, parts["forget"])[0] == last["terms"]["accuracy"] <= 1 / 3
    assert measure_accuracy(after, parts["retain"])[0] >= 0.9


def test_the_target_is_the_mean_prediction_for_the_retained_as_received():
    model, seen = trained(epochs=3), class_parts()["retain"]
    with torch.no_grad():
        logits = model.eval()(seen.batch(seen.ids, torch.Generator()).clean)
    target, loss = measure_prediction(model, seen)
    torch.testing.assert_close(target, logits.softmax(-1).mean(0))
    assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, seen.labels())), rel=1e-5)


def test_it_ends_when_the_retained_have_lost_too_much_and_single_examples_end_at_unseen_ones(monkeypatch):
    losses = iter([0.1, 0.3, 0.6, 9.0])
    monkeypatch.setattr(module, "measure_prediction", lambda model, part: (torch.full((3,), 1 / 3), next(losses)))
    monkeypatch.setattr(module, "measure_accuracy", lambda model, part: (1.0 if part.name == "forget" else 0.5, 3))
    _, records = unlearn(Purge(epochs=9), trained(epochs=1))
    checks = [record for record in records if record["phase"] == "stop_rule"]
    assert [check["met"] for check in checks] == [False, True] and checks[0]["terms"]["loss of R"] == pytest.approx(3)
    x, y = tiny.images(96)
    monkeypatch.setattr(module, "measure_prediction", lambda model, part: (torch.full((3,), 1 / 3), 0.1))
    monkeypatch.setattr(module, "measure_accuracy", lambda model, part: (0.4 if part.name == "forget" else 0.5, 3))
    _, records = unlearn(
        Purge(), trained(epochs=1), tiny.parts(x, y, {"forget": (0, 5), "retain": (5, 66), "valid": (66, 96)})
    )
    checks = [record for record in records if record["phase"] == "stop_rule"]
    assert [check["terms"]["bound"] for check in checks] == [0.5] and checks[0]["met"]
