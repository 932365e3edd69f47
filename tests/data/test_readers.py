"""Lists and tables: what is written is what is read, in any encoding, with any separator; never a wrong id."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from efface.data import text_files
from efface.data.dataset import Data
from efface.data.selectors import find_keys
from efface.data.sources import load
from efface.data.split import Split, select_forget_set
from efface.data.text_files import as_text, read_list, read_table, read_text_file, split_lines
from efface.errors import EffaceError
from tests.pictures import fails, made, picture, raises

SEPARATING = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
"""Characters at which ``str.splitlines`` cuts, and which do not end a line."""
letters = st.characters(codec="utf-8", exclude_characters="\0\r\n\ufeff")
keys = st.text(st.one_of(letters, st.sampled_from(SEPARATING + ' ,;\t"é\u0301')), min_size=1, max_size=8).filter(
    lambda key: bool(key.strip())
)
lists = st.lists(keys, min_size=1, max_size=6, unique=True)
ends = st.sampled_from(["\n", "\r\n", "\r"])
unhurried = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_csv(rows, separator: str, end: str = "\n") -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(rows)
    return text.getvalue()


@unhurried
@given(some=lists, end=ends, encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]), last=st.booleans())
def test_a_text_list_gives_back_its_lines(tmp_path, some, end, encoding, last):
    path = write(tmp_path, "ids.txt", (end.join(some) + (end if last else "")).encode(encoding))
    assert list(read_list(path).ids) == some


@unhurried
@given(some=lists, end=ends, separator=st.sampled_from([",", ";", "\t"]), suffix=st.sampled_from(["csv", "tsv"]))
def test_a_csv_list_gives_back_its_column(tmp_path, some, end, separator, suffix):
    rows = [("label", "key"), *(("x", key) for key in some)]
    path = write(tmp_path, f"ids.{suffix}", as_csv(rows, separator, end))
    found = read_list(path)
    assert list(found.ids) == some
    usual = "\t" if suffix == "tsv" else ","
    assert (not found.notes) == (separator == usual)  # another separator is stated


@unhurried
@given(some=lists, shape=st.sampled_from(["strings", "objects", "keys"]), ascii_only=st.booleans())
def test_a_json_list_gives_back_its_strings(tmp_path, some, shape, ascii_only):
    content = {"strings": some, "objects": [{"key": key} for key in some], "keys": {"keys": some}}[shape]
    path = write(tmp_path, "ids.json", json.dumps(content, ensure_ascii=ascii_only))
    assert list(read_list(path).ids) == some
    lines = "\n".join(json.dumps(key, ensure_ascii=ascii_only) for key in some)
    assert list(read_list(write(tmp_path, "ids.jsonl", lines)).ids) == some


@unhurried
@given(
    rows=st.lists(st.tuples(keys, st.text(letters, max_size=6)), min_size=1, max_size=5),
    separator=st.sampled_from([",", ";", "\t"]),
    end=ends,
)
def test_a_table_gives_back_its_cells(tmp_path, rows, separator, end):
    path = write(tmp_path, "t.csv", as_csv([("path", "caption"), *rows], separator, end))
    found = read_table(path, "path")
    assert found.columns == ("path", "caption")
    assert [(row["path"], row["caption"]) for row in found.rows] == rows


@unhurried
@given(known=st.lists(keys, min_size=1, max_size=8, unique=True), wanted=lists, mutate=st.sampled_from("nsx"))
def test_never_a_wrong_id(known, wanted, mutate):
    """What is found is equal to what was written, or equal in Unicode's own sense and the only such id."""
    twist = {"n": lambda key: unicodedata.normalize("NFD", key), "s": lambda key: f" {key}", "x": lambda key: key}
    wanted = [*dict.fromkeys([*map(twist[mutate], known[:3]), *wanted])]
    data = Data.from_arrays(np.zeros((len(known), 1, 1, 1), np.uint8), keys=known)
    try:
        positions, _ = find_keys(data, wanted, "it")
    except EffaceError:
        return
    for written, position in zip(wanted, positions, strict=True):
        found = known[position]
        equal = [key for key in known if unicodedata.normalize("NFC", key) == unicodedata.normalize("NFC", written)]
        assert found == written or equal == [found]
    assert len(set(positions.tolist())) == len(wanted)


