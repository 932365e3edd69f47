"""The verbs ``audit`` and ``report`` on run folders: who is compared with whom, and that they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efface import api, config
from efface.auditing.observers.observe import ObservationSettings
from efface.auditing.observers.weight_changes import measure_changes
from efface.auditing.sequential import RequestSequence
from efface.auditing.verdict import Criteria
from efface.files import LOG
from efface.reporting import bundle
from efface.reporting.environment import Environment
from efface.reporting.record import Record, file_digest
from efface.runs import artifacts, sequential
from efface.runs.comparison import (
    OBSERVATIONS_FILE,
    Comparison,
    _lineage,
    _observations_path,
    _oracle_observations_path,
    build_comparison,
)
from efface.runs.folder import read_log
from efface.runs.run import Progress, refuse_unknown
from efface.training import loop
from efface.training.checkpoint import read_meta


@dataclass(frozen=True)
class AuditRequest:
    """How an audit is to be done."""

    criteria: Criteria
    watch: ObservationSettings
    device: str
    goal: str
    trust: bool

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> AuditRequest:
        """From the settings of the verb; unknown ones are refused."""
        refuse_unknown(settings, {"criteria", "watch", "goal", "device", "trust_pickle"})
        return cls(
            config.build(Criteria, settings.get("criteria") or {}, path="criteria."),
            config.build(ObservationSettings, settings.get("watch") or {}, path="watch."),
            str(settings.get("device", "auto")),
            str(settings.get("goal", "")),
            bool(settings.get("trust_pickle")),
        )


def audit_run(
    run: Path,
    settings: Mapping[str, Any],
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    references: Path | None = None,
    plain_ids: bool = False,
    progress: Progress | None = None,
) -> api.AuditResult:
    """Judge a run and write the evidence into its folder. ``settings``: criteria, watch, goal, device, trust_pickle.

    ``oracles``: runs that never saw the examples, which is checked; or other libraries' checkpoints of the same shape,
    of which the user states it, and the record says so. ``references``: a folder that :mod:`efface.runs.references` filled;
    its models are taken beside them.
    """
    progress, asked = progress or Progress(), AuditRequest.from_settings(settings)
    beside = build_comparison(
        run, asked.watch, asked.device, progress,
        original=original, oracles=oracles, references=references, trust=asked.trust,
    )  # fmt: skip
    subject, models, seen = beside.subject, beside.models, beside.observations
    result = api.judge_observations(
        seen["original"],
        seen["subject"],
        beside.oracles,
        criteria=asked.criteria,
        costs=beside.costs,
        unlearned=beside.unlearned,
    )
    kept = artifacts.read_extra_findings(subject.folder, seen["subject"])
    result.findings.extend(kept.findings)
    requests = sequential.audit_sequence(subject, models, original, asked.criteria, asked.watch, asked.device, progress)
    log = read_log(subject.folder / LOG)
    record = _build_record(beside, asked, result, log, (*beside.claims, *kept.claims), requests)
    keys = [str(key) for key in subject.data.keys[subject.split.forget]]
    bundle.write_evidence(subject.folder, record, keys, seen, log, plain_ids=plain_ids)
    return replace(result, sequence=requests)


def _build_record(
    beside: Comparison,
    asked: AuditRequest,
    result: api.AuditResult,
    log: Sequence[Mapping[str, Any]],
    claims: Sequence[str],
    requests: RequestSequence | None,
) -> Record:
    """The record of an audit, unsealed."""
    subject, models = beside.subject, beside.models
    return bundle.compose_record(
        subject.data,
        subject.split,
        {
            name: bundle.checkpoint_facts(m.meta, str(m.weights), file_digest(m.weights), m.claim)
            for name, m in models.items()
        },
        result.verdict,
        result.findings,
        Environment.current(torch.__version__, torch.get_num_threads(), str(loop.resolve_device(asked.device))),
        criteria=asked.criteria,
        changes=measure_changes(
            models["original"].load().model, models["subject"].load().model, models["subject"].meta["purged"]
        ),
        costs=beside.costs,
        config=subject.request
        | {"audit": {"watch": config.dump(asked.watch), "criteria": config.dump(asked.criteria)}},
        log=log,
        lineage=_lineage(subject),
        goal=asked.goal,
        warnings=claims,
        requests=requests,
    )


def report_run(run: Path) -> Path:
    """Write ``report.html`` again from the record and whatever observations are still there; its path."""
    record = bundle.require_record(Path(run))
    split = read_meta(run)["split"]
    files: dict[str, Path] = {}
    for role, facts in record.checkpoints.items():
        home = Path(run) if role == "subject" else Path(facts.file).parent
        files[role] = (
            _oracle_observations_path(Path(run), facts.digest) if facts.claim else _observations_path(home, split)
        )
    beside = Path(run) / f"original-{OBSERVATIONS_FILE}"
    if beside.exists():
        files["original"] = beside
    return bundle.write_report(Path(run), record, artifacts.read_observations(files), read_log(Path(run) / LOG))
