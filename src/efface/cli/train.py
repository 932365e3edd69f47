"""The verbs that make models: pretrain, unlearn, demo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.cli.options import (
    AllowAbsent,
    Config,
    DataOption,
    Device,
    Force,
    Json,
    ModelOption,
    Out,
    PurgeCache,
    Quiet,
    Seed,
    Set,
    SkipNeverTrained,
    Trust,
    consent_settings,
    merge_group,
    print_result,
    progress,
    settings_of,
)
from efface.cli.tracking import Track, tracked

if TYPE_CHECKING:
    from efface.training.checkpoint import Checkpoint


def pretrain_command(
    out: Out,
    data: DataOption = None,
    objective: Annotated[
        str | None, typer.Option("--objective", help="simclr, moco, byol, clip, cross_entropy.")
    ] = None,
    shards: Annotated[
        int | None, typer.Option("--shards", help="Train so many networks on examples of their own: exact deletion.")
    ] = None,
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    track: Track = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an original checkpoint; if interrupted, the same command resumes and ends with the same weights."""
    settings = settings_of(config, set_, data=data, objective=objective, seed=seed, device=device)
    if shards is not None:
        recipe = merge_group(settings, "recipe", {})
        settings["recipe"] = recipe | {"shards": merge_group(recipe, "shards", {"count": shards})}
    from efface.runs.train import pretrain_run

    with progress(quiet) as bar, tracked(bar, track, out, settings) as shown:
        made = pretrain_run(out, settings, force=force, progress=shown)
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
        str | None,
        typer.Option("--forget", help="File of keys, @class:5, @group:x, @random:0.1, @keys:a,b, @memorized:10%:FILE."),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="See `efface methods`; auto: chosen by unseen examples.")
    ] = None,
    stop: Annotated[
        bool, typer.Option("--stop", help="Early stopping by unseen examples; returns the best state.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", help="Largest number of optimizer steps: 5% of retraining's, or a number; implies --stop."
        ),
    ] = None,
    bank: Annotated[
        Path | None,
        typer.Option("--bank", help="Reference bank of the original, for methods that need one."),
    ] = None,
    data: DataOption = None,
    objective: Annotated[str | None, typer.Option("--objective", help="Objective of a foreign checkpoint.")] = None,
    model: ModelOption = None,
    skip_never_trained: SkipNeverTrained = False,
    allow_absent: AllowAbsent = False,
    purge_cache: PurgeCache = False,
    trust_pickle: Trust = None,
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    track: Track = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Unlearn examples from a checkpoint into a new run folder; the original stays as it is."""
    settings = settings_of(
        config, set_, forget=forget, method=method, stop={} if stop else None, budget=budget, data=data,
        bank=None if bank is None else str(bank),
        objective=objective, seed=seed, device=device, skip_never_trained=skip_never_trained or None,
        allow_absent=allow_absent or None, purge_cache=purge_cache or None, **consent_settings(trust_pickle),
    )  # fmt: skip
    from efface.runs.model_description import use_model_file
    from efface.runs.train import unlearn_run

    start, settings, notes = use_model_file(settings, model, start)
    with progress(quiet) as bar, tracked(bar, track, out, settings) as shown:
        for note in notes:
            shown.say(note)
        made = unlearn_run(start, out, settings, force=force, progress=shown)
    meta = made.meta()
    result = {"run": str(out), "digest": meta["digest"], "parent": made.parent, **vars(made.training_cost)}
    result |= {key: meta[key] for key in ("method", "stopped", "search") if meta[key] is not None}
    print_result(result, _summary(out, made), as_json=json_, quiet=quiet)


def check_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run of the method shards.")],
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Repeat an exact deletion from the beginning, and compare: 0 if the weights are equal, 3 if they are not."""
    from efface.runs.exact_runs import check_exact_run, describe_check

    with progress(quiet) as shown:
        found = check_exact_run(run, progress=shown)
    print_result(describe_check(run, found), [f"{run}: {found.what}; {found.measured}"], as_json=json_, quiet=quiet)
    raise typer.Exit(0 if found.passed else 3)


def _summary(out: Path, made: Checkpoint) -> list[str]:
    """The training cost, and the outcome of a search and of early stopping, as lines to print."""
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
    """Watch a model forget: pretrain, unlearn with two methods, retrain, audit, report."""
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # set before torch is imported: for networks this small, one thread is fastest
    from efface.runs.demo import run_demo

    with progress(quiet) as shown:
        result = run_demo(data, out, seed=seed or 0, device=device or "auto", force=force, progress=shown)
    print_result(result.as_dict(), result.lines(), as_json=json_, quiet=quiet)
