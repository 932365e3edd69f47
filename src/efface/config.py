"""Plain mappings (YAML, ``--set key=value``) to frozen dataclasses and back. It is handed the classes; no torch here.

A dataclass field is the Python argument, the YAML key, the override and the docs row: one definition per knob.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from efface.errors import EffaceError, suggest_name

Choices = Mapping[type, Mapping[str, type]]
"""For each protocol (Objective, Method) the classes that may stand for it, by name."""


def build(
    cls: type, values: Mapping[str, Any], choices: Choices | None = None, path: str = "", *, base: Any = None
) -> Any:
    """An instance of the dataclass ``cls`` from a mapping; unknown keys and wrong types are errors that name them.

    Where a field's type is a protocol in ``choices``, its value is a name, or a mapping with ``name`` and fields.
    Where it is a dataclass, what its mapping leaves out stays as the field's own default has it: ``optim: {lr: 0.1}``
    keeps a method's clipping. ``base``: an instance of ``cls`` whose values stand for what is left out.
    """
    hints, known = get_type_hints(cls), {f.name: f for f in fields(cls) if f.init}
    for key in values:
        if key not in known:
            raise EffaceError(
                f"There is no setting '{path}{key}'.{suggest_name(key, known)}",
                f"Settings of {path.rstrip('.') or cls.__name__}: {', '.join(known) or 'none'}.",
            )
    rest = {} if base is None else {name: getattr(base, name) for name in known}
    made = rest | {
        key: _value(hints[key], value, choices or {}, f"{path}{key}", rest.get(key, _made(known[key])))
        for key, value in values.items()
    }
    missing = [name for name, f in known.items() if name not in made and _required(f)]
    if missing:
        raise EffaceError(f"The setting '{path}{missing[0]}' is missing.", "It has no default.")
    return cls(**made)


def parse_choice(
    options: Mapping[str, type], value: Any, kind: str, choices: Choices | None = None, path: str = ""
) -> Any:
    """An instance of the class that ``value`` names: ``"scrub"``, or ``{"name": "scrub", "alpha": 0.1}``."""
    values = {"name": value} if isinstance(value, str) else dict(value)
    name = str(values.pop("name", ""))
    if name not in options:
        raise EffaceError(
            f"There is no {kind} called '{name}'.{suggest_name(name, options)}", f"Known: {', '.join(sorted(options))}."
        )
    return build(options[name], values, choices, path)


def dump(value: Any, choices: Choices | None = None) -> Any:
    """The plain form of a dataclass instance that :func:`build` reads back; enumerations become their values."""
    if is_dataclass(value) and not isinstance(value, type):
        names = {cls: name for options in (choices or {}).values() for name, cls in options.items()}
        head = {"name": names[type(value)]} if type(value) in names else {}
        return head | {f.name: dump(getattr(value, f.name), choices) for f in fields(value) if f.init}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): dump(item, choices) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump(item, choices) for item in value]
    return value


def read(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EffaceError(f"There is no configuration file {path}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EffaceError(f"{path} cannot be read as YAML.", str(error)) from error
    if not isinstance(content or {}, dict):
        raise EffaceError(f"{path} holds a {type(content).__name__}.", "A configuration is a mapping: `key: value`.")
    return content or {}


def override(values: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """``values`` with dotted assignments put in: ``method.alpha=0.1``. The right side is read as YAML."""
    result = _copy(values)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise EffaceError(f"'{setting}' is not an assignment.", remedy="Write --set key=value, as in --set seed=1.")
        *parents, last = key.strip().split(".")
        place = result
        for parent in parents:
            inner = place.get(parent)
            place[parent] = {"name": inner} if isinstance(inner, str) else (inner or {})
            if not isinstance(place[parent], dict):
                raise EffaceError(f"'{key}' cannot be set: '{parent}' is a single value, not a group of settings.")
            place = place[parent]
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise EffaceError(f"The value of '{key}' cannot be read: {text}", str(error)) from error
    return result


def describe_fields(cls: type) -> list[tuple[str, str, str, str]]:
    """Each field of a dataclass as (name, type, default, the docstring under it)."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    texts: dict[str, str] = {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for node, below in pairwise(body):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            texts[node.target.id] = " ".join(str(below.value.value).split())
    return [(f.name, str(f.type), _default(f), texts.get(f.name, "")) for f in fields(cls)]


def _value(hint: Any, value: Any, choices: Choices, path: str, before: Any = None) -> Any:
    """``value`` as the hint has it; ``before``: what the setting is where nothing is said."""
    if hint in choices and not is_dataclass(value):
        return parse_choice(choices[hint], value, path.rpartition(".")[2], choices, f"{path}.")
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return build(hint, value, choices, f"{path}.", base=before if isinstance(before, hint) else None)
    if hint in choices or (isinstance(hint, type) and is_dataclass(hint) and isinstance(value, hint)):
        return value
    try:
        return TypeAdapter[Any](hint).validate_python(value)  # pyright: ignore[reportArgumentType]  (any annotation)
    except ValidationError as error:
        expected = getattr(hint, "__name__", str(hint))
        if isinstance(hint, type) and issubclass(hint, Enum):
            expected = " | ".join(str(member.value) for member in hint)
        raise EffaceError(
            f"The setting '{path}' cannot be {value!r}.", f"Expected: {expected}. {error.errors()[0]['msg']}."
        ) from error


def _required(f: Field[Any]) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _made(f: Field[Any]) -> Any:
    """The default of a field, made; None where it has none."""
    if f.default_factory is not MISSING:
        return f.default_factory()
    return None if f.default is MISSING else f.default


def _default(f: Field[Any]) -> str:
    if f.default is not MISSING:
        return str(f.default.value if isinstance(f.default, Enum) else f.default)
    if f.default_factory is MISSING:
        return "required"
    made = f.default_factory()
    if is_dataclass(made):
        inner = [(part.name, getattr(made, part.name)) for part in fields(made)]
        return ", ".join(f"{name}={item.value if isinstance(item, Enum) else item}" for name, item in inner)
    return str(made)


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(item) if isinstance(item, Mapping) else item for key, item in values.items()}
