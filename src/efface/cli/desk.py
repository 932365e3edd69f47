"""The verb that serves the page of the desk: efface desk."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from efface.cli.options import (
    DESK_HOME,
    Actor,
    Config,
    DeskFolder,
    Json,
    LedgerUrl,
    Quiet,
    Set,
    print_result,
    settings_of,
)
from efface.cli.output import write_message
from efface.cli.request import opened
from efface.cli.sign import open_signer
from efface.errors import optional_imports


def desk_command(
    key: Annotated[
        Path | None, typer.Option("--key", help="Private key: signs what is released and erased on the page.")
    ] = None,
    verify_key: Annotated[
        Path | None, typer.Option("--verify-key", help="Public key to verify with; by default that of --key.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="package:function", help="A function of yours that builds the network. Repeatable."
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0: one that is free.")] = 0,
    config: Config = None,
    set_: Set = None,
    desk: DeskFolder = DESK_HOME,
    ledger: LedgerUrl = None,
    actor: Actor = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve the page of the desk on this computer, for people who answer requests without a terminal.

    --config and --set: settings of plans, as for `efface request plan`. Open the address that is printed.
    """
    with optional_imports("the page of the desk", "desk,sign"):
        from efface.desk.page import PageSettings, serve_page
    signer = None if key is None else open_signer(key)
    pinned = verify_key or _public_half(key)
    settings = settings_of(config, set_)
    with opened(desk, ledger) as found:

        def tell(url: str) -> None:
            lines = [f"Open {url}", "Ctrl-C ends it."] if not quiet else [] if json_ else [url]
            print_result({"url": url}, lines, as_json=json_, quiet=False)

        with suppress(KeyboardInterrupt):
            page = PageSettings(signer, pinned, settings, actor or "", own_modules=tuple(model or ()))
            serve_page(found, page, port=port, told=tell)
        write_message("The page was closed. A run that was started on it goes on.")


def _public_half(key: Path | None) -> Path | None:
    """The public key beside a private one; None if there is none."""
    if key is None:
        return None
    from efface.reporting.signing import public_key_path

    return public_key_path(key) if public_key_path(key).is_file() else None
