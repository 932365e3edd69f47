"""The verb ``canaries guess``: guess which canaries a model was trained on, and keep the bound that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efface import config
from efface.auditing.attacks import canary_guessing
from efface.auditing.observers.observe import ObservationSettings
from efface.data import canaries
from efface.data.dataset import Data
from efface.errors import EffaceError
from efface.runs.artifacts import SavedFindings
from efface.runs.comparison import _save_findings, build_comparison
from efface.runs.run import Progress, refuse_unknown


def guess_canaries(
    run: Path,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    progress: Progress | None = None,
) -> SavedFindings:
    """Guess which canaries of a plan were included, open the coins, and keep the bound.

    ``settings``: watch, device, signal, level, delta, trust_pickle.
    """
    progress = progress or Progress()
    refuse_unknown(settings, {"watch", "device", "signal", "level", "delta", "trust_pickle"})
    watch = config.build(ObservationSettings, settings.get("watch") or {}, path="watch.")
    public = canaries.read_canary_plan(folder)
    device = str(settings.get("device", "auto"))
    trust = bool(settings.get("trust_pickle"))
    beside = build_comparison(run, watch, device, progress, original=original, oracles=oracles, trust=trust)
    _same_data(public, beside.subject.data, folder)
    found = canary_guessing.canary_findings(
        public, canaries.read_coins(folder, public), beside.observations["original"], beside.observations["subject"], beside.oracles,
        signal=settings.get("signal"), level=float(settings.get("level", 0.95)), delta=float(settings.get("delta", 0)),
    )  # fmt: skip
    return _save_findings(beside, "canaries", found)


def _same_data(public: canaries.CanaryPlan, data: Data, folder: Path) -> None:
    if public.data and public.data != data.digest():
        raise EffaceError(
            f"The plan in {folder} was made for other data.", remedy="Name the plan that this run was trained with."
        )
