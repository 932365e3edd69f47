"""The verbs of heads: deletion equals fitting again, files are bound, a kill leaves old or new, bundles are signed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

import efface
from efface.errors import EffaceError
from efface.reporting.refusals import Reason
from efface.reporting.signing import create_keys, load_signer
from efface.reporting.verify import verify_bundle
from efface.runs import head_store
from efface.runs.head_store import HEAD_FILE, SECRET, HeadStore
from efface.runs.heads import HeadSettings, check_head, delete_rows, fit_head, load_head
from efface.runs.sign_exact import sign_exact
from efface.runs.vectors import read_forget_list, read_vectors
from efface.unlearning.heads import NeighborHead, RidgeHead
from tests.commands import call

N, D = 300, 12
KINDS = ("ridge", "knn")


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """Embeddings of three classes, as `efface embed` writes them, with labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, N)
    features = (rng.normal(size=(N, D)) + 1.5 * np.eye(3, D)[labels]).astype(np.float32)
    path = tmp_path / "vectors.npz"
    names = np.array(["cat", "dog", "owl"])[labels]
    np.savez(path, embeddings=features, keys=np.array([f"p/{i}.png" for i in range(N)]), labels=names, model="a" * 64)
    return path


@pytest.fixture(autouse=True)
def short_files(monkeypatch):
    """Arrays in files of 64 rows, so that a deletion leaves some of them as they are."""
    monkeypatch.setattr(head_store, "ROWS_PER_FILE", 64)


def weights(folder: Path) -> np.ndarray:
    head = load_head(folder)
    return head.solve() if isinstance(head, RidgeHead) else head.units


@pytest.mark.parametrize("kind", KINDS)
def test_deleting_is_fitting_without_them(vectors, tmp_path, kind):
    gone = [f"p/{i}.png" for i in (3, 4, 70, 299)]
    fit_head(vectors, tmp_path / "head", HeadSettings(kind))
    fit_head(vectors, tmp_path / "never", HeadSettings(kind), without=gone)
    whole = weights(tmp_path / "head")
    done = delete_rows(tmp_path / "head", gone)
    after, never = weights(tmp_path / "head"), weights(tmp_path / "never")
    assert after.shape == never.shape
    assert np.abs(after - never).max() < 1e-9
    assert whole.shape != after.shape or np.abs(whole - after).max() > 1e-6
    assert (done.count, done.before != done.after) == (4, True)
    check = check_head(tmp_path / "head")
    assert check.passed, check.measured


@pytest.mark.parametrize("kind", KINDS)
def test_many_requests_one_after_the_other_stay_equal_to_refitting(vectors, tmp_path, kind):
    fit_head(vectors, tmp_path / "head", HeadSettings(kind))
    for start in range(0, 240, 40):
        delete_rows(tmp_path / "head", [f"p/{i}.png" for i in range(start, start + 40)])
    assert check_head(tmp_path / "head").passed
    assert HeadStore(tmp_path / "head").describe().rows == 60
    kept = {path.name for path in (tmp_path / "head").glob("*.npy")}
    described = HeadStore(tmp_path / "head").describe()
    assert kept == {one.file for files in described.arrays.values() for one in files}, "nothing old is left"


def test_a_kNN_head_rewrites_only_the_files_that_had_the_rows(vectors, tmp_path):  # noqa: N802
    fit_head(vectors, tmp_path / "head", HeadSettings("knn"))
    before = [one.file for one in HeadStore(tmp_path / "head").describe().arrays["features"]]
    delete_rows(tmp_path / "head", ["p/70.png"])
    after = [one.file for one in HeadStore(tmp_path / "head").describe().arrays["features"]]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True, True, True]


