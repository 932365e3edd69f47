"""The chain of models of a desk: where it starts, where it stands, and which model the next request starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.desk.states import BatchState
from efface.desk.views import ModelChain
from efface.errors import EffaceError
from efface.files import WEIGHTS, file_digest
from efface.training.checkpoint import read_meta


@dataclass(frozen=True)
class ChainStart:
    """The model that the next batch of a chain starts from."""

    folder: Path
    digest: str
    batch: int | None
    """The batch that made it; None for the first model of the chain."""


def describe_run(run: Path) -> dict[str, Any]:
    """Describe a run folder as the first model of a chain, for the ledger."""
    meta = read_meta(run)
    place = str(run.absolute())
    return {"original": place, "original_digest": meta["digest"], "head": place, "head_digest": meta["digest"]}


def newest_model(chain: ModelChain) -> ChainStart:
    """The newest model of a chain: of the last batch that was unlearned and is not decided yet, else its head."""
    made = [one for one in chain.open if one.state is not BatchState.INTENDED]
    if made:
        return ChainStart(Path(made[-1].folder), made[-1].digest, made[-1].number)
    return ChainStart(Path(chain.head), chain.head_digest, chain.head_batch)


def require_start(start: ChainStart) -> None:
    """Raise unless the model to start from is the one that the ledger names."""
    meta = read_meta(start.folder)
    if meta["digest"] != start.digest:
        raise EffaceError(
            f"{start.folder} holds another model than the ledger says.",
            f"Digest expected: {start.digest[:16]}; found: {meta['digest'][:16]}.",
            "Restore the folder; `efface request replay` says what a backup brought back.",
        )


def weights_digest(run: Path) -> str:
    """SHA-256 of the file of a run's weights."""
    return file_digest(run / WEIGHTS)
