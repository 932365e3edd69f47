"""Texts that could list ids: tables, JSON, configurations, and any other file that proves to be text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efface.data.text_files import BYTE_ORDER_MARKS, SEPARATORS, read_text_file, split_lines
from efface.desk.row_keys import read_quietly
from efface.errors import EffaceError

_TABLES = (".csv", ".tsv", ".txt")
_LINES, _RECORDS = (".jsonl", ".ndjson"), (".json", ".geojson", ".ipynb")
"""Suffixes of files of JSON: one on each line, or one altogether."""
_LARGEST_LIST = 64 * 2**20
_FIRST = 2**16
_MARKS = (",", "\t", ";", '"', "'")


def is_text(path: Path) -> bool:
    """Whether a file starts like text: without NUL, or with a byte order mark."""
    with open(path, "rb") as file:
        start = file.read(_FIRST)
    return b"\0" not in start or any(start.startswith(mark) for mark, _, _ in BYTE_ORDER_MARKS)


def listed_words(path: Path) -> set[str]:
    """Everything in a text file that could be an id: lines, cells, texts in JSON.

    Raises:
        EffaceError: It is larger than what is searched, is in an unknown encoding, or is no JSON although it says so.

    """
    if path.stat().st_size > _LARGEST_LIST:
        raise EffaceError(f"It is larger than {_LARGEST_LIST // 2**20} MB.")
    text, _ = read_quietly(path, lambda: read_text_file(path))
    words, kind = divide_text(text), path.suffix.lower()
    if kind in _TABLES:
        words |= set(_cells(text, path))
    for part in split_lines(text) if kind in _LINES else [text] if kind in _RECORDS else ():
        words |= {word for one in _json_texts(part, path) for word in (one, *divide_text(one))}
    return {one for one in words if not any("\ud800" <= letter <= "\udfff" for letter in one)}


def divide_text(text: str) -> set[str]:
    """The lines of a text and the parts between commas, semicolons, tabs and quotation marks."""
    words = set(split_lines(text)) | set(text.splitlines()) if text else set()
    for mark in _MARKS:
        words |= {part for line in tuple(words) if mark in line for part in line.split(mark)}
    return words | {one.strip() for one in words}


def _cells(text: str, path: Path) -> Iterator[str]:
    """The cells of a table, whichever mark separates its columns."""
    for separator in SEPARATORS:
        try:
            for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
                yield from row
                yield from (one.strip() for one in row)
        except csv.Error as error:
            raise EffaceError(f"{path} cannot be read as a table.", "A cell is too long.") from error


def _json_texts(text: str, path: Path) -> Iterator[str]:
    """The texts in JSON, names included, and whole numbers in lists, which a list of ids may have."""
    if not text.strip():
        return
    try:
        left: list[Any] = [json.loads(text)]
    except (ValueError, RecursionError) as error:
        raise EffaceError(f"{path} cannot be read as JSON.", "It is damaged or something else.") from error
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one
            yield from (str(item) for item in one if isinstance(item, int) and not isinstance(item, bool))
        elif isinstance(one, str):
            yield one
