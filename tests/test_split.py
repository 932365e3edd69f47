"""Splits: disjoint, by key, matched; selectors that cannot be misread; copies that undo a deletion."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from efface import official
from efface.copies import NEAR, copies, edges
from efface.data import Data
from efface.errors import EffaceError
from efface.sources import load
from efface.split import ENOUGH, PARTS, Split, duplicates, forget, partition
from tests.reference import copies as slow


def made(n=200, classes=4, tested=0, seed=0, shape=(1, 5, 5), **more) -> Data:
    """``n`` random images (of which the last ``tested`` are the official test part)."""
    rng = np.random.default_rng(seed)
    given: dict[str, Any] = {
        "y": None if classes == 0 else np.arange(n) % classes,
        "keys": [f"k{i:04d}" for i in range(n)],
        "official": ["train"] * (n - tested) + ["test"] * tested if tested else None,
    }
    return Data.from_arrays(rng.integers(0, 256, (n, *shape)), **(given | more))


def keys(data: Data, split: Split, part: str) -> set[str]:
    return set(data.keys[getattr(split, part)].tolist())


def fails(call, *words):
    with pytest.raises(EffaceError) as caught:
        call()
    for word in words:
        assert str(word) in str(caught.value), str(caught.value)


# partition


def test_default_sizes_without_and_with_an_official_test_part():
    assert partition(made()).sizes() == {
        "forget": 0,
        "retain": 140,
        "valid": 20,
        "holdout": 20,
        "spare": 0,
        "test": 20,
    }
    data = made(300, tested=100)
    split = partition(data)
    assert split.sizes() == {"forget": 0, "retain": 160, "valid": 20, "holdout": 20, "spare": 0, "test": 100}
    assert data.official is not None and set(data.official[split.test]) == {"test"}
    for part in ("retain", "valid", "holdout"):
        assert set(data.official[getattr(split, part)]) == {"train"}


def test_counts_and_fractions():
    sizes = partition(made(tested=80), train=50, valid=10, holdout=0.25, test=0.5).sizes()
    assert sizes == {"forget": 0, "retain": 50, "valid": 10, "holdout": 30, "spare": 0, "test": 40}
    assert partition(made(), train=1, valid=1, holdout=1, test=1).sizes()["retain"] == 1
    assert partition(made(), train=0.5, valid=0, holdout=0, test=0).sizes()["retain"] == 100
    assert partition(made(), train=1.0, valid=0, holdout=0, test=0).sizes()["retain"] == 200
    assert partition(made(tested=80), test=1.0).sizes()["test"] == 80
    assert partition(made(), valid=20.0).sizes()["valid"] == 20  # a count from YAML may carry a point


def test_sizes_that_do_not_fit():
    data = made(tested=80)
    fails(
        lambda: partition(data, train=100),
        "120 official training examples",
        "holdout 12, valid 12, train 100.",
        "split.train",
    )
    fails(lambda: partition(data, valid=60, holdout=60), "120 official", "train 1 or more")
    fails(lambda: partition(data, train=0), "too few")
    fails(lambda: partition(data, test=81), "split.test asks for 81", "80")
    fails(lambda: partition(data, valid=121), "split.valid asks for 121", "120")
    for size in (-1, -0.5, 1.5, float("nan"), True):
        fails(lambda size=size: partition(data, holdout=size), "split.holdout cannot be", "fraction")


def test_parts_are_stratified():
    data = made(1000, classes=5)
    split = partition(data, train=333, valid=100, holdout=50, test=20)
    for part, each in (("retain", 333 / 5), ("valid", 20), ("holdout", 10), ("test", 4)):
        assert data.y is not None
        assert np.abs(np.bincount(data.y[getattr(split, part)], minlength=5) - each).max() <= 1


def test_a_larger_train_moves_no_other_part():
    data = made()
    small, large = partition(data, train=30), partition(data, train=90)
    assert keys(data, small, "retain") < keys(data, large, "retain")
    for part in ("valid", "holdout", "test"):
        assert keys(data, small, part) == keys(data, large, part)


def test_more_data_moves_few_keys():
    data = made(220)
    before = partition(data.take(range(200)), valid=0.2)
    after = partition(data, valid=0.2)
    assert len(keys(data, before, "valid") & keys(data, after, "valid")) > 25  # of 40; by chance 8


def test_seeds_draw_other_parts():
    data = made()
    assert partition(data, seed=0).digest(data) != partition(data, seed=1).digest(data)
    assert partition(data, seed=0).digest(data) == partition(data, seed=0).digest(data)


@given(
    n=st.integers(20, 60),
    classes=st.integers(0, 5),
    tested=st.sampled_from([0, 8]),
    sizes=st.tuples(*[st.one_of(st.integers(0, 5), st.floats(0, 0.2))] * 3),
    selector=st.sampled_from(["@random:3", "@random:0.3", "@class:1", "@keys", "file"]),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_parts_are_disjoint_and_do_not_depend_on_row_order(n, classes, tested, sizes, selector, seed):
    data = made(n, classes, tested)
    mixed = data.take(np.random.default_rng(seed).permutation(n))
    valid, holdout, test = sizes
    results = []
    for one in (data, mixed):
        split = partition(one, valid=valid, holdout=holdout, test=test, seed=seed)
        split.check(n)
        kept = split.retain
        if selector in ("@keys", "file"):
            listed = sorted(one.keys[kept].tolist())[::4][: len(kept) - 1]
            what = "@keys:" + ",".join(listed)
        else:
            what = selector
        try:
            after = forget(split, one, what, seed)
        except EffaceError as error:
            results.append(str(error))
            continue
        after.check(n)
        assert set(after.train) == set(split.train)
        assert len(after.forget) and len(after.retain)
        assert set(after.holdout) | set(after.spare) == set(split.holdout)
        results.append((after.digest(one), after.sizes(), after.provenance))
    assert results[0] == results[1]


def test_a_split_that_overlaps_or_reaches_out_is_refused():
    rows = np.arange
    fails(lambda: Split(forget=rows(3), test=rows(2, 5)).check(5), "forget and test share 1")
    fails(lambda: Split(forget=rows(3)).check(2), "position 2", "2 examples")
    fails(lambda: Split(forget=np.array([-1])).check(2), "position -1")
    fails(lambda: Split(retain=np.array([1, 0])).check(2), "retain are not sorted")
    fails(lambda: Split(retain=np.array([1, 1])).check(2), "retain are not sorted")


# storing


def test_a_split_is_stored_by_key_and_found_again_in_another_order():
    data = made(group=[f"g{i % 7}" for i in range(200)])
    split = forget(partition(data), data, "@group:g3", seed=5)
    stored = json.loads(json.dumps(split.to_dict(data)))
    mixed = data.take(np.random.default_rng(0).permutation(200))
    found = Split.from_dict(mixed, stored)
    assert found.digest(mixed) == split.digest(data) and found.provenance == split.provenance
    for part in PARTS:
        assert keys(mixed, found, part) == keys(data, split, part)
    digests = {split.digest(data)}
    for part in ("forget", "retain", "valid", "holdout", "spare", "test"):
        changed = {**stored, "parts": {**stored["parts"], part: stored["parts"][part][1:]}}
        digests.add(Split.from_dict(data, changed).digest(data))
    assert len(digests) == 7


def test_stored_splits_that_do_not_fit():
    data = made()
    stored = partition(data).to_dict(data)
    fails(
        lambda: Split.from_dict(data.take(range(100)), stored),
        "does not fit",
        "ids are not in",
        "same source",
    )
    fails(lambda: Split.from_dict(data, {"provenance": {}}), "not a stored split", "forget, retain")
    stored["parts"]["test"] = stored["parts"]["test"] + stored["parts"]["retain"][:2]
    fails(lambda: Split.from_dict(data, stored), "retain and test share 2")


# selectors


@pytest.fixture
def base():
    data = made(group=[f"g{i % 7}" for i in range(200)], classes=4)
    return data, partition(data)


def test_random(base):
    data, split = base
    tenth = forget(split, data, "@random:0.1", seed=1)
    assert len(tenth.forget) == 14 and set(tenth.forget) < set(split.retain)
    more = forget(split, data, "@random:50", seed=1)
    assert set(tenth.forget) < set(more.forget)
    assert set(forget(split, data, "@random:50", seed=2).forget) != set(more.forget)
    assert more.provenance["random"] is True and more.provenance["matched"] is None
    assert more.holdout.tolist() == split.holdout.tolist() and not len(more.spare)
    assert more.provenance | {"warnings": 0, "copies": 0} == {
        "selector": "@random:50",
        "seed": 1,
        "random": True,
        "matched": None,
        "warnings": 0,
        "copies": 0,
        "sizes": more.sizes(),
    }


def test_bad_random(base):
    data, split = base
    for value in ("a", "-1", "1.5", "0.0", "nan", "1e9.0"):
        fails(lambda value=value: forget(split, data, f"@random:{value}"), f"@random:{value}", "@random:0.1")
    fails(lambda: forget(split, data, "@random:0"), "selects 0")
    fails(lambda: forget(split, data, "@random:0.001"), "selects 0", "140")
    fails(lambda: forget(split, data, "@random:141"), "selects 141", "140")
    fails(lambda: forget(split, data, "@random:140"), "all 140", "Nothing would be retained")
    fails(lambda: forget(split, data, "@random:1.0"), "all 140")


def test_class_by_name_or_number(base):
    data, split = base
    named = dataclasses.replace(data, classes=("ant", "bee", "1", "dog"))
    assert set(named.y[forget(split, named, "@class:bee").forget]) == {1}
    assert set(named.y[forget(split, named, "@class:1").forget]) == {2}  # a name wins over a number
    assert set(named.y[forget(split, named, "@class:3").forget]) == {3}
    after = forget(split, named, "@class:dog")
    assert set(named.y[after.forget]) == {3} and 3 not in named.y[after.retain]
    fails(lambda: forget(split, named, "@class:bea"), "'bea'", "'bee'", "Known")
    fails(lambda: forget(split, named, "@class:4"), "class called '4'")
    fails(lambda: forget(split, dataclasses.replace(data, y=None), "@class:1"), "no labels")
    many = dataclasses.replace(data, classes=tuple(f"c{i}" for i in range(1000)))
    fails(lambda: forget(split, many, "@class:c10000"), "'c1000'"[:6], "1000 others")


def test_group(base):
    data, split = base
    after = forget(split, data, "@group:g2")
    assert set(data.group[after.forget]) == {"g2"} and "g2" not in data.group[after.retain]
    assert after.provenance["matched"] == "group" and set(data.group[after.holdout]) == {"g2"}
    fails(lambda: forget(split, data, "@group:g9"), "group called 'g9'", "Known: g0")
    fails(lambda: forget(split, dataclasses.replace(data, group=None), "@group:g9"), "no groups", "manifest")
    moved = dataclasses.replace(data, group=np.where(np.isin(np.arange(200), split.test), "only", "rest"))
    fails(lambda: forget(split, moved, "@group:only"), "No training example is of group 'only'")


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        ("txt", lambda some: "\n".join(some)),
        ("txt", lambda some: "\ufeff" + "\r\n\r\n".join(some) + "  \r\n"),
        ("list", lambda some: "\n".join(some)),
        ("csv", lambda some: "label,key\n" + "".join(f"x,{key}\n" for key in some)),
        ("csv", lambda some: "\n".join(some)),
        ("csv", lambda some: "key\n" + "\n".join(f'"{key}"' for key in some)),
        ("json", json.dumps),
        ("json", lambda some: json.dumps({"keys": some, "reason": "asked"})),
        ("jsonl", lambda some: "\n".join(json.dumps(one) for one in some)),
        ("jsonl", lambda some: "\n".join(json.dumps({"key": one}) for one in some)),
    ],
)
def test_files_of_keys(base, tmp_path, suffix, write):
    data, split = base
    some = data.keys[split.retain[[5, 60, 9]]].tolist()
    path = tmp_path / f"who.{suffix}"
    path.write_text(write(some), encoding="utf-8", newline="")
    after = forget(split, data, str(path))
    assert keys(data, after, "forget") == set(some)
    assert after.provenance["random"] is False
    assert forget(split, data, "@keys: " + " , ".join(some)).digest(data) == after.digest(data)


def test_keys_with_blanks_commas_and_numbers(tmp_path):
    data = made(12, classes=2, keys=["a b", 'c,"d', "7", *(f"k{i}" for i in range(9))])
    split = Split(retain=np.arange(10), holdout=np.arange(10, 12))
    (tmp_path / "who.json").write_text('["a b", "c,\\"d", 7]')
    (tmp_path / "who.csv").write_text('key\na b\n"c,""d"\n7\n')
    for name in ("who.json", "who.csv"):
        assert keys(data, forget(split, data, str(tmp_path / name)), "forget") == {"a b", 'c,"d', "7"}


def test_bad_files_of_keys(base, tmp_path):
    data, split = base

    def select(text, name="who.txt"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return lambda: forget(split, data, str(tmp_path / name))

    kept = data.keys[split.retain].tolist()
    fails(lambda: forget(split, data, "missing.txt"), "no file missing.txt", "@class:")
    fails(lambda: forget(split, data, kept[0]), "id of an example", f"@keys:{kept[0]}")
    fails(lambda: forget(split, data, str(tmp_path)), "cannot be read as a list of ids")
    fails(select(""), "holds no ids")
    fails(select("[]", "who.json"), "holds no ids")
    fails(select("key\n", "who.csv"), "holds no ids")
    fails(select(b"\xff\xfe\x00a"), "cannot be read as a list of ids")
    fails(select("{", "who.json"), "cannot be read")
    fails(select('{"ids": []}', "who.json"), "dict, not a list")
    fails(select("[1.5]", "who.json"), "1.5 is not an id")
    fails(select("[true, null]", "who.json"), "true is not an id")
    fails(select('"a"\n{"id": 3}', "who.jsonl"), "is not an id")
    fails(select("id,name\na,b\n", "who.csv"), "named 'key'", "id, name")
    fails(select("name,key\na,b\nc\n", "who.csv"), "Row 3")
    fails(select("\n".join([*kept[:3], *(f"z{i}" for i in range(6))])), "6 of 9 ids", "'z4', ...")
    fails(
        select("\n".join([*kept[:3], kept[1], kept[1], kept[0]])), "2 ids", "more than once", f"'{kept[0]}'"
    )
    fails(select("\n".join(kept)), "all 140")
    stray = [*data.keys[split.test[:2]].tolist(), *data.keys[split.valid[:4]].tolist()]
    fails(
        select("\n".join([kept[0], *stray])),
        "6 of 7 ids were not trained on",
        "valid 4, test 2",
        stray[0],
        ", ...",
    )
    unused = partition(data, train=10)
    other = next(key for key in kept if key not in keys(data, unused, "retain"))
    fails(lambda: forget(unused, data, f"@keys:{other}"), "no part 1")


def test_bad_selectors(base):
    data, split = base
    fails(lambda: forget(split, data, "@clas:1"), "'@clas'", "'@class'")
    fails(lambda: forget(split, data, "@random"), "nothing after @random", "@random:0.1")
    fails(lambda: forget(split, data, "@keys: "), "nothing after @keys")
    fails(lambda: forget(split, data, "@keys:,"), "names no ids")
    fails(lambda: forget(Split(), data, "@random:1"), "no training examples")


def test_a_second_request_starts_where_the_first_ended(base):
    data, split = base
    first = forget(split, data, "@class:1")
    second = forget(first, data, "@class:2")
    assert set(second.train) == set(first.retain)
    assert not set(first.forget) & {row for part in PARTS for row in getattr(second, part)}
    assert set(second.holdout) | set(second.spare) == set(split.holdout)  # the pool is whole again
    assert any("earlier request" in warning for warning in second.provenance["warnings"])
    gone = data.keys[first.forget[0]]
    fails(lambda: forget(first, data, f"@keys:{gone}"), "not trained on", "an earlier request 1")


# the holdout's mix


def test_a_class_is_matched_with_all_of_its_own():
    data = made(1000, classes=5)
    split = partition(data, holdout=0.3)
    after = forget(split, data, "@class:2")
    assert data.y is not None
    assert after.holdout.tolist() == split.holdout[data.y[split.holdout] == 2].tolist()
    assert set(after.spare) == set(split.holdout) - set(after.holdout)
    assert after.provenance["matched"] == "class" and after.provenance["warnings"] == []


def request(data, split, counts):
    """A selector of ``counts[label]`` training examples of each class."""
    rows = [split.retain[data.y[split.retain] == label][:count] for label, count in counts.items()]
    return "@keys:" + ",".join(data.keys[np.concatenate(rows)].tolist())


@pytest.mark.parametrize(
    "counts", [{0: 30, 1: 10}, {0: 1, 1: 1, 2: 1}, {2: 80, 3: 20, 4: 10}, {1: 1}, {3: 200}]
)
def test_the_holdout_has_the_mix_of_the_forgotten(counts):
    data = made(2000, classes=5)
    split = partition(data, holdout=0.2)  # 80 of each class
    after = forget(split, data, request(data, split, counts))
    assert data.y is not None and after.provenance["warnings"] == []
    got = np.bincount(data.y[after.holdout], minlength=5)
    wanted = np.array([counts.get(label, 0) for label in range(5)])
    assert np.abs(got / got.sum() - wanted / wanted.sum()).sum() / 2 <= 0.05
    assert got.max() == 80  # as much of the pool as the mix allows
    assert (got[wanted == 0] == 0).all()


def test_too_few_of_a_class_is_a_warning_that_says_which():
    y = np.array([0] * 900 + [1] * 100)
    data = made(1000, y=y, classes=2)
    split = partition(data, train=0.5, holdout=0.3)
    few = split.holdout[y[split.holdout] == 1][3:]
    thin = dataclasses.replace(split, holdout=np.setdiff1d(split.holdout, few))  # three of class 1 are left
    after = forget(thin, data, request(data, thin, {0: 40, 1: 40}))
    assert np.bincount(y[after.holdout]).tolist() == [40, 3]
    assert any("'1' (3)" in warning and "too few" in warning for warning in after.provenance["warnings"])
    none = dataclasses.replace(split, holdout=split.holdout[y[split.holdout] == 0])
    after = forget(none, data, request(data, none, {0: 40, 1: 40}))
    assert set(y[after.holdout]) == {0} and any("'1' (0)" in one for one in after.provenance["warnings"])
    fails(lambda: forget(none, data, "@class:1"), "None of the 270 holdout", "larger split.holdout")


def test_a_rare_class_does_not_shrink_the_holdout():
    y = np.array([0] * 990 + [1] * 10)
    data = made(1000, y=y, classes=2)
    split = partition(data, train=0.4, holdout=0.4)
    after = forget(split, data, request(data, split, {0: 200, 1: 4}))
    assert len(after.holdout) > 2 * ENOUGH and after.provenance["warnings"] == []


def test_groups_that_are_nowhere_in_the_holdout_are_matched_by_class():
    data = made(400, classes=4)
    split = partition(data)
    group = np.full(400, "rest")
    group[split.retain[:12]] = "me"
    data = dataclasses.replace(data, group=group)
    after = forget(split, data, "@group:me")
    assert after.provenance["matched"] == "class"
    assert any("no example of the forgotten group" in one for one in after.provenance["warnings"])
    bare = dataclasses.replace(data, y=None, classes=())
    fails(lambda: forget(split, bare, "@group:me"), "None of the 40 holdout")


def test_nothing_to_match_by_is_a_warning():
    data = made(classes=0)
    split = partition(data)
    after = forget(split, data, f"@keys:{data.keys[split.retain[0]]}")
    assert after.holdout.tolist() == split.holdout.tolist() and after.provenance["matched"] is None
    assert any("neither labels nor groups" in one for one in after.provenance["warnings"])
    bare = partition(data, holdout=0)
    assert any("cannot be audited" in one for one in forget(bare, data, "@random:3").provenance["warnings"])


# copies


def natural(n, side, seed=0) -> np.ndarray:
    """Smooth random pictures of little color, unlike each other, [n, 3, side, side]."""
    rng = np.random.default_rng(seed)
    small = rng.integers(40, 216, (n, 1, 12, 12)) + rng.integers(-12, 13, (n, 3, 12, 12))
    grown = [
        [Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC) for plane in image]
        for image in small.astype(np.uint8)
    ]
    return np.array([[np.asarray(plane) for plane in image] for image in grown])


def as_jpeg(image: np.ndarray, quality=75) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(io.BytesIO(file.getvalue()))).transpose(2, 0, 1)


def planted(change, part="retain", n=60, side=48):
    """Data whose example 50 is a changed example 0, example 0 being asked for."""
    x = natural(n, side)
    x[50] = change(x[0])
    data = Data.from_arrays(x, np.arange(n) % 2, [f"k{i:02d}" for i in range(n)])
    parts: dict[str, Any] = {
        "retain": np.arange(20),
        "valid": np.arange(20, 30),
        "holdout": np.arange(30, 40),
        "test": np.arange(40, 50),
    }
    parts[part] = np.sort(np.append(parts[part], 50))
    return data, Split(**parts)


def test_an_exact_copy_that_stays_in_training_is_refused_where_keys_were_listed():
    data, split = planted(lambda image: image)
    fails(
        lambda: forget(split, data, "@keys:k00,k03"), "1 examples", "'k50'", "identical", "allow_duplicates"
    )
    after = forget(split, data, "@keys:k00,k03", allow_duplicates=True)
    assert any("1 example in retain is an exact copy" in one for one in after.provenance["warnings"])
    assert after.provenance["copies"] == [
        {"of": "k00", "key": "k50", "part": "retain", "exact": True, "likeness": 1.0}
    ]
    both = forget(split, data, "@keys:k00,k50")
    assert both.provenance["copies"] == []
    drawn = forget(split, data, "@class:1")  # without k00 and k50, which are of class 0
    assert drawn.provenance["copies"] == []


@pytest.mark.parametrize("part", ["valid", "holdout", "test"])
def test_copies_among_the_never_trained_are_a_warning(part):
    data, split = planted(lambda image: image, part)
    after = forget(split, data, "@keys:k00")
    (warning,) = (one for one in after.provenance["warnings"] if "copy" in one)
    assert part in warning and "exact" in warning and "k50" not in warning  # keys stay out of sentences
    assert [(one.of, one.key, one.part) for one in duplicates(data, after)] == [("k00", "k50", part)]


@pytest.mark.parametrize(
    "change",
    [
        as_jpeg,
        lambda image: (image * 0.7).astype(np.uint8),
        lambda image: np.asarray(
            ImageEnhance.Contrast(Image.fromarray(image.transpose(1, 2, 0))).enhance(1.2)
        ).transpose(2, 0, 1),
        lambda image: np.repeat(image.mean(0, keepdims=True), 3, 0).astype(np.uint8),
        lambda image: np.clip(image + np.random.default_rng(1).normal(0, 4, image.shape), 0, 255).astype(
            np.uint8
        ),
    ],
    ids=["jpeg", "darker", "contrast", "gray", "noise"],
)
def test_near_copies_are_found(change):
    data, split = planted(change)
    found = duplicates(data, forget(split, data, "@keys:k00,k03"))
    assert [(one.of, one.key, one.part, one.exact) for one in found] == [("k00", "k50", "retain", False)]
    assert NEAR < found[0].likeness <= 1.0001


def test_other_pictures_and_flat_ones_are_not_copies():
    data, split = planted(lambda image: natural(1, 48, seed=9)[0])
    assert duplicates(data, forget(split, data, "@random:10")) == []
    for size in ((8, 8), (37, 41)):
        flat = np.full((30, 3, *size), 7, np.uint8) + 5 * np.arange(30, dtype=np.uint8)[:, None, None, None]
        data = Data.from_arrays(flat)
        assert duplicates(data, forget(partition(data), data, "@random:5")) == []


def test_every_copy_is_listed_once_with_what_it_is_most_like():
    x = natural(40, 32)
    x[20], x[21] = as_jpeg(x[0]), x[0]
    x[1] = as_jpeg(x[0], 30)  # also to be forgotten, and less like the copy
    data = Data.from_arrays(x)
    found = copies(data, np.array([1, 0]), {"a": np.arange(10, 30), "b": np.arange(30, 40)})
    assert [(one.of, one.key, one.exact) for one in found] == [
        ("00000", "00021", True),
        ("00000", "00020", False),
    ]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 20), (1, 5, 7), (3, 50, 37)])
@pytest.mark.parametrize("side", [8, 16])
def test_edges_against_the_slow_twin(shape, side):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    b = (0.5 * a + 0.5 * b).astype(np.uint8)
    fast = (edges(a[None], side) @ edges(b[None], side).T).item()
    assert fast == pytest.approx(slow.likeness(a.tolist(), b.tolist(), side), abs=1e-5)


def test_one_pixel_has_no_edges():
    data = Data.from_arrays(np.arange(30, dtype=np.uint8).reshape(30, 1, 1, 1))
    assert duplicates(data, forget(partition(data), data, "@random:5")) == []


def test_digits_do_not_flood():
    data = load("digits")
    assert len(duplicates(data, forget(partition(data), data, "@random:0.3"))) <= 2
    assert len(np.unique(data.x.reshape(len(data), -1), axis=0)) == len(data)  # no exact ones to be found


@pytest.mark.skipif(
    not official.DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_is_fast_and_does_not_flood():
    data = load("fashion-mnist")
    split = partition(data, train=500, valid=500, holdout=1000, test=2000)
    assert split.sizes() == {
        "forget": 0,
        "retain": 500,
        "valid": 500,
        "holdout": 1000,
        "spare": 0,
        "test": 2000,
    }
    split = partition(data)
    x = data.x.copy()
    x[split.retain[7]] = x[split.retain[3]]
    data = dataclasses.replace(data, x=x)
    start = time.perf_counter()
    after = forget(split, data, "@random:1000")
    seconds = time.perf_counter() - start
    near = [one for one in duplicates(data, after) if not one.exact]
    assert len(near) <= 30  # 10 look-alikes; by pixels above 0.98 it would be hundreds
    assert seconds < 6  # 0.7 s alone on the reference machine
    exact = copies(data, split.retain[[3]], {"retain": split.retain[4:]})
    assert [one.key for one in exact if one.exact] == [data.keys[split.retain[7]]]
