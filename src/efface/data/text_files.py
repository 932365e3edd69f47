"""Read lists of ids and tables by one set of rules. NumPy only.

Encoding: UTF-8 (with or without a byte order mark), UTF-16 and UTF-32 with one; others only if they are named. Lines
end with LF, CR LF or CR and nothing else: U+2028, U+0085 or a vertical tab are part of the text. The columns of a .csv
are separated by what its header is separated by: commas, semicolons or tabs. Spaces are part of an id.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.array_files import free_memory
from efface.errors import EffaceError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""What can separate the columns of a table."""
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
"""How a file starts, the codec that reads it, and the name of the encoding; UTF-32 before UTF-16, which it contains."""
_LINE_END = re.compile(r"\r\n|\n|\r")
_EXCEL_HINT = re.compile(r'\A"?sep=([,;\t])"?(?:\r\n|\n|\r)', re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """The rows of a table."""

    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    """Column to value for each row: text in a .csv, any JSON value in a .jsonl."""
    notes: tuple[str, ...] = ()
    """How the file was read, where that is not obvious."""


@dataclass(frozen=True)
class IdList:
    """The ids that a file lists, exactly as they are written there."""

    ids: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """How the file was read, where that is not obvious."""


def read_list(path: Path, column: str = "key", known: Collection[str] = ()) -> IdList:
    """Read a list of ids.

    Args:
        path: A text file with one id on each line; a .csv or .tsv with the named column or a single column; or a .json
            or .jsonl of strings, or of objects with that name. Lines that are blank are left out.
        column: Name of the column.
        known: The ids that exist; if the name of the column is one of them, a first line with it is refused.

    Raises:
        EffaceError: The content cannot be read as a list of ids.
        OSError: The file cannot be opened.

    """
    text, notes = read_text_file(path)
    suffix = path.suffix.lower()
    parsers: dict[str, Callable[[], list[str]]] = {
        ".json": lambda: _json_ids(_load_json(text), column),
        ".jsonl": lambda: [_json_id(item, column) for _, item in _json_lines(text)],
        ".csv": lambda: _table_ids(text, suffix, column, known, notes, path.name),
    }
    parsers[".tsv"] = parsers[".csv"]
    try:
        ids = parsers.get(suffix, lambda: [line for line in split_lines(text) if line.strip()])()
    except (ValueError, csv.Error) as error:
        raise EffaceError(
            f"{path} cannot be read as a list of ids.",
            str(error),
            f"Write one id on each line (.txt), a column named {column} (.csv), or a list of strings (.json).",
        ) from error
    return IdList(tuple(ids), tuple(notes))


def read_table(path: Path, wanted: str, encoding: str | None = None) -> Table:
    """Read a table: a .csv or .tsv with a header, or a .jsonl with an object on each line.

    Args:
        path: The file.
        wanted: A column that the table must have; it tells what separates the columns.
        encoding: The encoding; by default UTF-8, or what a byte order mark says.

    Raises:
        EffaceError: The encoding is unknown or another one.
        ValueError: The content is not a table.
        OSError: The file cannot be opened.

    """
    text, notes = read_text_file(path, encoding)
    if path.suffix.lower() == ".jsonl":
        rows: list[dict[str, Any]] = []
        for number, item in _json_lines(text):
            if not isinstance(item, dict):
                raise ValueError(f"Line {number} holds a {type(item).__name__}, not an object.")  # noqa: TRY004
            rows.append(item)
        return Table(tuple(dict.fromkeys(name for row in rows for name in row)), tuple(rows), tuple(notes))
    lines = _records(text, _choose_separator(text, path.suffix.lower(), wanted, notes, path.name))
    if not lines:
        return Table((), (), tuple(notes))
    header = _check_header(lines[0][1])
    rows = [dict(zip(header, _check_width(number, cells, header), strict=True)) for number, cells in lines[1:]]
    return Table(tuple(header), tuple(rows), tuple(notes))


def read_text_file(path: Path, encoding: str | None = None) -> tuple[str, list[str]]:
    """Read a text file and return the text, and notes on its encoding.

    Raises:
        EffaceError: It is not text in the encoding, or larger than the memory allows.
        OSError: It cannot be opened.

    """
    limit = max(2**20, free_memory() // 16)
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise EffaceError(
            f"{path} is too large to be read as text.",
            f"It has more than {limit / 2**20:.0f} MB, and {free_memory() / 2**30:.1f} GB of memory are free.",
            "Check that this is the file you mean, or divide it.",
        )
    marked = encoding or any(content.startswith(mark) for mark, _, _ in BYTE_ORDER_MARKS[1:])
    text, name = _decode(content, path, encoding) if marked or b"\0" not in content else ("\0", "")
    if "\0" in text:
        raise EffaceError(
            f"{path} is not a text file.",
            "It contains NUL characters: it may be UTF-16 without a byte order mark, or no text at all.",
            _convert_line(path, "UTF-16LE"),
        )
    return text, [] if name == "UTF-8" else [f"{path.name} was read as {name}."]


def split_lines(text: str) -> list[str]:
    """Split text where a line ends: at LF, CR LF or CR, and nowhere else."""
    lines = _LINE_END.split(text)
    return lines if lines[-1] else lines[:-1]


def as_text(value: Any) -> str:
    """Convert a value to text: bytes are UTF-8, and None or NaN, which stand for nothing, become an empty text.

    Raises:
        ValueError: Bytes are not UTF-8, or the text contains a NUL character.

    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            text = bytes(value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{bytes(value)[:40]!r} is not UTF-8.") from error
    elif value is None or (isinstance(value, float) and value != value):
        text = ""
    else:
        text = str(value)
    if "\0" in text:
        raise ValueError(f"{text[:40]!r} contains a NUL character.")
    return text


def as_texts(values: Iterable[Any], field: str, name: str) -> list[str]:
    """Convert values to text; see :func:`as_text`; keys are never numbers with a fraction."""
    found: list[str] = []
    for value in values:
        if field == "keys" and isinstance(value, (float, np.floating)):
            raise EffaceError(
                f"The keys of {name} are numbers such as {value}.",
                "Whether 12.0 is the id 12 must not be guessed.",
                "Give whole numbers or text: keys.astype(int).",
            )
        try:
            found.append(as_text(value))
        except ValueError as error:
            raise EffaceError(
                f"The {field} of {name} cannot be read as text.", str(error), "Give text, or bytes in UTF-8."
            ) from error
    return found


def _decode(content: bytes, path: Path, encoding: str | None) -> tuple[str, str]:
    """Decode a file, and name its encoding."""
    codec, name = (encoding, encoding) if encoding else ("utf-8", "UTF-8")
    for mark, marked_codec, marked in BYTE_ORDER_MARKS:
        if content.startswith(mark) and (encoding is None or marked == "UTF-8"):
            codec, name = (marked_codec, marked) if encoding is None or _is_utf8(encoding) else (codec, name)
            break
    try:
        return content.decode(codec), "UTF-8" if encoding and _is_utf8(encoding) else name
    except LookupError:
        raise EffaceError(
            f"There is no encoding '{encoding}'.", remedy="Use a name such as utf-8, utf-16 or cp1252."
        ) from None
    except UnicodeError as error:
        if encoding or name != "UTF-8":
            raise EffaceError(f"{path} is not {name}.", str(error), "Save it as UTF-8.") from error
        place = getattr(error, "start", 0)
        number = len(split_lines(content[:place].decode("utf-8", "replace") + "x"))
        line = re.split(rb"\r\n|\n|\r", content)[number - 1][:60]
        raise EffaceError(
            f"{path} is not UTF-8: byte 0x{content[place]:02X} in line {number} is not valid.",
            f"In Windows-1252 (cp1252) that line would read '{line.decode('cp1252', 'replace')}', but which encoding "
            "it is cannot be told from the file.",
            _convert_line(path, "CP1252"),
        ) from error


def _is_utf8(encoding: str) -> bool:
    try:
        return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
    except LookupError:
        return False


def _convert_line(path: Path, encoding: str) -> str:
    return (
        f"If it is {encoding}: iconv -f {encoding} -t UTF-8 '{path}' > '{path.with_name('utf8-' + path.name)}'"
        "   (Excel: save as 'CSV UTF-8')."
    )


def _records(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """Parse a .csv into numbered rows without those in which all cells are blank."""
    text = _EXCEL_HINT.sub("", text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    return [(number, row) for number, row in enumerate(reader, 1) if any(cell.strip() for cell in row)]


def _choose_separator(text: str, suffix: str, wanted: str, notes: list[str], name: str) -> str:
    """Choose what separates the columns: the one that makes ``wanted`` one of several columns of the header."""
    heads = {separator: _header(text, separator) for separator in SEPARATORS}
    hint = _EXCEL_HINT.match(text)
    fitting = [hint[1]] if hint else [sep for sep, head in heads.items() if len(head) > 1 and wanted in head]
    if len(fitting) > 1:
        raise ValueError(
            f"Its header can be separated by {' or by '.join(SEPARATORS[sep] for sep in fitting)}: "
            f"{', '.join(heads[fitting[0]])}."
        )
    usual = "\t" if suffix == ".tsv" else ","
    chosen = fitting[0] if fitting else usual
    if chosen != usual:
        notes.append(f"{name} was read with {SEPARATORS[chosen]} between its columns.")
    return chosen


def _header(text: str, separator: str) -> list[str]:
    """Parse the first row that is not blank; empty if it is not valid with this separator."""
    try:
        reader = csv.reader(io.StringIO(_EXCEL_HINT.sub("", text), newline=""), delimiter=separator, strict=True)
        return next((row for row in reader if any(cell.strip() for cell in row)), [])
    except csv.Error:
        return []


def _check_header(header: list[str]) -> list[str]:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(f"The column '{repeated[0]}' is there more than once.")
    return header


def _check_width(number: int, cells: list[str], header: Sequence[str]) -> list[str]:
    if len(cells) != len(header):
        raise ValueError(
            f"Row {number} has {len(cells)} columns and the header has {len(header)}: {', '.join(header)}. A cell that "
            'contains the separator must be in "quotation marks".'
        )
    return cells


def _table_ids(text: str, suffix: str, column: str, known: Collection[str], notes: list[str], name: str) -> list[str]:
    rows = _records(text, _choose_separator(text, suffix, column, notes, name))
    if not rows:
        return []
    header = rows[0][1]
    if column in [cell.strip() for cell in header]:
        if len(header) == 1 and header[0] in known:
            raise ValueError(f"Its first line is '{column}', which is both the name of the column and an id.")
        place = [cell.strip() for cell in _check_header(header)].index(column)
        ids = [_check_width(number, row, header)[place] for number, row in rows[1:]]
        if not all(ids):
            raise ValueError(f"A row has no {column}: it is empty.")
        return ids
    if any(len(row) != 1 for _, row in rows):
        raise ValueError(f"None of its columns is named '{column}'; the first row is: {', '.join(header)}.")
    ids = [row[0] for _, row in rows]
    for separator in SEPARATORS if known and not any(one in known for one in ids) else ():
        other = _header(text, separator)
        if len(other) > 1:
            raise ValueError(
                f"None of its columns is named '{column}'; with {SEPARATORS[separator]} between them the first row is: "
                f"{', '.join(other)}."
            )
    return ids


def _json_ids(content: Any, column: str) -> list[str]:
    for name in (f"{column}s", column):
        if isinstance(content, dict) and isinstance(content.get(name), list):
            content = content[name]
    if not isinstance(content, list):
        raise ValueError(f"It contains a {type(content).__name__}, not a list of strings.")  # noqa: TRY004
    return [_json_id(item, column) for item in content]


def _json_id(value: Any, column: str) -> str:
    if isinstance(value, Mapping) and column in value:
        value = value[column]
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        if value == "":
            raise ValueError("An id is empty.")
        return str(value)
    raise ValueError(f"{json.dumps(value)[:60]} is not an id; ids are strings.")


def _json_lines(text: str) -> list[tuple[int, Any]]:
    """Parse the lines of a .jsonl that are not blank, with their numbers."""
    found: list[tuple[int, Any]] = []
    for number, line in enumerate(split_lines(text), 1):
        if line.strip():
            try:
                found.append((number, _load_json(line)))
            except ValueError as error:
                raise ValueError(f"Line {number}: {error}") from error
    return found


def require_characters(value: Any) -> None:
    """Raise unless all text in a JSON value can be kept: no NUL, which arrays drop, and no half of a character."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for one in value:
            require_characters(one)
    elif isinstance(value, str) and ("\x00" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise ValueError("It contains NUL characters or halves of characters, which no id or label can hold.")


def _load_json(text: str) -> Any:
    """Parse JSON; a name that is there twice in one object, which JSON readers resolve differently, is refused."""

    def refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' is there twice in an object.")
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=refuse_repeated)
        if "\\u0000" in text or "\\ud" in text.lower():
            require_characters(found)
    except RecursionError:
        raise ValueError("It is nested too deeply.") from None
    return found
