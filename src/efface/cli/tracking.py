"""``--track``: show the steps of a verb in TensorBoard, Weights & Biases or MLflow as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.training.launch import is_follower

if TYPE_CHECKING:
    from efface.runs.run import Progress

Track = Annotated[
    str | None,
    typer.Option("--track", metavar="TRACKER", help="tensorboard[:DIR], wandb[:PROJECT] or mlflow[:URI]."),
]


@contextmanager
def tracked(progress: Progress, where: str | None, out: Path, settings: Mapping[str, Any]) -> Iterator[Progress]:
    """Yield progress callbacks that also tell a tracker about each step; unchanged if there is no tracker.

    Args:
        progress: The callbacks of the command line.
        where: What was given to ``--track``, or None.
        out: The run folder; its name is the name of the tracked run.
        settings: The settings of the verb; those that could name examples are left out.

    """
    if where is None or is_follower():  # of several processes the first one tells it
        yield progress
        return
    from efface.training.trackers import track

    with track(where, out.name, settings) as tracker:

        def step(record: dict[str, Any], total: int) -> None:
            progress.steps(record, total)
            tracker.log(record)

        yield replace(progress, steps=step)
