"""The verb that makes reference models for an audit: references."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli.options import AllowAbsent, DataOption, Device, Json, On, Quiet, print_result, progress


def references_command(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="The run to make them for; not needed if --out has a plan."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the plan; by default RUN-references.")] = None,
    count: Annotated[int, typer.Option("--count", help="Number of models retrained without F.")] = 8,
    pairs: Annotated[int, typer.Option("--pairs", help="Number of pairs unlearned/retrained (level A2: 32).")] = 0,
    jobs: Annotated[
        int | None, typer.Option("--jobs", help="Number of processes with one thread; by default one per core.")
    ] = None,
    on: On = "local",
    task: Annotated[str | None, typer.Option("--task", help="Do only this task of tasks.jsonl.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the time and the disk space; train nothing.")
    ] = False,
    data: DataOption = None,
    allow_absent: AllowAbsent = False,
    device: Device = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Retrain models without the forgotten examples, as references for the audit. If interrupted, it resumes."""
    from efface.errors import EffaceError
    from efface.runs import references
    from efface.runs.data_at_hand import DataChecks
    from efface.tasks.place import TaskPlace

    if jobs is not None and jobs < 1:
        raise EffaceError(f"--jobs cannot be {jobs}.", "It is a number of processes.", "Set it to 1 or more.")
    if run is None and out is None:
        raise EffaceError("Nothing was said about which run.", remedy="Name RUN, or --out with a plan in it.")
    TaskPlace.parse(on)
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
            if run is not None:
                references.write_reference_plan(run, plan)
            if task is not None:
                references.run_task(home, task, device=device or "auto", progress=shown)
            else:
                references.run_all_tasks(plan, jobs=jobs, on=on, device=device or "auto", say=shown.say)
    result, lines = references.summarize_plan(plan, jobs)
    if not dry_run and not any(kind["left"] for kind in result["kinds"].values()):
        lines = [f"{home}: all {len(plan.tasks)} models are there."]
    print_result(result, lines, as_json=json_, quiet=quiet)
