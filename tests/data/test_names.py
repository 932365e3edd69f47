"""Classes and groups: a name is never taken for a position, nor for another name that looks the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.data.dataset import Data, quote_first
from efface.data.names import NameIndex, match_names, read_number
from efface.data.selection import describe_selection
from efface.data.split import Split, select_forget_set
from efface.errors import EffaceError
from tests.pictures import made, raises

names = st.text("0123456789. ,aéÉ\u0301-+e", min_size=1, max_size=4).filter(lambda name: bool(name.strip()))


def classes(*labels: str) -> tuple[Data, Split]:
    """Labels in turn for 24 examples, the last third of which were never trained on."""
    data = made(24, y=[labels[i % len(labels)] for i in range(24)])
    return data, Split(retain=np.arange(16), holdout=np.arange(16, 24))


def forgotten(pair: tuple[Data, Split], selector: str) -> set[str]:
    data, split = pair
    result = select_forget_set(split, data, selector)
    resolved = result.provenance["resolved"]
    assert data.y is not None
    found = {data.classes[label] for label in data.y[result.forget]}
    assert set(resolved["names"]) == found and resolved["count"] == len(result.forget)
    return found


def test_folders_with_zeros_in_front():
    pair = classes("01", "02", "03", "10")
    assert forgotten(pair, "@class:1") == {"01"}
    assert forgotten(pair, "@class:02") == {"02"}
    assert forgotten(pair, "@class:10") == {"10"}
    raises(lambda: forgotten(pair, "@class:0"), "class called '0'", "position only where no class name is a number")


def test_numbers_with_gaps_fractions_and_signs():
    sparse = classes("3", "7", "12", "25")
    raises(lambda: forgotten(sparse, "@class:1"), "class called '1'", "Known: 12, 25, 3, 7")
    assert forgotten(sparse, "@class:7") == {"7"}
    floats = classes("0.0", "1.0", "10.0", "11.0")
    assert forgotten(floats, "@class:1") == {"1.0"}
    raises(lambda: forgotten(floats, "@class:3"), "class called '3'")
    assert forgotten(classes("1e1", "2", "cat"), "@class:10") == {"1e1"}
    raises(lambda: forgotten(classes("1", "cat", "dog"), "@class:2"), "class called '2'")


def test_equal_numbers_are_not_guessed():
    pair = classes("1", "01", "cat")
    assert forgotten(pair, "@class:01") == {"01"} and forgotten(pair, "@class:1") == {"1"}
    raises(lambda: forgotten(pair, "@class:001"), "can mean 2 classes", "'1'", "'01'")
    raises(lambda: forgotten(classes("9007199254740992", "5"), "@class:9007199254740993"), "no class called")


def test_a_position_is_said_to_be_one():
    data, split = classes("ant", "bee", "cat")
    result = select_forget_set(split, data, "@class:1")
    told = describe_selection(result.provenance["resolved"])
    assert told == ["'1' is read as the position of the class 'bee'.", "Forgets 5 training examples of class 'bee'."]
    raises(lambda: forgotten((data, split), "@class:3"), "class called '3'")
    raises(lambda: forgotten((data, split), "@class:" + "1" * 5000), "class called '111")


@settings(max_examples=300)
@given(known=st.lists(names, min_size=1, max_size=5, unique=True), value=names)
def test_what_is_matched_is_what_was_named(known, value):
    try:
        matched = match_names(value, NameIndex(known), "class", numbered=True).names
    except EffaceError:
        return
    assert set(matched) <= set(known) and len(set(matched)) == len(matched)
    if value in known:
        assert matched == [value]
    elif len(matched) == 1 and value.strip() not in known:
        (name,) = matched
        number = read_number(value)
        if number is not None and read_number(name) != number:  # a position
            assert all(read_number(one) is None for one in known) and known[int(number)] == name
    if read_number(value) is not None and any(read_number(one) is not None for one in known) and value not in known:
        assert all(read_number(name) == read_number(value) for name in matched)


def test_several_names_and_names_with_commas():
    pair = classes("tench, Tinca", "bee", "cat", "a,b", "a", "b")
    assert forgotten(pair, "@class:bee, cat") == {"bee", "cat"}
    assert forgotten(pair, "@class:tench, Tinca") == {"tench, Tinca"}
    raises(lambda: forgotten(pair, "@class:a,b"), "the name of one class, and also a list of 2", "FILE")
    raises(lambda: forgotten(pair, "@class:bee,bee"), "listed more than once", "'bee'")
    raises(lambda: forgotten(pair, "@class:bee,be"), "class called 'be'", "'bee'")


def test_spaces_and_unicode_forms():
    pair = classes("cat", " cat", "caf\xe9", "dog")
    raises(lambda: forgotten(pair, "@class: cat"), "can mean 2 classes")
    assert forgotten(pair, "@class: dog ") == {"dog"}
    assert forgotten(pair, "@class:cafe\u0301") == {"caf\xe9"}
    twins = classes("caf\xe9", "cafe\u0301", "dog")
    raises(lambda: forgotten(twins, "@class:caf\xe9"), "can mean 2 classes", r"'caf\xe9'", r"'cafe\u0301'")


def grouped() -> tuple[Data, Split]:
    people = ["anna", "bert", "eve", "never"]
    data = made(24, y=["x", "y"] * 12, group=[people[i % 3] if i < 16 else people[i % 4] for i in range(24)])
    return data, Split(retain=np.arange(16), holdout=np.arange(16, 24))


def test_a_list_of_groups_that_is_taken_for_keys_names_the_selector(tmp_path):
    data, split = grouped()
    (tmp_path / "users.txt").write_text("anna\neve\n", encoding="utf-8")
    for selector, named in {
        str(tmp_path / "users.txt"): f"@group:{tmp_path / 'users.txt'}",
        "@keys:anna,eve": "@group:anna,eve",
    }.items():
        with pytest.raises(EffaceError, match="names of groups") as caught:
            select_forget_set(split, data, selector)
        assert caught.value.remedy.endswith(f"--forget {named}.")
        assert set(data.group[select_forget_set(split, data, named).forget]) == {"anna", "eve"}


def test_groups_in_the_selector_and_in_a_file(tmp_path):
    data, split = grouped()
    assert data.group is not None
    result = select_forget_set(split, data, "@group:anna,eve")
    assert set(data.group[result.forget]) == {"anna", "eve"} and result.provenance["by_group"]
    assert result.provenance["resolved"]["names"] == {"anna": 6, "eve": 5}
    for name, text in {
        "users.txt": "anna\neve\n",
        "users.csv": "group;why\nanna;asked\neve;asked\n",
        "users.json": '["anna", "eve"]',
    }.items():
        (tmp_path / name).write_text(text)
        listed = select_forget_set(split, data, f"@group:{tmp_path / name}")
        assert listed.forget.tolist() == result.forget.tolist()
    (tmp_path / "one.txt").write_text("anna\nanne\n")
    raises(
        lambda: select_forget_set(split, data, f"@group:{tmp_path / 'one.txt'}"), "1 listed names", "'anne'", "'anna'"
    )
    raises(lambda: select_forget_set(split, data, "@group:anna,eva"), "group called 'eva'", "'eve'")
    raises(lambda: select_forget_set(split, data, "@group:never"), "No training example is of group 'never'")
    some = select_forget_set(split, data, "@group:anna,never")
    assert some.provenance["resolved"]["names"] == {"anna": 6, "never": 0}


def test_examples_without_a_group_are_no_group(tmp_path):
    data, split = grouped()
    empty = dataclasses.replace(data, group=np.where(data.group == "eve", "", data.group))
    (tmp_path / "g.json").write_text('["anna"]')
    assert len(select_forget_set(split, empty, f"@group:{tmp_path / 'g.json'}").forget) == 6
    raises(lambda: select_forget_set(split, empty, "@group:eve"), "no group called 'eve'")


def test_a_selection_is_described():
    data, split = classes("a", "b")
    told = [describe_selection(select_forget_set(split, data, one).provenance["resolved"])[-1] for one in
            ("@random:4", "@keys:k0001", "@class:a")]  # fmt: skip
    assert told[0].startswith("Forgets 4 training examples drawn at random, by class: ")
    assert told[1] == "Forgets 1 training example listed by id, by class: 'b' 1."
    assert told[2] == "Forgets 8 training examples of class 'a'."


def test_random_counts_that_are_no_counts():
    data, split = classes("a", "b")
    raises(lambda: select_forget_set(split, data, "@random:" + "1" * 5000), "neither a fraction nor a count")


def test_ids_in_a_selector_with_spaces():
    data = made(12, classes=2, keys=["a", " a", "b", *(f"k{i}" for i in range(9))])
    split = Split(retain=np.arange(8), holdout=np.arange(8, 12))
    assert select_forget_set(split, data, "@keys:b, k1").forget.tolist() == [2, 4]
    raises(lambda: select_forget_set(split, data, "@keys:b, a"), "both ids of examples")


def test_messages_show_what_cannot_be_seen():
    assert quote_first(["a\u2028b", "c\xa0", "d\n"]) == r"'a\u2028b', 'c\xa0', 'd\n'"


@pytest.mark.parametrize("text", ["", " ", "nan", "inf", "1_0", "\u0663", "0x1", "1,5"])
def test_what_is_no_number(text):
    assert read_number(text) is None
