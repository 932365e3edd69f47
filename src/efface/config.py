"""Convert plain mappings (YAML files, ``--set key=value``) to frozen dataclasses and back.

A dataclass field is the single definition of a setting: it gives the Python argument, the YAML key, the command-line
override and the row in the docs. The classes are passed in, so this module needs no torch.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import yaml
from yaml.composer import ComposerError

from efface.errors import EffaceError, suggest_name
from efface.schema import check_value, describe_type, show_value

Choices = Mapping[type, Mapping[str, type]]
"""For each protocol (Objective, Method), the classes that implement it, by name."""
MAX_YAML_DEPTH = 40
"""Deepest nesting of a configuration."""
MAX_CONFIG_BYTES = 2**26
"""Largest size of a configuration file."""
MAX_REPEATED = 10_000
"""Most values that the aliases of a configuration may repeat."""


class Settings:
    """Base of dataclasses of settings: their numbers are checked against the annotations of :mod:`efface.schema`.

    The annotation is the only definition of a range: it holds for YAML, for ``--set`` and in Python. The text of a
    member of an enumeration becomes that member: ``Optim(rule="sgd")`` is ``Optim(rule=OptimizerType.SGD)``.
    """

    def __post_init__(self) -> None:
        for name, kind in _checked_fields(type(self)):
            value = getattr(self, name)
            plain = value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value
            try:
                result = check_value(kind, plain)
            except ValueError as error:
                raise _wrong_value(f"{type(self).__name__}.{name}", value, str(error)) from error
            if isinstance(plain, str) != isinstance(result, str) or (isinstance(plain, float) and type(result) is int):
                raise _wrong_value(f"{type(self).__name__}.{name}", value, f"of type {type(result).__name__}")
            if any(isinstance(one, Enum) for one in (result if isinstance(result, tuple) else (result,))):
                object.__setattr__(self, name, result)


@lru_cache(maxsize=256)
def _checked_fields(cls: type) -> tuple[tuple[str, Any], ...]:
    """The fields of a dataclass whose types are plain, with these types."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple((f.name, hints[f.name]) for f in fields(cls) if f.init and _is_plain(hints[f.name]))  # pyright: ignore[reportArgumentType]


