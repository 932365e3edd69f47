"""Vectors of the forgotten leave FAISS indexes: all of them, nobody else's, and also if the process is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from efface.desk.forgotten import ForgottenIds
from efface.desk.keyed_rows import drop_keyed, index_ids, keyed_ids
from efface.desk.remains import erase_remains, find_in_place
from efface.errors import EffaceError

faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")

NAMES = ["a", "b", "c", "d", "e", "f"]
LEFT = ["a", "c", "e", "f"]
ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


@pytest.fixture
def forgotten():
    return ForgottenIds(b"k" * 32, ["b", "d", "missing"], [])


def make_index(kind, numbers=None):
    """An index of the rows; ``numbers`` are their own, if it has any."""
    flat = faiss.IndexFlatL2(4)
    inverted = faiss.IndexIVFFlat(flat, 4, 2)
    turned = faiss.IndexPreTransform(faiss.RandomRotationMatrix(4, 4), faiss.IndexIVFFlat(faiss.IndexFlatL2(4), 4, 2))
    made = {
        "flat": flat, "coded": faiss.index_factory(4, "SQ8"), "inverted": inverted, "turned": turned,
        "numbered": faiss.IndexIDMap2(faiss.IndexFlatIP(4)), "mapped": faiss.IndexIDMap(faiss.IndexFlatIP(4)),
    }[kind]  # fmt: skip
    made.train(ROWS)
    if numbers is None:
        made.add(ROWS)
    else:
        made.add_with_ids(ROWS, np.array(numbers))
    return made


def place(folder, index, names=NAMES, numbers=None, suffix=""):
    path = folder / "people.faiss"
    faiss.write_index(index, str(path))
    if numbers is None:
        (folder / f"people.keys{suffix or '.txt'}").write_text("".join(f"{one}\n" for one in names))
    else:
        lines = ["key,id", *(f"{name},{number}" for name, number in zip(names, numbers, strict=True))]
        (folder / f"people.keys{suffix or '.csv'}").write_text("\n".join(lines) + "\n")
    return path


KINDS = {
    "flat": ("flat", None, None),
    "coded": ("coded", None, None),
    "flat with its order as numbers": ("flat", None, [3, 0, 5, 1, 2, 4]),
    "numbered": ("numbered", [10, 11, 12, 13, 14, 15], [10, 11, 12, 13, 14, 15]),
    "numbered in another order": ("mapped", [5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0]),
    "numbered in order, in lines": ("mapped", [0, 1, 2, 3, 4, 5], None),
    "numbered by hashes": ("numbered", [2**62 + one for one in range(6)], [2**62 + one for one in range(6)]),
    "inverted": ("inverted", None, None),
    "inverted with own numbers": ("inverted", [70, 60, 50, 40, 30, 20], [70, 60, 50, 40, 30, 20]),
    "turned": ("turned", None, None),
}


@pytest.mark.parametrize(("kind", "own", "listed"), KINDS.values(), ids=KINDS)
def test_vectors_of_the_forgotten_leave_an_index(tmp_path, forgotten, kind, own, listed):
    names = NAMES if listed is None or own is not None else [NAMES[one] for one in listed]
    path = place(tmp_path, make_index(kind, own), names, listed)
    assert drop_keyed(path, forgotten) == 2
    numbers, found = index_ids(path), faiss.read_index(str(path))
    assert sorted(numbers) == LEFT and found.ntotal == 4 and len(keyed_ids(path)) == 4
    if kind in ("inverted", "turned"):
        faiss.extract_index_ivf(found).nprobe = 2
    for name in NAMES:
        row = ROWS[NAMES.index(name)]
        _, nearest = found.search(row[None], 4)
        if name in numbers and kind not in ("numbered", "mapped"):
            assert nearest[0, 0] == numbers[name][0]
        assert set(nearest[0].tolist()) <= {*chain(*numbers.values()), -1}
    for name in LEFT if kind in ("flat", "numbered") else ():
        assert np.array_equal(found.reconstruct(numbers[name][0]), ROWS[NAMES.index(name)]), "it is still theirs"
    assert drop_keyed(path, forgotten) == 0
    assert list(find_in_place(tmp_path, forgotten, remove=False)) == []


@pytest.mark.parametrize(("kind", "own"), [("flat", None), ("numbered", range(10, 16)), ("inverted", None)])
def test_all_vectors_of_an_id_go(tmp_path, kind, own):
    names = ["a", "anna", "b", "anna", "c", "anna"]
    path, ids = place(tmp_path, make_index(kind, own), names, own), ForgottenIds(b"k" * 32, ["anna"], ())
    assert sum(map(len, index_ids(path).values())) == 6 and len(index_ids(path)["anna"]) == 3
    [found] = find_in_place(tmp_path, ids, remove=False)
    assert erase_remains(found, ids).outcome == "rewritten"
    assert sorted(index_ids(path)) == ["a", "b", "c"] and faiss.read_index(str(path)).ntotal == 3
    assert list(find_in_place(tmp_path, ids, remove=False)) == []


def test_several_vectors_of_one_number_go(tmp_path, forgotten):
    own = [7, 8, 9, 8, 5, 4]
    path = place(tmp_path, make_index("mapped", own), ["a", "b", "c", "b", "e", "f"], own)
    assert drop_keyed(path, forgotten) == 2 and sorted(index_ids(path)) == LEFT


REFUSED = {
    "own numbers, keys in lines": ("numbered", [2, 1, 0, 3, 4, 5], NAMES, None),
    "high numbers, keys in lines": ("numbered", range(7, 13), NAMES, None),
    "an inverted file with own numbers": ("inverted", range(7, 13), NAMES, None),
    "a line too many": ("flat", None, [*NAMES, "g"], None),
    "a line too few": ("flat", None, NAMES[:5], None),
    "as many lines less as are forgotten": ("flat", None, ["a", "b", "c", "d"], None),
    "another number": ("numbered", range(10, 16), NAMES, range(11, 17)),
    "a number is missing": ("numbered", range(10, 16), NAMES[:5], range(10, 15)),
    "a number twice": ("numbered", range(10, 16), NAMES, [10, 11, 12, 13, 14, 14]),
    "two keys of one number": ("mapped", [7, 7, 8, 9, 5, 4], NAMES, [7, 7, 8, 9, 5, 4]),
    "numbers that are no order": ("flat", None, NAMES, range(1, 7)),
    "too large numbers": ("numbered", range(10, 16), NAMES, [10, 11, 12, 13, 14, 2**63]),
    "no numbers": ("numbered", range(10, 16), NAMES, ["x", "1.0", "1_0", "", "2", "3"]),
}


@pytest.mark.parametrize(("kind", "own", "names", "listed"), REFUSED.values(), ids=REFUSED)
def test_an_index_whose_keys_do_not_fit_is_refused_and_stays(tmp_path, forgotten, kind, own, names, listed):
    path = place(tmp_path, make_index(kind, own), names, listed)
    before = {one: one.read_bytes() for one in tmp_path.iterdir()}
    for _ in range(2):
        with pytest.raises(EffaceError):
            drop_keyed(path, forgotten)
    assert {one: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_a_vector_without_a_key_is_named_though_no_key_is_forgotten(tmp_path, forgotten):
    place(tmp_path, make_index("flat"), ["a", "c", "e", "f", "g"])
    [found] = find_in_place(tmp_path, forgotten, remove=False)
    assert found.action == "list" and "6 vectors" in found.detail


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_keys_and_numbers_are_read_as_everywhere(tmp_path, forgotten, encoding):
    path = place(tmp_path, make_index("numbered", range(10, 16)), NAMES, range(10, 16))
    keys = tmp_path / "people.keys.csv"
    text = keys.read_text().replace("key,id", "id,key,who")
    lines = [",".join([*reversed(one.split(",")), "x"]) for one in text.splitlines()[1:]]
    keys.write_bytes("\n".join(["id,key,who", *lines, "", ""]).encode(encoding))
    assert drop_keyed(path, forgotten) == 2 and index_ids(path) == {"a": [10], "c": [12], "e": [14], "f": [15]}
    assert keys.read_text().splitlines()[:2] == ["id,key,who", "10,a,x"]


def test_an_index_that_cannot_remove_is_named(tmp_path, forgotten):
    path, graph = tmp_path / "people.faiss", faiss.IndexHNSWFlat(4, 4)
    graph.add(ROWS)
    place(tmp_path, graph)
    with pytest.raises(EffaceError, match="no vector can be removed"):
        drop_keyed(path, forgotten)
    (tmp_path / "people.keys.txt").unlink()
    with pytest.raises(EffaceError, match="Nothing says whose vectors"):
        drop_keyed(path, forgotten)


def test_an_index_that_loses_who_is_who_is_refused(tmp_path, forgotten):
    index = faiss.IndexIDMap(faiss.IndexIVFFlat(faiss.IndexFlatL2(4), 4, 2))
    index.train(ROWS)
    index.add_with_ids(ROWS, np.arange(10, 16))
    path = place(tmp_path, index, NAMES, range(10, 16))
    before = path.read_bytes()
    with pytest.raises(EffaceError):
        drop_keyed(path, forgotten)
    assert path.read_bytes() == before


def test_an_array_and_an_index_that_share_their_keys_go_together(tmp_path, forgotten):
    path = place(tmp_path, make_index("inverted"))
    np.save(tmp_path / "people.npy", ROWS)
    erased = [erase_remains(one, forgotten) for one in list(find_in_place(tmp_path, forgotten, remove=False))]
    assert {(one.kind, one.outcome) for one in erased} == {("index", "rewritten"), ("vectors", "rewritten")}
    assert keyed_ids(path) == keyed_ids(tmp_path / "people.npy") == LEFT
    assert np.array_equal(np.load(tmp_path / "people.npy"), ROWS[[0, 2, 4, 5]])
    assert list(find_in_place(tmp_path, forgotten, remove=False)) == []


def test_a_file_of_keys_beside_nothing_is_a_list(tmp_path, forgotten):
    (tmp_path / "gone.keys.txt").write_text("a\nb\n")
    np.save(tmp_path / "lost.keys.npy", np.array(["d", "e"]))
    found = list(find_in_place(tmp_path, forgotten, remove=False))
    assert [(one.kind, one.count) for one in found] == [("list of ids", 1), ("list of ids", 1)]


# ---- cuts ----


class CutError(BaseException):
    """What ends a call as a kill would."""


def cut_at(monkeypatch, folder, number):
    """Let the ``number``-th change to files in a folder end the call before it is made."""
    made = 0

    def wrap(name):
        real = getattr(Path, name)

        def change(path, *rest, **more):
            nonlocal made
            made += path.parent == folder or path.parent.parent == folder
            if made == number:
                raise CutError
            return real(path, *rest, **more)

        monkeypatch.setattr(Path, name, change)

    for name in ("rename", "replace", "unlink", "rmdir"):
        wrap(name)


@pytest.mark.parametrize("kind", ["flat", "inverted"])
def test_the_next_call_finishes_what_was_cut(tmp_path, forgotten, kind, monkeypatch):
    for number in range(1, 20):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = place(folder, make_index(kind))
        np.save(folder / "people.npy", ROWS)
        with monkeypatch.context() as patched:
            cut_at(patched, folder, number)
            try:
                drop_keyed(path, forgotten)
                cut = False
            except CutError:
                cut = True
        assert sorted(keyed_ids(path)) in (NAMES, LEFT)
        before = {one: one.read_bytes() for one in folder.rglob("*") if one.is_file()}
        found = list(find_in_place(folder, forgotten, remove=False))
        assert {one: one.read_bytes() for one in before} == before, "searching changes nothing"
        assert all(one.action == "rewrite" for one in found)
        for one in found:
            assert erase_remains(one, forgotten).outcome == "rewritten"
        assert drop_keyed(path, forgotten) == 0
        left = {one.name for one in folder.iterdir() if not one.name.endswith(".lock")}
        assert left == {"people.faiss", "people.npy", f"people.keys.{'csv' if kind == 'inverted' else 'txt'}"}
        assert sorted(index_ids(path)) == LEFT and faiss.read_index(str(path)).ntotal == 4
        assert np.array_equal(np.load(folder / "people.npy"), ROWS[[0, 2, 4, 5]])
        if not cut:
            return
    raise AssertionError("there were more changes than were tried")


def test_what_was_cut_before_it_was_complete_is_begun_again(tmp_path, forgotten):
    path = place(tmp_path, make_index("flat"))
    half = tmp_path / ".people.erasing.tmp"
    half.mkdir()
    (half / "people.faiss").write_bytes(b"half")
    assert keyed_ids(path) == NAMES
    assert drop_keyed(path, forgotten) == 2 and keyed_ids(path) == LEFT and not half.exists()


def test_a_process_that_is_killed_is_finished_by_another(tmp_path, forgotten):
    path = place(tmp_path, make_index("flat"))
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom efface.desk.forgotten import ForgottenIds\n"
        "from efface.desk.keyed_rows import drop_keyed\n"
        "Path.replace = lambda *words: os.kill(os.getpid(), 9)\n"
        "drop_keyed(Path(sys.argv[1]), ForgottenIds(b'k' * 32, ['b', 'd'], []))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", script, path], env=environment, timeout=120, check=False)
    assert ended.returncode == -9 and (tmp_path / ".people.erasing").is_dir()
    [found] = find_in_place(tmp_path, forgotten, remove=False)
    assert erase_remains(found, forgotten).outcome == "rewritten"
    assert keyed_ids(path) == LEFT and faiss.read_index(str(path)).ntotal == 4
