"""What a checkpoint's examples were is recorded, and every difference of the data at hand is found."""

from __future__ import annotations

import json
import stat
from dataclasses import replace

import numpy as np
import pytest

from efface.data.class_order import CLASS_ORDERS, number_classes, state_classes
from efface.data.dataset import Data
from efface.data.identity import IDENTITY, DataIdentity
from efface.data.sources import load
from efface.data.split import SPLIT_PARTS, Split, merge_requests, partition, select_forget_set
from efface.errors import EffaceError
from tests.pictures import made, make_zoo, picture, raises

# ---- the record ----


def labelled(**more) -> Data:
    return replace(made(40, **more), classes=("cat", "ant", "Bee", "10"))


def test_the_same_data_in_any_order_of_examples_and_classes_are_the_same():
    data = labelled()
    identity = DataIdentity.of(data)
    shuffled = data.take(np.random.default_rng(1).permutation(40))
    shuffled = number_classes(shuffled, ("10", "Bee", "ant", "cat"))
    assert shuffled.classes != data.classes
    numbered = identity.number(shuffled)
    assert numbered.classes == data.classes
    assert (numbered.y[np.argsort(numbered.keys)] == data.y).all()
    assert not identity.compare(numbered).changed.any()
    assert DataIdentity.of(data).digest() == identity.digest()


def test_every_change_of_an_example_is_found_and_nothing_else():
    data = labelled(text=[f"a picture of {i}" for i in range(40)])
    identity = DataIdentity.of(data)
    x, y = data.x.copy(), data.y.copy()
    x[3, 0, 0, 0] ^= 1
    y[7] = (y[7] + 1) % 4
    text = tuple("other" if row == 11 else caption for row, caption in enumerate(data.text))
    found = identity.compare(replace(data, x=x, y=y, text=text))
    assert np.flatnonzero(found.pictures).tolist() == [3, 11]
    assert np.flatnonzero(found.labels).tolist() == [7]
    swapped = data.x.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert np.flatnonzero(identity.compare(replace(data, x=swapped)).changed).tolist() == [0, 1]
    assert identity.compare(replace(data, text=None)).changed.all()


def test_absent_and_new_examples_and_classes_are_told_apart():
    data = labelled()
    identity = DataIdentity.of(data)
    left = data.take(np.flatnonzero(data.y != 1))
    found = identity.compare(identity.number(left))
    assert not found.changed.any() and found.empty_classes == ("ant",) and found.new_classes == ()
    grown = Data.from_arrays(
        np.concatenate([left.x, left.x[:2]]), [*(left.classes[label] for label in left.y), "zebra", "zebra"],
        [*left.keys, "new1", "new2"],
    )  # fmt: skip
    numbered = identity.number(grown)
    assert numbered.classes == (*data.classes, "zebra")
    found = identity.compare(numbered)
    assert found.new_classes == ("zebra",) and not found.changed.any()


def test_the_file_is_private_holds_no_key_and_shows_an_edit(tmp_path):
    data = labelled()
    digest = DataIdentity.of(data, {"source": "/x"}).save(tmp_path)
    path = tmp_path / IDENTITY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with np.load(path) as file:
        assert b"k0001" not in b"".join(file[name].tobytes() for name in file.files)
    again = DataIdentity.load(tmp_path, digest)
    assert again.classes == data.classes and again.shape == data.shape and again.facts["source"] == {"source": "/x"}
    assert not again.compare(data).changed.any()
    raises(lambda: DataIdentity.load(tmp_path, "0" * 64), "not the one that the run was made with")
    replace(again, contents=again.contents + np.uint64(1)).save(tmp_path)
    raises(lambda: DataIdentity.load(tmp_path, digest), "not the one that the run was made with")
    path.write_bytes(path.read_bytes()[:50])
    raises(lambda: DataIdentity.load(tmp_path), "cannot be read", "damaged")
    path.unlink()
    raises(lambda: DataIdentity.load(tmp_path), "is missing")


def test_a_new_training_renews_only_what_it_was_trained_on():
    data = labelled()
    identity = DataIdentity.of(data)
    changed = replace(data, x=255 - data.x)
    renewed = identity.renewed(changed, np.array([4, 9]))
    assert np.flatnonzero(~renewed.compare(changed).changed).tolist() == [4, 9]
    assert identity.compare(changed).changed.all()


