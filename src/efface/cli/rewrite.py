"""The verb that writes shards again without forgotten pictures: efface rewrite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from efface.cli.options import Json, Quiet, Set, print_result, settings_of


def rewrite_command(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Shards: a .tar or .parquet, a folder of them, or a pattern.")
    ],
    forget: Annotated[
        Path, typer.Option("--forget", help="A list of ids, as for `unlearn`; or a run folder: what it was to forget.")
    ],
    set_: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write shards again without forgotten pictures, and verify it; exit code 3 if exact copies are left.

    A shard is replaced only when the new one was read back. Killed at any moment, the same command goes on.
    """
    settings: dict[str, Any] = settings_of(None, set_, data={"source": data})
    options = {name: value for name, value in settings["data"].items() if name not in ("source", "root")}
    from efface.data.shards.rewriting import read_forgotten, rewrite_shards

    made = rewrite_shards(data, read_forgotten(forget), options, dry_run=dry_run)
    print_result(made.as_dict(), made.lines(), as_json=json_, quiet=quiet)
    raise typer.Exit(3 if made.copies else 0)
