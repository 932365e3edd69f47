"""Folders of pictures: what is read, what is not, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from efface.data import image_files
from efface.data.sources import load
from efface.data.split import partition
from tests.pictures import fails, make_zoo, picture


@pytest.fixture
def zoo(tmp_path):
    return make_zoo(tmp_path / "zoo")


def test_other_suffixes_of_pictures_are_read(zoo):
    for suffix, kind in {"jfif": "JPEG", "jpe": "JPEG", "JFIF": "JPEG", "avif": "AVIF", "qoi": "QOI"}.items():
        if f".{suffix.lower()}" in Image.registered_extensions():
            Image.new("RGB", (8, 6), "red").save(zoo / "cat" / f"x{suffix}.{suffix}", format=kind)
    data = load(str(zoo))
    assert {"cat/xjfif.jfif", "cat/xjpe.jpe", "cat/xJFIF.JFIF"} <= set(data.keys.tolist())
    assert data.unread == () and data.notes == ()


def test_what_is_not_read_is_counted_by_folder_and_suffix(zoo):
    (zoo / "cat" / "a.heic").write_bytes(b"?")
    (zoo / "ant" / "b.HEIC").write_bytes(b"?")
    (zoo / "ant" / "b.cr2").write_bytes(b"?")
    (zoo / "ant" / "README").write_bytes(b"?")
    (zoo / "ant" / "Thumbs.db").write_bytes(b"?")
    picture(zoo / "cat" / ".hidden.png")
    picture(zoo / ".trash" / "x.png")
    data = load(str(zoo))
    assert len(data) == 6
    assert {(one["folder"], one["kind"]): one["count"] for one in data.unread} == {
        ("cat", ".heic"): 1, ("ant", ".heic"): 1, ("ant", ".cr2"): 1, ("ant", "files without a suffix"): 1,
        ("cat", "hidden files"): 1, ("", "hidden folder .trash"): 1,
    }  # fmt: skip
    (note,) = data.notes
    assert "6 files in zoo were not read" in note and "2 .heic (in ant 1, cat 1)" in note and "pillow-heif" in note
    assert load(str(zoo), limit=2).notes == (note,)


@pytest.mark.parametrize("folder", ["@eaDir", "__MACOSX", "@Recycle", "#recycle", "$RECYCLE.BIN"])
def test_thumbnails_and_waste_of_a_system_are_not_examples(zoo, folder):
    before = load(str(zoo))
    for place in ("cat", "ant", "."):
        picture(zoo / place / folder / "a.png" / "SYNOPHOTO_THUMB_M.jpg")
    data = load(str(zoo))
    assert data.keys.tolist() == before.keys.tolist() and data.classes == before.classes
    assert f"3 files in {folder}" in data.notes[0]


def test_a_suffix_that_pillow_learns_is_read(zoo, monkeypatch):
    (zoo / "cat" / "a.heic").write_bytes((zoo / "cat" / "a.png").read_bytes())
    assert "cat/a.heic" not in load(str(zoo)).keys
    real = Image.registered_extensions()
    monkeypatch.setattr(Image, "registered_extensions", lambda: real | {".heic": "HEIF"})
    image_files.image_suffixes.cache_clear()
    try:
        assert "cat/a.heic" in load(str(zoo)).keys
    finally:
        monkeypatch.undo()
        image_files.image_suffixes.cache_clear()


def test_a_manifest_says_what_reads_a_heic(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"?" * 100)
    (tmp_path / "m.csv").write_text("path\na.heic\n")
    fails(tmp_path / "m.csv", "pillow-heif")


@pytest.mark.parametrize("names", [("2019", "2020"), ("2021-05", "2021-06"), ("100APPLE", "101APPLE")])
def test_dates_that_become_classes_are_said(tmp_path, names):
    for number, name in enumerate(names):
        picture(tmp_path / "p" / name / "a.png", number)
    data = load(str(tmp_path / "p"))
    assert data.classes == names and "look like dates" in data.notes[0] and "data.labels=false" in data.notes[0]
    plain = load(str(tmp_path / "p"), labels=False)
    assert (plain.y, plain.classes, plain.notes) == (None, (), ())


def test_one_folder_above_the_classes_is_said(tmp_path):
    for number, name in enumerate(("cat", "dog")):
        picture(tmp_path / "p" / "images" / name / "a.png", number)
    assert "'images', the only sub-folder" in load(str(tmp_path / "p")).notes[0]
    assert load(str(tmp_path / "p" / "images")).notes == ()


def test_train_val_and_test(tmp_path):
    parts = ("train", "val", "test")
    for number, part in enumerate(parts):
        for label in ("cat", "dog"):
            for copy in range(8):
                picture(tmp_path / "p" / part / label / f"{copy}.png", 100 * number + 10 * (label == "cat") + copy)
    data = load(str(tmp_path / "p"))
    assert data.official is not None and data.classes == ("cat", "dog")
    assert [(data.official == part).sum() for part in ("train", "test")] == [16, 32]
    assert "test and val are both read as the official test set" in data.notes[0]
    split = partition(data)
    assert not any(key.startswith(("val", "test")) for key in data.keys[split.retain])
    picture(tmp_path / "p" / "extra" / "cat" / "a.png")
    fails(tmp_path / "p", "extra", "official parts")


@pytest.mark.parametrize(("train", "tested"), [("Train", "Test"), ("training", "testing"), ("TRAIN", "Val")])
def test_official_parts_in_other_words(tmp_path, train, tested):
    picture(tmp_path / "p" / train / "cat" / "a.png", 1)
    picture(tmp_path / "p" / tested / "cat" / "a.png", 2)
    data = load(str(tmp_path / "p"))
    assert data.classes == ("cat",) and data.official is not None and sorted(data.official) == ["test", "train"]
    picture(tmp_path / "p" / "training" / "cat" / "b.png", 3)
    picture(tmp_path / "p" / "TRAIN" / "cat" / "b.png", 3)
    fails(tmp_path / "p", "official parts")


def test_notes_and_counts_stay_with_a_part_of_the_data(zoo):
    (zoo / "cat" / "a.txt").write_text("")
    data = load(str(zoo))
    part = data.take(np.arange(2))
    assert part.notes == data.notes != () and part.unread == data.unread != ()
