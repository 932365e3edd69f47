"""Find what a person wrote among the ids and names of the data: exactly, or in the only way that can be meant.

Unicode can write the same letter in several ways (é is U+00E9, or U+0065 U+0301), which look the same. A name that
differs from the data's only in this way (canonical equivalence, NFC) is matched if there is one such name. Everything
else that is close, such as spaces around an id, is an error that shows the difference, never a match.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property

from efface.errors import EffaceError, suggest_name

LONGEST_SHOWN = 200
"""Characters of a name that a message shows."""
MAX_NAMES_SHOWN = 100
"""A message about an unknown class or group lists the known ones only up to this many."""


class NameIndex:
    """All names of one kind in the data, and what they are equal to."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self.positions = {name: position for position, name in enumerate(self.names)}

    @cached_property
    def _forms(self) -> dict[str, list[str]]:
        """The names that are not ASCII by their normal form."""
        forms: dict[str, list[str]] = defaultdict(list)
        for name in self.positions:
            if not name.isascii():
                forms[unicodedata.normalize("NFC", name)].append(name)
        return forms

    def equivalent(self, name: str) -> list[str]:
        """Return the names that Unicode holds to be the same as ``name``, with itself if it is one."""
        form = unicodedata.normalize("NFC", name)
        plain = [form] if form.isascii() and form in self.positions else []
        return plain + self._forms.get(form, [])

    @cached_property
    def numbers(self) -> dict[Decimal, list[str]]:
        """The names that are numbers, by their value."""
        numbers: dict[Decimal, list[str]] = defaultdict(list)
        for name in self.positions:
            if (number := read_number(name)) is not None:
                numbers[number].append(name)
        return numbers


@dataclass(frozen=True)
class MatchedNames:
    """Names of the data, in the order in which they were asked for."""

    names: list[str]
    notes: list[str]
    """What was matched other than exactly, and what looks the same and was not; without the names themselves."""


def require_unique_keys(keys: Sequence[str], name: str, remedy: str = "Give every example a unique key.") -> None:
    """Raise if a key is there twice.

    Args:
        keys: The keys of all examples that are listed, also of those that cannot be read.
        name: What lists them, for the message.
        remedy: What to do about it.

    """
    if len(set(keys)) == len(keys):
        return
    seen: set[str] = set()
    repeated = [key for key in keys if key in seen or seen.add(key)]
    raise EffaceError(
        f"{len(repeated)} keys of {name} are used more than once: {quote_first(repeated)}.",
        "A key must identify one example; otherwise it is unclear which one to forget.",
        remedy,
    )


def quote_first(items: Sequence[str], count: int = 5) -> str:
    """Quote the first few items for a message; characters that cannot be seen are shown as escapes."""
    shown = ", ".join(f"'{escape_invisible(str(item))}'" for item in items[:count])
    return shown + (", ..." if len(items) > count else "")


def escape_invisible(text: str) -> str:
    """Replace characters that cannot be printed, or only look like a space, by escapes (a backslash and a code)."""
    if len(text) > LONGEST_SHOWN:
        text = text[:LONGEST_SHOWN] + " ..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def show_difference(written: str, known: str) -> str:
    """Describe by code points how two names differ, such as ``U+00E9 instead of U+0065 U+0301``."""
    start = 0
    while start < min(len(written), len(known)) and written[start] == known[start]:
        start += 1
    end = 0
    while end < min(len(written), len(known)) - start and written[-1 - end] == known[-1 - end]:
        end += 1
    ours, theirs = written[start : len(written) - end], known[start : len(known) - end]
    where = "at its start" if not start else "at its end" if not end else f"after {start} characters"
    if not theirs:
        return f"{_code_points(ours)} {where}, which the data does not have"
    if not ours:
        return f"no {_code_points(theirs)} {where}, which the data has"
    return f"{_code_points(ours)} {where} instead of {_code_points(theirs)}"


def match_equivalent(wanted: Sequence[str], known: NameIndex) -> MatchedNames:
    """Replace names that are unknown by the only known one that Unicode holds to be the same (NFC).

    Args:
        wanted: Names as they were written.
        known: All names of the data.

    Returns:
        The names; those that have no or several equivalents stay as they are.

    """
    found: list[str] = []
    changed: list[tuple[str, str]] = []
    twins = 0
    for name in wanted:
        equivalent = known.equivalent(name)
        if name in known.positions:
            twins += len(equivalent) > 1
            found.append(name)
        elif len(equivalent) == 1:
            changed.append((name, equivalent[0]))
            found.append(equivalent[0])
        else:
            found.append(name)
    notes: list[str] = []
    if changed:
        notes.append(
            f"{len(changed)} of {len(wanted)} names are written with other code points than in the data (Unicode NFC, "
            f"NFD) and were matched: the first one has {show_difference(*changed[0])}."
        )
    if twins:
        notes.append(
            f"{twins} of {len(wanted)} names have a twin in the data that looks the same and has other code points; "
            "only the one with the same code points is meant."
        )
    return MatchedNames(found, notes)


def explain_absent(absent: Sequence[str], known: Iterable[str]) -> tuple[str, str]:
    """Say why names are not among the known ones, if these have a name that looks the same.

    Returns:
        The reason and the remedy; both are empty if no known name is close.

    """
    wanted = {_loose(name): name for name in reversed(absent)}
    for name in known:
        written = wanted.get(_loose(name))
        if written is not None:
            return (
                f"The data has '{escape_invisible(name)}', and '{escape_invisible(written)}' has "
                f"{show_difference(written, name)}.",
                "Write the ids exactly as the data has them: spaces and code points count.",
            )
    if any("@eadir/" in name.lower() for name in absent):
        return (
            "Thumbnails that a NAS keeps in '@eaDir' are no longer read as examples.",
            "Train again without them, or list them in a manifest with these keys.",
        )
    return "", ""


