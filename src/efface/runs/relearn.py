"""The verb ``relearn``: train copies of a run on, and keep how soon the forgotten comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from efface import config
from efface.auditing.audits import AUDITS
from efface.auditing.evidence import Evidence, RelearnedCopies
from efface.auditing.observers.observe import ObservationSettings
from efface.auditing.observers.relearn import RelearnSettings, relearn_model
from efface.runs.artifacts import SavedFindings
from efface.runs.comparison import Comparison, _save_findings, build_comparison
from efface.runs.run import Progress, refuse_unknown
from efface.training import loop
from efface.training.objectives import OBJECTIVES, Objective


def relearn_run(
    run: Path,
    settings: Mapping[str, Any],
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    progress: Progress | None = None,
) -> SavedFindings:
    """Train copies of a run and of its oracles on, and keep how soon the forgotten comes back.

    ``settings``: relearn (fields of :class:`RelearnSettings`), watch, seed, device, trust_pickle. The runs themselves
    are only read.
    """
    progress = progress or Progress()
    refuse_unknown(settings, {"relearn", "watch", "seed", "device", "trust_pickle"})
    asked = config.build(RelearnSettings, settings.get("relearn") or {}, {Objective: OBJECTIVES}, "relearn.")
    watch = config.build(ObservationSettings, {"gradient": False} | dict(settings.get("watch") or {}), path="watch.")
    device = str(settings.get("device", "auto"))
    trust = bool(settings.get("trust_pickle"))
    beside = build_comparison(run, watch, device, progress, original=original, oracles=oracles, trust=trust)
    looks: dict[str, Any] = {}
    for name, model in beside.models.items():
        if name == "original":
            continue
        progress.say(f"Relearning: {asked.steps} steps on {asked.on.value} with a copy of {model.weights.parent.name}")
        looks[name] = relearn_model(
            model.load(), beside.subject.data, beside.subject.split, asked, watch,
            seed=int(settings.get("seed", 0)), device=loop.resolve_device(device),
        )  # fmt: skip
    judged = replace(_evidence(beside), relearned=(RelearnedCopies(asked.on.value, looks),))
    found = AUDITS["relearn"]().findings(judged)
    return _save_findings(beside, f"relearn-{asked.on.value}", found)


def _evidence(beside: Comparison) -> Evidence:
    subject = beside.observations["subject"]
    others = tuple(one for one in beside.oracles if one.model != subject.model)
    return Evidence(beside.observations["original"], subject, others)
