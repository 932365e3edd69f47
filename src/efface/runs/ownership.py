"""What a command may replace or remove: only folders that prove to be its own, and never its own input.

A proof is read from the folder itself. Each ``why_not_…`` function returns an empty string for a folder of its kind,
and otherwise says what speaks against it, for the error message.
"""

from __future__ import annotations

import glob
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import yaml

from efface.errors import EffaceError
from efface.files import META, REQUEST, WEIGHTS, hold_lock
from efface.training.launch import is_follower

Proof = Callable[[Path], str]
"""Returns why a folder is not of a kind; an empty string if it is."""
WRITING_VERBS = ("pretrain", "unlearn", "references", "audit")
"""The verbs whose unfinished folders are ours."""
INNER_FOLDERS = ("foreign", "shards")
"""The folders that a run folder may contain."""
RUN_REMEDY = "Choose another --out, or move it away yourself."


def why_not_a_run(folder: Path) -> str:
    """Why a folder is no run folder: it has a description in our format, whose digest fits the weights."""
    if not (folder / REQUEST).is_file() or not (folder / META).is_file():
        return f"It has no {REQUEST}." if (folder / META).is_file() else f"It has no {META}."
    from efface.training.checkpoint import read_meta, read_weights  # an audit of embeddings does without torch
    from efface.training.model import digest

    try:
        described = read_meta(folder)
        found = digest(read_weights(folder / WEIGHTS))
    except EffaceError as error:
        return str(error)
    if found != described.get("digest"):
        return f"Its weights are not the ones that its {META} describes."
    return _foreign_folders(folder)


def why_not_unfinished(folder: Path) -> str:
    """Why a folder is not an unfinished one of ours: it has the request of a known verb."""
    request = _read_mapping(folder / REQUEST)
    if request is None:
        return f"It has no readable {REQUEST}."
    if request.get("verb") not in WRITING_VERBS and "embeddings" not in request:
        return f"Its {REQUEST} is not a request of efface."
    return _foreign_folders(folder)


def why_not_bundle(folder: Path, name: str, needed: Iterable[str]) -> str:
    """Why a folder does not hold the results of an audit: ``name`` is a JSON object with the ``needed`` entries."""
    if (folder / META).exists():
        return "It is a run folder."
    content = _read_mapping(folder / name)
    if content is None or any(key not in content for key in needed):
        return f"It has no readable {name} in the format of efface."
    return _foreign_folders(folder)


def _foreign_folders(folder: Path) -> str:
    inside = sorted(item.name for item in folder.iterdir() if item.is_dir() and item.name not in INNER_FOLDERS)
    return f"It contains folders that efface did not write: {', '.join(inside[:3])}." if inside else ""


def _read_mapping(path: Path) -> dict[str, Any] | None:
    """Read a YAML or JSON mapping; None if it is none."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None


def require_apart(out: Path, inputs: Iterable[Path | None]) -> None:
    """Raise an error if ``out`` is, contains or lies inside one of the folders or files that the command reads.

    Links are followed, and paths are compared by what they lead to, so that mounts and upper case make no difference.
    """
    one = out.resolve()
    for path in inputs:
        if path is None or not path.exists():
            continue
        other = path.resolve()
        if _same(one, other):
            how = f"the same place as {path}"
        elif other.is_dir() and any(_same(parent, other) for parent in one.parents):
            how = f"inside {path}"
        elif one.exists() and any(_same(parent, one) for parent in other.parents):
            how = f"a folder that contains {path}"
        else:
            continue
        raise EffaceError(
            f"{out} cannot be written: it is {how}.",
            f"This command reads {path}, which would be changed or destroyed.",
            "Choose another --out.",
        )


def input_paths(*settings: Any) -> list[Path]:
    """The paths among the values of settings, such as those of a data source: texts that lead to something."""
    found: list[Path] = []
    for value in settings:
        if isinstance(value, Mapping):
            found += input_paths(*(one for name, one in value.items() if name != "cache"))
        elif isinstance(value, str) and _exists(Path(value).expanduser()):
            found.append(Path(value).expanduser())
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists() and path.resolve() != Path.cwd()
    except (OSError, ValueError, RuntimeError):
        return False


def _same(one: Path, other: Path) -> bool:
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def one_at_a_time(
    verb: Callable[Concatenate[Path, Parameters], Result],
) -> Callable[Concatenate[Path, Parameters], Result]:
    """Decorate a verb that writes into the run folder it is given: a second call waits for the first."""

    @wraps(verb)
    def locked(run: Path, *args: Parameters.args, **named: Parameters.kwargs) -> Result:
        run = Path(run)
        if not run.is_dir() or not run.resolve().name or is_follower():  # the first process has the lock
            return verb(run, *args, **named)  # its own error says what is missing
        say: Any = getattr(named.get("progress"), "say", lambda sentence: None)
        with hold_lock(run.resolve(), waiting=lambda: say(f"Waiting for another command that writes into {run}.")):
            return verb(run, *args, **named)

    return locked


def set_aside(path: Path) -> Path:
    """Rename a folder that is to be replaced; :func:`put_back` finds it again."""
    aside = path.with_name(f"{path.name}.replaced-{secrets.token_hex(4)}")
    path.rename(aside)
    return aside


def put_back(path: Path) -> None:
    """Rename what was set aside back to ``path``, if nothing took its place."""
    for aside in _set_aside(path):
        if not path.exists():
            aside.rename(path)


def remove_replaced(path: Path) -> None:
    """Remove what was set aside, now that ``path`` is complete."""
    for aside in _set_aside(path):
        if not any(aside.iterdir()) or not why_not_unfinished(aside):
            remove_folder(aside)


def remove_folder(folder: Path) -> None:
    """Remove a folder of ours; its request goes last, so that what a cut leaves still proves to be ours."""
    for item in folder.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        elif item.name != REQUEST:
            item.unlink()
    (folder / REQUEST).unlink(missing_ok=True)
    folder.rmdir()


def _set_aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.replaced-{'[0-9a-f]' * 8}"))
