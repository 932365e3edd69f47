"""What a list of ids stands for: a person's pictures, a class, or random examples, however it was written."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from efface.data.dataset import Data
from efface.data.request_kinds import count_units, kind_of_request, kinds_that_stand_for
from efface.data.selection import describe_selection
from efface.data.split import partition, select_forget_set

PEOPLE = np.array([f"person-{number // 4:02d}" for number in range(80)])
LABELS = np.arange(80) % 4
DATA = dataclasses.replace(
    Data.from_arrays(np.zeros((80, 1, 2, 2), dtype=np.uint8), LABELS, classes=["a", "b", "c", "d"]), group=PEOPLE
)
SPLIT = partition(DATA, train=60, valid=4, holdout=12, test=4, seed=1)


def trained_of(*names):
    """Positions of the training examples of some people."""
    return SPLIT.retain[np.isin(PEOPLE[SPLIT.retain], names)]


def most_trained(count):
    """People with most training examples."""
    names, counts = np.unique(PEOPLE[SPLIT.retain], return_counts=True)
    return names[np.argsort(-counts, kind="stable")][:count].tolist()


def ask(rows, data=DATA, **options):
    """The split after a request that lists some examples."""
    keys = ",".join(data.keys[rows].tolist())
    return select_forget_set(SPLIT, data, f"@keys:{keys}", allow_duplicates=True, **options)


@pytest.mark.parametrize("count", [1, 3])
def test_a_list_of_all_of_a_person_s_pictures_is_a_request_for_that_person(count):
    """Planted: a list of ids is random, whatever it lists, and is then validated on random pictures."""
    names = most_trained(count)
    listed, named = ask(trained_of(*names)), select_forget_set(SPLIT, DATA, f"@group:{','.join(names)}")
    for split in (listed, named):
        assert (kind_of_request(split), count_units(split)) == ("group", count)
        assert kinds_that_stand_for(split) == ("group",)
        assert split.provenance["by_group"] and split.provenance["matched"] == named.provenance["matched"]
    assert np.array_equal(listed.holdout, named.holdout)
    said = " ".join(describe_selection(listed.provenance["resolved"]))
    assert "every trained example" in said and names[0] in said
    assert "skipped" not in listed.provenance, "nobody asked for the pictures that were never trained on"


def test_a_list_of_most_of_a_person_s_pictures_is_said_to_leave_the_others():
    (name,) = most_trained(1)
    split = ask(trained_of(name)[:3])
    assert kind_of_request(split) == "random" and kinds_that_stand_for(split) == ("random", "group", "class")
    assert "The list names 3 of 4 trained examples of group 'person" in " ".join(
        describe_selection(split.provenance["resolved"])
    )


def test_a_list_of_other_people_s_single_pictures_is_like_random_ones():
    rows = np.array([trained_of(name)[0] for name in most_trained(10)])
    split = ask(rows)
    assert kind_of_request(split) == "random" and not split.provenance["resolved"]["notes"]
    assert kind_of_request(ask(rows[:1])) == "random"


def test_a_list_of_a_whole_class_is_a_request_for_the_class_and_of_a_part_is_not():
    plain = dataclasses.replace(DATA, group=None)
    rows = SPLIT.retain[LABELS[SPLIT.retain] == 2]
    whole, part = ask(rows, plain), ask(rows[1:], plain)
    assert (kind_of_request(whole), kind_of_request(part)) == ("class", "random")
    assert not whole.provenance.get("by_group") and whole.provenance["matched"] == "class"
    assert not part.provenance["resolved"]["notes"]


def test_what_was_never_trained_on_does_not_count_for_whole():
    """Planted: a person of whom the list also names the pictures that were never trained on."""
    name = next(one for one in most_trained(20) if len(trained_of(one)) == 3)
    everything = np.flatnonzero(name == PEOPLE)
    split = ask(everything, skip_never_trained=True)
    assert kind_of_request(split) == "group" and split.provenance["resolved"]["names"] == {name: 3}
    assert len(split.provenance["skipped"]) == 1
    alone = ask(np.concatenate([trained_of(name)[:2], np.setdiff1d(everything, trained_of(name))]),
                skip_never_trained=True)  # fmt: skip
    assert kind_of_request(alone) == "random"


def test_examples_without_a_group_make_no_group():
    nameless = dataclasses.replace(DATA, group=np.where(np.arange(80) % 4 == 0, "", PEOPLE), y=None, classes=())
    rows = SPLIT.retain[nameless.group[SPLIT.retain] == ""]
    assert kind_of_request(ask(rows, nameless)) == "random"


def test_a_split_of_an_older_release_tells_its_kind_by_what_it_was_matched_by():
    split = dataclasses.replace(SPLIT, provenance={"matched": "group"})
    assert (kind_of_request(split), count_units(split)) == ("group", 1)
    assert kind_of_request(dataclasses.replace(SPLIT, provenance={})) == "random"
