"""Rows of the forgotten leave files of vectors: all of them, and nobody else's."""

from __future__ import annotations

import stat
import unicodedata

import numpy as np
import pytest

from efface.data.array_files import read_npz
from efface.desk.forgotten import ForgottenIds
from efface.desk.keyed_rows import require_keyed
from efface.desk.remains import erase_remains, find_in_place
from efface.desk.vectors import drop_vectors, require_vectors, vector_ids
from efface.errors import EffaceError
from efface.reporting.redaction import hmac_digest

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
from pyarrow import parquet  # noqa: E402

NAMES = ["a", "b", "c", "d", "e", "f"]
ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


@pytest.fixture
def forgotten():
    return ForgottenIds(b"k" * 32, ["b", "d", "missing"], [])


def write_vectors(path, names=NAMES, rows=ROWS):
    if path.suffix.lower() == ".npz":
        with open(path, "wb") as file:
            np.savez(file, embeddings=rows, keys=np.array(names), model=np.array("m"), space=np.array("backbone"))
    elif path.suffix == ".parquet":
        parquet.write_table(
            pyarrow.table({"id": names, "vector": rows.tolist(), "more": list(range(len(names)))}), path
        )
    else:
        np.save(path, rows)
        path.with_suffix(".keys.txt").write_text("".join(f"{one}\n" for one in names))


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_rows_of_the_forgotten_leave_a_file_of_vectors(tmp_path, forgotten, suffix):
    path = tmp_path / f"vectors{suffix}"
    write_vectors(path)
    path.chmod(0o640)
    assert drop_vectors(path, forgotten) == 2
    assert vector_ids(path) == ["a", "c", "e", "f"]
    kept = ROWS[[0, 2, 4, 5]]
    if suffix == ".parquet":
        table = parquet.read_table(path)
        assert np.allclose(table.column("vector").to_pylist(), kept)
        assert table.column("more").to_pylist() == [0, 2, 4, 5]
    else:
        found = np.load(path)
        assert np.array_equal(found["embeddings"] if suffix == ".npz" else found, kept)
    assert drop_vectors(path, forgotten) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o640, "who may read it has not changed"


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_all_rows_of_an_id_go(tmp_path, forgotten, suffix):
    path = tmp_path / f"crops{suffix}"
    write_vectors(path, ["b", "a", "b", "c", "b", "b"])
    assert drop_vectors(path, forgotten) == 4 and vector_ids(path) == ["a", "c"]
    require_vectors(path)
    assert drop_vectors(path, forgotten) == 0


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_a_file_of_which_all_is_forgotten_becomes_empty(tmp_path, forgotten, suffix):
    path = tmp_path / f"all{suffix}"
    write_vectors(path, ["b", "d"], ROWS[:2])
    assert drop_vectors(path, forgotten) == 2 and vector_ids(path) == []


KEYS = np.array(NAMES)
UNCLEAR = {
    "a row for each number": {"embeddings": ROWS.T},
    "two views of each": {"embeddings": np.concatenate([ROWS, ROWS])},
    "views on another axis": {"embeddings": np.stack([ROWS, ROWS])},
    "an axis too many": {"embeddings": ROWS[:, None]},
    "a mean of as many numbers": {"embeddings": ROWS[:, [0, 1, 2, 3, 0, 1]], "mean": np.zeros(6)},
    "views in another array": {"embeddings": ROWS, "views": np.concatenate([ROWS, ROWS])},
    "columns in another array": {"embeddings": ROWS, "raw": ROWS.T},
    "names in another array": {"embeddings": ROWS, "people": np.array(list("uvwxyz"))},
    "labels of others": {"embeddings": ROWS, "labels": np.arange(5)},
    "no embeddings": {"x": ROWS},
}


