"""Selectors: every form, every error, and examples that cannot be selected."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from efface.data.dataset import Data
from efface.data.memorization import memorization_scores, write_memorization
from efface.data.selection import describe_selection
from efface.data.split import SPLIT_PARTS, Split, partition, select_forget_set
from tests.pictures import made, raises


def keys(data: Data, split: Split, part: str) -> set[str]:
    return set(data.keys[getattr(split, part)].tolist())


@pytest.fixture
def base():
    data = made(group=[f"g{i % 7}" for i in range(200)], classes=4)
    return data, partition(data)


def test_random(base):
    data, split = base
    tenth = select_forget_set(split, data, "@random:0.1", seed=1)
    assert len(tenth.forget) == 14 and set(tenth.forget) < set(split.retain)
    more = select_forget_set(split, data, "@random:50", seed=1)
    assert set(tenth.forget) < set(more.forget)
    assert set(select_forget_set(split, data, "@random:50", seed=2).forget) != set(more.forget)
    assert more.provenance["random"] is True and more.provenance["matched"] is None
    assert more.holdout.tolist() == split.holdout.tolist() and not len(more.spare)
    resolved = more.provenance["resolved"]
    assert (resolved["kind"], resolved["count"], sum(resolved["names"].values())) == ("random", 50, 50)
    assert more.provenance | {"warnings": 0, "copies": 0} == {
        "resolved": resolved,
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
        raises(
            lambda value=value: select_forget_set(split, data, f"@random:{value}"), f"@random:{value}", "@random:0.1"
        )
    raises(lambda: select_forget_set(split, data, "@random:0"), "selects 0")
    raises(lambda: select_forget_set(split, data, "@random:0.001"), "selects 0", "140")
    raises(lambda: select_forget_set(split, data, "@random:141"), "selects 141", "140")
    raises(lambda: select_forget_set(split, data, "@random:140"), "all 140", "Nothing would be retained")
    raises(lambda: select_forget_set(split, data, "@random:1.0"), "all 140")


def test_class_by_name_or_number(base):
    data, split = base
    named = dataclasses.replace(data, classes=("ant", "bee", "1", "dog"))
    assert set(named.y[select_forget_set(split, named, "@class:bee").forget]) == {1}
    assert set(named.y[select_forget_set(split, named, "@class:1").forget]) == {2}  # a name wins over a number
    raises(lambda: select_forget_set(split, named, "@class:3"), "class called '3'", "position only where no class")
    words = dataclasses.replace(data, classes=("ant", "bee", "cat", "dog"))
    assert set(words.y[select_forget_set(split, words, "@class:3").forget]) == {3}
    after = select_forget_set(split, named, "@class:dog")
    assert set(named.y[after.forget]) == {3} and 3 not in named.y[after.retain]
    raises(lambda: select_forget_set(split, named, "@class:bea"), "'bea'", "'bee'", "Known")
    raises(lambda: select_forget_set(split, named, "@class:4"), "class called '4'")
    raises(lambda: select_forget_set(split, dataclasses.replace(data, y=None), "@class:1"), "no labels")
    many = dataclasses.replace(data, classes=tuple(f"c{i}" for i in range(1000)))
    raises(lambda: select_forget_set(split, many, "@class:c10000"), "'c1000'"[:6], "1000 others")


def test_group(base):
    data, split = base
    after = select_forget_set(split, data, "@group:g2")
    assert set(data.group[after.forget]) == {"g2"} and "g2" not in data.group[after.retain]
    assert after.provenance["by_group"] and "g2" not in data.group[after.holdout]  # there are too few of them
    raises(lambda: select_forget_set(split, data, "@group:g9"), "group called 'g9'", "Known: g0")
    raises(
        lambda: select_forget_set(split, dataclasses.replace(data, group=None), "@group:g9"), "no groups", "manifest"
    )
    moved = dataclasses.replace(data, group=np.where(np.isin(np.arange(200), split.test), "only", "rest"))
    count = len(split.test)
    raises(
        lambda: select_forget_set(split, moved, "@group:only"),
        "No training example is of group 'only'", f"They are in: test {count}.",
    )  # fmt: skip
    raises(lambda: select_forget_set(after, data, "@group:g2"), "an earlier request", "has forgotten them already")


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        ("txt", lambda some: "\n".join(some)),
        ("txt", lambda some: "\ufeff" + "\r\n\r\n".join(some) + "\r\n  \r\n"),
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
    after = select_forget_set(split, data, str(path))
    assert keys(data, after, "forget") == set(some)
    assert after.provenance["random"] is False
    assert select_forget_set(split, data, "@keys: " + " , ".join(some)).digest(data) == after.digest(data)


def test_keys_with_blanks_commas_and_numbers(tmp_path):
    data = made(12, classes=2, keys=["a b", 'c,"d', "7", *(f"k{i}" for i in range(9))])
    split = Split(retain=np.arange(10), holdout=np.arange(10, 12))
    (tmp_path / "who.json").write_text('["a b", "c,\\"d", 7]')
    (tmp_path / "who.csv").write_text('key\na b\n"c,""d"\n7\n')
    for name in ("who.json", "who.csv"):
        assert keys(data, select_forget_set(split, data, str(tmp_path / name)), "forget") == {"a b", 'c,"d', "7"}


def test_bad_files_of_keys(base, tmp_path):
    data, split = base

    def select(text, name="who.txt"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return lambda: select_forget_set(split, data, str(tmp_path / name))

    kept = data.keys[split.retain].tolist()
    raises(lambda: select_forget_set(split, data, "missing.txt"), "no file missing.txt", "@class:")
    raises(lambda: select_forget_set(split, data, kept[0]), "id of an example", f"@keys:{kept[0]}")
    raises(lambda: select_forget_set(split, data, str(tmp_path)), "cannot be read as a list of ids")
    raises(select(""), "holds no ids")
    raises(select("[]", "who.json"), "holds no ids")
    raises(select("key\n", "who.csv"), "holds no ids")
    raises(select(b"\xff\xfe\x00a"), "1 ids are not in arrays")
    raises(select(b"\xff\xfe\x00"), "is not UTF-16")
    raises(select("{", "who.json"), "cannot be read")
    raises(select('{"ids": []}', "who.json"), "dict, not a list")
    raises(select("[1.5]", "who.json"), "1.5 is not an id")
    raises(select("[true, null]", "who.json"), "true is not an id")
    raises(select('"a"\n{"id": 3}', "who.jsonl"), "is not an id")
    raises(select("id,name\na,b\n", "who.csv"), "named 'key'", "id, name")
    raises(select("name,key\na,b\nc\n", "who.csv"), "Row 3")
    raises(select("\n".join([*kept[:3], *(f"z{i}" for i in range(6))])), "6 of 9 ids", "'z4', ...")
    raises(select("\n".join([*kept[:3], kept[1], kept[1], kept[0]])), "2 ids", "more than once", f"'{kept[0]}'")
    raises(select("\n".join(kept)), "all 140")
    stray = [*data.keys[split.test[:2]].tolist(), *data.keys[split.valid[:4]].tolist()]
    raises(
        select("\n".join([kept[0], *stray])),
        "6 of 7 ids were not trained on",
        "valid 4, test 2",
        stray[0],
        ", ...",
    )
    unused = partition(data, train=10)
    other = next(key for key in kept if key not in keys(data, unused, "retain"))
    raises(lambda: select_forget_set(unused, data, f"@keys:{other}"), "no part 1")


def test_bad_selectors(base):
    data, split = base
    raises(lambda: select_forget_set(split, data, "@clas:1"), "'@clas'", "'@class'")
    raises(lambda: select_forget_set(split, data, "@random"), "nothing after @random", "@random:0.1")
    raises(lambda: select_forget_set(split, data, "@keys: "), "nothing after @keys")
    raises(lambda: select_forget_set(split, data, "@keys:,"), "lists no ids")
    raises(lambda: select_forget_set(Split(), data, "@random:1"), "no training examples")


def test_a_second_request_starts_where_the_first_ended(base):
    data, split = base
    first = select_forget_set(split, data, "@class:1")
    second = select_forget_set(first, data, "@class:2")
    assert set(second.train) == set(first.retain)
    assert second.earlier.tolist() == first.forget.tolist()
    assert not set(first.forget) & {row for part in SPLIT_PARTS[:-1] for row in getattr(second, part)}
    assert set(second.holdout) | set(second.spare) == set(split.holdout)  # the pool is complete again
    assert any("earlier request" in warning for warning in second.provenance["warnings"])
    forgotten = data.keys[first.forget[0]]
    raises(
        lambda: select_forget_set(first, data, f"@keys:{forgotten}"),
        "1 of 1 ids were asked for before",
        "has forgotten them already",
    )


def scored(folder, data, split, **changed):
    """A file with the memorization of every training example: its position, or what ``changed`` says of its key."""
    path = folder / "scores.csv"
    keys = data.keys[split.retain]
    write_memorization(
        path, keys, np.array([changed.get(key, at) for at, key in enumerate(keys.tolist())], dtype=float)
    )
    return path


def test_the_most_memorized(base, tmp_path):
    data, split = base
    path = scored(tmp_path, data, split)
    tenth = select_forget_set(split, data, f"@memorized:10%:{path}")
    assert sorted(data.keys[tenth.forget]) == sorted(data.keys[split.retain][-14:])
    assert [len(select_forget_set(split, data, f"@memorized:{size}:{path}").forget) for size in ("0.1", "7")] == [14, 7]
    assert tenth.provenance["random"] is False and tenth.provenance["matched"] == "class"
    resolved = tenth.provenance["resolved"]
    assert resolved["kind"] == "memorized" and "retrained references only" in resolved["notes"][0]
    assert describe_selection(resolved)[-1].startswith("Forgets 14 training examples that are memorized most, by class")
    assert path.stat().st_mode & 0o077 == 0


def test_ties_among_the_memorized_are_broken_by_key(base, tmp_path):
    data, split = base
    path = scored(tmp_path, data, split, **dict.fromkeys(data.keys[split.retain].tolist(), 1.0))
    chosen, again, other = (
        set(select_forget_set(split, data, f"@memorized:10:{path}", seed).forget.tolist()) for seed in (0, 0, 1)
    )
    assert chosen == again != other


def test_bad_memorized(base, tmp_path):
    data, split = base
    path = scored(tmp_path, data, split)

    def asked(selector):
        return lambda: select_forget_set(split, data, selector)

    raises(asked("@memorized:10%"), "does not say which file", "@memorized:10%:FILE")
    raises(asked(f"@memorized:ten:{path}"), "neither a fraction nor a count", "@memorized:50:FILE")
    raises(asked(f"@memorized:200%:{path}"), "neither a fraction nor a count")
    raises(asked(f"@memorized:100%:{path}"), "all 140")
    raises(asked(f"@memorized:0:{path}"), "selects 0")
    raises(asked(f"@memorized:10%:{tmp_path / 'none.csv'}"), "There is no file", "columns key and memorization")
    raises(asked(f"@memorised:10%:{path}"), "@memorised", "@memorized")
    lines = path.read_text().splitlines()
    for content, *words in (
        (lines[:-3], "3 of 140 training examples", "every training example"),
        (["key,score", *lines[1:]], "no column 'memorization'", "key, score"),
        ([*lines, lines[-1]], "twice"),
        ([*lines[:-1], lines[-1].split(",")[0] + ",nan"], "says 'nan' of", "in line 141"),
        ([*lines[:-1], lines[-1].split(",")[0] + ",much"], "says 'much' of"),
        ([], "no column"),
    ):
        path.write_text("\n".join(content))
        raises(asked(f"@memorized:10%:{path}"), *words)
    path.write_bytes(b"\0\1\2")
    raises(asked(f"@memorized:10%:{path}"), "scores.csv")


def test_memorization_against_the_loop():
    rng = np.random.default_rng(0)
    scores, inside = rng.normal(size=(6, 5)), rng.random((6, 5)) < 0.5
    inside[:, 0], inside[:, 1] = True, [True, False] * 3
    found = memorization_scores(scores, inside)
    assert np.isnan(found[0])
    for x in range(1, 5):
        sums = {True: [], False: []}
        for k in range(6):
            sums[bool(inside[k, x])].append(float(scores[k, x]))
        if sums[True] and sums[False]:
            expected = sum(sums[True]) / len(sums[True]) - sum(sums[False]) / len(sums[False])
            assert found[x] == pytest.approx(expected)
    raises(lambda: memorization_scores(scores, inside[:5]), "do not go together", "[models, examples]")
    raises(lambda: memorization_scores(np.full((2, 3), np.nan), np.ones((2, 3))), "6 scores are not finite")


def test_the_most_memorized_of_a_known_world(base, tmp_path):
    """Planted: the score of one model finds the easiest examples, not the memorized ones."""
    data, split = base
    rng, n = np.random.default_rng(1), len(split.retain)
    memory, easy = np.where(np.arange(n) < 14, 2.0, 0.3), 5 * rng.normal(size=n)
    inside = np.stack([rng.permutation(n) < n // 2 for _ in range(4)])
    inside = np.concatenate([inside, ~inside])
    scores = easy + memory * inside + 0.2 * rng.normal(size=inside.shape)
    path = tmp_path / "bank.csv"
    write_memorization(path, data.keys[split.retain], memorization_scores(scores, inside))
    chosen = select_forget_set(split, data, f"@memorized:10%:{path}")
    assert set(chosen.forget.tolist()) == set(split.retain[:14].tolist())
    assert len(set(np.argsort(-scores[0])[:14].tolist()) & set(range(14))) < 7


def test_what_was_forgotten_before_it_came_here_is_no_example_that_was_never_trained_on(base):
    """Nor is it after a further request."""
    data, split = base
    keys = data.keys[split.retain[:3]].tolist()
    left = dataclasses.replace(split, retain=split.retain[3:], provenance={**split.provenance, "before": keys})
    warnings = select_forget_set(left, data, "@class:1").provenance["warnings"]
    assert any("3 examples were forgotten before the model came here" in one for one in warnings)
    for start in (left, select_forget_set(left, data, "@class:1")):
        raises(
            lambda start=start: select_forget_set(start, data, f"@keys:{','.join(keys)}"), "has forgotten them already"
        )
        mixed = f"@keys:{keys[0]},{data.keys[split.test[0]]}"
        raises(lambda start=start, mixed=mixed: select_forget_set(start, data, mixed), "an earlier request 1", "test 1")