def test_a_check_fails_on_a_head_that_still_has_a_row(vectors, tmp_path):
    fit_head(vectors, tmp_path / "head")
    fit_head(vectors, tmp_path / "less", without=["p/7.png"])
    store, less = HeadStore(tmp_path / "head"), HeadStore(tmp_path / "less")
    planted = store.describe()
    arrays = dict(planted.arrays)
    for name in ("rows", "names"):  # the row is gone from the lists, and not from the sums
        arrays[name] = store.without(name, arrays[name], np.array([7]))
    store.commit(planted.model_copy(update={"arrays": arrays, "rows": N - 1}))
    assert check_head(tmp_path / "less").passed
    found = check_head(tmp_path / "head")
    assert not found.passed
    assert less.describe().rows == store.describe().rows
    assert call("heads", "check", tmp_path / "head", "--quiet") == 3


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_fitted_or_differs_is_refused_and_nothing_changes(vectors, tmp_path, kind):
    fit_head(vectors, tmp_path / "head", HeadSettings(kind))
    before = (tmp_path / "head" / HEAD_FILE).read_bytes()
    delete = [["p/1.png", "p/1.png"], ["nobody"], [f"p/{i}.png" for i in range(N)]]
    for keys in delete:
        with pytest.raises(EffaceError, match=r"more than once|not in the head|all 300 rows"):
            delete_rows(tmp_path / "head", keys)
    stored = dict(np.load(vectors))
    stored["embeddings"][5, 0] += 1e-4
    np.savez(tmp_path / "other.npz", **stored)
    if kind == "ridge":
        with pytest.raises(EffaceError, match="not fitted in this form"):
            delete_rows(tmp_path / "head", ["p/5.png"], embeddings=tmp_path / "other.npz")
        with pytest.raises(EffaceError, match="--embeddings FILE"):
            delete_rows(tmp_path / "head", ["p/5.png"], embeddings=tmp_path / "gone.npz")
        np.savez(tmp_path / "encoder.npz", **stored | {"model": np.array("b" * 64)})
        with pytest.raises(EffaceError, match="another encoder"):
            delete_rows(tmp_path / "head", ["p/5.png"], embeddings=tmp_path / "encoder.npz")
    else:
        assert not check_head(tmp_path / "head", embeddings=tmp_path / "other.npz").passed
    assert (tmp_path / "head" / HEAD_FILE).read_bytes() == before
    assert call("heads", "delete", tmp_path / "head", "--forget", "@class:cat", "--quiet") == 2
    assert call("heads", "delete", tmp_path / "head", "--forget", tmp_path / "no.txt", "--quiet") == 2


