"""What the messages of the package name, and what there is: options, settings, verbs, suffixes, selectors, modules."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import typer.main

from efface.auditing import signals
from efface.bench.grid import Grid
from efface.cli import app
from efface.data import selectors, sources
from efface.files import EPOCH, LOG, REQUEST, SPLIT
from efface.runs import requests
from efface.runs.run import Sizes
from efface.training.objectives import OBJECTIVES, Objective
from efface.training.recipe import Recipe
from efface.unlearning.methods import METHODS, Method

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "efface"
ANY = "*"
"""Stands for a part of a message that is filled in when it is raised."""


@dataclass(frozen=True)
class Message:
    """A piece of text that the package can show, and where it stands."""

    where: str
    text: str


def messages(package: Path = PACKAGE) -> Iterator[Message]:
    """Yield all texts but docstrings; what an f-string fills in becomes :data:`ANY`."""
    for path in sorted(package.rglob("*.py")):
        yield from messages_of(path.read_text(encoding="utf-8"), str(path.relative_to(package)))


def messages_of(source: str, name: str) -> Iterator[Message]:
    """Yield the texts of one module."""
    tree = ast.parse(source)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        for inner in getattr(node, "body", ()) if not isinstance(node, (ast.Lambda, ast.IfExp)) else ():
            if isinstance(inner, ast.Expr):
                skipped.add(id(inner.value))
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else ANY for part in node.values]
            yield Message(f"{name}:{node.lineno}", "".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Message(f"{name}:{node.lineno}", node.value)


@cache
def options() -> dict[str, set[str]]:
    """The options of every verb, as ``--name``."""
    found: dict[str, set[str]] = {}

    def walk(command: Any, path: tuple[str, ...]) -> None:
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                walk(inner, (*path, name))
        else:
            found[" ".join(path)] = {name for one in command.params for name in one.opts} | {"--help"}

    walk(typer.main.get_command(app), ())
    return found


def roots() -> dict[str, Any]:
    """Name of each setting of a verb to its type, or to the types inside it."""
    found: dict[str, Any] = {"data": _source_options(), "split": Sizes, "recipe": Recipe, "objective": Objective}
    kinds = [cls for cls in vars(requests).values() if isinstance(cls, type) and is_dataclass(cls)]
    for cls in (*kinds, Grid):
        for name, hint in get_type_hints(cls).items():
            found.setdefault(name, hint)
    return found


def _source_options() -> dict[str, Any]:
    """The options of all data sources, and those that ``load`` takes out for every source."""
    found: dict[str, Any] = {"source": str}
    for loader in sources.SOURCES.values():
        hints = get_type_hints(loader)
        found |= {name: hints.get(name, str) for name in inspect.signature(loader).parameters}
    return found | dict.fromkeys(re.findall(r'options\.pop\("(\w+)"', inspect.getsource(sources.load)), Any)


def children(hint: Any) -> Mapping[str, Any] | None:
    """Name to type of the settings inside a type; None if any name may be inside."""
    if isinstance(hint, dict):
        return hint
    implementations = {Objective: OBJECTIVES, Method: METHODS}.get(hint)
    if implementations:
        return {name: inner for cls in implementations.values() for name, inner in _fields_of(cls).items()} | {
            "name": str
        }
    if isinstance(hint, type) and is_dataclass(hint):
        return _fields_of(hint)
    if get_origin(hint) in (dict, Mapping, get_origin(Mapping[str, Any])):
        return None
    inner = [children(one) for one in get_args(hint)] if get_origin(hint) in (Union, type(int | str)) else []
    return None if None in inner else {name: kind for one in inner if one for name, kind in one.items()}


def _fields_of(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {one.name: hints[one.name] for one in fields(cls)}


def is_setting(path: str) -> bool:
    """Whether a dotted path can be written after ``--set``; a part that is :data:`ANY` may be anything."""
    at: Mapping[str, Any] | None = roots()
    for part in path.split("."):
        if at is None or part == ANY:
            return True
        if part not in at:
            return False
        at = children(at[part])
    return True


@cache
def suffixes() -> set[str]:
    """Suffixes that the package knows: each text in it that is nothing but a suffix, and those of its own files."""
    alone = re.compile(r"\*?(\.[a-z][a-z0-9]*)")
    known = {found[1] for one in messages() if (found := alone.fullmatch(one.text))}
    return known | {Path(name).suffix for name in (EPOCH, LOG, REQUEST, SPLIT)}


def is_module(path: str) -> bool:
    """Whether a dotted path can be imported, or is an attribute of something that can."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for name in parts[count:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def is_signal(path: str) -> bool:
    """Whether a dotted name is that of a score, or the start of the name of a finding."""
    known = set(signals.signal_names(("backbone", "projector")))
    return path in known or path.partition(".")[0] in {"relearn", "logits", "pair"}


