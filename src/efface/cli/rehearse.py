"""The verb that rehearses the procedure of a small request: rehearse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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


def rehearse_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The unlearned run whose procedure is rehearsed.")],
    requests: Annotated[int, typer.Option("--requests", help="Number of rehearsed requests.")] = 40,
    like: Annotated[
        Literal["last", "random", "group", "class"],
        typer.Option("--like", help="What each of them is: like the request of RUN, or another kind."),
    ] = "last",
    size: Annotated[
        int | None, typer.Option("--size", help="Examples in each; by default as many as in the request of RUN.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the rehearsals; by default beside the original.")
    ] = None,
    jobs: JobsOption = None,
    on: On = "local",
    recheck: Annotated[
        int | None, typer.Option("--recheck", help="Make so many finished rehearsals again, and compare their scores.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would cost; unlearn nothing.")] = False,
    model: ModelOption = None,
    set_: Set = None,
    data: DataOption = None,
    allow_absent: AllowAbsent = False,
    device: Device = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Validate the procedure of a small request: unlearn many requests like it, so that audits can decide.

    Each rehearsed request is a set of retained examples, unlearned from the same original with the same method and
    settings. They serve every later request of the same kind and size. If interrupted, the same command goes on.
    --recheck is for who did not make them: it draws some at random, makes them again, and compares.
    """
    from efface import config
    from efface.auditing.observers.settings import ObservationSettings
    from efface.errors import EffaceError
    from efface.runs import rehearsal_plan, rehearsals, stored_rehearsals
    from efface.runs.data_at_hand import DataChecks
    from efface.runs.model_description import use_model_of_run
    from efface.tasks.place import TaskPlace

    for name, value in (("--requests", requests), ("--size", size), ("--jobs", jobs), ("--recheck", recheck)):
        if value is not None and value < 1:
            raise EffaceError(f"{name} cannot be {value}.", "It is a number of things.", "Set it to 1 or more.")
    settings = settings_of(None, set_)
    if set(settings) - {"watch"}:
        raise EffaceError(
            f"Rehearsals have no setting '{min(set(settings) - {'watch'})}': the method's are those of the run.",
            remedy="Use --set watch.NAME=VALUE.",
        )
    watch = config.build(ObservationSettings, settings.get("watch") or {}, path="watch.")
    TaskPlace.parse(on)
    notes = use_model_of_run(model, run)
    checks = DataChecks(data=data, allow_absent=allow_absent)
    plan = rehearsal_plan.plan_rehearsals(
        run, out, requests, kind=None if like == "last" else like, size=size, watch=watch, checks=checks
    )
    repeated: list[str] = []
    _, lines = rehearsals.summarize_rehearsals(plan, jobs)
    if not dry_run:
        with progress(quiet) as shown:
            for line in [*notes, *lines]:
                shown.say(line)
            rehearsal_plan.write_rehearsal_plan(run, plan, checks)
            rehearsals.run_rehearsals(
                plan, jobs=jobs, on=on, device=device or "auto", say=shown.say, status=shown.status
            )
            if recheck:
                repeated = stored_rehearsals.repeat_rehearsals(plan, recheck, device or "auto", shown.say)
    result, lines = rehearsals.summarize_rehearsals(plan, jobs)
    if not dry_run:
        if repeated:
            lines.append(f"Made again, with the same scores: {', '.join(repeated)}.")
            result["repeated"] = repeated
        lines.append(f"Audit with them: efface audit {run}{'' if out is None else f' --rehearsals {out}'}")
    print_result(result, lines, as_json=json_, quiet=quiet)