def test_edited_files_are_refused(vectors, tmp_path):
    fit_head(vectors, tmp_path / "head")
    folder = tmp_path / "head"
    gram = next(folder.glob("gram-*"))
    content = gram.read_bytes()
    gram.write_bytes(content[:-8] + bytes(8))
    for verb in (lambda: load_head(folder), lambda: delete_rows(folder, ["p/1.png"]), lambda: check_head(folder)):
        with pytest.raises(EffaceError, match="not the file that"):
            verb()
    gram.unlink()
    with pytest.raises(EffaceError, match="cannot be read"):
        load_head(folder)
    gram.write_bytes(content)
    (folder / SECRET).unlink()
    assert load_head(folder).predict(read_vectors(vectors).features).shape == (N,), "predicting needs no key"
    with pytest.raises(EffaceError, match="names the rows"):
        delete_rows(folder, ["p/1.png"])
    text = (folder / HEAD_FILE).read_text()
    (folder / HEAD_FILE).write_text(text.replace("gram-", "../gram-"))
    with pytest.raises(EffaceError, match="damaged"):
        load_head(folder)
    (folder / HEAD_FILE).write_text(text.replace('"format": 1', '"format": 7'))
    with pytest.raises(EffaceError, match="format"):
        load_head(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_deletion_that_is_cut_anywhere_leaves_the_old_head_or_the_new_one(vectors, tmp_path, kind, monkeypatch):
    """Cut before each replacement of a file, which are the only steps that others can see."""
    fit_head(vectors, tmp_path / "never", HeadSettings(kind), without=["p/9.png", "p/200.png"])
    fit_head(vectors, tmp_path / "whole", HeadSettings(kind))
    old, new = weights(tmp_path / "whole"), weights(tmp_path / "never")

    class Cut(BaseException):
        pass

    real, step, seen = os.replace, 0, set()
    while True:
        folder = tmp_path / f"head-{step}"
        fit_head(vectors, folder, HeadSettings(kind))
        left = step

        def cut(one, other):
            nonlocal left
            if left == 0:
                raise Cut
            left -= 1
            real(one, other)

        monkeypatch.setattr(os, "replace", cut)
        try:
            delete_rows(folder, ["p/9.png", "p/200.png"])
            finished = True
        except Cut:
            finished = False
        monkeypatch.setattr(os, "replace", real)
        now = weights(folder)
        state = "new" if now.shape == new.shape and np.abs(now - new).max() < 1e-9 else "old"
        assert state == "new" or np.array_equal(now, old)
        seen.add(state)
        if state == "old":
            delete_rows(folder, ["p/9.png", "p/200.png"])  # the same command again
        assert np.abs(weights(folder) - new).max() < 1e-9
        assert check_head(folder).passed
        if finished:
            break
        step += 1
    assert seen == {"old", "new"}
    assert step >= 4


def test_the_deletion_is_signed_with_its_check_and_no_id(vectors, tmp_path):
    fit_head(vectors, tmp_path / "head")
    signer = create_keys(tmp_path / "key.pem") and load_signer(tmp_path / "key.pem")
    with pytest.raises(EffaceError, match="Nothing was deleted"):
        sign_exact(tmp_path / "head", signer)
    delete_rows(tmp_path / "head", ["p/1.png", "p/2.png"])
    unchecked = sign_exact(tmp_path / "head", signer, request_id="DSR-1")
    assert (unchecked.stated.verdict.word, unchecked.stated.passes) == ("unchecked", False)
    weights_file = tmp_path / "head" / HEAD_FILE
    key = tmp_path / "key.pub.pem"
    assert verify_bundle(unchecked.path, key, weights_file, require_pass=True).reason is Reason.NOT_PASSED
    check_head(tmp_path / "head")
    with pytest.raises(EffaceError, match="states something else"):
        sign_exact(tmp_path / "head", signer, request_id="DSR-1")
    signed = sign_exact(tmp_path / "head", signer, request_id="DSR-1", force=True)
    found = verify_bundle(signed.path, key, weights_file, require_pass=True)
    assert found.reason is None
    assert found.as_dict()["verdict"] == "removed"
    text = signed.path.read_bytes()
    assert b"p/1.png" not in text
    with pytest.raises(EffaceError, match="key of one of the deleted"):
        sign_exact(tmp_path / "head", signer, request_id="p/1.png")
    delete_rows(tmp_path / "head", ["p/3.png"])
    assert verify_bundle(signed.path, key, weights_file).reason is Reason.WEIGHTS_MISMATCH
    next((tmp_path / "head").glob("moments-*")).write_bytes(b"x")
    with pytest.raises(EffaceError, match="cannot be read"):
        sign_exact(tmp_path / "head", signer, force=True)


def test_records_that_were_edited_are_not_signed(vectors, tmp_path):
    fit_head(vectors, tmp_path / "head")
    create_keys(tmp_path / "key.pem")
    delete_rows(tmp_path / "head", ["p/1.png"])
    path = tmp_path / "head" / "deletion-0001.json"
    path.write_text(path.read_text().replace('"rows_after": 299', '"rows_after": 298'))
    with pytest.raises(EffaceError, match="edited or damaged"):
        sign_exact(tmp_path / "head", load_signer(tmp_path / "key.pem"))
    assert (tmp_path / "head" / "deletion-0001.key").stat().st_mode & 0o077 == 0


def test_every_form_of_embeddings_gives_the_same_head(vectors, tmp_path):
    stored = np.load(vectors)
    keys, features, labels = stored["keys"], stored["embeddings"], stored["labels"]
    np.save(tmp_path / "v.npy", features)
    (tmp_path / "v.keys.txt").write_text("".join(f"{key}\n" for key in keys))
    (tmp_path / "labels.csv").write_text(
        "key,label\n" + "".join(f"{k},{y}\n" for k, y in zip(keys, labels, strict=True))
    )
    rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.ravel()), D)
    table = pyarrow.table({"key": keys.tolist(), "embedding": rows, "label": labels.tolist()})
    parquet.write_table(table, tmp_path / "v.parquet")
    np.savez_compressed(tmp_path / "small.npz", **dict(stored))
    fit_head(vectors, tmp_path / "one")
    first = HeadStore(tmp_path / "one").describe().arrays["gram"]
    for name, labeled in (("v.npy", "labels.csv"), ("v.parquet", None), ("small.npz", None)):
        out = tmp_path / f"head-{name}"
        fit_head(tmp_path / name, out, labels=labeled and tmp_path / labeled)
        assert HeadStore(out).describe().arrays["gram"] == first
        delete_rows(out, ["p/11.png"])
        assert check_head(out).passed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keys": np.array(["a"] * N)}, "more than once"),
        ({"embeddings": np.ones((N, 2, 3), np.float32)}, "one vector for each key"),
        ({"embeddings": np.full((N, D), np.nan, np.float32)}, "finite"),
        ({"labels": np.array([""] * N)}, "label|class|empty"),
        ({"labels": np.array(["x"] * (N - 1))}, "labels"),
    ],
)
def test_wrong_embeddings_are_refused(vectors, tmp_path, change, words):
    np.savez(tmp_path / "wrong.npz", **dict(np.load(vectors)) | change)
    with pytest.raises(EffaceError, match=words):
        fit_head(tmp_path / "wrong.npz", tmp_path / "head")
    assert not (tmp_path / "head").exists()