def _is_plain(hint: Any) -> bool:
    """Whether a type is a number, text, an enumeration, or a tuple or union of these."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _is_plain(get_args(hint)[0])
    if origin in (Union, UnionType, tuple):
        return all(_is_plain(one) for one in get_args(hint) if one is not ...)
    return isinstance(hint, type) and (hint in (int, float, bool, str, NoneType) or issubclass(hint, Enum))


def _wrong_value(name: str, value: Any, should: str) -> EffaceError:
    return EffaceError(f"The setting '{name}' cannot be {show_value(value)}.", f"Expected: {should}.")


def build(
    cls: type, values: Mapping[str, Any], choices: Choices | None = None, path: str = "", *, base: Any = None
) -> Any:
    """Build an instance of a dataclass from a mapping.

    Where a field's type is a protocol in ``choices``, its value is a name, or a mapping with ``name`` and the fields of
    that class. Where it is a dataclass, the mapping may be partial: ``optim: {lr: 0.1}`` keeps the other values of the
    field's own default, such as a method's gradient clipping.

    Args:
        cls: The dataclass.
        values: Field name to value.
        choices: The implementations of each protocol.
        path: Prefix of the setting names in error messages, such as ``method.``.
        base: An instance of ``cls`` whose values replace the defaults.

    Returns:
        An instance of ``cls``.

    Raises:
        EffaceError: A setting is unknown, has the wrong type or is missing; the message names it.

    Example:
        >>> build(Optim, {"lr": 0.1})

    """
    hints, known = get_type_hints(cls, include_extras=True), {f.name: f for f in fields(cls) if f.init}
    if not isinstance(values, Mapping):
        raise _wrong_value(path.rstrip(".") or cls.__name__, values, "a group of settings, `name: value`")
    for key in values:
        if key not in known:
            raise EffaceError(
                f"There is no setting '{path}{key}'.{suggest_name(str(key), known)}",
                f"Settings of {path.rstrip('.') or cls.__name__}: {', '.join(known) or 'none'}.",
            )
    inherited = {} if base is None else {name: getattr(base, name) for name in known}
    arguments = inherited | {
        key: _convert(hints[key], value, choices or {}, f"{path}{key}", inherited.get(key, _default_of(known[key])))
        for key, value in values.items()
    }
    missing = [name for name, f in known.items() if name not in arguments and _is_required(f)]
    if missing:
        raise EffaceError(f"The setting '{path}{missing[0]}' is missing.", "It has no default.")
    return cls(**arguments)


def parse_choice(
    options: Mapping[str, type], value: Any, kind: str, choices: Choices | None = None, path: str = ""
) -> Any:
    """Build an instance of the class that ``value`` names.

    Args:
        options: Name to class.
        value: A name (``"scrub"``), or a mapping with the name and its settings (``{"name": "scrub", "alpha": 0.1}``).
        kind: What the options are called in error messages, such as ``"method"``.
        choices: The implementations of each protocol, for nested settings.
        path: Prefix of the setting names in error messages.

    Raises:
        EffaceError: The name or one of the settings is unknown.

    """
    if not isinstance(value, str | Mapping):
        raise _wrong_value(path.rstrip(".") or kind, value, f"the name of a {kind}, or a mapping with its name")
    values = {"name": value} if isinstance(value, str) else dict(value)
    name = str(values.pop("name", ""))
    if name not in options:
        raise EffaceError(
            f"There is no {kind} called '{name}'.{suggest_name(name, options)}", f"Known: {', '.join(sorted(options))}."
        )
    return build(options[name], values, choices, path)


def dump(value: Any, choices: Choices | None = None) -> Any:
    """Convert a dataclass instance to plain values that :func:`build` reads back; enumerations become their values."""
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
    """Read a YAML file that holds a mapping; an empty file gives an empty mapping."""
    try:
        with path.open(encoding="utf-8") as file:
            content = parse_yaml(file.read(MAX_CONFIG_BYTES))
    except FileNotFoundError:
        raise EffaceError(f"There is no configuration file {path}.", remedy="Check the path.") from None
    except (OSError, ValueError) as error:
        raise EffaceError(
            f"{path} cannot be read as YAML.", f"It is damaged, or another file: {error}", "Correct it, or restore it."
        ) from error
    if not isinstance({} if content is None else content, dict):
        raise EffaceError(f"{path} holds a {type(content).__name__}.", "A configuration is a mapping: `key: value`.")
    return content or {}


def parse_yaml(text: str) -> Any:
    """Read one YAML document: plain values only, without aliases that expand without end.

    Raises:
        ValueError: It is not YAML, repeats a key or too much, holds an impossible number, or is nested too deeply.

    """
    try:
        return yaml.load(text, _PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (OverflowError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


class _PlainLoader(yaml.SafeLoader):
    """Read plain values: no key twice, nesting with an end, and aliases only while what they repeat stays small."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open: list[str | None] = []
        """The anchors of the nodes that are being read, outermost first."""
        self._sizes: dict[int, int] = {}
        self._repeated = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self._open:
                raise _composer_error(f"*{event.anchor} contains itself", event.start_mark)
            node: Any = super().compose_node(parent, index)
            self._repeated += self._size(node)
            if self._repeated > MAX_REPEATED:
                raise _composer_error(f"*{event.anchor} and other aliases repeat too much", event.start_mark)
            return node
        self._open.append(event.anchor)
        if len(self._open) > MAX_YAML_DEPTH:
            raise _composer_error(f"it is nested more than {MAX_YAML_DEPTH} levels deep", event.start_mark)
        node = super().compose_node(parent, index)
        self._open.pop()
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node: Any = super().compose_mapping_node(anchor)
        names = [(key.tag, key.value) for key, _ in node.value if isinstance(key.value, str)]
        if len(set(names)) < len(names):
            twice = next(value for tag, value in names if names.count((tag, value)) > 1)
            raise _composer_error(f"'{twice}' is set twice", node.start_mark)
        return node

    def _size(self, node: Any) -> int:
        """The number of values in a node, those that its aliases repeat included."""
        if id(node) not in self._sizes:
            parts = node.value if isinstance(node.value, list) else []
            inner = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
            self._sizes[id(node)] = 1 + sum(self._size(one) for one in inner)
        return self._sizes[id(node)]


