"""The verbs that say what there is: inspect, methods, audits, data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli.options import Json, Trust, tell


def inspect(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A run folder, or any library's file or folder.")
    ],
    trust_pickle: Trust = False,
    json_: Json = False,
) -> None:
    """Say what is in a checkpoint: whose layout, which network, parts, what is personal. Nothing in it is run."""
    from efface.inspect import inspect as look

    found = look(checkpoint, trust_pickle=trust_pickle)
    tell(found.as_dict(), found.lines(), as_json=json_, quiet=json_)


def methods(name: Annotated[str | None, typer.Argument()] = None, json_: Json = False) -> None:
    """List the unlearning methods and what each needs; with NAME its equation, source and fields."""
    from efface import catalog

    result, lines = catalog.methods(name)
    tell(result, lines, as_json=json_, quiet=json_)


def audits(name: Annotated[str | None, typer.Argument()] = None, json_: Json = False) -> None:
    """List the audits; with NAME what it measures."""
    from efface import catalog

    result, lines = catalog.audits(name)
    tell(result, lines, as_json=json_, quiet=json_)


def data(name: Annotated[str | None, typer.Argument()] = None, json_: Json = False) -> None:
    """List the data sources; with NAME its options."""
    from efface import catalog

    result, lines = catalog.sources(name)
    tell(result, lines, as_json=json_, quiet=json_)
