"""The verb that makes models to compare with: references."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli.options import Device, Json, Quiet, print_result, progress


def references_command(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="The run to make them for; not needed where --out has a plan."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the plan; by default RUN-references.")] = None,
    count: Annotated[int, typer.Option("--count", help="How many models that never saw F.")] = 8,
    pairs: Annotated[int, typer.Option("--pairs", help="How many pairs unlearned/retrained (level A2: 32).")] = 0,
    jobs: Annotated[int | None, typer.Option("--jobs", help="One-thread processes; by default one a core.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Do only this task of tasks.jsonl.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it will cost; train nothing.")] = False,
    device: Device = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make models that never saw the forgotten examples, to compare with. Cut, the same command goes on."""
    from efface.errors import EffaceError
    from efface.runs import references as refer

    if run is None and out is None:
        raise EffaceError("Nothing was said about which run.", remedy="Name RUN, or --out with a plan in it.")
    home = out or Path(f"{run}-references")
    made = refer.ReferencePlan.load(home) if run is None else refer.plan_references(run, home, count, pairs)
    if not dry_run:
        with progress(quiet) as shown:
            if run is not None:
                refer.write_reference_plan(run, made)
            if task is not None:
                refer.run_task(home, task, device=device or "auto", progress=shown)
            else:
                refer.run_all_tasks(made, jobs=jobs, device=device or "auto", say=shown.say)
    result, lines = refer.summarize_plan(made, jobs)
    if not dry_run and not any(kind["left"] for kind in result["kinds"].values()):
        lines = [f"{home}: all {len(made.tasks)} models are there."]
    print_result(result, lines, as_json=json_, quiet=quiet)
