"""What values are allowed: ranges of settings, and the base class and checks of everything that is read back.

The types below are used as annotations. :mod:`efface.config` checks settings by them, from YAML, ``--set`` and Python
alike; :func:`parse_record` checks files by them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AllowInfNan, BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from efface.errors import EffaceError

_T = TypeVar("_T")
LARGEST_COUNT = 10**9
Count = Annotated[int, Ge(1), Le(LARGEST_COUNT)]
"""A number of things, at least one."""
PairCount = Annotated[int, Ge(2), Le(LARGEST_COUNT)]
"""A number of things that are compared with each other, at least two."""
Whole = Annotated[int, Ge(0), Le(LARGEST_COUNT)]
"""A number of things, or zero."""
SmallWhole = Annotated[int, Ge(0), Le(10_000)]
"""A number of models, or zero."""
Jobs = Annotated[int, Ge(1), Le(4096)]
"""A number of processes."""
PartSize = Annotated[int, Ge(0), Le(LARGEST_COUNT)] | Annotated[float, Ge(0), Le(LARGEST_COUNT)]
"""The size of a part: a count, or a fraction below one."""
LayerWidth = Annotated[int, Ge(1), Le(2**16)]
"""The width of a layer of a network."""
Tally = Annotated[int, Ge(0), Lt(2**63)]
"""What was counted: steps, examples, bytes."""
SeedNumber = Annotated[int, Ge(0), Lt(2**63)]
"""The seed of a random generator."""
Real = Annotated[float, Ge(-1e30), Le(1e30)]
"""A finite number."""
Positive = Annotated[float, Gt(0), Le(1e30)]
"""A finite number above zero: a temperature, a learning rate."""
NotNegative = Annotated[float, Ge(0), Le(1e30)]
"""A finite number, at least zero: a weight, a duration."""
Threshold = Annotated[float, Gt(0), AllowInfNan(True)]
"""A number above zero that may be infinite."""
Share = Annotated[float, Ge(0), Le(1)]
"""A share or a probability."""
SomeShare = Annotated[float, Gt(0), Le(1)]
"""A share above zero."""
Decay = Annotated[float, Ge(0), Lt(1)]
"""A share below one, such as a momentum."""
HalfTurn = Annotated[float, Ge(0), Le(0.5)]
"""A rotation of colors, at most half a turn each way."""
OpenShare = Annotated[float, Gt(0), Lt(1)]
"""A probability that is neither zero nor one."""
OpenHalf = Annotated[float, Gt(0), Lt(0.5)]
"""A distance from 1/2, or an error probability."""
Cosine = Annotated[float, Ge(-1), Le(1)]
"""A cosine."""
FirstFormat = Annotated[int, Ge(1), Le(1)]
"""The version of a file of which there is only one so far."""
HexDigest = Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{64}\z")]
"""A SHA-256, hexadecimal."""
Name = Annotated[str, MinLen(1)]
"""Text that is not empty."""
MAX_SHOWN = 60
"""Most characters of a wrong value that an error message shows."""
_WORDS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
    "a valid": "a",
    "a integer": "an integer",
    "Input should have": "something with",
}
"""Plainer words for pydantic's messages."""
_FINITE = ConfigDict(allow_inf_nan=False)


