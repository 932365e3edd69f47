"""The processes that compute one model together: each on its own rows of every batch.

A batch, its loss and all decisions are the same in every process. What is divided is the work on images: decoding,
views and networks. :meth:`World.spread` runs a network on the rows of its process and gathers the results with their
gradient; losses, queues and running means then see the whole batch, as in one process. So every objective and every
method runs on several processes without knowing of them, and gives the same weights up to rounding.

In one process every call here is the identity.
"""

from __future__ import annotations

import atexit
import logging
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from efface.errors import EffaceError, optional_imports
from efface.training import launch
from efface.training.divided_images import DividedImages, bounds

if TYPE_CHECKING:
    from efface.training.collectives import Parts

_Piece = TypeVar("_Piece")
_Value = TypeVar("_Value")


@dataclass(eq=False)
class World:
    """The processes of one run. Without a launcher it has one, and costs nothing."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Number of processes."""
    fabric: Any = None
    """Lightning Fabric, which started them; ``None`` in one process."""
    wrapped: tuple[tuple[int, ...], Any] | None = field(default=None, repr=False)
    """The parameters whose gradients are averaged, and the module that does it."""

    def __deepcopy__(self, memo: object) -> World:
        return self

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def spread(self, network: Callable[[Any], Tensor], x: Tensor | Sequence[str]) -> Tensor:
        """Run a network on the rows of this process, and gather the results of all.

        Args:
            network: Maps rows to outputs [n, ...], each of its own row alone, except for BatchNorm.
            x: Images [B, C, H, W], or B captions.

        Returns:
            The outputs of all rows, [B, ...], the same in every process and with gradient.

        """
        if self.size == 1:
            return network(x)
        parts = self._divide(x)
        if not all(map(len, parts)):  # so few rows that a process would have none: each computes them all
            return network(x)
        from efface.training.collectives import batch_statistics_together, gather_rows

        own = self._take(x, parts)
        with self._own_random_numbers(), batch_statistics_together():
            result = network(own)
        return gather_rows(result, parts)

    def gather(self, gradient: Tensor, x: Tensor) -> Tensor:
        """Gather a gradient with respect to own rows inside a network that :meth:`spread` ran on ``x``, [B, ...]."""
        if self.size == 1 or len(gradient) == len(x):
            return gradient
        from efface.training.collectives import gather_rows

        return gather_rows(gradient, self._divide(x)) / self.size

    def average(self, gradient: Tensor) -> Tensor:
        """Average a gradient with respect to parameters that autograd computed in each process, differentiable."""
        if self.size == 1:
            return gradient
        from efface.training.collectives import average_over_processes

        return average_over_processes(gradient)

    def compute_terms(self, model: nn.Module, terms: Callable[[Any], _Value], batch: Any) -> _Value:
        """Compute the loss terms of a step so that :meth:`backward` averages the gradient over processes.

        Args:
            model: The model that is trained.
            terms: Computes :class:`~efface.training.batch.LossTerms` of a batch.
            batch: The batch.

        """
        if self.size == 1:
            return terms(batch)
        weights = tuple(id(weight) for weight in model.parameters() if weight.requires_grad)
        if self.wrapped is None or self.wrapped[0] != weights:
            self.wrapped = None  # its hooks end with it
            self.wrapped = weights, self.fabric.setup_module(_Step(model), move_to_device=False)
        values, carry, found = self.wrapped[1](lambda: terms(batch))
        made: Any = found.value
        return replace(made, terms=values, carry=carry)

    def backward(self, total: Tensor) -> None:
        """Compute the gradient of a step, averaged over processes."""
        if self.size == 1:
            total.backward()
        else:
            self.fabric.backward(total)

    def agree(self, value: _Value) -> _Value:
        """Take the value of the first process, for a decision that depends on measured numbers."""
        return value if self.size == 1 else self.fabric.broadcast(value, 0)

    def lead(self, function: Callable[[], _Value]) -> _Value:
        """Let the first process do something once, and return its result, or raise its error, in every process."""
        if self.size == 1:
            return function()
        value: Any = None
        failure: EffaceError | None = None
        if self.leads:
            try:
                value = function()
            except EffaceError as error:
                failure = error
        value, failure = self.agree((value, failure))
        if failure is not None:
            raise failure
        return value

    def share_out(self, pieces: Iterable[_Piece], function: Callable[[_Piece], _Value]) -> Iterator[_Value]:
        """Yield what a function returns for each piece, in order; of N processes each computes every N-th piece.

        Values are exchanged as they are, so they are bit for bit those of one process.
        """
        if self.size == 1:
            yield from map(function, pieces)
            return
        waiting = iter(pieces)
        while group := list(islice(waiting, self.size)):
            mine = function(group[self.rank]) if self.rank < len(group) else None
            found: list[Any] = [None] * self.size
            torch.distributed.all_gather_object(found, mine)
            yield from found[: len(group)]

    @contextmanager
    def lead_into(self, folder: AbstractContextManager[Path]) -> Iterator[Path]:
        """Enter a context that yields a folder to write into; only the first process enters it.

        The others get an empty folder of their own, which is removed at the end, so that the code that writes needs
        not know of them. They leave after the first process has.
        """
        if self.size == 1:
            with folder as path:
                yield path
            return
        if not self.leads:
            self.lead(lambda: None)  # its error, if it cannot enter
            with tempfile.TemporaryDirectory(prefix="efface-") as path:
                yield Path(path)
            self.fabric.barrier()
            return
        entered = False
        try:
            with folder as path:
                entered = True
                self.agree((None, None))
                yield path
        except EffaceError as error:
            if not entered:
                self.agree((None, error))
            raise
        self.fabric.barrier()

    def _divide(self, x: Tensor | Sequence[str]) -> Parts:
        if isinstance(x, DividedImages):
            owners = x.owners()
            return [(owners == rank).nonzero().flatten() for rank in range(self.size)]
        return self._chunks(len(x))

    def _chunks(self, count: int) -> Parts:
        edges = bounds(count, self.size)
        return [torch.arange(a, b) for a, b in pairwise(edges)]

    def _take(self, x: Tensor | Sequence[str], parts: Parts) -> Any:
        rows = parts[self.rank]
        if not isinstance(x, Tensor):
            return [x[int(row)] for row in rows]
        if x.requires_grad:
            from efface.training.collectives import take_own_rows

            return take_own_rows(x, parts)
        return x.rows_at(rows) if isinstance(x, DividedImages) else x[rows.to(x.device)]

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Let dropout draw other numbers in each process, and leave the generator alike in all of them."""
        seed = int(torch.randint(2**62, ()))
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((seed + self.rank) % 2**63)
            yield


class _Step(nn.Module):
    """A model in the form that is given to DistributedDataParallel: its forward pass is that of a whole step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, terms: Callable[[], Any]) -> tuple[dict[str, Tensor], Tensor | None, _Kept]:
        """Compute the terms, in a form that can be searched for tensors."""
        found = terms()
        return found.terms, found.carry, _Kept(found)


