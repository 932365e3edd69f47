"""The verb that makes reference models for an audit: references."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from efface.cli.options import (
    AllowAbsent,
    DataOption,
    Device,
    JobsOption,
    Json,
    ModelOption,
    On,
    Quiet,
    Set,
    print_result,
    progress,
    settings_of,
)


def references_command(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="The run to make them for; not needed if --out has a plan."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the plan; by default RUN-references.")] = None,
    count: Annotated[int, typer.Option("--count", help="Number of models retrained without F.")] = 8,
    pairs: Annotated[int, typer.Option("--pairs", help="Number of pairs unlearned/retrained (level A2: 32).")] = 0,
    jobs: JobsOption = None,
    on: On = "local",
    bank: Annotated[
        int | None, typer.Option("--bank", help="Make a reference bank of so many models instead (even; 8 is usual).")
    ] = None,
    unit: Annotated[
        Literal["example", "group", "class"],
        typer.Option("--unit", help="With --bank: what is asked to be forgotten together."),
    ] = "example",
    epochs: Annotated[
        str | None, typer.Option("--epochs", help="With --bank: share of the original's epochs; by default 30%.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="With --bank: YAML of the recipe of an original that efface did not train."),
    ] = None,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="With --bank: keep the models, not only their scores.")
    ] = False,
    task: Annotated[str | None, typer.Option("--task", help="Do only this task of tasks.jsonl.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the time and the disk space; train nothing.")
    ] = False,
    model: ModelOption = None,
    set_: Set = None,
    data: DataOption = None,
    allow_absent: AllowAbsent = False,
    device: Device = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train reference models for the audit: without the forgotten examples, or with --bank a bank for all requests.

    A bank is trained once for an original, on random halves of its training data, and serves every later request. If
    interrupted, the same command goes on.
    """
    from efface.errors import EffaceError
    from efface.runs import references
    from efface.runs.data_at_hand import DataChecks
    from efface.runs.model_description import use_model_of_run
    from efface.tasks.place import TaskPlace

    if jobs is not None and jobs < 1:
        raise EffaceError(f"--jobs cannot be {jobs}.", "It is a number of processes.", "Set it to 1 or more.")
    TaskPlace.parse(on)
    notes = use_model_of_run(model, run)
    if bank is not None:
        _make_bank(
            run, out, bank, unit=unit, epochs=epochs, recipe=recipe, keep_weights=keep_weights, set_=set_, jobs=jobs,
            on=on, dry_run=dry_run, data=data, allow_absent=allow_absent, device=device, as_json=json_, quiet=quiet,
        )  # fmt: skip
        return
    if unit != "example" or epochs or recipe or keep_weights or set_:
        raise EffaceError(
            "--unit, --epochs, --recipe, --keep-weights and --set describe a reference bank.", remedy="Add --bank 8."
        )
    if run is None and out is None:
        raise EffaceError("Nothing was said about which run.", remedy="Name RUN, or --out with a plan in it.")
    home = out or Path(f"{run}-references")
    if run is None:
        plan = references.ReferencePlan.load(home)
    else:
        checks = DataChecks(data=data, allow_absent=allow_absent)
        plan = references.plan_references(run, home, count, pairs, checks)
    if task is not None:
        plan.task(task)  # an error for an unknown name, before anything is written
    if not dry_run:
        with progress(quiet) as shown:
            for note in notes:
                shown.say(note)
            if run is not None:
                references.write_reference_plan(run, plan)
            if task is not None:
                references.run_task(home, task, device=device or "auto", progress=shown)
            else:
                references.run_all_tasks(
                    plan, jobs=jobs, on=on, device=device or "auto", say=shown.say, status=shown.status
                )
    result, lines = references.summarize_plan(plan, jobs)
    if not dry_run and not any(kind["left"] for kind in result["kinds"].values()):
        lines = [f"{home}: all {len(plan.tasks)} models are there."]
    print_result(result, lines, as_json=json_, quiet=quiet)


def _make_bank(
    run: Path | None,
    out: Path | None,
    bank: int,
    *,
    unit: Literal["example", "group", "class"],
    epochs: str | None,
    recipe: Path | None,
    keep_weights: bool,
    set_: list[str] | None,
    jobs: int | None,
    on: str,
    dry_run: bool,
    data: Any,
    allow_absent: bool,
    device: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Plan a reference bank, and make what is missing of it."""
    from efface import config
    from efface.auditing.observers.settings import ObservationSettings
    from efface.errors import EffaceError
    from efface.runs import bank_plan, reference_bank
    from efface.runs.data_at_hand import DataChecks

    if run is None:
        raise EffaceError("Nothing was said about which run.", remedy="Name RUN: the original, or a run made from it.")
    settings = settings_of(None, set_)
    if set(settings) - {"watch"}:
        raise EffaceError(
            f"A reference bank has no setting '{min(set(settings) - {'watch'})}'.", remedy="Use --set watch.NAME=VALUE."
        )
    watch = config.build(ObservationSettings, settings.get("watch") or {}, path="watch.")
    home, checks = out or Path(f"{run}-bank"), DataChecks(data=data, allow_absent=allow_absent)
    plan = bank_plan.plan_bank(
        run, home, bank, unit=unit, share=_share(epochs), recipe=recipe, watch=watch, checks=checks
    )
    _, lines = reference_bank.summarize_bank(plan, jobs)
    if not dry_run:
        with progress(quiet) as shown:
            for line in lines:
                shown.say(line)
            bank_plan.write_bank_plan(run, plan, checks)
            reference_bank.make_bank(
                plan,
                jobs=jobs,
                on=on,
                device=device or "auto",
                keep_weights=keep_weights,
                say=shown.say,
                status=shown.status,
            )
    result, lines = reference_bank.summarize_bank(plan, jobs)
    print_result(result, lines, as_json=as_json, quiet=quiet)


def _share(text: str | None) -> float | None:
    """Read a share such as ``30%`` or ``0.3``."""
    from efface.errors import EffaceError

    if text is None:
        return None
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise EffaceError(f"--epochs cannot be {text}.", "It is a share of the original's epochs.", "Write 30% or 0.3.")
    return value