def test_the_verbs(vectors, tmp_path, capsys):
    assert call("heads", "fit", vectors, "--kind", "knn", "--neighbors", 5, "--out", tmp_path / "h", "--json") == 0
    capsys.readouterr()
    (tmp_path / "list.txt").write_text("p/1.png\np/2.png\n")
    assert call("heads", "delete", tmp_path / "h", "--forget", tmp_path / "list.txt", "--json", "--quiet") == 0
    assert json.loads(capsys.readouterr().out)["count"] == 2
    assert call("heads", "show", tmp_path / "h", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["rows"], shown["fitted"], shown["neighbors"]) == (N - 2, N, 5)
    assert call("heads", "predict", tmp_path / "h", vectors) == 0
    lines = capsys.readouterr().out.splitlines()
    labels = dict(zip(np.load(vectors)["keys"].tolist(), np.load(vectors)["labels"].tolist(), strict=True))
    assert np.mean([labels[key] == name for key, name in (line.split("\t") for line in lines)]) > 0.7
    assert call("heads", "fit", vectors, "--out", tmp_path / "h", "--quiet") == 2
    assert call("heads", "fit", vectors, "--kind", "tree", "--out", tmp_path / "t", "--quiet") == 2
    assert call("heads", "show", tmp_path, "--json") == 2
    assert read_forget_list("@keys:a, b") == ["a", "b"]


def test_heads_load_no_torch(vectors, tmp_path):
    code = (
        "import sys; from efface.runs.heads import fit_head, delete_rows, check_head; from pathlib import Path; "
        f"fit_head(Path({str(vectors)!r}), Path({str(tmp_path / 'x')!r})); delete_rows(Path({str(tmp_path / 'x')!r}), "
        "['p/1.png']); assert 'torch' not in sys.modules"
    )
    path = os.pathsep.join([str(Path(efface.__file__).parents[1]), *sys.path])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def test_the_python_class_is_what_the_folder_holds(vectors, tmp_path):
    fit_head(vectors, tmp_path / "knn", HeadSettings("knn", neighbors=3))
    head = load_head(tmp_path / "knn")
    assert isinstance(head, NeighborHead)
    assert head.neighbors == 3
    assert head.features.dtype == np.float32
