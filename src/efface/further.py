"""The verbs ``relearn`` and ``canaries guess``: they look at a run once more and keep findings for the next audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from efface import api, config, evidence
from efface.auditing import Compared, compared
from efface.audits import AUDITS, Evidence, Finding, Relearned
from efface.canaries import guessing, plan
from efface.data import Data
from efface.errors import EffaceError
from efface.objectives import OBJECTIVES, Objective
from efface.relearning import Relearning, relearn
from efface.runs import Progress, refuse_unknown
from efface.watch import Watch


@dataclass(frozen=True, eq=False)
class Kept:
    """Findings that were kept beside a run."""

    findings: list[Finding]
    file: Path
    claims: list[str]
    """What is said of the oracles that nobody checked; the next audit's record repeats it."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {one.name: {"value": one.value, "original": one.original, "oracle": one.oracle, "note": one.note}
                for one in self.findings} | {"file": str(self.file), "claims": self.claims}  # fmt: skip

    def lines(self) -> list[str]:
        """One line for each finding."""
        return [
            f"{one.name}: {'none' if one.value is None else f'{one.value:.4g}'} ({one.note})" for one in self.findings
        ]


def relearn_run(
    run: Path,
    settings: Mapping[str, Any],
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Kept:
    """Train copies of a run and of its oracles on, and keep how soon the forgotten comes back.

    ``settings``: relearn (fields of :class:`Relearning`), watch, seed, device, trust_pickle. The runs themselves
    are only read.
    """
    progress = progress or Progress()
    refuse_unknown(settings, {"relearn", "watch", "seed", "device", "trust_pickle"})
    asked = config.build(Relearning, settings.get("relearn") or {}, {Objective: OBJECTIVES}, "relearn.")
    watch = config.build(Watch, {"gradient": False} | dict(settings.get("watch") or {}), path="watch.")
    device = str(settings.get("device", "auto"))
    trust = bool(settings.get("trust_pickle"))
    beside = compared(run, watch, device, progress, original=original, oracles=oracles, trust=trust)
    looks: dict[str, Any] = {}
    for name, model in beside.models.items():
        if name == "original":
            continue
        progress.say(f"Relearning: {asked.steps} steps on {asked.on.value} with a copy of {model.weights.parent.name}")
        looks[name] = relearn(
            model.load(), beside.subject.data, beside.subject.split, asked, watch,
            seed=int(settings.get("seed", 0)), device=api.device_of(device),
        )  # fmt: skip
    judged = replace(_evidence(beside), relearned=(Relearned(asked.on.value, looks),))
    found = AUDITS["relearn"]().findings(judged)
    return _keep(beside, f"relearn-{asked.on.value}", found)


def guess_canaries(
    run: Path,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Kept:
    """Guess which canaries of a plan were included, open the coins, and keep the bound.

    ``settings``: watch, device, signal, level, delta, trust_pickle.
    """
    progress = progress or Progress()
    refuse_unknown(settings, {"watch", "device", "signal", "level", "delta", "trust_pickle"})
    watch = config.build(Watch, settings.get("watch") or {}, path="watch.")
    public = plan.read(folder)
    device = str(settings.get("device", "auto"))
    trust = bool(settings.get("trust_pickle"))
    beside = compared(run, watch, device, progress, original=original, oracles=oracles, trust=trust)
    _same_data(public, beside.subject.data, folder)
    found = guessing.findings(
        public, plan.coins(folder, public), beside.seen["original"], beside.seen["subject"], beside.oracles,
        signal=settings.get("signal"), level=float(settings.get("level", 0.95)), delta=float(settings.get("delta", 0)),
    )  # fmt: skip
    return _keep(beside, "canaries", found)


def _keep(beside: Compared, name: str, found: list[Finding]) -> Kept:
    path = evidence.keep_further(beside.subject.folder, name, beside.seen["subject"], found, beside.claims)
    return Kept(found, path, beside.claims)


def _evidence(beside: Compared) -> Evidence:
    subject = beside.seen["subject"]
    others = tuple(one for one in beside.oracles if one.model != subject.model)
    return Evidence(beside.seen["original"], subject, others)


def _same_data(public: plan.Plan, data: Data, folder: Path) -> None:
    if public.data and public.data != data.digest():
        raise EffaceError(
            f"The plan in {folder} was made for other data.", remedy="Name the plan that this run was trained with."
        )
