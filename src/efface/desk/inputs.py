"""What people write when they add a request: names, days, goals, and what is to be forgotten."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from efface.desk.states import Goal, RequestState
from efface.errors import EffaceError, unknown_name_error

SELECTORS = ("@class:", "@group:", "@random:", "@keys:")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}\Z")


def key_digest(secret: bytes) -> str:
    """What the ledger says of a key: it shows whether a key is the right one, and nothing else."""
    return hashlib.sha256(secret).hexdigest()


def read_forget(forget: str | Path | Sequence[str]) -> str | tuple[str, ...]:
    """Read what is to be forgotten: a selector stays one; a file, ``@keys:`` and a sequence become ids."""
    if not isinstance(forget, str | Path):
        ids = [str(one) for one in forget]
        source = "the list"
    elif str(forget).startswith("@"):
        selector = str(forget)
        if not selector.startswith(SELECTORS) or selector in SELECTORS:
            raise EffaceError(
                f"'{selector}' is no selector.", remedy="Write @class:NAME, @group:NAME, @random:20 or @keys:a,b."
            )
        if not selector.startswith("@keys:"):
            return selector
        ids, source = [one.strip() for one in selector.removeprefix("@keys:").split(",") if one.strip()], "@keys"
    else:
        ids, source = _read_ids(Path(forget).expanduser()), str(forget)
    repeated = len(ids) - len(set(ids))
    if not ids or repeated:
        raise EffaceError(
            f"{source} holds no ids." if not ids else f"{repeated} ids are listed more than once in {source}.",
            "Every example can be forgotten only once, and a repeated id may be a typing error for another one."
            if repeated
            else "There is nothing to forget.",
            "Remove the repeated ids." if repeated else "Put one id on each line.",
        )
    return tuple(ids)


def _read_ids(path: Path) -> list[str]:
    from efface.data.text_files import read_list

    remedy = "Name a file with one id on each line, or a selector such as @class:NAME."
    try:
        return list(read_list(path).ids)
    except FileNotFoundError:
        raise EffaceError(f"There is no file {path}.", remedy=remedy) from None
    except (OSError, ValueError) as error:
        raise EffaceError(f"{path} cannot be read as a list of ids.", str(error), remedy) from error


def require_name(kind: str, name: str) -> None:
    """Raise unless a name can also be that of a file."""
    if not _NAME.match(name):
        raise EffaceError(
            f"A {kind} cannot be called {name!r}.",
            "Its name becomes the name of files.",
            "Use letters, digits and . _ -, at most 80, such as DSR-2026-0042.",
        )


def parse_goal(value: Goal | str) -> Goal:
    """Read a goal."""
    try:
        return Goal(value)
    except ValueError:
        raise unknown_name_error("goal", str(value), [one.value for one in Goal]) from None


def parse_state(value: RequestState | str) -> RequestState:
    """Read a state."""
    try:
        return RequestState(value)
    except ValueError:
        raise unknown_name_error("state", str(value), [one.value for one in RequestState]) from None


def parse_day(value: str, name: str) -> str:
    """Read a day, as ``2026-12-29``; ``name`` says what it is, for the error."""
    try:
        return date.fromisoformat(value.strip()).isoformat()
    except ValueError as error:
        raise EffaceError(f"The {name} '{value}' is no day.", str(error), "Write it as 2026-12-29.") from error


def parse_moment(value: str) -> str:
    """A moment in UTC; without a time zone it is taken to be in UTC, without a time the start of the day."""
    try:
        found = datetime.fromisoformat(value.strip())
    except ValueError as error:
        raise EffaceError(
            f"'{value}' is no time.", str(error), "Write it as 2026-11-29 or 2026-11-29T14:30:00+01:00."
        ) from error
    utc = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    return utc.replace(microsecond=0).isoformat().replace("+00:00", "Z")


def add_days(moment: str, days: int) -> str:
    """The day so many days after a moment."""
    return (date.fromisoformat(moment[:10]) + timedelta(days=days)).isoformat()