class RecordModel(BaseModel):
    """A part of a record: immutable, without unknown fields, without NaN or infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class StoredModel(RecordModel):
    """A file that is read back. Fields of a later version are kept; those that came later have a default."""

    model_config = ConfigDict(extra="allow")


@lru_cache(maxsize=1024)
def type_adapter(kind: Any) -> TypeAdapter[Any]:
    """The validator of a type; NaN and infinity are refused unless the type allows them."""
    own = isinstance(kind, type) and (issubclass(kind, BaseModel) or hasattr(kind, "__dataclass_fields__"))
    return TypeAdapter(kind) if own else TypeAdapter(kind, config=_FINITE)


def check_value(kind: Any, value: Any) -> Any:
    """Convert a setting to its type; text may spell a number, as YAML reads 1e-3, but true and false are none.

    Raises:
        ValueError: The value does not fit; the message says what it should be.

    """
    try:
        result = type_adapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(describe_problem(error)[2]) from error
    if _has_disguised_bool(value, result):
        raise ValueError("a number, not true or false")
    return result


def _has_disguised_bool(value: Any, result: Any) -> bool:
    if isinstance(value, bool):
        return not isinstance(result, bool) and isinstance(result, int | float)
    if isinstance(value, list | tuple) and isinstance(result, list | tuple) and len(value) == len(result):
        return any(_has_disguised_bool(one, other) for one, other in zip(value, result, strict=True))
    return False


def describe_problem(error: ValidationError) -> tuple[str, str, str]:
    """Where the first problem is, what is there, and what should be: ``("cost.steps", "-1", "at least 0")``."""
    first = error.errors(include_url=False)[0]
    if str(first["type"]).endswith("_type") and len(error.errors()) > 1:  # a union: the alternative that came closest
        first = next((one for one in error.errors(include_url=False) if not str(one["type"]).endswith("_type")), first)
    place = ".".join(str(part) for part in first["loc"] if not _is_type_name(part))
    held = "nothing" if first["type"] == "missing" else show_value(first["input"])
    message = re.sub(r"^(Input should be |Value error, )", "", first["msg"])
    for long, short in _WORDS.items():
        message = message.replace(long, short)
    if first["type"] == "missing":
        message = "there"
    if "\\A[0-9a-f]{64}" in message:
        message = "64 hexadecimal digits in lower case"
    return place, held, message


def _is_type_name(part: Any) -> bool:
    """Whether a part of a place is pydantic's name of an alternative, not a key of the file."""
    return isinstance(part, str) and bool(re.search(r"[\[(]", part) or part in ("str", "int", "float", "bool", "none"))


def show_value(value: Any) -> str:
    """A value for an error message: short, on one line, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a {type(value).__name__} of {value.bit_length()} bits" if isinstance(value, int) else "something"
    text = text.replace("\n", " ")
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def find_nonfinite(value: Any, path: str = "") -> str | None:
    """The place of the first NaN or infinite number in values of JSON types, such as ``cost.seconds``."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next(
        (found for key, one in inner if (found := find_nonfinite(one, f"{path}.{key}" if path else str(key)))), None
    )


def parse_record(kind: type[_T], content: Any, source: Path | str, what: str, remedy: str) -> _T:
    """Check the content of a file that efface wrote, and convert it.

    Args:
        kind: What it should be: a model, or any type.
        content: Values of JSON types.
        source: The file, for the error message.
        what: What the file holds, for the error message, such as ``"split"``.
        remedy: What to do if it is wrong.

    Raises:
        EffaceError: A field is missing or wrong; the message names the file, the field, what it holds, what it should
            be, and what to do.

    """
    place = find_nonfinite(content)
    if place:
        raise EffaceError(f"{source} is damaged: {place} is not a finite number.", f"It is a {what}.", remedy)
    try:
        return type_adapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        where, held, should = describe_problem(error)
        if held == "nothing" and should == "there":
            raise EffaceError(
                f"{source} is not a {what}: it has no '{where}'.", "It is damaged, or another file.", remedy
            ) from error
        field = f"'{where}' is {held}" if where else f"it holds {held}"
        raise EffaceError(f"{source} is not a {what}: {field}.", f"It should be {should}.", remedy) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise EffaceError(f"{source} is not a {what}.", f"It is damaged, or another file: {error}", remedy) from error


def first_problem(problems: Sequence[tuple[bool, str]]) -> None:
    """Raise a ``ValueError`` with the text of the first condition that is true; for the validators of models."""
    for wrong, text in problems:
        if wrong:
            raise ValueError(text)


def describe_type(annotation: str) -> str:
    """A field's type for the docs: the types of this module become what they allow, such as ``int >= 1``."""
    return re.sub(r"\w+", lambda word: _allowed(word.group()), annotation)


def _allowed(name: str) -> str:
    kind: Any = globals().get(name)
    base = getattr(kind, "__origin__", None)
    if base not in (int, float):
        return name
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        (sign, getattr(one, key)) for one in kind.__metadata__ for key, sign in signs.items() if hasattr(one, key)
    ]
    shown = [f"{sign} {value:g}" for sign, value in limits if abs(value) < LARGEST_COUNT]
    return f"{base.__name__} {' and '.join(shown)}" if shown else base.__name__