def _composer_error(problem: str, mark: Any) -> yaml.YAMLError:
    return ComposerError(None, None, problem, mark)


def override(values: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Apply dotted assignments to a copy of ``values``.

    Args:
        values: Nested settings; they are not changed.
        settings: Assignments such as ``method.alpha=0.1``. The right side is read as YAML.

    Raises:
        EffaceError: An assignment is malformed, or addresses a field of a single value.

    Example:
        >>> override({"method": "scrub"}, ["method.alpha=0.1"])
        {'method': {'name': 'scrub', 'alpha': 0.1}}

    """
    result = _copy_nested(values)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise EffaceError(f"'{setting}' is not an assignment.", remedy="Write --set key=value, as in --set seed=1.")
        *parents, last = key.strip().split(".")
        group = result
        for parent in parents:
            inner = group.get(parent)
            group[parent] = {"name": inner} if isinstance(inner, str) else (inner or {})
            if not isinstance(group[parent], dict):
                raise EffaceError(f"'{key}' cannot be set: '{parent}' is a single value, not a group of settings.")
            group = group[parent]
        try:
            group[last] = parse_yaml(text)
        except ValueError as error:
            raise EffaceError(f"The value of '{key}' cannot be read: {show_value(text)}", f"{error}.") from error
    return result


def describe_fields(cls: type) -> list[tuple[str, str, str, str]]:
    """Describe each field of a dataclass as (name, type, default, the docstring below it)."""
    texts: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        if "__dataclass_fields__" in vars(parent):
            texts |= _field_texts(parent)
    return [(f.name, describe_type(str(f.type)), _format_default(f), texts.get(f.name, "")) for f in fields(cls)]


def _field_texts(cls: type) -> dict[str, str]:
    """The docstrings below the fields that a class defines itself, by field."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    return {
        node.target.id: " ".join(str(below.value.value).split())
        for node, below in pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def convert_setting(kind: Any, value: Any, name: str) -> Any:
    """Convert the value of one setting to its type; the error for a value that does not fit names the setting."""
    return _convert(kind, value, {}, name)


def _convert(hint: Any, value: Any, choices: Choices, path: str, default: Any = None) -> Any:
    """Convert ``value`` to the type ``hint``; a nested mapping leaves the rest of ``default`` as it is."""
    if isinstance(value, Mapping) and isinstance(hint, UnionType):
        inner = [one for one in get_args(hint) if is_dataclass(one)]
        hint = inner[0] if len(inner) == 1 else hint  # "Criteria | None"
    if hint in choices and not is_dataclass(value):
        return parse_choice(choices[hint], value, path.rpartition(".")[2], choices, f"{path}.")
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return build(hint, value, choices, f"{path}.", base=default if isinstance(default, hint) else None)
    if hint in choices or (isinstance(hint, type) and is_dataclass(hint) and isinstance(value, hint)):
        return value
    if isinstance(hint, type) and is_dataclass(hint):
        raise _wrong_value(path, value, "a group of settings, `name: value`")
    try:
        return check_value(hint, value)
    except ValueError as error:
        expected = describe_type(getattr(hint, "__name__", "")) or str(error)
        if isinstance(hint, type) and issubclass(hint, Enum):
            expected = " | ".join(str(member.value) for member in hint)
        elif str(error) not in expected:
            expected = f"{expected}, {error}" if isinstance(hint, type) else str(error)
        raise _wrong_value(path, value, expected) from error


def _is_required(f: Field[Any]) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _default_of(f: Field[Any]) -> Any:
    """Return the default value of a field, or None if it has none."""
    if f.default_factory is not MISSING:
        return f.default_factory()
    return None if f.default is MISSING else f.default


def _format_default(f: Field[Any]) -> str:
    """Format the default of a field for the docs."""
    if f.default is not MISSING:
        return str(f.default.value if isinstance(f.default, Enum) else f.default)
    if f.default_factory is MISSING:
        return "required"
    default = f.default_factory()
    if is_dataclass(default):
        inner = [(part.name, getattr(default, part.name)) for part in fields(default)]
        return ", ".join(f"{name}={item.value if isinstance(item, Enum) else item}" for name, item in inner)
    return str(default)


def _copy_nested(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy_nested(item) if isinstance(item, Mapping) else item for key, item in values.items()}