# ---- the order of the classes ----


def test_the_orders_of_the_usual_libraries():
    names = ["10", "9", "1"]
    assert CLASS_ORDERS["text"](names) == ("1", "10", "9")
    assert CLASS_ORDERS["number"](names) == CLASS_ORDERS["natural"](names) == ("1", "9", "10")
    mixed = ["b2", "B10", "a", "Z"]
    assert CLASS_ORDERS["text"](mixed) == ("B10", "Z", "a", "b2")
    assert CLASS_ORDERS["natural"](mixed) == ("a", "b2", "B10", "Z")
    assert CLASS_ORDERS["lower"](mixed) == ("a", "B10", "b2", "Z")
    timm = pytest.importorskip("timm.data.readers.class_map", reason="timm is a dependency")
    assert timm is not None
    from timm.utils.misc import natural_key

    assert CLASS_ORDERS["natural"](mixed) == tuple(sorted(mixed, key=natural_key))


def test_image_folder_of_torchvision_numbers_as_text(tmp_path):
    from torchvision.datasets import ImageFolder

    for number, name in enumerate(("1", "2", "10", "Zoo", "ant")):
        picture(tmp_path / name / "a.png", number)
    theirs = ImageFolder(str(tmp_path))
    ours = load(tmp_path, classes="text")
    assert list(ours.classes) == theirs.classes
    by_key = {path.removeprefix(f"{tmp_path}/"): label for path, label in theirs.samples}
    assert {key: int(label) for key, label in zip(ours.keys, ours.y, strict=True)} == by_key


def test_classes_are_stated_as_an_order_a_list_or_a_file(tmp_path):
    zoo = make_zoo(tmp_path / "zoo")
    (tmp_path / "names.txt").write_text("wolf\ncat\nant\n", encoding="utf-8")
    (tmp_path / "names.json").write_text(json.dumps({"0": "wolf", "1": "cat", "2": "ant"}), encoding="utf-8")
    (tmp_path / "index.json").write_text(json.dumps({"cat": 1, "ant": 2, "wolf": 0}), encoding="utf-8")
    wanted = ("wolf", "cat", "ant")
    ways = (list(wanted), str(tmp_path / "names.txt"), str(tmp_path / "names.json"), str(tmp_path / "index.json"))
    for stated in ways:
        data = load(zoo, classes=stated)
        assert data.classes == wanted
        assert all(data.classes[label] == key.split("/")[0] for key, label in zip(data.keys, data.y, strict=True))
    assert load(zoo, classes={"order": "text"}).classes == ("ant", "cat")
    raises(lambda: load(zoo, classes=["cat"]), "1 classes of zoo are not in data.classes: 'ant'")
    raises(lambda: load(zoo, classes=["cat", "cat", "ant"]), "list of different names")
    raises(lambda: load(zoo, classes="txet"), "there is no file txet", "text, number")
    raises(lambda: load(zoo, classes=5), "data.classes cannot be 5")
    raises(lambda: state_classes(made(classes=0), "text"), "has no labels")
    (tmp_path / "holes.json").write_text(json.dumps({"0": "cat", "5": "ant"}), encoding="utf-8")
    raises(lambda: load(zoo, classes=str(tmp_path / "holes.json")), "every position")


# ---- splits with absent keys ----


def requests(data: Data) -> Split:
    return select_forget_set(partition(data, train=100, valid=20, holdout=40, test=20), data, "@random:10")


def test_absent_keys_count_for_digest_and_size_and_leave_the_rest(tmp_path):
    data = made()
    split = requests(data)
    split.save(tmp_path, data)
    gone = [split.keys(data, part)[0] for part in ("forget", "holdout", "test")]
    left = data.take(np.flatnonzero(~np.isin(data.keys, gone)))
    raises(lambda: Split.load(tmp_path, left), "does not fit the data", "1 of")
    raises(lambda: Split.load(tmp_path, left, may_lack=["forget"]), "does not fit the data", gone[1])
    found = Split.load(tmp_path, left, may_lack=SPLIT_PARTS)
    assert {part: list(keys) for part, keys in found.absent.items()} == dict(
        zip(("forget", "holdout", "test"), ([key] for key in gone), strict=True)
    )
    assert found.digest(left) == split.digest(data)
    assert found.sizes() == split.sizes() and len(found.forget) == 9
    assert found.to_dict(left)["parts"].keys() == split.to_dict(data)["parts"].keys()
    assert found.present().digest(left) != split.digest(data)
    assert split.present() is split
    elsewhere = Split.load(tmp_path, data, may_lack=SPLIT_PARTS, without=gone)
    assert elsewhere.absent == found.absent and elsewhere.digest(data) == split.digest(data)


