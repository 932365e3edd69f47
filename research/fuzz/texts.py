"""Forget lists and manifests: the examples that they name."""

from __future__ import annotations

import csv
import io
import json
import random
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from research.fuzz import mutations as damage
from research.fuzz.cases import FuzzCase, WrongIdentity
from research.fuzz.mutations import change_bytes

from efface.data.dataset import Data
from efface.data.selectors import resolve_selector
from efface.data.sources import load_manifest

ODD_KEYS = (
    " a00", "a00", "x", "y", "x\u2028y", "v", "w", "v\u0085w", "p\x0bq", "p", "q", "b,c", 'd"e', "1", "01", "1.0", "é",
    "e\u0301", "key", "nan", "-1", "f\tg", "h;i", "@class:0", "\N{GRINNING FACE}", "#c", "true", "null", "z\ufeff", "z",
)  # fmt: skip
"""Ids of which parts, neighbours or other readings are ids too."""


class Lists:
    """Forget lists: .txt, .csv, .json, .jsonl of odd ids in every dialect, whole and with changed bytes."""

    def __init__(self, home: Path) -> None:
        keys = [*ODD_KEYS, *(f"k{i:02d}" for i in range(30))]
        x = np.zeros((len(keys), 1, 4, 4), np.uint8)
        self.data = Data.from_arrays(x, keys=keys, name="odd")

    def make(self, rng: random.Random, folder: Path) -> FuzzCase:
        """Write a list of random ids in a random dialect; damage two of three."""
        kind = rng.choice((".txt", ".csv", ".json", ".jsonl"))
        keys = rng.sample(self.data.keys.tolist(), rng.randint(1, 8))
        content = write_list(rng, kind, keys)
        whole = rng.random() < 0.35
        if not whole:
            content = (damage.change_json if kind == ".json" and rng.random() < 0.5 else change_bytes)(rng, content)
        path = folder / f"list{kind}"
        path.write_bytes(content)

        def check() -> None:
            chosen = resolve_selector(self.data, np.arange(len(self.data)), {}, str(path), 0)
            found = sorted(self.data.keys[chosen.positions].tolist())
            expected = sorted(map(self._as_known, keys if whole else parse_list(kind, content)))
            if found != expected:
                raise WrongIdentity(f"{found} instead of {expected}")

        return FuzzCase(kind, content, check)

    def _as_known(self, key: str) -> str:
        """An id that differs from a known one only in its Unicode form is that one."""
        known = set(self.data.keys.tolist())
        forms = (key, *(unicodedata.normalize(form, key) for form in ("NFC", "NFD")))
        return next((form for form in forms if form in known), key)


