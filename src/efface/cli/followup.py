"""The verbs for further evidence about a run: relearn, canaries plan, canaries guess."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from efface.cli.options import (
    AllowAbsent,
    Config,
    ConsentingCommand,
    DataOption,
    Device,
    Json,
    ModelOption,
    Oracles,
    Quiet,
    Seed,
    Set,
    Trust,
    consent_settings,
    merge_group,
    print_result,
    progress,
    settings_of,
)

Original = Annotated[
    Path | None, typer.Option("--original", help="The original; by default the run that RUN was made from.")
]


def relearn_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="An unlearned run; it is only read.")],
    original: Original = None,
    oracle: Oracles = None,
    on: Annotated[str | None, typer.Option("--on", help="retain (default) or forget.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps (default 100).")] = None,
    every: Annotated[int | None, typer.Option("--every", help="Steps between two observations (default 10).")] = None,
    data: DataOption = None,
    allow_absent: AllowAbsent = False,
    model: ModelOption = None,
    trust_pickle: Trust = None,
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train copies of the run and of the oracles further, and measure how fast the forgotten examples come back."""
    settings = settings_of(
        config, set_, seed=seed, device=device, data=data, allow_absent=allow_absent or None,
        **consent_settings(trust_pickle),
    )  # fmt: skip
    named = {key: value for key, value in {"on": on, "steps": steps, "every": every}.items() if value is not None}
    settings["relearn"] = merge_group(settings, "relearn", named)

    from efface.runs.model_description import use_model_of_run
    from efface.runs.relearn import relearn_run

    with progress(quiet) as shown:
        for note in use_model_of_run(model, run):
            shown.say(note)
        kept = relearn_run(run, settings, original=original, oracles=oracle or [], progress=shown)
    print_result(kept.as_dict(), kept.lines(), as_json=json_, quiet=quiet)


canaries = typer.Typer(
    help="Bound a leak in ε from below, by examples whose inclusion in training was decided by coin flips.",
    no_args_is_help=True,
    add_completion=False,
)


@canaries.command()
def plan(
    out: Annotated[Path, typer.Option("--out", help="Folder to write; refused if it exists.")],
    data: DataOption = None,
    keys: Annotated[str | None, typer.Option("--keys", help="File of keys to draw from; by default all.")] = None,
    count: Annotated[int | None, typer.Option("--count", help="Number of canaries; by default all keys.")] = None,
    guesses: Annotated[
        int | None, typer.Option("--guesses", help="Number of coins to guess later; by default a third.")
    ] = None,
    config: Config = None,
    set_: Set = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Repeatable coins; without it they are secret.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Flip the coins before training: which canaries are trained on, and which are left out."""
    settings = settings_of(config, set_, data=data)
    from efface.runs.canary_plan import plan_canaries

    made = plan_canaries(out, settings, keys=keys, count=count, guesses=guesses, seed=seed)
    print_result(made.as_dict(), made.lines(), as_json=json_, quiet=quiet)


@canaries.command(cls=ConsentingCommand)
def guess(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run that forgot the included canaries.")],
    planned: Annotated[Path, typer.Option("--plan", help="Folder that `efface canaries plan` wrote.")],
    original: Original = None,
    oracle: Oracles = None,
    signal: Annotated[
        str | None, typer.Option("--signal", help="Score to guess by; by default that of the outermost space.")
    ] = None,
    data: DataOption = None,
    allow_absent: AllowAbsent = False,
    model: ModelOption = None,
    trust_pickle: Trust = None,
    config: Config = None,
    set_: Set = None,
    device: Device = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Guess the coins from observations of the run, reveal them, and bound ε from below."""
    settings: dict[str, Any] = settings_of(
        config, set_, device=device, signal=signal, data=data, allow_absent=allow_absent or None,
        **consent_settings(trust_pickle),
    )  # fmt: skip
    from efface.runs.canaries import guess_canaries
    from efface.runs.model_description import use_model_of_run

    with progress(quiet) as shown:
        for note in use_model_of_run(model, run):
            shown.say(note)
        kept = guess_canaries(run, planned, settings, original=original, oracles=oracle or [], progress=shown)
    print_result(kept.as_dict(), kept.lines(), as_json=json_, quiet=quiet)