@pytest.mark.parametrize("arrays", UNCLEAR.values(), ids=UNCLEAR)
def test_arrays_whose_rows_are_not_clear_are_refused_and_stay(tmp_path, forgotten, arrays):
    path = tmp_path / "vectors.npz"
    np.savez(path, keys=KEYS, **arrays)
    before = path.read_bytes()
    with pytest.raises(EffaceError):
        drop_vectors(path, forgotten)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    [found] = [one for one in find_in_place(tmp_path, forgotten, remove=False) if one.kind == "vectors"]
    assert erase_remains(found, forgotten).outcome == "failed"


def test_what_efface_writes_with_embeddings_is_clear(tmp_path, forgotten):
    path = tmp_path / "vectors.npz"
    single = {"model": np.array("m"), "space": np.array("backbone"), "mean": np.zeros(4)}
    np.savez(path, keys=KEYS, embeddings=ROWS, labels=np.array(list("uvwxyz")), **single)
    assert drop_vectors(path, forgotten) == 2
    found, _ = read_npz(path)
    assert found["labels"].tolist() == ["u", "w", "y", "z"] and set(found) >= set(single)
    assert np.array_equal(found["embeddings"], ROWS[[0, 2, 4, 5]])


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_more_vectors_than_keys_are_named_though_no_key_is_forgotten(tmp_path, forgotten, suffix):
    path = tmp_path / f"vectors{suffix}"
    write_vectors(path, ["a", "c"], ROWS[:3])
    [found] = find_in_place(tmp_path, forgotten, remove=False)
    assert (found.kind, found.action) == ("file", "list") and found.detail.startswith("was not searched: ")


U2028 = "a\u2028b"
KEY_FILES = {
    "a byte order mark": (".txt", "b\nd\n", "utf-8-sig"),
    "UTF-16": (".txt", "b\nd\n", "utf-16"),
    "no last line end": (".txt", "b\nd", "utf-8"),
    "CR LF": (".txt", "b\r\nd\r\n", "utf-8"),
    "a blank last line": (".csv", "key\nb\nd\n\n", "utf-8"),
    "key in the second column": (".csv", "row,key\n0,b\n1,d\n", "utf-8"),
    "semicolons": (".csv", "row;key\n0;b\n1;d\n", "utf-8"),
    "a table with a byte order mark": (".csv", "key,row\nb,0\nd,1\n", "utf-8-sig"),
    "a table in UTF-16": (".csv", "key,row\nb,0\nd,1\n", "utf-16"),
    "U+2028, as embed writes it": (".csv", f"key\r\n{U2028}\r\nd\r\n", "utf-8"),
    "U+2028 in lines": (".txt", f"{U2028}\nd\n", "utf-8"),
    "an upper-case suffix": (".CSV", "key\nb\nd\n", "utf-8"),
}


@pytest.mark.parametrize(("suffix", "text", "encoding"), KEY_FILES.values(), ids=KEY_FILES)
def test_keys_are_read_as_everywhere(tmp_path, suffix, text, encoding):
    path, ids = tmp_path / "v.npy", ForgottenIds(b"k" * 32, ["b", U2028], [])
    np.save(path, ROWS[:2])
    keys = path.with_suffix(f".keys{suffix}")
    keys.write_bytes(text.encode(encoding))
    [found] = find_in_place(tmp_path, ids, remove=False)
    assert (found.kind, found.action, found.count) == ("vectors", "rewrite", 1)
    assert erase_remains(found, ids).outcome == "rewritten"
    assert vector_ids(path) == ["d"] and np.array_equal(np.load(path), ROWS[1:2])
    assert {one.name for one in tmp_path.iterdir()} == {path.name, keys.name}
    assert "row" not in text or "row" in keys.read_text(), "other columns stay"


BROKEN = {
    "cells too few": (".csv", "key,row\nb\n"),
    "a row without a key": (".csv", "key,row\nb,0\n,1\n"),
    "no column key": (".csv", "name,row\nb,0\nd,1\n"),
    "another encoding": (".txt", "b\n\xe9\n"),
}


