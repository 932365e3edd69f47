"""Files and folders that the user names: what is searched in them, and what is named because it was not."""

from __future__ import annotations

import json
import shutil
import unicodedata

import numpy as np
import pytest

from efface.desk.forgotten import ForgottenIds
from efface.desk.places import OTHERS_NAMED
from efface.desk.remains import erase_remains, find_in_place
from efface.desk.run_ids import find_in_run

ZOE, SPLIT_NAME = unicodedata.normalize("NFC", "Zoë.png"), "a\u2028b.png"
COMMA = "Smith, Anna.png"
ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def forgotten():
    return ForgottenIds(b"k" * 32, ["anna.png", ZOE, SPLIT_NAME, COMMA, "17"], ())


def search(place, ids, **more):
    return [(one.kind, one.action, one.count) for one in find_in_place(place, ids, remove=False, **more)]


LISTS = {
    "lines": ("l.txt", "b.png\nanna.png\n", "utf-8"),
    "a byte order mark": ("l.txt", "anna.png\nb.png\n", "utf-8-sig"),
    "UTF-16": ("l.txt", "anna.png\n", "utf-16"),
    "UTF-16 table": ("l.csv", "id;name\n1;anna.png\n", "utf-16"),
    "escapes in JSON": ("l.json", json.dumps({"people": [{"id": ZOE}]}), "utf-8"),
    "names in JSON": ("l.json", json.dumps({"anna.png": 1}), "utf-8"),
    "whole numbers in JSON": ("l.json", "[3, 17]", "utf-8"),
    "lines of JSON": ("l.jsonl", json.dumps({"a": 1}) + "\n\n" + json.dumps({"id": ZOE}) + "\n", "utf-8"),
    "a selector in JSON": ("l.json", json.dumps({"forget": "@keys:b.png,anna.png"}), "utf-8"),
    "U+2028 in a table": ("l.csv", f"{SPLIT_NAME}\n", "utf-8"),
    "a comma in quotation marks": ("l.csv", f'name,n\n"{COMMA}",1\n', "utf-8"),
    "a comma in a line": ("l.txt", f"{COMMA}\n", "utf-8"),
    "an upper-case suffix": ("l.CSV", "anna.png\n", "utf-8"),
    "tabs": ("l.tsv", "anna.png\tx\n", "utf-8"),
    "other code points": ("l.txt", unicodedata.normalize("NFD", ZOE) + "\n", "utf-8"),
    "a configuration": ("c.yaml", "forget: 'anna.png'\n", "utf-8"),
    "no suffix": ("people", "anna.png\n", "utf-8"),
}


@pytest.mark.parametrize(("name", "text", "encoding"), LISTS.values(), ids=LISTS)
def test_ids_in_texts_are_listed(tmp_path, forgotten, name, text, encoding):
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert search(tmp_path, forgotten) == [("list of ids", "list", 1)]
    assert search(tmp_path / name, forgotten) == [("list of ids", "list", 1)]


@pytest.mark.parametrize("name", ["v.NPZ", "v.Parquet", "v.NPY", "v.FAISS", "m.PT", "m.SafeTensors"])
def test_suffixes_are_the_same_in_capitals(tmp_path, forgotten, name):
    path, keys = tmp_path / name, ["anna.png", "b", "c"]
    if name == "v.NPZ":
        with open(path, "wb") as file:
            np.savez(file, embeddings=ROWS, keys=np.array(keys))
    elif name == "v.Parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"key": keys}), path)
    elif name == "v.NPY":
        with open(path, "wb") as file:
            np.save(file, ROWS)
    elif name == "v.FAISS":
        faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")
        index = faiss.IndexFlatL2(2)
        index.add(ROWS)
        faiss.write_index(index, str(path))
    else:
        path.write_bytes(b"x")
    (tmp_path / "v.keys.txt").write_text("\n".join(keys)) if name in ("v.NPY", "v.FAISS") else None
    ids = forgotten
    [found] = find_in_place(tmp_path, ids, remove=False)
    assert found.kind == {"NPZ": "vectors", "Par": "vectors", "NPY": "vectors", "FAI": "index"}.get(
        name[2:5], "checkpoint"
    )
    if found.action == "rewrite":
        assert erase_remains(found, ids).outcome == "rewritten" and search(tmp_path, ids) == []


UNSEARCHED = {
    "Python objects": ("v.pkl", b"\x80\x04anna.png"),
    "Python objects as text": ("v.pickle", b"Vanna.png\n"),
    "HDF5": ("v.h5", b"\x89HDF\r\n\x1a\n\x00"),
    "a data base": ("v.sqlite", b"SQLite format 3\x00"),
    "an archive": ("v.tar", b"\x00" * 512),
    "another encoding": ("v.txt", b"anna.png\n\xe9\n"),
    "UTF-16 without a mark": ("v.csv", "anna.png\n".encode("utf-16-le")),
    "no JSON": ("v.json", b'{"anna.png"'),
    "an empty .npz": ("v.npz", b""),
    "a damaged .npz": ("v.npz", b"PK\x03\x04xxxxxxx"),
    "no .npz": ("v.npz", b"x"),
    "a damaged .npy": ("v.npy", b"\x93NUMPY"),
    "a damaged .parquet": ("v.parquet", b"PAR1xx"),
    "damaged observations": ("observations.npz", b"PK\x03\x04xx"),
    "an index without keys": ("v.index", b"x"),
    "damaged keys": ("v.keys.npy", b"x"),
    "no name": ("blob", b"\x00\x01"),
}


