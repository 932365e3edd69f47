"""Data sets: examples are identified by key, and nothing may depend on the order of the rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.data.dataset import Data, rank_by_hash, sample_positions, shuffle_by_key
from efface.data.labels import encode_labels
from efface.errors import EffaceError


def sample(n=12, classes=3, seed=0, **more) -> Data:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, 2, 4, 5))
    return Data.from_arrays(x, np.arange(n) % classes, [f"k/{i}" for i in range(n)], **more)


def fails(*words, **arrays):
    with pytest.raises(EffaceError) as caught:
        Data.from_arrays(**arrays)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_shape_length_and_defaults():
    data = Data.from_arrays(np.zeros((3, 4, 5), np.uint8))
    assert (data.shape, len(data), data.y, data.classes) == ((1, 4, 5), 3, None, ())
    assert data.keys.tolist() == ["00000", "00001", "00002"]
    assert data.x.dtype == np.uint8


def test_layouts():
    rng = np.random.default_rng(0)
    last = rng.integers(0, 256, (2, 6, 7, 3), dtype=np.uint8)
    assert (Data.from_arrays(last).x == last.transpose(0, 3, 1, 2)).all()
    first = rng.integers(0, 256, (2, 3, 6, 7), dtype=np.uint8)
    assert (Data.from_arrays(first).x == first).all()
    bands = rng.integers(0, 256, (2, 5, 6, 7), dtype=np.uint8)
    assert Data.from_arrays(bands).shape == (5, 6, 7)


def test_transparency_is_put_on_white():
    x = np.zeros((1, 2, 2, 4), np.uint8)
    x[0, 0, 0] = (10, 20, 30, 255)
    x[0, 0, 1] = (10, 20, 30, 0)
    x[0, 1, 0] = (100, 0, 200, 128)
    seen = Data.from_arrays(x).x[0]
    assert seen[:, 0, 0].tolist() == [10, 20, 30]
    assert seen[:, 0, 1].tolist() == [255, 255, 255]
    assert seen[:, 1, 0].tolist() == [round((c * 128 + 255 * 127) / 255) for c in (100, 0, 200)]


def test_labels_may_be_names_numbers_or_unknown():
    x = np.zeros((4, 2, 2), np.uint8)
    named = Data.from_arrays(x, ["cat", "ant", "", "cat"])
    assert named.classes == ("ant", "cat")
    assert named.y is not None and named.y.tolist() == [1, 0, -1, 1]
    counted = Data.from_arrays(x, [2, -1, 0, 2])
    assert counted.classes == ("0", "1", "2")
    assert counted.y is not None and counted.y.tolist() == [2, -1, 0, 2]
    assert Data.from_arrays(x, [[2], [1], [0], [2]]).classes == ("0", "1", "2")
    assert encode_labels(["10", "9", "10"])[1] == ("9", "10")  # as numbers, not as text


def test_bad_arrays_say_what_is_wrong():
    x = np.zeros((3, 2, 2), np.uint8)
    fails("float64", "0 to 255", x=x / 2)
    fails("from 0 to 300", x=np.array([[[0, 300]]]))
    fails("from -1 to 0", x=np.array([[[0, -1]]]))
    fails("[3, 2]", x=x[..., 0])
    fails("[0, 2, 2]", x=x[:0])
    fails("3 images", "y are [2]", x=x, y=[0, 1])
    fails("keys are [1]", x=x, keys=["a"])
    fails("2 keys", "'a', 'b'", x=np.zeros((4, 1, 1), np.uint8), keys=["a", "a", "b", "b"])
    fails("1 keys", "written as text", x=x, keys=["a", "", "b"])
    fails("1 keys", "UTF-8", x=x, keys=["a", "\udcff", "b"])
    fails("from 0 to 5", "2 classes", x=x, y=[0, 5, 0], classes=["a", "b"])
    fails("from -2", x=x, y=[0, -2, 0])
    fails("argmax", x=x, y=np.eye(3))
    fails("argmax", x=x, y=[0.0, 1.0, 2.0])
    fails("'dog'", x=x, y=["cat", "dog", "cat"], classes=["cat"])
    fails("'validation'", x=x, official=["train", "test", "validation"])


def test_invalid_data_is_refused_on_construction():
    with pytest.raises(EffaceError, match="uint8"):
        Data(x=np.zeros((1, 1, 2, 2), np.float32), keys=np.array(["a"]))
    with pytest.raises(EffaceError, match="Keys are strings"):
        Data(x=np.zeros((1, 1, 2, 2), np.uint8), keys=np.array([0]))
    with pytest.raises(EffaceError, match="int64"):
        Data(
            x=np.zeros((1, 1, 2, 2), np.uint8),
            keys=np.array(["a"]),
            y=np.array([0], np.int32),
            classes=("a",),
        )


def test_positions_are_in_the_order_of_the_keys():
    data = sample()
    assert data.positions(["k/3", "k/0", "k/3"]).tolist() == [3, 0, 3]
    assert data.positions([]).dtype == np.int64


def test_unknown_keys_are_counted_and_the_first_five_shown():
    with pytest.raises(EffaceError) as caught:
        sample().positions(["k/0", *(f"z{i}" for i in range(7))])
    assert "7 of 8 ids" in str(caught.value)
    assert "'z4', ..." in str(caught.value) and "'z5'" not in str(caught.value)
    assert "'k/0'" in str(caught.value)  # an example of a valid id


def test_take_copies_every_field():
    data = sample(group=list("aabbccddeeff"), text=[f"t{i}" for i in range(12)], official=["train"] * 6 + ["test"] * 6)
    part = data.take([7, 2])
    assert part.keys.tolist() == ["k/7", "k/2"]
    assert part.y is not None and part.y.tolist() == [1, 2]
    assert part.group is not None and part.group.tolist() == ["d", "b"]
    assert part.official is not None and part.official.tolist() == ["test", "train"]
    assert part.text == ("t7", "t2")
    before = data.x.copy()
    part.x[:] = 0
    assert (data.x == before).all()


def test_digest_ignores_order_and_nothing_else():
    data = sample(group=list("aabbccddeeff"), text=["t"] * 12, official=["train"] * 12)
    assert data.digest() == data.take(np.random.default_rng(1).permutation(12)).digest()
    x = data.x.copy()
    x[3, 1, 2, 2] ^= 1
    assert data.y is not None and data.group is not None
    changed = {
        "x": x,
        "keys": np.array([*data.keys[:-1].tolist(), "other"]),
        "y": np.roll(data.y, 1),
        "classes": ("0", "1", "two"),
        "group": np.roll(data.group, 1),
        "text": ("t",) * 11 + ("u",),
        "official": np.array(["train"] * 11 + ["test"]),
    }
    digests = {data.digest()} | {dataclasses.replace(data, **{k: v}).digest() for k, v in changed.items()}
    assert len(digests) == len(changed) + 1
    assert dataclasses.replace(data, name="another").digest() == data.digest()


def test_swapping_the_keys_of_two_images_changes_the_digest():
    data = sample()
    traded = dataclasses.replace(data, x=data.x[[1, 0, *range(2, 12)]])
    assert traded.digest() != data.digest()


@given(st.permutations(range(30)), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_order_depends_on_keys_alone(order, seed):
    keys, strata = np.array([f"k{i}" for i in range(30)]), np.arange(30) % 4
    rows = np.array(order)
    for groups in (None, strata):
        straight = keys[shuffle_by_key(keys, groups, seed, "p")]
        mixed = keys[rows][shuffle_by_key(keys[rows], None if groups is None else groups[rows], seed, "p")]
        assert straight.tolist() == mixed.tolist()


def test_ranks_differ_by_seed_and_purpose_and_look_uniform():
    keys = np.array([f"{i:05d}" for i in range(4000)])
    one, other, third = rank_by_hash(keys, 0, "a"), rank_by_hash(keys, 1, "a"), rank_by_hash(keys, 0, "b")
    for pair in ((one, other), (one, third)):
        assert abs(np.corrcoef([rank.astype(float) for rank in pair])[0, 1]) < 0.06
    assert len(set(one.tolist())) == 4000
    assert abs((one / 2**64).mean() - 0.5) < 0.02


def test_any_stretch_of_a_stratified_order_has_every_stratum_in_proportion():
    strata = np.repeat([0, 1, 2], [600, 300, 100])
    keys = np.array([f"{i}" for i in range(1000)])
    order = shuffle_by_key(keys, strata, 3, "p")
    assert sorted(order.tolist()) == list(range(1000))
    for start in (0, 250, 700):
        counts = np.bincount(strata[order[start : start + 100]], minlength=3)
        assert np.abs(counts - [60, 30, 10]).max() <= 1


def test_a_stratum_of_one_example_can_be_anywhere():
    keys = np.array([f"{i}" for i in range(100)])
    places = [shuffle_by_key(keys, np.array([1] + [0] * 99), seed, "p").tolist().index(0) for seed in range(40)]
    assert min(places) < 25 and max(places) > 75


def test_a_limit_keeps_official_test_examples_and_nests():
    n = 200
    keys = np.array([f"{i}" for i in range(n)])
    y, official = np.arange(n) % 5, np.where(np.arange(n) < 150, "train", "test")
    small, large = (sample_positions(keys, y, official, limit, 0, "d") for limit in (50, 90))
    assert set(np.flatnonzero(official == "test")) <= set(small.tolist()) <= set(large.tolist())
    assert (np.bincount(y[small[small < 150]]) == 10).all()
    assert small.tolist() != sample_positions(keys, y, official, 50, 1, "d").tolist()
    assert len(sample_positions(keys, None, None, 7, 0, "d")) == 7
    for limit in (0, -1, 151, 1.5, True):
        with pytest.raises(EffaceError, match="from 1 to 150"):
            sample_positions(keys, y, official, limit, 0, "d")  # pyright: ignore[reportArgumentType]
