"""Opened run folders with their data and split, and the settings that several verbs share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from efface.config import Settings
from efface.data.dataset import Data
from efface.data.split import Split, partition, partition_around_training
from efface.errors import EffaceError
from efface.files import LOG
from efface.runs.data_at_hand import DataAtHand, DataChecks, load_data, open_data
from efface.runs.folder import JsonLines, read_request
from efface.schema import PartSize, SeedNumber
from efface.training import devices
from efface.training.batch import Log
from efface.training.checkpoint import Checkpoint, read_meta


@dataclass(frozen=True, kw_only=True)
class Sizes(Settings):
    """Sizes of the split, as fractions (below 1) or counts; fixed at pretraining and stored."""

    train: PartSize | None = None
    """Training examples; by default everything that the other parts leave."""
    valid: PartSize = 0.1
    """Never trained on; methods may use them."""
    holdout: PartSize = 0.1
    """Never trained on and reserved for audits: the non-members."""
    test: PartSize | None = None
    """Never trained on; utility is measured here. By default a tenth; where ``trained`` is given, everything that the
    other parts leave."""
    canaries: str | None = None
    """Folder written by `efface canaries plan`: included canaries are trained on, excluded ones are in the holdout."""
    trained: str | None = None
    """For a foreign checkpoint: what it was trained on, as a file of keys or a selector such as ``@group:train``. The
    other parts are drawn from the rest."""
    forgotten: str | None = None
    """For a foreign checkpoint that was unlearned before: what it has forgotten, as a file of keys or a selector."""

    def divide(self, data: Data, seed: int) -> Split:
        """Divide the data into parts of these sizes."""
        drawn = {"valid": self.valid, "holdout": self.holdout}
        if self.trained is None:
            test = 0.1 if self.test is None else self.test
            return partition(data, train=self.train, **drawn, test=test, canaries=self.canaries, seed=seed)
        if self.canaries is not None:
            raise EffaceError(
                "split.canaries and split.trained were both given.",
                "Canaries are planned before training, and the foreign checkpoint was trained already.",
                "Give one of the two.",
            )
        return partition_around_training(data, self.trained, **drawn, test=self.test, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Common(Settings):
    """Settings shared by the verbs that train."""

    seed: SeedNumber = 0
    """Seed of everything random."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``mps``."""
    bf16: bool | None = None
    """bfloat16 autocast; by default used where it is faster: on a GPU, and on a CPU that multiplies bfloat16."""

    def resolve(self) -> Common:
        """These settings alone, with the precision decided, so that a run records which one it used."""
        bf16 = devices.choose_precision(self.bf16, self.device)
        return Common(seed=self.seed, device=self.device, bf16=bf16)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Callbacks through which a verb reports its progress; by default nothing is shown."""

    steps: Callable[[dict[str, Any], int], None] = lambda record, total: None
    """Called after each optimizer step with its log record and the total number of steps (0: unknown)."""
    say: Callable[[str], None] = lambda sentence: None
    """Called with a message to keep."""
    status: Callable[[str], None] = lambda sentence: None
    """Called with a description of the current activity, which replaces the previous one."""


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A finished run folder whose ``meta.json`` and ``config.yaml`` are each read once."""

    folder: Path
    meta: dict[str, Any]
    """The content of ``meta.json``."""

    @cached_property
    def request(self) -> dict[str, Any]:
        """The content of ``config.yaml``: the settings that the run was made with."""
        return read_request(self.folder)

    def checkpoint(self) -> Checkpoint:
        """Load the run's checkpoint."""
        return Checkpoint.load(self.folder, self.meta)


class RunFolders:
    """Run folders by path; each is read on first use and kept, so that an audit reads every ``meta.json`` once."""

    def __init__(self) -> None:
        self._runs: dict[Path, StoredRun] = {}

    def read(self, folder: Path) -> StoredRun:
        """Return the run stored in ``folder``.

        Raises:
            EffaceError: The folder does not exist, is no run folder, or its ``meta.json`` is damaged.

        """
        key = Path(folder).resolve()
        if key not in self._runs:
            self._runs[key] = StoredRun(Path(folder), read_meta(folder))
        return self._runs[key]


@dataclass(frozen=True, eq=False)
class OpenedRun:
    """A run folder with the data and the split that it was made with."""

    stored: StoredRun
    data: Data
    split: Split
    folders: RunFolders
    """Reads the run folders that this one is compared with, such as its ancestors; includes this one."""
    at_hand: DataAtHand
    """The data as they are now, compared with those that the run was made with."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.stored.folder

    @property
    def meta(self) -> dict[str, Any]:
        """The content of ``meta.json``."""
        return self.stored.meta

    @property
    def request(self) -> dict[str, Any]:
        """The content of ``config.yaml``."""
        return self.stored.request

    def checkpoint(self) -> Checkpoint:
        """Load the run's checkpoint."""
        return self.stored.checkpoint()


def open_run(folder: Path, checks: DataChecks | None = None, *, judged: bool = True) -> OpenedRun:
    """Open a finished run folder: load its data and check that they are those it was made with.

    Forgotten and never-trained examples may be absent: they are in ``split.absent``.

    Args:
        folder: The run folder.
        checks: Where the data are now, and which differences are accepted.
        judged: Whether the forgotten examples are looked at: changed ones are then an error, and absent otherwise.

    Raises:
        EffaceError: The folder is no run folder, one of its files is damaged, the split is not the one that the
            checkpoint was made with, or the data are others.

    Example:
        >>> run = open_run(Path("runs/forgotten"))  # doctest: +SKIP
        >>> run.meta["method"]["name"], len(run.split.forget)  # doctest: +SKIP

    """
    folders = RunFolders()
    stored = folders.read(folder)
    here = open_data(folder, stored.request, stored.meta, checks or DataChecks(), judged=judged)
    return OpenedRun(stored, here.data, here.split, folders, here)


@contextmanager
def logging(folder: Path, progress: Progress, total: int) -> Iterator[Log]:
    """Yield a log function that appends to ``log.jsonl`` in the folder and reports progress out of ``total`` steps.

    If ``total`` is 0, it is the number of steps that the optimizer of a step was planned for; this is not logged.
    """
    lines = JsonLines(folder / LOG)

    def log(record: dict[str, Any]) -> None:
        planned = int(record.get("planned", 0))
        lines({name: value for name, value in record.items() if name != "planned"})
        progress.steps(record, total or planned)

    try:
        yield log
    finally:
        lines.close()


__all__ = ["Common", "OpenedRun", "Progress", "RunFolders", "Sizes", "StoredRun", "load_data", "logging", "open_run"]
