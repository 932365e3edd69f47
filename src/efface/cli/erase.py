"""The verb that erases what still remembers: efface erase."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from efface.cli.options import DESK_HOME, Actor, DeskFolder, Json, LedgerUrl, Quiet, print_result
from efface.cli.request import opened
from efface.cli.sign import open_signer
from efface.errors import EffaceError


def erase_command(
    target: Annotated[
        str, typer.Argument(metavar="REQUEST|RUN", help="A request of the desk, or the run folder of a released model.")
    ],
    place: Annotated[
        list[Path] | None,
        typer.Option(
            "--place", help="File or folder to search: vectors, indexes, checkpoints, heads, banks; repeatable."
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="Private key: signs the bundle again, with the outcomes.")
    ] = None,
    remove_models: Annotated[
        bool, typer.Option("--remove-models", help="Remove models, checkpoints and banks that remember, too.")
    ] = False,
    destroy_key: Annotated[
        bool, typer.Option("--destroy-key", help="Destroy the request's key: nobody can link it to ids any more.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    desk: DeskFolder = DESK_HOME,
    ledger: LedgerUrl = None,
    actor: Actor = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove or list what still remembers a request, or the examples of a run; exit code 3 if something is left.

    Killed at any moment, the same command goes on.
    """
    signer = None if key is None else open_signer(key)
    from efface.desk.run_erasure import erase_run, is_erasable_run

    common: dict[str, Any] = {"places": place or (), "remove_models": remove_models, "dry_run": dry_run}
    if is_erasable_run(target):
        if destroy_key:
            raise EffaceError(
                f"{target} is a run folder, and has no request whose key could be destroyed.",
                remedy="Leave out --destroy-key; its own key is items.key.",
            )
        erased = erase_run(target, signer=signer, **common)
    else:
        with opened(desk, ledger) as found:
            erased = found.erase(target, destroy_key=destroy_key, signer=signer, actor=actor, **common)
    lines = [one.line(planned=dry_run) for one in erased] or ["Nothing was found that remembers."]
    print_result({"artefacts": [one.as_dict() for one in erased]}, lines, as_json=json_, quiet=quiet)
    raise typer.Exit(3 if any(one.outcome in ("listed", "failed") for one in erased) else 0)