def extras() -> set[str]:
    """The optional dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])


VERB = re.compile(r"(?:`|: +|^)efface ([a-z]+(?: [a-z]+)?)(?=[ `.,*]|$)([^`]*)")
OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]+)")
ASSIGNED = re.compile(r"--set '?(?!key=)([a-z_*]+(?:\.[a-z_*]+)*)=")
DOTTED = re.compile(
    r"(?<![\w.*/-])((?:data|split|recipe|method|watch|criteria|stop|optim|relearn|rule|objective|views|backbone)\.[a-z_*]+"
    r"(?:\.[a-z_*]+)*)(?![\w(])"
)
SWITCH = re.compile(r"(?<![\w.*-])([a-z_]+(?:\.[a-z_]+)*)=(?:true|false|\d+|[A-Z]+\b|\*|timm:)")
PYTHON = re.compile(r"(?<![\w/'.-])(efface(?:\.[A-Za-z_]+)+)")
SUFFIX = re.compile(r"(?<![\w.*/\)\]-])\.([a-z][a-z0-9]{1,12})(?![\w(*])")
SELECTOR = re.compile(r"(?<!\w)@([a-z]+):")
MODULE = re.compile(r"python -m ([\w.]+)")
EXTRA = re.compile(r"efface\[([\w,]+)\]")
FILES = {".json", ".npz", ".yaml", ".jsonl", ".pt", ".html", ".txt"}
RELATIVE = {"backbone": "recipe.backbone", "views": "recipe.views", "optim": "recipe.optim"}
"""A part of the recipe that messages about it name by itself; never in an assignment, which is typed as it stands."""


def _is_dotted(path: str) -> bool:
    head, _, rest = path.partition(".")
    whole = f"{RELATIVE[head]}.{rest}" if head in RELATIVE else path
    return is_setting(path) or is_setting(whole) or is_signal(path) or f".{rest}" in FILES or _is_python_file(path)


def _is_python_file(path: str) -> bool:
    return is_module(f"efface.{path}")


CHECKS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("option", OPTION, lambda name: any(name in known for known in options().values())),
    ("setting", ASSIGNED, is_setting),
    ("setting", DOTTED, _is_dotted),
    ("assignment", SWITCH, is_setting),
    ("name", PYTHON, lambda name: is_module(name.rstrip("."))),
    ("suffix", SUFFIX, lambda name: f".{name}" in suffixes()),
    ("selector", SELECTOR, lambda name: f"@{name}" in vars(selectors)["_KINDS"]),
    ("module", MODULE, lambda name: find_spec(name) is not None),
    ("extra", EXTRA, lambda name: set(name.split(",")) <= extras()),
)


def unreal(message: Message, *, pages: bool = False) -> list[str]:
    """Everything that a message names and that is not there; in pages, suffixes and options of others may be
    named, and fields without the path to them."""
    found = [
        f"{kind} {name}"
        for kind, pattern, is_real in CHECKS
        if not (pages and kind in ("suffix", "option", "module", "assignment"))
        for name in pattern.findall(message.text)
        if not is_real(name)
    ]
    for verb, rest in VERB.findall(message.text):
        known = next((one for one in (verb, verb.split()[0]) if one in options()), None)
        if known is None:
            found.append(f"verb {verb}")
        else:
            found += [f"option {name} of {known}" for name in OPTION.findall(rest) if name not in options()[known]]
    return found