def test_what_was_forgotten_and_erased_stays_forgotten_after_further_requests(tmp_path):
    data = made()
    first = requests(data)
    first.save(tmp_path, data)
    erased = first.keys(data, "forget")
    left = data.take(np.flatnonzero(~np.isin(data.keys, erased)))
    second = select_forget_set(Split.load(tmp_path, left, may_lack=SPLIT_PARTS), left, "@random:5")
    assert second.sizes()["earlier"] == 10 and not len(second.earlier)
    assert sorted(second.keys(left, "earlier")) == sorted(erased)
    assert "10 examples of earlier requests stay out of training." in second.provenance["warnings"]
    assert second.provenance["earlier"][0]["count"] == 10
    whole = merge_requests(second, left)
    assert whole.sizes()["forget"] == 15 and len(whole.forget) == 5
    second.save(tmp_path, left)
    assert Split.load(tmp_path, data).digest(data) == second.digest(left)


def test_absent_retained_examples_are_not_trained_on_after_a_request(tmp_path):
    data = made()
    partition(data, train=100).save(tmp_path, data)
    lost = Split.load(tmp_path, data).keys(data, "retain")[:3]
    left = data.take(np.flatnonzero(~np.isin(data.keys, lost)))
    split = select_forget_set(Split.load(tmp_path, left, may_lack=SPLIT_PARTS), left, "@random:5")
    assert split.sizes()["retain"] == 92 and "retain" not in split.absent
    assert sorted(split.keys(left, "earlier")) == sorted(lost)
    assert any("3 retained examples are not in the data" in warning for warning in split.provenance["warnings"])


# ---- what was asked for but never trained on ----


def grouped() -> tuple[Data, Split]:
    data = made(group=[f"p{i % 10}" for i in range(200)])
    return data, partition(data, train=100, valid=20, holdout=40, test=40)


def test_listed_examples_that_were_never_trained_on_are_skipped_on_request(tmp_path):
    data, split = grouped()
    trained, unseen = split.keys(data, "retain")[:4], [*split.keys(data, "test")[:2], *split.keys(data, "holdout")[:1]]
    path = tmp_path / "ids.txt"
    path.write_text("\n".join([*trained, *unseen]), encoding="utf-8")
    for selector in (str(path), f"@keys:{','.join([*trained, *unseen])}"):
        raises(lambda selector=selector: select_forget_set(split, data, selector), "3 of 7 ids were not trained on")
        found = select_forget_set(split, data, selector, skip_never_trained=True)
        assert sorted(found.keys(data, "forget")) == sorted(trained)
        assert found.provenance["skipped"] == sorted(unseen)
        assert any(warning.startswith("3 examples that were asked for") for warning in found.provenance["warnings"])
        assert not any(unseen[0] in warning for warning in found.provenance["warnings"])
    again = select_forget_set(found, data, "@random:5", skip_never_trained=True)
    assert again.provenance["skipped"] == sorted(unseen) and again.provenance["random"] is True
    raises(
        lambda: select_forget_set(split, data, f"@keys:{','.join(unseen)}", skip_never_trained=True),
        "3 of 3 ids were not trained on",
    )
    with pytest.raises(EffaceError, match="selects all"):
        select_forget_set(split, data, f"@keys:{','.join(split.keys(data, 'retain'))}", skip_never_trained=True)


def test_the_other_pictures_of_a_forgotten_group_are_named_for_the_index():
    data, split = grouped()
    found = select_forget_set(split, data, "@group:p3")
    others = [key for key in data.keys[data.group == "p3"] if key not in set(found.keys(data, "forget"))]
    assert others and found.provenance["skipped"] == sorted(others)
    assert "skipped" not in select_forget_set(split, data, "@class:1").provenance