@unhurried
@given(key=keys, other=keys, side=st.sampled_from(["left", "right", "both"]))
def test_spaces_around_an_id_are_part_of_it(tmp_path, key, other, side):
    key = key.strip()
    assume(key and unicodedata.normalize("NFC", key) != unicodedata.normalize("NFC", other))
    spaced = {"left": f" {key}", "right": f"{key} ", "both": f" {key} "}[side]
    data = Data.from_arrays(np.zeros((2, 1, 1, 1), np.uint8), keys=[key, other])
    assume(spaced != other)
    raises(lambda: find_keys(data, read_list(write(tmp_path, "l.txt", spaced)).ids, "l.txt"), "U+0020", "ids exactly")


@given(text=st.text(max_size=30))
def test_lines_end_in_three_ways_only(text):
    joined = "\n".join(split_lines(text))
    assert joined.rstrip("\n") == text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


@given(text=st.text(max_size=20).filter(lambda text: "\0" not in text and text.isprintable()))
def test_bytes_become_text(text):
    assert as_text(text.encode()) == as_text(np.bytes_(text.encode())) == as_text(text) == text


def two(tmp_path) -> Path:
    for number, name in enumerate("ab"):
        picture(tmp_path / f"{name}.png", number)
    return tmp_path


@pytest.mark.parametrize("split_at", list(SEPARATING))
def test_a_manifest_is_not_cut_inside_a_cell(tmp_path, split_at):
    two(tmp_path)
    text = f"path,caption\na.png,one{split_at}two\nb.png,three\n"
    assert load(str(write(tmp_path, "m.csv", text))).text == (f"one{split_at}two", "three")
    shown = split_at if split_at.isspace() and split_at > "~" else " "  # control characters are escaped in JSON
    lines = f'{{"path": "a.png", "caption": "one{shown}two"}}\n{{"path": "b.png"}}'
    assert len(load(str(write(tmp_path, "m.jsonl", lines)))) == 2


def test_separators_of_a_manifest(tmp_path):
    two(tmp_path)
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        text = as_csv([("path", "label", "caption"), ("a.png", "x", "1,5"), ("b.png", "y", "2,5")], separator)
        data = load(str(write(tmp_path, "m.csv", text)))
        assert data.text == ("1,5", "2,5") and word in data.notes[0]
    assert load(str(write(tmp_path, "m.tsv", "path\tlabel\na.png\tx\n"))).notes == ()
    assert load(str(write(tmp_path, "m.csv", "sep=;\npath;label\na.png;x\n"))).classes == ("x",)
    fails(write(tmp_path, "m.csv", "path;path,path\na.png;b\n"), "commas or by semicolons")
    fails(write(tmp_path, "m.csv", "path,path\na.png,b\n"), "'path' is there more than once")


def test_encodings(tmp_path):
    two(tmp_path)
    text = "path,label\na.png,caf\xe9\nb.png,x\n"
    assert load(str(write(tmp_path, "m.csv", text.encode("utf-16")))).classes == ("caf\xe9", "x")
    latin = write(tmp_path, "m.csv", text.encode("cp1252"))
    fails(latin, "0xE9 in line 2", "'a.png,caf\xe9'", "iconv -f CP1252")
    assert load(str(latin), encoding="cp1252").classes == ("caf\xe9", "x")
    fails(latin, "no encoding 'cp12'", encoding="cp12")
    fails(latin, "is not ascii", encoding="ascii")
    fails(write(tmp_path, "m.csv", text.encode("utf-16-le")), "NUL", "UTF-16LE")
    fails(write(tmp_path, "m.csv", b"path,label\na.png,x\0\n"), "NUL")
    raises(lambda: read_text_file(Path("/dev/zero")), "too large")


def select(data: Data, path: Path):
    split = Split(retain=np.arange(len(data) - 4), holdout=np.arange(len(data) - 4, len(data)))
    return select_forget_set(split, data, str(path))


