"""The verb that compares methods: bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli.options import Device, Json, Quiet, Set, print_result, progress, settings_of

FAILED = 5


def bench_command(
    grid: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="What to compare; see examples/.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results; by default runs/NAME. The same goes on.")
    ] = None,
    family: Annotated[list[str] | None, typer.Option("--family", help="Only this family; repeatable.")] = None,
    forget: Annotated[list[str] | None, typer.Option("--forget", help="Only this forget set; repeatable.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", help="Processes at a time, one thread each.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, how long it would take, and how large.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run again what failed before.")] = False,
    set_: Set = None,
    device: Device = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare methods on objectives, forget sets and seeds; cut at any moment, the same command goes on.

    Exit code 5: done, but some models failed; which and why is printed and on the page.
    """
    from efface.bench.grid import build_grid

    settings = settings_of(grid, set_, name=None, jobs=jobs, device=device)
    asked = build_grid(settings, grid.stem)
    asked = asked.select(family or (), forget or ())
    home = out or Path("runs") / (asked.name.replace(" ", "-") or grid.stem)
    if dry_run:
        from efface.bench.estimate import estimate

        with progress(quiet) as shown:
            told = estimate(asked, home, shown)
        print_result(told.as_dict(), told.lines(), as_json=json_, quiet=quiet)
        return
    from efface.bench.page import PAGE
    from efface.bench.runner import run_bench as run
    from efface.bench.tables import RESULTS

    with progress(quiet) as shown:
        done = run(asked, home, retry=retry, progress=shown)
    lines = [f"{done.made} made, {done.kept} kept from before, {len(done.failed)} failed."]
    lines += [f"failed: {task}: {error}" for task, error in done.failed.items()]
    lines += [f"Page: {home / PAGE}", f"Everything: {home / RESULTS}, and .csv beside it"]
    result = {"folder": str(home), "made": done.made, "kept": done.kept, "failed": done.failed}
    print_result(result, lines, as_json=json_, quiet=quiet)
    raise typer.Exit(FAILED if done.failed else 0)
