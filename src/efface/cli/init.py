"""The verb that describes a model of another library: init."""

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
    Quiet,
    Seed,
    Set,
    Trust,
    consent_settings,
    print_result,
    progress,
    settings_of,
)


def init_command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A file or folder of another library.")],
    data: DataOption = None,
    out: Annotated[Path, typer.Option("--out", help="The description to write.")] = Path("model.yaml"),
    objective: Annotated[str | None, typer.Option("--objective", help="What it was trained with.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="package:function", help="Your function that builds the network.")
    ] = None,
    trust_pickle: Trust = None,
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Describe another library's model, and try what is assumed about it on its training data (exit code 3: no fit)."""
    settings = settings_of(
        config, set_, data=data, objective=objective, seed=seed, device=device, **consent_settings(trust_pickle)
    )
    from efface.runs.model_description import describe_model, use_model_file

    if model is not None:
        checkpoint, settings, _ = use_model_file(settings, Path(model), checkpoint)
    with progress(quiet) as shown:
        made = describe_model(checkpoint, out, settings, force=force, progress=shown)
    print_result(made.as_dict(), made.lines(), as_json=json_, quiet=quiet)
    raise typer.Exit(made.exit_code)
