"""The verb that writes a model in the layout of another library: convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli.options import (
    Config,
    DataOption,
    Device,
    Force,
    Json,
    ModelOption,
    Out,
    Quiet,
    Set,
    Trust,
    consent_settings,
    print_result,
    progress,
    settings_of,
)


def convert_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Out,
    layout: Annotated[
        str | None,
        typer.Option("--as", help="original (its own file), plain (a state dict), timm (a folder)."),
    ] = None,
    like: Annotated[Path | None, typer.Option("--like", help="A file or folder whose layout is taken.")] = None,
    data: DataOption = None,
    model: ModelOption = None,
    trust_pickle: Trust = None,
    config: Config = None,
    set_: Set = None,
    device: Device = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the model of a run in the layout of another library, marked with what it has forgotten."""
    settings = settings_of(config, set_, data=data, layout=layout, device=device, **consent_settings(trust_pickle))
    from efface.runs.conversion import convert_run
    from efface.runs.model_description import use_model_of_run

    with progress(quiet) as shown:
        for note in use_model_of_run(model, run):
            shown.say(note)
        made = convert_run(run, out, settings, like=like, force=force, progress=shown)
    print_result(vars(made), made.lines(), as_json=json_, quiet=quiet)
