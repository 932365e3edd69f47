"""Sharded training: assignment, stages, and deletion that is bit-equal to never having seen the example."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from efface.data.dataset import Data
from efface.errors import EffaceError
from efface.training.batch import Subset
from efface.training.kept_stages import KeptStages, StageIndex
from efface.training.loop import Run, fit
from efface.training.objectives import OBJECTIVES
from efface.training.recipe import Recipe
from efface.training.sharded_model import ShardedModel, average_parts
from efface.training.shards import Shards, ShardUnit
from efface.training.stages import estimate_steps, plan_stages, require_filled_shards
from tests import tiny
from tests.reference.shards import sisa

N = 96
SHARDS = Shards(count=3, slices=2)


def data(order: np.ndarray | None = None, group: list[str] | None = None) -> Data:
    x, y = tiny.images(N)
    whole = Data.from_arrays(x, y, text=tiny.captions(y), group=group)
    return whole if order is None else whole.take(order)


def recipe(name: str = "simclr", shards: Shards = SHARDS) -> Recipe:
    return tiny.recipe(name, shards=shards, epochs=1)


def subset(source: Data, rule: Recipe, positions: np.ndarray | None = None) -> Subset:
    rows = np.arange(len(source)) if positions is None else positions
    return Subset.of(source, rows, rule.views, "train", torch.device("cpu"))


def trained(rule: Recipe, part: Subset, seed: int = 5, store: KeptStages | None = None):
    run = Run(seed=seed, stage_store=store)
    return fit(rule.start(seed), part, rule, run), run


def reference(rule: Recipe, source: Data, seed: int) -> dict[str, torch.Tensor]:
    """The state of the reference implementation, trained by plain calls of fit."""
    assert rule.shards is not None
    seeds = {(one.shard, one.number): one.seed for one in plan_stages(subset(source, rule), rule, seed)}
    epochs = max(1, round(2 * rule.epochs / (rule.shards.slices + 1)))
    alone = replace(rule, shards=None, epochs=epochs)

    def train(model, rows, shard, last):
        return fit(model, subset(source, alone, np.array(rows)), alone, Run(seed=seeds[shard, last]))

    untrained = rule.start(seed)
    assert isinstance(untrained, ShardedModel)
    keys = source.keys.tolist()
    parts = sisa(keys, rule.shards.count, rule.shards.slices, seed, lambda k: untrained.parts[k], train)
    return {f"shard{k}.{name}": value for k, part in enumerate(parts) for name, value in part.state_dict().items()}


@pytest.mark.parametrize("name", ["simclr", "cross_entropy"])
def test_sharded_training_is_that_of_the_reference_implementation(name):
    rule, source = recipe(name), data()
    model, _ = trained(rule, subset(source, rule))
    expected = reference(rule, source, 5)
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_deleting_is_bit_equal_to_never_having_seen_the_example(name, tmp_path):
    rule, source = recipe(name), data()
    store = KeptStages(tmp_path / "one")
    before, first = trained(rule, subset(source, rule), store=store)
    without = data(np.delete(np.arange(N), [17, 60]))  # the example is in no array
    later = KeptStages(tmp_path / "two", (store.folder, StageIndex(stages=tuple(store.found))))
    fast, run = trained(rule, subset(without, rule), store=later)
    never, whole = trained(rule, subset(without, rule))
    assert fast.digest() == never.digest() != before.digest()
    assert 0 < run.training_cost.steps < whole.training_cost.steps
    again = KeptStages(tmp_path / "three", (store.folder, StageIndex(stages=tuple(store.found))))
    same, idle = trained(rule, subset(source, rule), store=again)
    assert same.digest() == before.digest()
    assert idle.training_cost.steps == 0 < first.training_cost.steps


def test_only_stages_that_had_the_example_change_their_address():
    rule, source = recipe(), data()
    shard, part = SHARDS.assign(source.keys, None, 5)
    before = {(s.shard, s.number): s.address for s in plan_stages(subset(source, rule), rule, 5)}
    for gone in range(0, N, 7):
        left = subset(source, rule, np.delete(np.arange(N), gone))
        after = {(s.shard, s.number): s.address for s in plan_stages(left, rule, 5)}
        changed = {place for place, address in before.items() if after[place] != address}
        assert changed == {(shard[gone], r) for r in range(part[gone], SHARDS.slices)}


def test_addresses_depend_on_everything_that_the_weights_depend_on():
    rule, source = recipe(), data()
    first = [s.address for s in plan_stages(subset(source, rule), rule, 5)]
    pixels = Data.from_arrays(255 - source.x, source.y, text=source.text)
    labels = Data.from_arrays(source.x, (source.y + 1) % 3, text=source.text)
    captions = Data.from_arrays(source.x, source.y, text=tuple(f"{one}!" for one in source.text or ()))
    for other in (pixels, labels, captions):
        assert not set(first) & {s.address for s in plan_stages(subset(other, rule), rule, 5)}
    for changed in (replace(rule, epochs=9), replace(rule, batch_size=8), replace(rule, mean=0.4)):
        assert not set(first) & {s.address for s in plan_stages(subset(source, changed), changed, 5)}
    assert not set(first) & {s.address for s in plan_stages(subset(source, rule), rule, 6)}
    assert not set(first) & {s.address for s in plan_stages(subset(source, rule), rule, 5, bf16=True)}


def test_assignment_depends_on_the_own_unit_alone_and_groups_stay_together():
    keys = np.array([f"k{i}" for i in range(4000)])
    shard, part = Shards(count=8, slices=3).assign(keys, None, 1)
    few = Shards(count=8, slices=3).assign(keys[::5], None, 1)
    assert np.array_equal(few[0], shard[::5]) and np.array_equal(few[1], part[::5])
    assert np.bincount(shard).min() > 420 and np.bincount(shard * 3 + part).min() > 110
    group = np.array([f"g{i % 40}" if i % 10 else "" for i in range(4000)])
    rule = Shards(count=8, slices=3, unit=ShardUnit.GROUP)
    grouped, sliced = rule.assign(keys, group, 1)
    for name in set(group.tolist()) - {""}:
        assert len({*zip(grouped[group == name], sliced[group == name], strict=True)}) == 1
    assert len(set(grouped[group == ""].tolist())) == 8, "without a group each is alone"
    with pytest.raises(EffaceError, match="no groups"):
        rule.assign(keys, None, 1)


def test_shards_that_would_be_empty_are_refused_before_training():
    keys, rule = np.array([f"{i:05d}" for i in range(40)]), recipe(shards=Shards(count=12, slices=2))
    with pytest.raises(EffaceError, match="12 shards would begin with fewer than 2 examples"):
        require_filled_shards(keys, None, rule, 0)
    grouped = recipe(shards=Shards(count=4, unit=ShardUnit.GROUP))
    with pytest.raises(EffaceError, match="There are 2 groups for 4 shards"):
        require_filled_shards(keys, np.array(["a", "b"] * 20), grouped, 0)
    require_filled_shards(keys, None, recipe(), 0)


def test_a_shard_whose_examples_are_all_deleted_is_an_untrained_network():
    rule, source = recipe(), data()
    shard, _ = SHARDS.assign(source.keys, None, 5)
    model, _ = trained(rule, subset(source, rule, np.flatnonzero(shard != 1)))
    start = rule.start(5)
    assert isinstance(model, ShardedModel) and isinstance(start, ShardedModel)
    assert model.parts[1].digest() == start.parts[1].digest()
    assert model.parts[0].digest() != start.parts[0].digest()


def test_kept_weights_that_were_exchanged_or_cut_are_refused(tmp_path):
    rule, source = recipe(), data()
    store = KeptStages(tmp_path / "one")
    trained(rule, subset(source, rule), store=store)
    path = next(store.folder.glob("shard000-slice01*"))
    tensors = load_file(path)
    tensors["head.0.weight"] = tensors["head.0.weight"] + 1
    save_file(tensors, path)
    index = StageIndex(stages=tuple(store.found))
    with pytest.raises(EffaceError, match="not the ones that its index describes"):
        trained(rule, subset(source, rule), store=KeptStages(tmp_path / "two", (store.folder, index)))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(EffaceError, match=r"damaged or truncated.*Fetch it again"):
        trained(rule, subset(source, rule), store=KeptStages(tmp_path / "three", (store.folder, index)))
    path.unlink()
    with pytest.raises(EffaceError, match="There is no checkpoint"):
        trained(rule, subset(source, rule), store=KeptStages(tmp_path / "four", (store.folder, index)))


def test_a_training_that_was_cut_goes_on_and_a_cut_file_is_trained_again(tmp_path):
    rule, source = recipe(), data()
    whole, first = trained(rule, subset(source, rule))

    class Cut(Exception):
        pass

    store = KeptStages(tmp_path / "kept")
    real = store.save

    def save(stage, part, cost):
        real(stage, part, cost)
        if stage.shard == 1:
            raise Cut

    store.save = save
    with pytest.raises(Cut):
        trained(rule, subset(source, rule), store=store)
    kept = sorted(store.folder.glob("*.safetensors"))
    assert len(kept) == 3
    kept[0].write_bytes(kept[0].read_bytes()[:-50])
    again, run = trained(rule, subset(source, rule), store=KeptStages(tmp_path / "kept"))
    assert again.digest() == whole.digest()
    assert (run.training_cost.steps, run.training_cost.examples) == (
        first.training_cost.steps,
        first.training_cost.examples,
    )


def test_the_joint_model_is_its_networks_side_by_side():
    torch.manual_seed(0)
    x = torch.rand(5, 1, tiny.SIDE, tiny.SIDE)
    model = recipe().start(0).eval()
    assert isinstance(model, ShardedModel)
    with torch.no_grad():
        z = model.features(x)
        assert torch.equal(z, torch.cat([part.features(x) for part in model.parts], 1))
        joint, own = model(x), [torch.nn.functional.normalize(part(x), dim=-1) for part in model.parts]
        cosines = torch.nn.functional.cosine_similarity(joint[:1], joint[1:])
        torch.testing.assert_close(cosines, torch.stack([(z[:1] * z[1:]).sum(-1) for z in own]).mean(0))
        mean = average_parts(z, 3)
        assert mean.shape == (5, z.shape[1] // 3)
        classifier = recipe("cross_entropy").start(0).eval()
        chances = torch.stack([part(x).softmax(-1) for part in classifier.parts]).mean(0)
        torch.testing.assert_close(classifier(x).softmax(-1), chances)


def test_the_number_of_steps_is_estimated():
    rule, source = recipe(shards=Shards(count=2, slices=3)), data()
    _, run = trained(rule, subset(source, rule))
    assert estimate_steps(rule, N) == pytest.approx(run.training_cost.steps, rel=0.3)
    assert estimate_steps(tiny.recipe(epochs=3, batch_size=20), N) == 15


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": 1000}, {"slices": 0}, {"unit": "person"}])
def test_impossible_shards_are_refused(wrong):
    with pytest.raises(EffaceError, match=next(iter(wrong))):
        Shards(**wrong)
