"""An executor of processes on this machine, in which the death of a process fails no other task."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

from efface.tasks.worker import WorkerDiedError, end_with_parent

TERMINATION_SECONDS = 5.0
"""Time that a process has to end when it is asked to."""


class LocalExecutor(Executor):
    """Processes, each a pool of its own.

    The pools of the standard library break when one of their processes is killed, and with them all that they run.
    Here only the call in that process fails, with :class:`WorkerDiedError`, and a new process takes the next one. A
    process ends with its parent, even if that is killed, and does not see Ctrl-C, which is the parent's business.

    Args:
        jobs: Number of processes.

    """

    def __init__(self, jobs: int) -> None:
        resource_tracker.ensure_running()  # before Ctrl-C is blocked: it unblocks it when it starts
        self._threads = ThreadPoolExecutor(jobs, "efface-task", initializer=_block_interrupts)
        self._own = threading.local()
        self._pools: list[_OneProcess] = []
        self._stopped = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call in the next process that is free."""
        return self._threads.submit(self._call, fn, args, kwargs)

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Run a call in the process of this thread, a new one if the last has died."""
        pool: _OneProcess | None = getattr(self._own, "pool", None)
        if pool is None or pool.ended:
            pool = self._own.pool = _OneProcess()
            self._pools.append(pool)
            if self._stopped:
                pool.end()
        return pool.call(function, arguments, named)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End all processes: with ``cancel_futures`` at once, whatever they do; else when all calls are done."""
        if not cancel_futures:
            self._threads.shutdown(wait=wait)
        self._stopped = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for pool in list(self._pools):
            pool.end()
        self._threads.shutdown(wait=wait)


class _RecordingContext(SpawnContext):
    """Starts processes afresh, and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[BaseProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> BaseProcess:  # type: ignore[override]  # noqa: N802
        process = super().Process(*args, **kwargs)
        self.processes.append(process)
        return process


class _OneProcess:
    """A pool of one process."""

    def __init__(self) -> None:
        self.context = _RecordingContext()
        self.pool = ProcessPoolExecutor(1, self.context, initializer=end_with_parent)
        self.ended = False

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Run a call, and say how the process ended if it did."""
        try:
            return self.pool.submit(function, *arguments, **named).result()
        except BrokenProcessPool as error:
            self.ended = True
            self._end_processes()
            self.pool.shutdown()  # its own thread may have fetched the exit code and not have noted it yet
            raise WorkerDiedError(*_describe_end([process.exitcode for process in self.context.processes])) from error

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.ended = True
        self.pool.shutdown(wait=False, cancel_futures=True)
        self._end_processes()

    def _end_processes(self) -> None:
        started = [process for process in self.context.processes if process.pid is not None]
        for process in started:
            process.terminate()
        for process in started:
            process.join(TERMINATION_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()


def _describe_end(codes: list[int | None]) -> tuple[str, str, str]:
    """What, why and remedy of a process that died."""
    code = codes[0] if codes else None
    if code is None or code < 0:
        return (
            f"The process of the task ended with {'no exit code' if code is None else f'signal {-code}'}.",
            "It ran out of memory, or was killed.",
            "Run the same command again, with fewer --jobs if memory was short.",
        )
    return (
        f"The process of the task ended with exit code {code}.",
        "It could not start, or the task ended it; what it said itself is above.",
        'A script that runs tasks needs `if __name__ == "__main__":` around the call.',
    )


def _block_interrupts() -> None:
    """Keep Ctrl-C from this thread, and from the processes that it starts."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
