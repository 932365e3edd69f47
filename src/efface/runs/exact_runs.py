"""Evidence of exact deletions: the record of a run that retrained shards, its check, and the signed bundle."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efface import api
from efface.data.dataset import Data
from efface.data.split import Split
from efface.errors import EffaceError
from efface.files import WEIGHTS, file_digest
from efface.reporting.environment import Environment
from efface.reporting.exact import EXACT_RECORD
from efface.reporting.exact_record import ExactCheck, ExactRecord, seal_items, write_secret
from efface.runs.kept import SHARDS
from efface.runs.ownership import one_at_a_time
from efface.runs.run import Progress, open_run
from efface.runs.stored import StoredRequest
from efface.training.checkpoint import Checkpoint
from efface.training.kept_stages import STAGE_FOLDER, KeptStages, StageIndex, read_index

EXACT_KEY = "exact.key"


@dataclass(frozen=True)
class ConcernedShards:
    """Which shards a request concerned."""

    numbers: tuple[int, ...]
    trained: int
    """Stages that were trained."""
    reused: int
    """Stages that were taken over."""

    @staticmethod
    def of(index: StageIndex) -> ConcernedShards:
        """Read them from the index of kept stages: those of which a stage was trained anew."""
        fresh = [one for one in index.stages if not one.reused]
        numbers = tuple(sorted({shard_of(one.name) for one in fresh}))
        return ConcernedShards(numbers, len(fresh), len(index.stages) - len(fresh))


def shard_of(name: str) -> int:
    """The number of the shard in the name of a kept stage."""
    return int(name.removeprefix("shard").partition("-")[0])


def write_exact_record(
    folder: Path, start: Path, original: Checkpoint, made: Checkpoint, data: Data, split: Split
) -> None:
    """Write ``exact.json`` and its key into the folder of a run that retrained shards.

    Args:
        folder: The run folder, complete but for this.
        start: The run that it was made from.
        original: Its checkpoint.
        made: The new checkpoint.
        data: The data.
        split: The split with the request.

    """
    concerned = ConcernedShards.of(read_index(folder, str(made.fixed[SHARDS])))
    items, secret = seal_items(split.keys(data, "forget"))
    shards = made.recipe.shards
    record = ExactRecord(
        kind="shards",
        method={"name": "shards", "count": shards and shards.count, "slices": shards and shards.slices},
        items=items,
        original=(original.model.digest(), file_digest(Path(start) / WEIGHTS)),
        unlearned=(made.model.digest(), file_digest(folder / WEIGHTS)),
        parts={
            "trained_on_before": split.sizes()["retain"] + split.sizes()["forget"],
            "trained_on_after": split.sizes()["retain"],
            "shards": shards.count if shards else 1,
            "shards_retrained": len(concerned.numbers),
            "stages_retrained": concerned.trained,
            "stages_kept": concerned.reused,
        },
        source=data.digest(),
        environment=Environment.current(torch.__version__, torch.get_num_threads()),
    )
    write_secret(folder / EXACT_KEY, secret)
    record.save(folder / EXACT_RECORD)


@one_at_a_time
def check_exact_run(run: Path, *, progress: Progress | None = None) -> ExactCheck:
    """Train the shards that a request concerned from the beginning, without the examples, and compare the weights.

    The other shards are compared by the addresses of their stages, which are digests of all that they were trained on.

    Args:
        run: A run of the method ``shards``.
        progress: Receives messages.

    Raises:
        EffaceError: It is no such run, or its data are not at hand.

    """
    progress, run = progress or Progress(), Path(run)
    stored = ExactRecord.load(_require_record(run))
    opened = open_run(run, judged=False)
    checkpoint = opened.checkpoint()
    settings = StoredRequest.model_validate(opened.request)
    index = read_index(run, str(checkpoint.fixed.get(SHARDS)))
    concerned = ConcernedShards.of(index)
    others = tuple(one for one in index.stages if shard_of(one.name) not in concerned.numbers)
    progress.say(f"Training {len(concerned.numbers)} of {stored.parts['shards']} shards from the beginning")
    with tempfile.TemporaryDirectory(prefix="efface-check-") as scratch:
        store = KeptStages(Path(scratch), (run / STAGE_FOLDER, StageIndex(stages=others)))
        again = api.unlearn(
            checkpoint, opened.data, opened.split, "shards", seed=checkpoint.seed, device=settings.device,
            bf16=bool(settings.bf16), stage_store=store, log=lambda record: progress.steps(record, 0),
        )  # fmt: skip
        trained = {shard_of(one.name) for one in store.found if not one.reused}
    same = again.model.digest() == checkpoint.model.digest() == stored.unlearned[0]
    alone = trained == set(concerned.numbers)
    measured = f"weights {'equal' if same else 'different'}, bit for bit"
    if not alone:
        measured += f"; {len(trained)} shards had to be trained instead of {len(concerned.numbers)}"
    what = f"{len(trained)} of {stored.parts['shards']} shards were trained from the beginning without the examples"
    check = ExactCheck(name="retrained", what=what, measured=measured, passed=same and alone)
    stored.with_check(check).save(run / EXACT_RECORD)
    return check


def _require_record(run: Path) -> Path:
    path = run / EXACT_RECORD
    if not path.is_file():
        raise EffaceError(
            f"{run} has no {EXACT_RECORD}.",
            "Only runs of the method shards have the record of an exact deletion.",
            "Unlearn with --method shards; other runs are judged by `efface audit`.",
        )
    return path


def describe_check(run: Path, check: ExactCheck) -> dict[str, Any]:
    """A check as a JSON object."""
    return {"run": str(run), **check.model_dump(mode="json")}
