"""Odd forget lists: read exactly, or refused with a reason; never another id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from efface.data.dataset import Data
from efface.data.selectors import resolve_selector
from efface.errors import EffaceError

KEYS = (
    "a.png",
    "A.png",
    "b,c",
    'd"e',
    "1",
    "01",
    "1.0",
    "x y",
    "x",
    "y",
    "é",
    "key",
    "nan",
    "-3",
    "f;g",
    "#h",
    "@all",
    "i\tj",
)
DATA = Data.from_arrays(np.zeros((len(KEYS) + 9, 1, 2, 2), np.uint8), keys=[*KEYS, *(f"k{i}" for i in range(9))])
READ = {
    "one id, no line end": (".txt", b"a.png", ["a.png"]),
    "blank lines": (".txt", b"\n\na.png\n\n\nx\n", ["a.png", "x"]),
    "Windows line ends": (".txt", b"a.png\r\nx\r\n", ["a.png", "x"]),
    "old Mac line ends": (".txt", b"a.png\rx\r", ["a.png", "x"]),
    "byte-order mark": (".txt", b"\xef\xbb\xbfa.png\nx", ["a.png", "x"]),
    "case tells ids apart": (".txt", b"A.png", ["A.png"]),
    "a space inside": (".txt", b"x y", ["x y"]),
    "a comma in text": (".txt", b"b,c", ["b,c"]),
    "a quote in text": (".txt", b'd"e', ['d"e']),
    "numbers that differ as text": (".txt", b"01\n1.0", ["01", "1.0"]),
    "accents": (".txt", "é".encode(), ["é"]),
    "an id called key": (".txt", b"key\nx", ["key", "x"]),
    "an id called nan": (".txt", b"nan", ["nan"]),
    "a negative number": (".txt", b"-3", ["-3"]),
    "a leading hash": (".txt", b"#h", ["#h"]),
    "a leading at": (".txt", b"@all", ["@all"]),
    "another suffix": (".lst", b"a.png\nx", ["a.png", "x"]),
    "upper-case suffix": (".CSV", b'key,n\n"b,c",1\n', ["b,c"]),
    "quoted commas": (".csv", b'key,n\n"b,c",1\nx,2\n', ["b,c", "x"]),
    "doubled quotes": (".csv", b'key,n\n"d""e",1\n', ['d"e']),
    "the column at the end": (".csv", b"n,key\n1,x\n2,y\n", ["x", "y"]),
    "one column without a header": (".csv", b"x\ny\n", ["x", "y"]),
    "numbers in JSON": (".json", b"[1]", ["1"]),
    "text that looks like a number in JSON": (".json", b'["01", "1.0"]', ["01", "1.0"]),
    "escapes in JSON": (".json", b'["\\u00e9", "i\\tj"]', ["é", "i\tj"]),
    "objects in JSON lines": (".jsonl", b'{"key": "x"}\n"y"\n', ["x", "y"]),
}
REFUSED = {
    "nothing": (".txt", b"", "holds no ids"),
    "blank lines only": (".txt", b" \n\n", ""),
    "one id twice": (".txt", b"x\nx\n", "more than once"),
    "an unknown id": (".txt", b"x\nz.png\n", "'z.png'"),
    "no UTF-8": (".txt", "é".encode("latin-1"), ""),
    "fractions in JSON": (".json", b"[1.0]", "1.0 is not an id"),
    "truth in JSON": (".json", b"[true]", "is not an id"),
    "lists in lists": (".json", b'[["x"]]', "is not an id"),
    "a JSON text": (".json", b'"x"', "not a list"),
    "cut JSON": (".json", b'["x", "y', "cannot be read"),
    "other columns": (".csv", b"id,n\nx,1\n", "key"),
    "a short row": (".csv", b"n,key\n1,x\n2\n", ""),
    "an open quote": (".csv", b'key\n"x\n', ""),
    "zero bytes": (".txt", b"x\0y", ""),
}


def chosen(folder: Path, suffix: str, content: bytes) -> list[str]:
    path = folder / f"list{suffix}"
    path.write_bytes(content)
    found = resolve_selector(DATA, np.arange(len(DATA)), {}, str(path), 0)
    return sorted(DATA.keys[found.positions].tolist())


def test_there_are_enough():
    assert len(READ) + len(REFUSED) >= 30


@pytest.mark.parametrize("name", READ)
def test_odd_lists_are_read_exactly(tmp_path, name):
    suffix, content, ids = READ[name]
    assert chosen(tmp_path, suffix, content) == sorted(ids)


@pytest.mark.parametrize("name", REFUSED)
def test_lists_that_may_mean_something_else_are_refused(tmp_path, name):
    suffix, content, said = REFUSED[name]
    with pytest.raises(EffaceError) as caught:
        chosen(tmp_path, suffix, content)
    assert said in str(caught.value)
