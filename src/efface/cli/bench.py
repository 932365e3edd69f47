"""The verb that compares methods: bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli.options import Device, Json, On, Quiet, Set, print_result, progress, settings_of

FAILED = 5


def bench_command(
    grid: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="What to compare; see examples/.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the results; by default runs/NAME. An existing one is resumed."),
    ] = None,
    family: Annotated[list[str] | None, typer.Option("--family", help="Only this family; repeatable.")] = None,
    forget: Annotated[list[str] | None, typer.Option("--forget", help="Only this forget set; repeatable.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", help="Number of processes, with one thread each.")] = None,
    on: On = "local",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, the time and the disk space; train nothing.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed tasks again.")] = False,
    set_: Set = None,
    device: Device = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare methods on objectives, forget sets and seeds; if interrupted, the same command resumes.

    Exit code 5: done, but some models failed; which ones and why is printed and on the page.
    """
    from efface.bench.grid import build_grid, folder_name
    from efface.tasks.place import TaskPlace

    TaskPlace.parse(on)
    settings = settings_of(grid, set_, name=None, jobs=jobs, device=device)
    chosen = build_grid(settings, grid.stem).select(family or (), forget or ())
    home = out or Path("runs") / folder_name(chosen, grid.stem)
    if dry_run:
        from efface.bench.estimate import estimate

        with progress(quiet) as shown:
            estimated = estimate(chosen, home, shown)
        print_result(estimated.as_dict(), estimated.lines(), as_json=json_, quiet=quiet)
        return
    from efface.bench.page import PAGE
    from efface.bench.runner import run_bench
    from efface.bench.tables import RESULTS

    with progress(quiet) as shown:
        done = run_bench(chosen, home, on=on, retry=retry, progress=shown)
    lines = [f"{done.made} made, {done.kept} kept from before, {len(done.failed)} failed."]
    lines += [f"failed: {task}: {error}" for task, error in done.failed.items()]
    lines += [f"Page: {home / PAGE}", f"All results: {home / RESULTS}, and the same as .csv"]
    result = {"folder": str(home), "made": done.made, "kept": done.kept, "failed": done.failed}
    print_result(result, lines, as_json=json_, quiet=quiet)
    raise typer.Exit(FAILED if done.failed else 0)
