"""Independent pieces of work with dependencies, run by processes of this machine or of others.

A :class:`Task` is a call of a module-level function that can be repeated: it writes its result into a place that is
named by what goes into it, and returns at once if the result is there. :func:`run_tasks` runs tasks in the order of
their needs, over a ``concurrent.futures.Executor``:

======================  ================================================================================
``graph``               a task, its outcome, and the order in which tasks can start
``runner``              :func:`run_tasks`
``worker``              what happens in the process that runs a task; :func:`report_steps`
``place``               where tasks run: the value of ``--on``
``executors``           opens the executor of a place
``local``               single-thread processes of this machine, which end with their parent
``dask_cluster``        the workers of a Dask scheduler
``slurm``               jobs of a Slurm partition
======================  ================================================================================

Example:
    >>> from efface.tasks import Task, run_tasks
    >>> first = Task("first", train_model, (Path("runs/a"), 0), is_done=Path("runs/a/meta.json").exists)
    >>> second = Task("second", judge_model, (Path("runs/a"),), needs=("first",))
    >>> run_tasks([first, second], jobs=2, say=print)  # doctest: +SKIP
    2

"""

from typing import TYPE_CHECKING

from efface._lazy import lazy_exports

if TYPE_CHECKING:
    from efface.tasks.graph import Task, TaskOutcome
    from efface.tasks.runner import run_tasks
    from efface.tasks.worker import WorkerDiedError, report_steps, wait_until_seen

_HOMES = {
    "Task": "graph",
    "TaskOutcome": "graph",
    "WorkerDiedError": "worker",
    "report_steps": "worker",
    "run_tasks": "runner",
    "wait_until_seen": "worker",
}
__getattr__ = lazy_exports(__name__, _HOMES)

__all__ = ["Task", "TaskOutcome", "WorkerDiedError", "report_steps", "run_tasks", "wait_until_seen"]