class _Kept:
    """A value that passes through DistributedDataParallel as it is."""

    def __init__(self, value: Any) -> None:
        self.value = value


ONE = World()
"""The world of one process."""
_current = ONE


def current_world() -> World:
    """The processes that this one works with: those of :func:`join_processes`, or it alone."""
    return _current


def join_processes(device: str = "auto") -> World:
    """Meet the other processes that a launcher has started for this command; once, and only if there are any.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``: processes on GPUs talk by NCCL, others by gloo.

    Returns:
        The world, which is then also :func:`current_world`.

    Raises:
        EffaceError: Lightning Fabric is missing, or the processes cannot meet on this device.

    Example:
        Started by ``torchrun --nproc-per-node 2 train.py``:

        >>> world = join_processes("cpu")
        >>> original = efface.pretrain(data, split, device="cpu")  # doctest: +SKIP

    """
    global _current
    if launch.count_processes() == 1 or _current.size > 1:
        return _current
    with optional_imports("training in several processes", "dist", "Or start the command by itself, without torchrun."):
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
    kind = torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    ).type
    if kind not in ("cpu", "cuda"):
        raise EffaceError(
            f"Several processes cannot share a model on the device '{device}'.",
            "PyTorch connects processes on CPUs and on CUDA devices.",
            "Use --device cpu, or start the command by itself, without torchrun.",
        )
    if kind == "cuda" and launch.count_local_processes() > torch.cuda.device_count():
        raise EffaceError(
            f"{launch.count_local_processes()} processes on this machine, and {torch.cuda.device_count()} GPUs.",
            "Each process needs a GPU of its own.",
            "Start as many processes as there are GPUs, or use --device cpu.",
        )
    launch.accept_fabric_options()
    local = launch.count_local_processes()
    # Parameters that a step does not use keep no gradient, as in one process; statistics are the same everywhere.
    strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    for name in ("lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # it announces each process
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # its successor is not in older versions
    try:
        fabric = Fabric(accelerator=kind, devices=local, num_nodes=launch.count_processes() // local, strategy=strategy)
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise EffaceError(
            f"The {launch.count_processes()} processes of this run did not meet.",
            (str(error).strip().splitlines() or [type(error).__name__])[0][:200],
            "Start them by torchrun, with the same command on every machine.",
        ) from error
    signal.signal(signal.SIGTERM, _end)
    atexit.register(_leave)
    _current = World(fabric.global_rank, fabric.world_size, fabric)
    return _current


def _end(number: int, frame: object) -> None:
    """What a launcher's signal does: it ends the others when one process has failed."""
    raise launch.processes_ended("The launcher ended it.")


def _leave() -> None:
    """Close the connections, if the others did not break them."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