def test_lists_that_could_mean_something_else(tmp_path):
    data = made(12, classes=2, keys=["key", "a;b", "a,b", "a", *(f"k{i}" for i in range(8))])
    raises(lambda: select(data, write(tmp_path, "l.csv", "key\na\n")), "both the name of the column and an id")
    assert select(data, write(tmp_path, "l.txt", "key\na\n")).forget.tolist() == [0, 3]
    assert select(data, write(tmp_path, "l.csv", "a;b\n")).forget.tolist() == [1]
    raises(lambda: select(data, write(tmp_path, "l.csv", "key,x\na,b,x\n")), "Row 2 has 3 columns", "quotation")
    raises(lambda: select(data, write(tmp_path, "l.csv", "id;x\nk1;x\n")), "'key'", "semicolons", "id, x")
    raises(lambda: select(data, write(tmp_path, "l.csv", "x,key\ny,\n")), "no key")
    raises(lambda: select(data, write(tmp_path, "l.json", '[{"key": "a", "key": "k1"}]')), "'key' is there twice")
    raises(lambda: select(data, write(tmp_path, "l.json", "[" * 100_000)), "nested too deeply")
    raises(lambda: select(data, write(tmp_path, "l.json", "[" + "1" * 5000 + "]")), "cannot be read")
    raises(lambda: select(data, write(tmp_path, "l.json", '[""]')), "empty")
    raises(lambda: select(data, write(tmp_path, "l.txt", "\ufeffa\n\ufeffk1\n")), "U+FEFF")
    raises(lambda: select(data, write(tmp_path, "l.txt", "K1\n")), "U+004B", "U+006B")


def test_unicode_forms(tmp_path):
    composed, split_form = "caf\xe9", "cafe\u0301"
    data = made(12, classes=2, keys=[composed, *(f"k{i}" for i in range(11))])
    result = select(data, write(tmp_path, "l.txt", split_form))
    assert result.forget.tolist() == [0]
    (note,) = result.provenance["resolved"]["notes"]
    assert "U+0065 U+0301" in note and "U+00E9" in note
    raises(lambda: select(data, write(tmp_path, "l.txt", f"{split_form}\n{composed}")), "more than once")
    both = made(12, classes=2, keys=[composed, split_form, *(f"k{i}" for i in range(10))])
    exact = select(both, write(tmp_path, "l.txt", split_form))
    assert exact.forget.tolist() == [1] and "twin" in exact.provenance["resolved"]["notes"][0]
    three = made(12, classes=2, keys=["\u1e69", "s\u0323\u0307", *(f"k{i}" for i in range(10))])
    raises(lambda: select(three, write(tmp_path, "l.txt", "s\u0307\u0323")), "1 of 1 ids", "U+0307")
    stored = Split(forget=np.array([0]), retain=np.arange(1, 12)).to_dict(made(12, classes=0, keys=[
        split_form, *(f"k{i}" for i in range(11))]))  # fmt: skip
    raises(lambda: Split.from_dict(data, stored), "does not fit", "U+0065 U+0301")


def test_columns_are_mapped_or_said_to_be_unused(tmp_path):
    two(tmp_path)
    table = write(tmp_path, "m.csv", "file,category,user\na.png,x,u1\nb.png,y,u2\n")
    fails(table, "no column 'path'", "data.columns.path")
    data = load(str(table), columns={"path": "file", "label": "category", "group": "user"})
    assert data.classes == ("x", "y") and data.group is not None and data.group.tolist() == ["u1", "u2"]
    assert data.keys.tolist() == ["a.png", "b.png"]
    plain = load(str(table), columns={"path": "file"})
    assert plain.y is None and "'category', 'user'" in plain.notes[0]
    fails(table, "'lable'", "Did you mean 'label'", columns={"path": "file", "lable": "category"})
    fails(table, "'kategory'", "no such column", columns={"path": "file", "label": "kategory"})
    fails(table, "data.columns cannot be", columns="file")
    misspelt = write(tmp_path, "n.csv", "path,captoin\na.png,x\n")
    fails(misspelt, "'captoin'", "data.columns.caption")
    assert load(str(misspelt), columns={"caption": "captoin"}).text == ("x",)


def test_labels_that_stand_for_none(tmp_path):
    two(tmp_path)
    for value in ("-1", "nan", "NaN", "-1.0"):
        table = write(tmp_path, "m.csv", f"path,label\na.png,{value}\nb.png,0\n")
        fails(table, f"'{value}'", f"data.unknown={value}")
        data = load(str(table), unknown=float(value) if "1" in value else [value])
        assert data.classes == ("0",) and data.y is not None and data.y.tolist() == [-1, 0]