def write_list(rng: random.Random, kind: str, keys: list[str]) -> bytes:
    """Write ids as a person's program might: encoding, line ends, separators, quotes, further columns, blank lines."""
    end = rng.choice(("\n", "\r\n"))
    if kind == ".json":
        value: Any = rng.choice((keys, {"keys": keys}, [{"key": key} for key in keys]))
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 1)))
    elif kind == ".jsonl":
        escape = rng.random() < 0.5
        rows = [json.dumps(rng.choice((key, {"key": key, "n": 1})), ensure_ascii=escape) for key in keys]
        text = end.join(rows) + end
    elif kind == ".txt":
        text = end.join(keys) + rng.choice(("", end, end + end))
    else:
        out = io.StringIO()
        quoting = rng.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL))
        writer = csv.writer(out, lineterminator=end, quoting=quoting, delimiter=rng.choice(",,,;\t"))
        several = rng.random() < 0.5
        writer.writerows(
            [["key", "n"], *([key, "1,2"] for key in keys)] if several else [["key"], *([k] for k in keys)]
        )
        text = out.getvalue()
    return text.encode(rng.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-8-sig", "utf-16")))


def parse_list(kind: str, content: bytes) -> list[str]:
    """Read a damaged list plainly; what cannot be read is empty, so that any result but an error is wrong."""
    try:
        text = decode(content)
        if kind in (".json", ".jsonl"):
            lines = [text] if kind == ".json" else [line for line in _lines(text) if line.strip()]
            values = [json.loads(line) for line in lines]
            value = values[0] if kind == ".json" else values
            if isinstance(value, dict):
                value = value["keys"] if "keys" in value else value["key"]
            return [str(item["key"] if isinstance(item, dict) else item) for item in value]
        if kind == ".txt":
            return [line for line in _lines(text) if line.strip()]
        tables = [_rows(text, separator) for separator in ",;\t"]
        rows = next((table for table in tables if table and len(table[0]) > 1 and "key" in table[0]), tables[0])
        header = [cell.strip() for cell in rows[0]]
        return [row[header.index("key")] for row in rows[1:]] if "key" in header else [row[0] for row in rows]
    except (ValueError, KeyError, IndexError, TypeError, csv.Error):
        return []


def decode(content: bytes) -> str:
    """Decode text by its byte-order mark; UTF-8 without one."""
    return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


def _rows(text: str, separator: str) -> list[list[str]]:
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        return [row for row in reader if any(map(str.strip, row))]
    except csv.Error:
        return []


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


class Manifests:
    """Manifests, .csv and .jsonl, of pictures whose gray level tells which one it is."""

    COUNT = 12

    def __init__(self, home: Path) -> None:
        self.pictures = home / "pictures"
        self.pictures.mkdir(parents=True)
        for i in range(self.COUNT):
            Image.new("L", (4, 4), 20 * i).save(self.pictures / f"p{i}.png")

    def make(self, rng: random.Random, folder: Path) -> FuzzCase:
        """Write a manifest with random columns; damage two of three."""
        kind = rng.choice((".csv", ".jsonl"))
        keys = rng.sample(ODD_KEYS, self.COUNT)
        rows = [{"key": key, "path": str(self.pictures / f"p{i}.png")} for i, key in enumerate(keys)]
        for name, values in {
            "label": ("cat", "dog", "", "7"),
            "group": ("u1", "", "u,2"),
            "caption": ("a b", '"'),
        }.items():
            if rng.random() < 0.6:
                rows = [row | {name: rng.choice(values)} for row in rows]
        content = write_manifest(rng, kind, rows)
        whole = rng.random() < 0.3
        if not whole:
            change = damage.change_json_lines if kind == ".jsonl" and rng.random() < 0.6 else change_bytes
            content = change(rng, content)
        table = folder / f"table{kind}"
        table.write_bytes(content)

        def check() -> None:
            data = load_manifest(str(table), cache=str(folder / "cache"), skip_broken=rng.random() < 0.5)
            expected = rows if whole else parse_manifest(kind, content)
            wanted = {_key(row): row for row in expected}
            absent = {item["key"] for item in data.skipped}
            if set(data.keys.tolist()) | absent != set(wanted) or len(wanted) != len(expected):
                raise WrongIdentity(f"keys {data.keys.tolist()} instead of {list(wanted)}")
            for i, key in enumerate(data.keys.tolist()):
                row, gray = wanted[key], int(data.x[i].reshape(-1)[0])
                exact = Path(str(row["path"]))
                named = exact if exact.exists() else Path(str(row["path"]).strip())  # no file is called so: spaces go
                if named.name != f"p{gray // 20}.png" or gray % 20:
                    raise WrongIdentity(f"{key!r} has the pixels of another picture: {gray}")
                label = "" if data.y is None or data.y[i] < 0 else data.classes[data.y[i]]
                if whole and label != row.get("label", ""):
                    raise WrongIdentity(f"{key!r} is {label!r} instead of {row.get('label')!r}")

        return FuzzCase(kind, content, check)


def _key(row: Mapping[str, Any]) -> str:
    """The id of a row; the path where there is none."""
    return str(row.get("key") if row.get("key") is not None else row.get("path"))


def write_manifest(rng: random.Random, kind: str, rows: list[dict[str, str]]) -> bytes:
    """Write rows as a person's program might."""
    if kind == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows).encode()
    out = io.StringIO()
    quoting = rng.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL))
    writer = csv.DictWriter(out, list(rows[0]), lineterminator=rng.choice(("\n", "\r\n")), quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def parse_manifest(kind: str, content: bytes) -> list[dict[str, Any]]:
    """Read a damaged manifest plainly; empty if it cannot be read."""
    try:
        text = decode(content)
        if kind == ".jsonl":
            return [json.loads(line) for line in _lines(text) if line.strip()]
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        # spreadsheets write blank rows as separators alone; white space is as blank
        return [row for row in rows if any(str(cell).strip() for cell in row.values() if cell)]
    except (ValueError, csv.Error):
        return []