@pytest.mark.parametrize(("suffix", "text"), BROKEN.values(), ids=BROKEN)
def test_keys_that_cannot_be_read_are_named_and_not_quoted(tmp_path, forgotten, suffix, text):
    np.save(tmp_path / "v.npy", ROWS[:2])
    (tmp_path / f"v.keys{suffix}").write_bytes(text.replace("b", "bernadette").encode("latin-1"))
    [found] = find_in_place(tmp_path, forgotten, remove=False)
    assert found.action == "list" and found.detail.startswith("was not searched: ")
    assert "bernadette" not in found.detail


def test_two_files_of_keys_are_refused(tmp_path, forgotten):
    path = tmp_path / "v.npy"
    write_vectors(path)
    (tmp_path / "v.keys.csv").write_text("key\n" + "".join(f"{one}\n" for one in reversed(NAMES)))
    with pytest.raises(EffaceError, match="Several files say"):
        require_keyed(path)


OTHER_KEYS = {
    "bytes": np.array([b"b", b"c"]),
    "numbers": np.array([7, 8]),
}


@pytest.mark.parametrize("keys", OTHER_KEYS.values(), ids=OTHER_KEYS)
def test_keys_of_other_types_are_read(tmp_path, keys):
    ids = ForgottenIds(b"k" * 32, ["b", "7"], [])
    np.savez(tmp_path / "v.npz", embeddings=ROWS[:2], keys=keys)
    parquet.write_table(pyarrow.table({"key": pyarrow.array(keys.tolist())}), tmp_path / "v.parquet")
    for path in (tmp_path / "v.npz", tmp_path / "v.parquet"):
        assert drop_vectors(path, ids) == 1 and len(vector_ids(path)) == 1


@pytest.mark.parametrize("keys", [np.array([7.0, 8.0]), np.array([["b"], ["c"]]), np.array(["b", "c"], object)])
def test_keys_that_are_no_ids_are_named(tmp_path, forgotten, keys):
    np.savez(tmp_path / "v.npz", embeddings=ROWS[:2], keys=keys, allow_pickle=True)
    [found] = find_in_place(tmp_path, forgotten, remove=False)
    assert found.action == "list" and found.detail.startswith("was not searched: ")


def test_ids_beside_the_keys_are_listed(tmp_path, forgotten):
    np.savez(tmp_path / "v.npz", embeddings=ROWS, keys=np.arange(6), paths=KEYS)
    parquet.write_table(pyarrow.table({"id": list(range(6)), "path": NAMES}), tmp_path / "v.parquet")
    found = list(find_in_place(tmp_path, forgotten, remove=False))
    assert [(one.kind, one.action, one.count) for one in found] == [("list of ids", "list", 2)] * 2


def test_numbers_that_are_none_do_not_keep_rows_in_a_table(tmp_path, forgotten):
    path = tmp_path / "v.parquet"
    rows = ROWS.copy()
    rows[0, 0] = np.nan
    parquet.write_table(pyarrow.table({"key": NAMES, "vector": rows.tolist()}), path)
    assert drop_vectors(path, forgotten) == 2 and vector_ids(path) == ["a", "c", "e", "f"]


COMPOSED, APART = unicodedata.normalize("NFC", "Zoë.png"), unicodedata.normalize("NFD", "Zoë.png")


@pytest.mark.parametrize("asked", [COMPOSED, APART])
@pytest.mark.parametrize("written", [COMPOSED, APART])
@pytest.mark.parametrize("known", [True, False])
def test_an_id_in_other_code_points_is_the_same(asked, written, known):
    secret = b"k" * 32
    ids = ForgottenIds(secret, [asked] if known else None, [hmac_digest(secret, asked)])
    assert ids.among(["x", written]) == {written}
    token = ForgottenIds(secret, None, [], tokens=[ids.token(asked)])
    assert token.among(["x", written]) == {written}


@pytest.mark.parametrize("known", [True, False])
def test_another_example_of_the_data_is_not_taken_for_an_id(known):
    secret = b"k" * 32
    items = [hmac_digest(secret, COMPOSED)]
    ids = ForgottenIds(secret, [COMPOSED] if known else None, items, others=["x", COMPOSED, APART])
    assert ids.among(["x", APART, COMPOSED]) == {COMPOSED}