def test_spaces_in_a_manifest_belong_to_keys_and_not_to_labels(tmp_path):
    two(tmp_path)
    (tmp_path / " c.png").write_bytes((tmp_path / "a.png").read_bytes())
    text = "key,path,label,group\n a,a.png, x,u1\nb, b.png,x ,u1 \nc, c.png,x,u1\n"
    data = load(str(write(tmp_path, "m.csv", text)))
    assert data.keys.tolist() == [" a", "b", "c"] and data.classes == ("x",)
    assert data.group is not None and set(data.group) == {"u1"}


def test_paths_in_another_unicode_form_are_found(tmp_path):
    two(tmp_path)
    (tmp_path / "cafe\u0301").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "cafe\u0301" / "a.png")
    data = load(str(write(tmp_path, "m.csv", "path\n./caf\xe9/a.png\nb.png\n")))
    assert data.keys.tolist() == ["./caf\xe9/a.png", "b.png"] and "1 paths of m.csv" in data.notes[0]
    assert load(str(write(tmp_path, "m.csv", "path\n./cafe\u0301/a.png\nb.png\n"))).notes == ()
    fails(write(tmp_path, "m.csv", "path\n./caff\xe9/a.png\nb.png\n"), "no such file")


def test_arrays_of_bytes_and_of_nothing():
    x = np.zeros((3, 1, 2, 2), np.uint8)
    data = Data.from_arrays(
        x, [b"cat", b"", b"dog"], np.array([b"a", b"b", b"caf\xc3\xa9"]), group=[b"u", None, float("nan")],
        text=[b"\xc3\xa9", None, "x"],
    )  # fmt: skip
    assert data.keys.tolist() == ["a", "b", "caf\xe9"] and data.classes == ("cat", "dog")
    assert data.group is not None and data.group.tolist() == ["u", "", ""] and data.text == ("\xe9", "", "x")
    with pytest.raises(EffaceError, match="UTF-8"):
        Data.from_arrays(x, keys=[b"\xff", b"a", b"b"])
    with pytest.raises(EffaceError, match="NUL"):
        Data.from_arrays(x, keys=["a\0", "b", "c"])
    with pytest.raises(EffaceError, match=r"12\.0 is the id 12"):
        Data.from_arrays(x, keys=np.array([1.0, 2.0, 3.0]))
    with pytest.raises(EffaceError, match="written as text"):
        Data.from_arrays(x, keys=["a", "b", " "])


def test_a_file_that_memory_cannot_hold_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "free_memory", lambda: 2**10)
    path = write(tmp_path, "l.txt", "a\n" * 2**20)
    raises(lambda: read_list(path), "too large", "of memory are free")


@pytest.mark.parametrize("text", [r'{"path": "a\u0000", "key": "x"}', r'{"path": "a", "key": "\ud800"}'])
def test_characters_that_no_array_keeps_are_refused_by_line(tmp_path, text):
    """NumPy drops NUL at the end of text, so that another id would be read; half of a character is no file's name."""
    path = tmp_path / "list.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match="Line 1: It contains NUL characters or halves"):
        read_table(path, "path")


def test_a_backslash_in_text_is_no_such_character(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text(r'{"path": "a\\u0000", "key": "x"}' + "\n")
    assert read_table(path, "path").rows


@pytest.mark.parametrize("path", ["香" * 300, " " + "x" * 400, "~nobody-of-this-name/x.png", "/".join(["é"] * 3000)])
def test_a_path_that_no_file_system_holds(tmp_path, path):
    table = tmp_path / "manifest.jsonl"
    table.write_text(json.dumps({"key": "a", "path": path}) + "\n", encoding="utf-8")
    with pytest.raises(EffaceError, match=r"Item 1 of .* has a path that cannot be used"):
        load(str(table), size=8)


@pytest.mark.parametrize("options", [{"skip_broken": True}, {"limit": 2}, {}])
def test_a_key_that_is_there_twice_is_refused_though_one_is_left_out(tmp_path, options):
    """The second picture of the name is broken, or not drawn: it is still unclear which one is meant."""
    for name in ("a", "b", "c"):
        Image.new("L", (8, 8), 200).save(tmp_path / f"{name}.png")
    rows = [{"key": "x", "path": "a.png"}, {"key": "x", "path": "gone.png"}]
    rows += [{"key": str(n), "path": f"{n}.png"} for n in ("b", "c")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(EffaceError, match=r"1 keys of m\.jsonl are used more than once: 'x'"):
        load(str(tmp_path / "m.jsonl"), size=8, **options)
