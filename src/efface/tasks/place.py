"""Where tasks run: the value of ``--on``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from efface.errors import EffaceError

PLACES = "local, dask://HOST:PORT, slurm:PARTITION"
FORM = re.compile(r"(?P<kind>local|dask|slurm)(?:://|:|(?=\?)|$)(?P<where>[^?]*)(?:\?(?P<options>.*))?")


@dataclass(frozen=True)
class TaskPlace:
    """Where tasks run, as the user names it: ``KIND``, ``KIND:WHERE``, ``KIND:WHERE?NAME=VALUE&...``."""

    kind: str
    where: str = ""
    options: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def parse(on: str) -> TaskPlace:
        """Read the value of ``--on``; nothing is opened.

        Raises:
            EffaceError: There is no such place, or its address is missing.

        """
        found = FORM.fullmatch(on)
        if found is None:
            raise EffaceError(f"--on cannot be '{on}'.", f"Known: {PLACES}.", "Choose one of these.")
        kind, where, written = found["kind"], found["where"], found["options"] or ""
        options = dict(parse_qsl(written, keep_blank_values=True))
        whole = written.count("&") + 1 == len(options) if written else True
        if not whole or (kind == "local") == bool(where) or (kind == "local" and options):
            why = {
                "local": "It has neither address nor options.",
                "dask": "It lacks the scheduler's address, or an option is not written as NAME=NUMBER.",
                "slurm": "It lacks a partition, or an option is not written as NAME=VALUE.",
            }
            raise EffaceError(f"--on cannot be '{on}'.", why[kind], f"Choose one of {PLACES}.")
        return TaskPlace(kind, where, options)

    @property
    def remote(self) -> bool:
        """Whether its processes may be on other machines."""
        return self.kind != "local"
