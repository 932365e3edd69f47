"""The verb ``relearn``: train copies of a run further, and measure how fast the forgotten examples come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from efface.auditing.audits import AUDITS
from efface.auditing.evidence import Evidence, RelearnedCopies
from efface.auditing.observers.relearn import relearn_model
from efface.data.split import Split
from efface.errors import EffaceError
from efface.files import scratch_folder
from efface.runs.artifacts import SavedFindings
from efface.runs.comparison import Comparison, build_comparison, save_findings
from efface.runs.ownership import one_at_a_time
from efface.runs.remaining import RemainingTime
from efface.runs.requests import RelearnRequest
from efface.runs.run import Progress
from efface.training import devices
from efface.training.checkpoint import read_meta, recipe_of
from efface.training.recipe import require_batch_size


@one_at_a_time
def relearn_run(
    run: Path,
    request: RelearnRequest | Mapping[str, Any],
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    progress: Progress | None = None,
) -> SavedFindings:
    """Train copies of a run and of its retrained references further, and store how fast the forgotten comes back.

    The runs themselves are only read.

    Args:
        run: The unlearned run folder; the findings are stored in it for the next audit.
        request: A :class:`RelearnRequest`, or a mapping with its fields: relearn, watch, seed, device, trust_pickle,
            trusted.
        original: Where the original is now; by default where it was when the run was made.
        oracles: Retrained references.
        progress: Receives progress messages.

    """
    progress, request = progress or Progress(), RelearnRequest.of(request)
    how, watch = request.relearn, request.watch
    require_batch_size(recipe_of(Path(run), read_meta(run)).objective, how.batch_size, "relearn.batch_size")
    compared = build_comparison(
        run, watch, request.device, progress,
        original=original, oracles=oracles, consent=request.consent, checks=request, keep=True,
    )  # fmt: skip
    left = compared.subject.split.present()
    _require_forget_set(left, run)
    snapshots: dict[str, Any] = {}
    for name, model in compared.models.items():
        if name == "original":
            continue
        progress.say(f"Relearning: {how.steps} steps on {how.on.value} with a copy of {model.weights.parent.name}")
        shown = RemainingTime(progress.status, f"Relearning {model.weights.parent.name}", how.steps, "steps")
        snapshots[name] = relearn_model(
            model.load(), compared.subject.data, left, how, watch,
            seed=request.seed, device=devices.resolve_device(request.device), on_observed=shown,
            scratch=scratch_folder(compared.subject.folder),
        )  # fmt: skip
    evidence = replace(_evidence(compared), relearned=(RelearnedCopies(how.on.value, snapshots),))
    findings = AUDITS["relearn"]().findings(evidence)
    return save_findings(compared, f"relearn-{how.on.value}", findings)


def _require_forget_set(split: Split, run: Path) -> None:
    """Raise if no example to forget is in the data: what is needed now are the pictures, not stored observations."""
    if not len(split.forget):
        raise EffaceError(
            f"The examples that {run} was to forget are not in the data.",
            "Relearning watches how fast they come back, which needs the pictures.",
            "Do it before they are erased, or where they still are: --data PATH.",
        )


def _evidence(compared: Comparison) -> Evidence:
    """Original, subject and references, without references that have the subject's own weights."""
    subject = compared.observations["subject"]
    others = tuple(one for one in compared.oracles if one.model != subject.model)
    return Evidence(compared.observations["original"], subject, others)
