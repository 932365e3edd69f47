"""The chain of models of a desk: where it starts, where it stands, and which model the next request starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from efface.desk.states import BatchState
from efface.desk.store import DeskStore
from efface.desk.views import ModelChain
from efface.errors import EffaceError
from efface.files import WEIGHTS, file_digest


@dataclass(frozen=True)
class ChainStart:
    """The model that the next batch of a chain starts from."""

    folder: Path
    digest: str
    batch: int | None
    """The batch that made it; None for the first model of the chain."""


def start_chain(desk: DeskStore, name: str, run: Path, actor: str) -> None:
    """Write down the first model of a chain; see ``Desk.add_model``."""
    from efface.training.checkpoint import read_meta

    meta, place = read_meta(run), str(run.absolute())
    values = {"original": place, "original_digest": meta["digest"], "head": place, "head_digest": meta["digest"]}
    with desk.ledger.writing(actor) as writer:
        there = writer.row("model", name)
        if there is None:
            writer.append("model", name, "added", values | {"head_batch": None})
        elif there["original_digest"] != values["original_digest"]:
            raise EffaceError(
                f"The model '{name}' is another one: {there['original']}.",
                "The first model of a chain is never replaced.",
                "Choose another name: --model NAME.",
            )


def newest_model(chain: ModelChain) -> ChainStart:
    """The newest model of a chain: of the last batch that was unlearned and is not decided yet, else its head."""
    made = [one for one in chain.open if one.state is not BatchState.INTENDED]
    if made:
        return ChainStart(Path(made[-1].folder), made[-1].digest, made[-1].number)
    return ChainStart(Path(chain.head), chain.head_digest, chain.head_batch)


def require_start(start: ChainStart) -> None:
    """Raise unless the model to start from is the one that the ledger names."""
    from efface.training.checkpoint import read_meta

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