@pytest.mark.parametrize(("name", "content"), UNSEARCHED.values(), ids=UNSEARCHED)
def test_what_was_not_searched_is_named_and_the_rest_is_searched(tmp_path, forgotten, name, content):
    (tmp_path / name).write_bytes(content)
    np.savez(tmp_path / "z.npz", embeddings=ROWS, keys=np.array(["anna.png", "b", "c"]))
    (tmp_path / "a.txt").write_text("anna.png\n")
    first, second, third = sorted(find_in_place(tmp_path, forgotten, remove=False), key=lambda one: one.kind)
    assert (first.kind, first.place, first.action) == ("file", str(tmp_path / name), "list")
    assert first.detail.startswith("was not searched: ") and "anna.png" not in first.detail
    assert (second.kind, third.kind) == ("list of ids", "vectors")
    assert erase_remains(first, forgotten).outcome == "listed"
    assert search(tmp_path / name, forgotten)[0][0] == "file", "also if it is named itself"


def test_what_can_hold_nothing_is_named_only_if_the_user_named_it(tmp_path, forgotten):
    for name in ("a.png", "b.JPG", "x.npz.1-2.tmp", ".x.lock", "empty.txt"):
        (tmp_path / name).write_bytes(b"\x00" if name != "empty.txt" else b"")
    assert search(tmp_path, forgotten) == []
    for name in ("a.png", "b.JPG", "x.npz.1-2.tmp", ".x.lock"):
        assert search(tmp_path / name, forgotten) == [("file", "list", 0)]


def test_links_are_named_unless_they_lead_to_what_is_searched(tmp_path, forgotten):
    place, outside = tmp_path / "place", tmp_path / "outside"
    place.mkdir()
    outside.mkdir()
    for folder in (place, outside):
        np.savez(folder / "v.npz", embeddings=ROWS, keys=np.array(["anna.png", "b", "c"]))
    (outside / "a.png").write_bytes(b"\x00")
    (place / "inside.npz").symlink_to(place / "v.npz")
    (place / "picture.png").symlink_to(outside / "a.png")
    (place / "vectors.npz").symlink_to(outside / "v.npz")
    (place / "folder").symlink_to(outside)
    (place / "lost.npz").symlink_to(tmp_path / "nowhere.npz")
    found = {one.place: one for one in find_in_place(place, forgotten, remove=False)}
    named = {str(place / one) for one in ("vectors.npz", "folder", "lost.npz")}
    assert set(found) == {*named, str(place / "v.npz")} and {found[one].kind for one in named} == {"file"}
    [through] = find_in_place(place / "vectors.npz", forgotten, remove=False)
    assert through.place == str((outside / "v.npz").resolve()) and erase_remains(through, forgotten).outcome
    assert search(outside, forgotten) == [] and (place / "vectors.npz").is_symlink()


def test_many_of_one_unknown_kind_are_named_once(tmp_path, forgotten):
    for number in range(OTHERS_NAMED + 1):
        (tmp_path / f"{number}.tar").write_bytes(b"\x00" * 512)
    (tmp_path / "a.bag").write_bytes(b"\x00")
    found = {one.place: one.detail for one in find_in_place(tmp_path, forgotten, remove=False)}
    assert set(found) == {str(tmp_path), str(tmp_path / "a.bag")}
    assert f"{OTHERS_NAMED + 1} files" in found[str(tmp_path)]


def test_damaged_files_in_runs_are_outcomes_of_their_own(tmp_path, original, ids):
    shutil.copytree(original, tmp_path / "place" / "run")
    shutil.copytree(original, tmp_path / "place" / "second")
    forgotten = ForgottenIds(b"k" * 32, ids[:3], ())
    (tmp_path / "place" / "run" / "split.json").write_text("{")
    found = {(one.kind, one.count) for one in find_in_place(tmp_path / "place", forgotten, remove=False)}
    assert found == {("file", 0), ("checkpoint", 3)}
    np.savez(tmp_path / "place" / "second" / "v.npz", embeddings=ROWS, keys=np.array([*ids[:2], "other"]))
    found = {(one.kind, one.count) for one in find_in_place(tmp_path / "place", forgotten, remove=False)}
    assert found == {("file", 0), ("checkpoint", 3), ("vectors", 2)}, "a user may keep vectors in a run"
    (original / "observations-1.npz").write_bytes(b"x")
    kinds = [(one.kind, one.action) for one in find_in_run(original, forgotten, "")]
    assert kinds == [("file", "list"), ("split", "rewrite")]


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, forgotten, monkeypatch):
    from pathlib import Path

    (tmp_path / "closed").mkdir()
    (tmp_path / "l.txt").write_text("anna.png\n")
    real = Path.iterdir

    def refuse(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert search(tmp_path, forgotten) == [("file", "list", 0), ("list of ids", "list", 1)]
