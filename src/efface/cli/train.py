"""The verbs that make models: pretrain, unlearn, demo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.cli.options import (
    Config,
    DataOption,
    Device,
    Force,
    Json,
    Out,
    Quiet,
    Seed,
    Set,
    Trust,
    print_result,
    progress,
    settings_of,
)

if TYPE_CHECKING:
    from efface.training.checkpoint import Checkpoint


def pretrain_command(
    out: Out,
    data: DataOption = None,
    objective: Annotated[
        str | None, typer.Option("--objective", help="simclr, moco, byol, clip, cross_entropy.")
    ] = None,
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an original checkpoint; cut at any moment, the same command goes on to the same weights."""
    settings = settings_of(config, set_, data=data, objective=objective, seed=seed, device=device)
    from efface.runs import train

    with progress(quiet) as shown:
        made = train.pretrain_run(out, settings, force=force, progress=shown)
    result = {"run": str(out), "digest": made.model.digest(), **vars(made.training_cost)}
    print_result(
        result,
        [f"{out}: {made.training_cost.steps} steps, {made.training_cost.seconds:.0f} s"],
        as_json=json_,
        quiet=quiet,
    )


def unlearn_command(
    start: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder, or any library's checkpoint.")],
    out: Out,
    forget: Annotated[
        str | None, typer.Option("--forget", help="File of keys, @class:5, @group:x, @random:0.1, @keys:a,b.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="`efface methods` lists them; auto: chosen by unseen examples.")
    ] = None,
    stop: Annotated[
        bool, typer.Option("--stop", help="Look at unseen examples on the way, end in time, give back the best state.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Most optimizer steps: 5% of retraining's, or a number; with --stop.")
    ] = None,
    data: DataOption = None,
    objective: Annotated[str | None, typer.Option("--objective", help="Of a foreign checkpoint.")] = None,
    trust_pickle: Trust = False,
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a checkpoint forget examples: a new run folder beside the original, which stays as it is."""
    settings = settings_of(
        config, set_, forget=forget, method=method, stop={} if stop else None, budget=budget, data=data,
        objective=objective, seed=seed, device=device, trust_pickle=trust_pickle or None,
    )  # fmt: skip
    from efface.runs import train

    with progress(quiet) as shown:
        made = train.unlearn_run(start, out, settings, force=force, progress=shown)
    meta = made.meta()
    result = {"run": str(out), "digest": meta["digest"], "parent": made.parent, **vars(made.training_cost)}
    result |= {key: meta[key] for key in ("method", "stopped", "search") if meta[key] is not None}
    print_result(result, _unlearned(out, made), as_json=json_, quiet=quiet)


def _unlearned(out: Path, made: Checkpoint) -> list[str]:
    """What was done, and how it came to an end where unseen examples were looked at."""
    from efface.training import history

    lines = [f"{out}: {made.training_cost.steps} steps, {made.training_cost.seconds:.0f} s"]
    if made.search:
        lines += [history.describe_trial(number, trial) for number, trial in enumerate(made.search.trials, 1)]
        lines.append(history.describe_search(made.search))
    if made.stopped:
        lines.append(history.describe_stopping(made.stopped))
    return lines


def demo_command(
    data: Annotated[str, typer.Option("--data", help="digits or fashion-mnist.")] = "digits",
    out: Annotated[Path, typer.Option("--out", help="Folder for the demo's runs.")] = Path("runs/demo"),
    seed: Seed = None,
    device: Device = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """See a model forget: pretrain, unlearn two ways, retrain, audit, report."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its networks are so small that sharing costs time
    from efface.runs import demo as show

    with progress(quiet) as shown:
        result = show.run_demo(data, out, seed=seed or 0, device=device or "auto", force=force, progress=shown)
    print_result(result.as_dict(), result.lines(), as_json=json_, quiet=quiet)
