"""Tasks: their order, failures and what they block, on an executor of threads."""

from __future__ import annotations

import pickle

import pytest

from efface import errors
from efface.errors import DiskError, DivergenceError, EffaceError
from efface.tasks.graph import Task, TaskQueue


def nothing() -> None:
    """A task that does nothing."""


def task(name: str, *needs: str, after: tuple[str, ...] = ()) -> Task:
    return Task(name, nothing, needs=needs, after=after)


def drain(queue: TaskQueue, failing: frozenset[str] = frozenset()) -> list[str]:
    """End all tasks in the order in which they can start; names of blocked ones are in brackets."""
    order = []
    while (one := queue.take()) is not None:
        blocked = queue.failed_need(one)
        order.append(f"[{one.name}]" if blocked else one.name)
        queue.end(one, failed=blocked is not None or one.name in failing)
    return order


def test_tasks_start_in_the_given_order_as_soon_as_their_needs_have_ended():
    queue = TaskQueue([task("c", "a"), task("d"), task("a"), task("b", "a", "d")])
    assert drain(queue) == ["d", "a", "c", "b"]
    queue = TaskQueue([task("b", "a"), task("a"), task("c")])
    first = queue.take()
    assert first is not None and first.name == "a"
    queue.end(first, failed=False)
    assert drain(queue) == ["b", "c"]  # b comes before c although it became ready later


def test_a_failure_blocks_all_that_need_it_and_nothing_else():
    tasks = [task("a"), task("b", "a"), task("c", "b"), task("d", after=("a", "b")), task("e", "d"), task("f")]
    assert drain(TaskQueue(tasks), frozenset({"a"})) == ["a", "[b]", "[c]", "d", "e", "f"]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([task("a"), task("b"), task("a")], r"same name: \['a'\]"),
        ([task("a", "z")], r"not there: \['z'\]"),
        ([task("a", after=("z",))], r"not there: \['z'\]"),
        ([task("a", "b"), task("b", "c"), task("c", "a")], "wait for each other: "),
    ],
)
def test_wrong_graphs_are_refused(tasks, words):
    with pytest.raises(ValueError, match=words):
        TaskQueue(tasks)


def test_a_long_chain_and_many_tasks_take_no_time():
    chain = [task("0"), *(task(str(n), str(n - 1)) for n in range(1, 5_000))]
    assert len(drain(TaskQueue(chain))) == 5_000
    assert len(drain(TaskQueue([task(str(n)) for n in range(5_000)]))) == 5_000


def test_errors_can_be_sent_between_processes():
    examples = {
        EffaceError: EffaceError("a", "b", "c"),
        DiskError: DiskError("a", "b", "c"),
        DivergenceError: DivergenceError({"x": float("inf")}, 7, "d"),
    }
    kinds = {one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, EffaceError)}
    assert kinds == set(examples)
    for error in examples.values():
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)
