"""Data sources: valid and invalid names, folders, tables and files of arrays."""

from __future__ import annotations

import csv
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efface.data import image_files
from efface.data.sources import SOURCES, load
from efface.data.split import partition
from tests.pictures import fails, make_zoo, picture

EMOJI = Path(os.environ.get("EFFACE_TEST_EMOJI", "tests/data/emoji"))


@pytest.fixture
def zoo(tmp_path):
    return make_zoo(tmp_path / "zoo")


def test_unknown_names_and_options_say_what_is_known(tmp_path, zoo):
    fails("fashion-mnits", "'fashion-mnist'", "A path works too", "folder", "svhn")
    fails("nowhere/at/all", "no file or folder", "A path works too")
    fails("digits", "no option 'sizes'", "limit", sizes=3)
    fails(zoo, "'folder' has no option 'chanels'", "'channels'", chanels=1)
    fails("folder", "needs 'root'", "data.root")
    fails(zoo, "named twice", zoo, tmp_path, root=str(tmp_path))
    (tmp_path / "a.rar").write_text("")
    fails(tmp_path / "a.rar", ".jsonl", ".npz")


def test_every_source_documents_every_option():
    for name, source in SOURCES.items():
        text = inspect.getdoc(source) or ""
        for option in inspect.signature(source).parameters:
            assert f"{option}:" in text, (name, option)


def test_nothing_heavy_is_imported():
    code = (
        "import sys; import efface.data.sources, efface.data.split\n"
        "efface.data.sources.load('digits')\n"
        "assert not {'torch', 'torchvision', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_digits():
    data = load("digits")
    assert (data.shape, len(data), data.classes, data.official) == (
        (1, 8, 8),
        1797,
        tuple("0123456789"),
        None,
    )
    assert data.x.max() == 255 and data.x.min() == 0
    assert len(load("digits", limit=100)) == 100
    fails("digits", "from 1 to 1797", limit=2000)


@pytest.mark.parametrize(
    ("source", "option"),
    [
        (name, option)
        for name, loader in SOURCES.items()
        for option, one in inspect.signature(loader).parameters.items()
        if isinstance(one.default, bool)
    ],
)
@pytest.mark.parametrize("value", ["nope", "false", 1, None])
def test_an_option_that_is_true_or_false_is_nothing_else(source, option, value):
    fails(source, f"The option '{option}' cannot be {value!r}", **{option: value})


def test_mirrored_digits():
    plain, both = load("digits"), load("digits", mirrored=True)
    assert len(both) == 2 * len(plain) and both.name == "digits, mirrored too"
    assert both.keys[: len(plain)].tolist() == plain.keys.tolist()
    at = both.keys.tolist().index("00003-mirrored")
    assert (both.x[at] == plain.x[3, :, :, ::-1]).all() and both.y[at] == plain.y[3]
    assert (both.x[3] == plain.x[3]).all() and (both.x[at] != plain.x[3]).any()
    assert len(load("digits", mirrored=True, limit=3000)) == 3000


def test_turned_digits():
    plain, every = load("digits"), load("digits", mirrored=True, turned=True)
    assert len(every) == 4 * len(plain) and every.name == "digits, mirrored and turned too"
    assert every.keys[: len(plain)].tolist() == plain.keys.tolist() and every.y.tolist() == plain.y.tolist() * 4
    for end, image in (("-turned", plain.x[3, 0, ::-1, ::-1]), ("-mirrored-turned", plain.x[3, 0, ::-1])):
        assert (every.x[every.keys.tolist().index(f"00003{end}"), 0] == image).all()
    assert len(load("digits", turned=True)) == 2 * len(plain)


def test_folder_keys_are_relative_paths_and_classes_sub_folders(zoo):
    data = load(str(zoo))
    assert data.keys.tolist() == [
        "ant/d.bmp",
        "ant/e.png",
        "ant/x/c.png",
        "cat/a.png",
        "cat/b.png",
        "cat/f.png",
    ]
    assert (data.classes, data.name, data.shape) == (("ant", "cat"), "zoo", (3, 6, 8))
    assert data.y is not None and data.y.tolist() == [0, 0, 0, 1, 1, 1]
    with Image.open(zoo / "cat/a.png") as image:
        assert (data.x[3] == np.asarray(image).transpose(2, 0, 1)).all()


def test_a_flat_folder_is_unlabelled(tmp_path):
    for name in ("b.png", "a.PNG", ".hidden.png"):
        picture(tmp_path / "flat" / name)
    (tmp_path / "flat" / "notes.txt").write_text("not an image")
    data = load(str(tmp_path / "flat"))
    assert (data.keys.tolist(), data.y, data.classes) == (["a.PNG", "b.png"], None, ())


@pytest.mark.parametrize("tested", ["test", "val"])
def test_train_and_test_folders_are_official_parts(tmp_path, tested):
    for number, name in enumerate(("train/cat/a.png", "train/ant/a.png", f"{tested}/cat/a.png")):
        picture(tmp_path / name, number)
    data = load(str(tmp_path))
    assert data.classes == ("ant", "cat") and data.official is not None
    assert data.keys[data.official == "test"].tolist() == [f"{tested}/cat/a.png"]
    picture(tmp_path / "extra/cat/a.png", 4)
    fails(tmp_path, "extra", "official parts")


def test_folders_that_cannot_be_read(tmp_path, zoo):
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "no images", "It is empty")
    (tmp_path / "empty" / "a.txt").write_text("")
    fails(tmp_path / "empty", "no images", "'.txt'", ".png")
    fails("folder", "no folder", root=str(tmp_path / "none"))
    picture(zoo / "loose.png")
    fails(zoo, "1 images besides its sub-folders", "loose.png")


