"""Show a run in TensorBoard, Weights & Biases or MLflow: one small seam behind ``--track``.

A tracker receives the same records as ``log.jsonl``: phase, learning rate and loss terms of each optimizer step. It is
told settings of the recipe and the method, never ids, selectors or paths of the data.

======================  =====================================================================================
``tensorboard:DIR``     event files in a folder; DIR is ``tensorboard`` if none is given (extra ``tensorboard``)
``wandb:PROJECT``       Weights & Biases; ``WANDB_MODE=offline`` keeps everything on disk (extra ``wandb``)
``mlflow:URI``          MLflow: a folder, or the address of a server; ``mlruns`` if none is given (extra ``mlflow``)
======================  =====================================================================================
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from efface.errors import EffaceError, optional_imports, unknown_name_error

HIDDEN = ("forget", "forget_seed", "data", "split", "trained", "canaries")
"""Settings that could name examples or people; they are never told to a tracker."""


class Tracker(Protocol):
    """Receives the settings, the steps and the end of one run."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Take one log record: ``{"step", "phase", "lr", "terms": {name: value}}``."""
        ...

    def close(self, *, failed: bool) -> None:
        """End the run; ``failed`` if it did not finish."""
        ...


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a log record by name: ``phase/term`` and ``lr``; values that are not finite are left out."""
    found = {f"{record['phase']}/{name}": value for name, value in record["terms"].items()}
    if record.get("lr") is not None:
        found["lr"] = record["lr"]
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def flatten_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings as flat names, ``method.weight``, without those that could name examples or people."""
    found = dict[str, Any]()
    for name, value in values.items():
        if name in HIDDEN:
            continue
        if isinstance(value, Mapping):
            found |= flatten_settings(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float | bool):
            found[f"{prefix}{name}"] = value
    return found


class TensorBoardTracker:
    """Writes TensorBoard's event files."""

    def __init__(self, where: str, name: str, settings: Mapping[str, Any]) -> None:
        """Open ``where/name``."""
        _require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(Path(where or "tensorboard") / name))
        lines = "\n".join(f"    {key}: {value}" for key, value in settings.items())
        self._writer.add_text("settings", lines)

    def log(self, record: Mapping[str, Any]) -> None:
        """Write each number at its step."""
        for name, value in scalars_of(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self, *, failed: bool) -> None:
        """Write what is left."""
        self._writer.add_text("state", "failed" if failed else "finished")
        self._writer.close()


class WandbTracker:
    """Sends a run to Weights & Biases, or keeps it in ``wandb/`` with ``WANDB_MODE=offline``."""

    def __init__(self, where: str, name: str, settings: Mapping[str, Any]) -> None:
        """Start a run in the project ``where``."""
        wandb = _require("wandb", "wandb")
        try:
            self._run = wandb.init(
                project=where or "efface", name=name, config=dict(settings), reinit="create_new", save_code=False
            )
        except wandb.errors.UsageError as error:
            raise EffaceError(
                "Weights & Biases did not start a run.",
                f"It says: {str(error).splitlines()[0]}",
                "Log in with `wandb login`, or set WANDB_MODE=offline.",
            ) from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Send the numbers of a step."""
        self._run.log(scalars_of(record), step=record["step"])

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=int(failed))


class MlflowTracker:
    """Logs a run to MLflow: into a folder, or to a server."""

    MANY = 100
    """Steps that are sent together."""

    def __init__(self, where: str, name: str, settings: Mapping[str, Any]) -> None:
        """Start a run in the experiment ``efface``."""
        where = where or "mlruns"
        if "://" not in where:
            where = Path(where).resolve().as_uri()
        if where.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # otherwise refused from MLflow 3 on
        tracking, entities = _require("mlflow.tracking", "mlflow"), import_module("mlflow.entities")
        self._metric: Any = entities.Metric
        self._client: Any = tracking.MlflowClient(tracking_uri=where)
        known = self._client.get_experiment_by_name("efface")
        experiment = known.experiment_id if known else self._client.create_experiment("efface")
        self._run: str = self._client.create_run(experiment, run_name=name).info.run_id
        parameters = [entities.Param(key, str(value)[:500]) for key, value in settings.items()]
        self._client.log_batch(self._run, params=parameters[:100])
        self._waiting: list[Any] = []

    def log(self, record: Mapping[str, Any]) -> None:
        """Keep the numbers of a step until there are many."""
        now = int(time.time() * 1000)
        self._waiting += [self._metric(name, value, now, record["step"]) for name, value in scalars_of(record).items()]
        if len(self._waiting) >= self.MANY:
            self._send()

    def _send(self) -> None:
        for start in range(0, len(self._waiting), 1000):  # more are refused at once
            self._client.log_batch(self._run, metrics=self._waiting[start : start + 1000])
        self._waiting.clear()

    def close(self, *, failed: bool) -> None:
        """Send what is left, and end the run."""
        self._send()
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


TRACKERS: dict[str, Callable[[str, str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}
"""Name of each tracker to its class."""


@contextmanager
def track(where: str, name: str, settings: Mapping[str, Any]) -> Iterator[Tracker]:
    """Open a tracker for one run, and close it however the run ends.

    Args:
        where: ``tensorboard``, ``wandb`` or ``mlflow``; behind a colon the folder, project or address.
        name: Name of the run.
        settings: The settings of the run; those that could name examples are left out.

    Raises:
        EffaceError: There is no such tracker, its package is not installed, or it cannot start.

    Example:
        >>> with track("tensorboard:logs", "original", {"seed": 0}) as tracker:  # doctest: +SKIP
        ...     efface.pretrain(data, split, log=tracker.log)

    """
    kind, _, place = where.partition(":")
    if kind not in TRACKERS:
        raise unknown_name_error("tracker", kind, TRACKERS)
    tracker = TRACKERS[kind](place, name, flatten_settings(settings))
    failed = True
    try:
        yield _Counted(tracker)
        failed = False
    finally:
        tracker.close(failed=failed)


class _Counted:
    """Numbers the steps upwards: a search starts again at 1 with each trial, and trackers drop steps that go back."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._last = self._offset = 0

    def log(self, record: Mapping[str, Any]) -> None:
        step = record["step"] + self._offset
        if step <= self._last:
            self._offset = self._last
            step = record["step"] + self._offset
        self._last = step
        self._tracker.log({**record, "step": step})

    def close(self, *, failed: bool) -> None:
        self._tracker.close(failed=failed)


def _require(module: str, extra: str) -> Any:
    """Import the package of a tracker, or say how to install it."""
    with optional_imports(f"--track {extra}", extra):
        return import_module(module)