def match_names(value: str, known: NameIndex, kind: str, *, numbered: bool = False) -> MatchedNames:
    """Find the classes or groups that ``value`` names: one, or several with commas between them.

    A name is matched exactly, or without the spaces around it, or as its only equivalent in Unicode. With ``numbered``
    it is matched as the only name that is an equal number (``1`` is ``01``); and where no known name is a number, a
    number is a position.

    Args:
        value: What was written.
        known: All names, in the order of their positions.
        kind: What they are called in messages: ``class`` or ``group``.
        numbered: Whether names may be matched as numbers and positions.

    Raises:
        EffaceError: A name is unknown, is given twice, or could mean several.

    """
    whole = _match_name(value, known, kind, numbered)
    parts = [part for part in value.split(",") if part.strip()] if "," in value else []
    each = [_match_name(part, known, kind, numbered) for part in parts]
    if whole and each and all(each):
        raise EffaceError(
            f"'{value}' is the name of one {kind}, and also a list of {len(parts)}.",
            remedy=f"Write the {kind} that is meant into a file, one on each line: @{kind}:FILE.",
        )
    if whole:
        return whole
    unknown = [part.strip() for part, one in zip(parts, each, strict=True) if not one] if parts else [value.strip()]
    if unknown:
        raise unknown_value_error(unknown[0], known, kind, numbered)
    return join_matched([one for one in each if one], kind)


def match_listed_names(listed: Iterable[str], known: NameIndex, kind: str) -> MatchedNames:
    """Find the classes or groups that a file lists, one by one, exactly or as their only equivalent in Unicode.

    Raises:
        EffaceError: A name is unknown or is listed twice.

    """
    matched = match_equivalent(list(listed), known)
    absent = [name for name in matched.names if name not in known.positions]
    if absent:
        raise unknown_value_error(absent[0], known, kind, False, f"{len(absent)} listed names are unknown.")
    return join_matched([matched], kind)


def join_matched(matched: Sequence[MatchedNames], kind: str) -> MatchedNames:
    """Join what several names were matched to; raise if one is there twice."""
    names = [name for one in matched for name in one.names]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise EffaceError(
            f"{len(repeated)} {kind} names are listed more than once: {quote_first(repeated)}.",
            "A repeated name may be a typing error for another one.",
            "Name each one once.",
        )
    return MatchedNames(names, [note for one in matched for note in one.notes])


def read_number(text: str) -> Decimal | None:
    """Return the number that a text is, exactly; None if it is none (or is not finite)."""
    if not text.isascii() or "_" in text:
        return None
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _match_name(value: str, known: NameIndex, kind: str, numbered: bool) -> MatchedNames | None:
    """Find the one name that is meant; None if there is none."""
    plain = value.strip()
    exact = [name for name in dict.fromkeys((value, plain)) if name in known.positions]
    if len(exact) > 1:
        raise _ambiguous_error(value, exact, kind)
    if exact:
        if len(known.equivalent(exact[0])) > 1:
            raise _ambiguous_error(value, known.equivalent(exact[0]), kind)
        return MatchedNames(exact, [])
    number = read_number(plain) if numbered else None
    if number is not None:
        equal = known.numbers.get(number, [])
        if len(equal) > 1:
            raise _ambiguous_error(value, equal, kind)
        if equal:
            return MatchedNames(equal, [f"'{plain}' is read as the {kind} '{equal[0]}', which is the same number."])
        if plain.isdecimal() and number < len(known.names) and not known.numbers:
            name = known.names[int(plain)]
            return MatchedNames([name], [f"'{plain}' is read as the position of the {kind} '{name}'."])
    equivalent = known.equivalent(plain)
    if len(equivalent) > 1:
        raise _ambiguous_error(value, equivalent, kind)
    return match_equivalent([plain], known) if equivalent else None


def unknown_value_error(name: str, known: NameIndex, kind: str, numbered: bool, what: str = "") -> EffaceError:
    """Build the error for an unknown class or group, without a long list of the known ones."""
    names = sorted(known.names)
    shown = f"Known: {', '.join(names)}." if len(names) <= MAX_NAMES_SHOWN else f"There are {len(names)} others."
    if numbered and known.numbers and read_number(name) is not None:
        shown += " A number is a position only where no class name is a number."
    near, _ = explain_absent([name], names)
    close = suggest_name(name[:LONGEST_SHOWN], names)
    return EffaceError(
        f"{what} There is no {kind} called '{escape_invisible(name)}'.{close}".strip(),
        f"{near} {shown}".strip(),
    )


def _ambiguous_error(value: str, names: Sequence[str], kind: str) -> EffaceError:
    shown = ", ".join(ascii(name) for name in names[:5])
    return EffaceError(
        f"'{escape_invisible(value)}' can mean {len(names)} {'classes' if kind == 'class' else f'{kind}s'}: {shown}.",
        "They look the same or are the same number, and which one is meant must not be guessed.",
        f"Rename one in the data, or write the {kind} that is meant into a file: @{kind}:FILE.",
    )


def _loose(name: str) -> str:
    """Reduce a name to what a reader sees of it: without invisible characters, outer spaces and case."""
    seen = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) not in ("Cf", "Cc"))
    return seen.strip().casefold()


def _code_points(text: str) -> str:
    return " ".join(f"U+{ord(c):04X}" for c in text[:4]) + (" ..." if len(text) > 4 else "")