def test_a_folder_linked_into_itself_is_read_once(zoo):
    (zoo / "cat" / "again").symlink_to(zoo, target_is_directory=True)
    assert len(load(str(zoo))) == 6


def test_names_that_are_not_utf8_are_refused(zoo):
    os.close(os.open(os.fsencode(zoo / "cat") + b"/\xff.png", os.O_CREAT))
    (zoo / "cat" / os.fsdecode(b"\xff.png")).write_bytes((zoo / "cat" / "a.png").read_bytes())
    fails(zoo, "cannot be written as text", "UTF-8")


def test_limit_decodes_only_what_it_keeps(zoo, monkeypatch):
    seen, real = [], image_files.to_array
    monkeypatch.setattr(image_files, "to_array", lambda image, *rest: seen.append(1) or real(image, *rest))
    data = load(str(zoo), limit=2)
    assert len(seen) == 2 and data.y is not None and data.y.tolist() == [0, 1]
    assert data.keys.tolist() != load(str(zoo), limit=2, limit_seed=2).keys.tolist()


def write_csv(path: Path, rows, columns):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([columns, *rows])
    return path


def test_manifest_csv(zoo, tmp_path):
    rows = [
        ("one", "zoo/cat/a.png", "cat", "a cat, sitting", "p1"),
        ("two", str(zoo / "ant/d.bmp"), "", "", "p2"),
    ]
    data = load(str(write_csv(tmp_path / "m.csv", rows, ("key", "path", "label", "caption", "group"))))
    assert data.keys.tolist() == ["one", "two"] and data.classes == ("cat",)
    assert data.y is not None and data.y.tolist() == [0, -1]
    assert data.text == ("a cat, sitting", "") and data.group is not None and data.group.tolist() == ["p1", "p2"]
    assert (data.name, data.official) == ("m.csv", None)


def test_manifest_jsonl_without_keys_or_labels(zoo, tmp_path):
    lines = [
        {"path": "zoo/cat/b.png", "caption": None, "width": 3},
        {"path": "zoo/cat/a.png", "caption": "é"},
    ]
    (tmp_path / "m.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    data = load(str(tmp_path / "m.jsonl"))
    assert data.keys.tolist() == ["zoo/cat/b.png", "zoo/cat/a.png"]  # the table's order, the paths as written
    assert (data.y, data.group, data.text) == (None, None, ("", "é"))


def test_manifest_skips_what_is_missing_only_when_asked(zoo, tmp_path):
    rows = [("a", "zoo/cat/a.png", "x"), ("b", "zoo/none.png", "y"), ("c", "zoo/cat/b.png", "z")]
    table = write_csv(tmp_path / "m.csv", rows, ("key", "path", "label"))
    fails(table, "'b'", "none.png", "no such file")
    data = load(str(table), skip_broken=True)
    assert data.keys.tolist() == ["a", "c"] and data.y is not None and data.y.tolist() == [0, 2]


def test_bad_manifests(zoo, tmp_path):
    def table(text, suffix="csv"):
        path = tmp_path / f"bad.{suffix}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    fails("manifest", "no manifest", root=str(tmp_path / "none.csv"))
    fails(table(""), "lists no images")
    fails(table("key,path\n"), "lists no images")
    fails(table("key,file\na,b.png\n"), "no column 'path'", "file, key")
    fails(table("path,lable\nzoo/cat/a.png,x\n"), "'lable'", "'label'")
    fails(table("key,path\na,zoo/cat/a.png,3\n"), "Row 2")
    fails(table("key,path\na\n"), "Row 2")
    fails(table("key,path\n,zoo/cat/a.png\n"), "Item 1", "no key")
    fails(table("key,path\na,\n"), "Item 1", "no path")
    fails(table("key,path\na,zoo/cat/a.png\na,zoo/cat/b.png\n"), "more than once", "'a'")
    fails(table(b"\xff\xfe\x00"), "is not UTF-16")
    fails(table('key,path\n"a,b\n'), "cannot be read as a manifest")
    fails(table('{"path": "a"}\n{"path": ', "jsonl"), "Line 2")
    fails(table('["a"]', "jsonl"), "Line 1", "list")
    fails(table('{"path": ["a"]}', "jsonl"), "Item 1", "text")


def test_npz(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    np.savez(
        tmp_path / "a.npz",
        x=x,
        y=np.arange(5) % 2,
        keys=np.array(list("vwxyz")),
        classes=np.array(["no", "yes"]),
    )
    data = load(str(tmp_path / "a.npz"))
    assert data.keys.tolist() == list("vwxyz") and data.classes == ("no", "yes") and (data.x[:, 0] == x).all()
    np.savez(tmp_path / "b.npz", x=x)
    assert load(str(tmp_path / "b.npz"), limit=3).y is None
    np.savez(tmp_path / "c.npz", images=x, labels=x)
    fails(tmp_path / "c.npz", "'x'", "images, labels")
    np.savez(tmp_path / "d.npz", x=x, keys=np.array([{}] * 5))
    fails(tmp_path / "d.npz", "Python objects")
    (tmp_path / "e.npz").write_bytes(b"PK\x03\x04 broken")
    fails(tmp_path / "e.npz", "cannot be read")
    (tmp_path / "f.npz").write_bytes(b"")
    fails(tmp_path / "f.npz", "cannot be read")
    fails("npz", "no file", root=str(tmp_path / "none.npz"))


def test_emoji():
    table = EMOJI / "manifest.csv"
    if not table.is_file():
        pytest.skip(f"the emoji pictures are not in {EMOJI} (set EFFACE_TEST_EMOJI)")
    data = load(str(table), limit=300)
    assert data.shape == (3, 64, 64) and data.text is not None and data.group is not None
    assert len(set(data.group)) > 20 and partition(data).sizes()["test"] == 30
