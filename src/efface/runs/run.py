"""An opened run folder, its data and split, and the settings that every verb shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from efface import config
from efface.data.dataset import Data
from efface.data.sources import load
from efface.data.split import Split, partition, partition_around_training
from efface.errors import EffaceError, suggest_name
from efface.files import LOG
from efface.runs.folder import JsonLines, read_request
from efface.training import loop
from efface.training.checkpoint import Checkpoint, read_meta


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the split, as fractions (below 1) or counts; fixed at pretraining and stored."""

    train: float | int | None = None
    """Training examples; by default all that the others leave."""
    valid: float | int = 0.1
    """Never trained on; methods may see them."""
    holdout: float | int = 0.1
    """Never trained on; only audits see them: the non-members."""
    test: float | int = 0.1
    """Never trained on; utility is measured here."""
    canaries: str | None = None
    """Folder that `efface canaries plan` wrote: included ones are trained on, excluded ones are in the holdout."""
    trained: str | None = None
    """Of a foreign checkpoint: what it was trained on, as a file of keys or a selector such as ``@group:train``. The
    other parts are drawn from the rest."""

    def divide(self, data: Data, seed: int) -> Split:
        """The data divided by these sizes."""
        drawn = {"valid": self.valid, "holdout": self.holdout, "test": self.test}
        if self.trained is None:
            return partition(data, train=self.train, **drawn, canaries=self.canaries, seed=seed)
        if self.canaries is not None:
            raise EffaceError(
                "split.canaries and split.trained were both given.",
                "Canaries are planted before training, and the foreign checkpoint was trained already.",
                "Give one of the two.",
            )
        return partition_around_training(data, self.trained, **drawn, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Common:
    """Settings that every verb shares."""

    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``mps``."""
    bf16: bool | None = None
    """bfloat16 autocast; by default where it is faster: on a GPU, and on a CPU that can multiply bfloat16."""


@dataclass(frozen=True, eq=False)
class OpenedRun:
    """A run folder with the data and split it was made with."""

    folder: Path
    request: dict[str, Any]
    data: Data
    split: Split

    def checkpoint(self) -> Checkpoint:
        """The run's checkpoint."""
        return Checkpoint.load(self.folder)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a verb reports: optimizer steps as they happen, and sentences worth saying."""

    steps: Callable[[dict[str, Any], int], None] = lambda record, total: None
    say: Callable[[str], None] = lambda sentence: None
    status: Callable[[str], None] = lambda sentence: None
    """What is going on at the moment; the next one takes its place."""


def open_run(folder: Path) -> OpenedRun:
    """A finished run folder, its data loaded and its split checked against them."""
    meta = read_meta(folder)
    request = read_request(folder)
    data = load_data(request)
    split = Split.load(folder, data)
    if split.digest(data) != meta["split"]:
        raise EffaceError(
            f"The split stored in {folder} is not the one its checkpoint was made with.",
            remedy="Restore the folder from where it came, or make it again.",
        )
    return OpenedRun(Path(folder), request, data, split)


@contextmanager
def logging(folder: Path, progress: Progress, total: int):
    """A log that writes ``log.jsonl`` in the folder and shows progress."""
    lines = JsonLines(folder / LOG)

    def log(record: dict[str, Any]) -> None:
        lines(record)
        progress.steps(record, total)

    try:
        yield log
    finally:
        lines.close()


_COMMON = tuple(Common.__dataclass_fields__)


def _common(settings: Mapping[str, Any]) -> Common:
    """With the precision that was chosen, so that the run says which it was."""
    asked = config.build(Common, {key: settings[key] for key in _COMMON if key in settings})
    return (
        asked
        if asked.bf16 is not None
        else replace(asked, bf16=loop.prefers_bfloat16(loop.resolve_device(asked.device)))
    )


def refuse_unknown(settings: Mapping[str, Any], known: set[str]) -> None:
    """An error that names a setting which this verb does not have, and the nearest that it has."""
    for key in settings:
        if key not in known:
            raise EffaceError(
                f"There is no setting '{key}' here.{suggest_name(key, known)}", f"Known: {', '.join(sorted(known))}."
            )


def load_data(settings: Mapping[str, Any]) -> Data:
    """The data that ``settings["data"]`` names: a source, a path, or a mapping with ``source`` and options."""
    value = settings.get("data")
    if not value:
        raise EffaceError(
            "Nothing was said about the data.", remedy="Add --data NAME or --data PATH; `efface data` lists the names."
        )
    options = {"source": value} if isinstance(value, str) else dict(value)
    return load(str(options.pop("source", options.pop("name", ""))), **options)


def _opened(start: Path) -> tuple[Data, Split, Checkpoint, dict[str, Any]]:
    run = open_run(start)
    inherited = {"data": run.request["data"]}
    return run.data, run.split, run.checkpoint(), inherited
