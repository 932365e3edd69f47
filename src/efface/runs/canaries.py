"""The verb ``canaries guess``: guess which canaries a model was trained on, and store the bound that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efface.auditing.attacks import canary_guessing
from efface.data.canaries import CanaryPlan, read_canary_plan, read_coins
from efface.errors import EffaceError
from efface.runs.artifacts import SavedFindings
from efface.runs.comparison import build_comparison, save_findings
from efface.runs.ownership import one_at_a_time
from efface.runs.requests import GuessRequest
from efface.runs.run import OpenedRun, Progress


@one_at_a_time
def guess_canaries(
    run: Path,
    folder: Path,
    request: GuessRequest | Mapping[str, Any],
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    progress: Progress | None = None,
) -> SavedFindings:
    """Guess which canaries of a plan were included, reveal the coins, and store the lower bound on ε.

    Args:
        run: A run that forgot the included canaries; the findings are stored in its folder for the next audit.
        folder: The plan, as written by ``efface canaries plan``.
        request: A :class:`GuessRequest`, or a mapping with its fields: watch, device, signal, level, delta,
            trust_pickle, trusted.
        original: Where the original is now; by default where it was when the run was made.
        oracles: Retrained references.
        progress: Receives progress messages.

    """
    progress, request = progress or Progress(), GuessRequest.of(request)
    plan = read_canary_plan(folder)
    compared = build_comparison(
        run, request.watch, request.device, progress,
        original=original, oracles=oracles, consent=request.consent, checks=request, keep=True,
    )  # fmt: skip
    _require_same_data(plan, compared.subject, folder)
    findings = canary_guessing.canary_findings(
        plan,
        read_coins(folder, plan),
        compared.observations["original"],
        compared.observations["subject"],
        compared.oracles,
        signal=request.signal,
        level=request.level,
        delta=request.delta,
    )
    return save_findings(compared, "canaries", findings)


def _require_same_data(plan: CanaryPlan, subject: OpenedRun, folder: Path) -> None:
    """Raise unless the plan is of the run's data; where some of these are gone, by the keys alone."""
    if subject.split.absent:
        known = {key for part in subject.split.sizes() for key in subject.split.keys(subject.data, part)}
        same = set(plan.keys) <= known
    else:
        same = not plan.data or plan.data == subject.data.digest()
    if not same:
        raise EffaceError(
            f"The plan in {folder} was made for other data.", remedy="Name the plan that this run was trained with."
        )
