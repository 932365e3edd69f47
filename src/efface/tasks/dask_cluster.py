"""An executor over a Dask cluster: tasks outlive the death of a worker, and a scheduler that is started again."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Executor, Future
from typing import Any, ClassVar

from efface.errors import EffaceError, optional_imports
from efface.tasks.worker import LostTaskError

CONNECT_SECONDS = 10.0
"""Time that a scheduler has to answer at first."""
RESTART_SECONDS = 300.0
"""Time that a scheduler has to come back."""


class DaskExecutor(Executor):
    """The workers of a Dask scheduler.

    Dask itself gives the task of a dead worker to another one. What it was doing is lost with a scheduler that ends:
    such a call ends with :class:`LostTaskError`, and the next one waits until the scheduler is there again.

    Args:
        address: ``HOST:PORT`` of the scheduler.
        options: Resources that each task needs, as the workers were started with, such as ``{"GPU": "1"}``.

    Raises:
        EffaceError: Dask is not installed, no scheduler answers, or its workers are not fit for tasks.

    """

    most: ClassVar[int] = 1000
    """Number of tasks that the scheduler is given at a time, by default."""

    def __init__(self, address: str, options: Mapping[str, str]) -> None:
        self.address = address
        try:
            self.resources = {name: float(value) for name, value in options.items()}
        except ValueError as error:
            raise EffaceError(
                f"--on dask://{address} has a resource that is no number.", str(error), "Write it as GPU=1."
            ) from error
        self._numbers = itertools.count()
        self._inner: dict[Future[Any], Any] = {}
        self._closed = False
        try:
            self.client = self._connect()
        except (OSError, TimeoutError, ValueError) as error:
            raise EffaceError(
                f"No Dask scheduler answers at {address}.",
                str(error),
                "Start one with `dask scheduler` there, or correct the address after --on.",
            ) from error
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        broad = [one["name"] for one in workers.values() if one["nthreads"] > 1]
        if broad:
            self.client.close()
            raise EffaceError(
                f"The Dask worker {broad[0]} runs several tasks in one process.",
                "Tasks share nothing: each needs a process with one thread.",
                "Start it again with one thread, and more workers instead.",
            )
        count = f"workers: {len(workers)}" if workers else "no worker yet, the tasks wait for one"
        self.note = f"Dask scheduler {address}, {count}. Its dashboard: {self.client.dashboard_link}"

    def _connect(self) -> Any:
        """Open a client of the scheduler."""
        with optional_imports(f"--on dask://{self.address}", "dask"):
            from distributed import Client
        return Client(self.address, timeout=CONNECT_SECONDS, set_as_default=False)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Give a call to the scheduler; wait for the scheduler if it is being started again."""
        outer: Future[Any] = Future()
        outer.set_running_or_notify_cancel()
        name = next((one for one in args if isinstance(one, str)), getattr(fn, "__name__", "call"))
        inner = None
        while inner is None:
            self._require_scheduler()
            key = f"{name}-{next(self._numbers)}-{id(self.client):x}"
            try:
                inner = self.client.submit(fn, *args, key=key, resources=self.resources, pure=False, **kwargs)
            except Exception:  # its class differs between versions of Dask
                if self.client.status == "running":
                    raise  # not because the scheduler was lost just now
        self._inner[outer] = inner  # a call that nobody holds is cancelled
        inner.add_done_callback(lambda done: self._answer(outer, done))
        return outer

    def _require_scheduler(self) -> None:
        """Open the client again if the scheduler was lost."""
        until = time.monotonic() + RESTART_SECONDS
        while self.client.status != "running":
            self.client.close(timeout=1)
            try:
                self.client = self._connect()
            except (OSError, TimeoutError) as error:
                if time.monotonic() > until:
                    raise EffaceError(
                        f"The Dask scheduler at {self.address} is gone.",
                        f"It was not there again within {RESTART_SECONDS:.0f} s. What was finished is kept.",
                        "Start it again, and run the same command again.",
                    ) from error

    def _answer(self, outer: Future[Any], inner: Any) -> None:
        """Tell the caller how a call ended."""
        from distributed.scheduler import KilledWorker

        self._inner.pop(outer, None)
        try:
            outer.set_result(inner.result())
        except KilledWorker as error:
            died = EffaceError(
                "Every process that began the task has died.",
                str(error),
                "Look at the logs of the workers: mostly, memory was short.",
            )
            outer.set_exception(died)
        except Exception as error:
            # Unless the call ended with it, the scheduler ended while the call or its result was on its way.
            lost = inner.status != "error" and isinstance(error, (CancelledError, OSError))
            said = LostTaskError("The Dask scheduler ended.", "It can no longer say how the task ended.")
            outer.set_exception(said if lost else error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Close the client. With ``cancel_futures``, calls that wait are cancelled; running ones end by themselves."""
        if self._closed:
            return
        self._closed = True
        if cancel_futures and self.client.status == "running":
            self.client.cancel(list(self._inner.values()))
        elif wait:
            for outer in list(self._inner):
                outer.exception()
        self.client.close(timeout=CONNECT_SECONDS)
