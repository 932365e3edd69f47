"""The verbs ``audit`` and ``report``: judge a run folder, and write the evidence into it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from efface import api, config
from efface.auditing.observers.weight_changes import measure_changes
from efface.auditing.sequential import RequestSequence
from efface.data.pixel_caches import list_residual_caches, purge_caches
from efface.data.split import EARLIER
from efface.files import LOG
from efface.reporting import bundle
from efface.reporting.environment import Environment
from efface.reporting.record import RECORD, Record, file_digest
from efface.runs import artifacts
from efface.runs.audited_model import (
    OBSERVATIONS_FILE,
    find_observations,
    observations_path,
    oracle_observations_path,
)
from efface.runs.comparison import Comparison, build_comparison, lineage
from efface.runs.folder import create_run_folder, read_log
from efface.runs.ownership import one_at_a_time, why_not_bundle
from efface.runs.requests import AuditRequest
from efface.runs.run import Progress
from efface.runs.sequential import audit_sequence
from efface.training import devices
from efface.training.checkpoint import read_meta


@one_at_a_time
def audit_run(
    run: Path,
    request: AuditRequest | Mapping[str, Any],
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    references: Path | None = None,
    plain_ids: bool = False,
    out: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> api.AuditResult:
    """Judge an unlearned run, and write findings, record and report into its folder or into ``out``.

    A run folder that cannot be written is judged as well; then nothing is written without ``out``.

    Args:
        run: The run folder.
        request: An :class:`AuditRequest`, or a mapping with its fields.
        original: Where the original is now; by default where it was when the run was made.
        oracles: Retrained references: run folders that never saw the examples to forget, which is checked; or
            checkpoints of other libraries with the same architecture, which is not; the record says so.
        references: A folder filled by :mod:`efface.runs.references`; its models are used as well.
        plain_ids: Write bare keys into the record instead of digests.
        out: Folder to write the evidence into; by default the run folder.
        force: Replace ``out`` if it holds the evidence of an earlier audit.
        progress: Receives progress messages.

    Returns:
        Findings and verdict. ``exit_code`` is 0 (removed), 3 (residue) or 4 (inconclusive).

    Raises:
        EffaceError: A setting is unknown, or a model cannot be compared with the run.

    Example:
        >>> result = audit_run(Path("runs/forgotten"), {}, oracles=[Path("runs/retrained")])  # doctest: +SKIP
        >>> result.verdict.word  # doctest: +SKIP

    """
    progress, request = progress or Progress(), AuditRequest.of(request)
    compared = build_comparison(
        run, request.watch, request.device, progress,
        original=original, oracles=oracles, references=references, consent=request.consent, checks=request,
    )  # fmt: skip
    subject, observations = compared.subject, compared.observations
    extra = artifacts.read_extra_findings(subject.folder, observations["subject"])
    result = api.judge_observations(
        observations["original"],
        observations["subject"],
        compared.oracles,
        criteria=request.criteria,
        costs=compared.costs,
        unlearned=compared.unlearned,
    )
    result.findings.extend(extra.findings)
    sequence = audit_sequence(
        subject, compared.models, original, request.criteria, request.watch, request.device, progress, request.consent
    )
    log = read_log(subject.folder / LOG)
    keys = subject.split.keys(subject.data, "forget")
    asked = [*keys, *subject.split.keys(subject.data, EARLIER)]
    caches = (purge_caches if request.purge_cache else list_residual_caches)(
        subject.data, asked, subject.at_hand.former_roots
    )
    residual = [f"{cache}: {done}" for cache, done in caches.items()]
    for sentence in residual:
        progress.say(sentence)
    warnings = (*compared.claims, *extra.claims, *compared.notes, *residual)
    record = _build_record(compared, request, result, log, warnings, sequence)
    if out is not None:
        made = {"verb": "audit", "run": str(subject.folder.resolve()), "digest": subject.meta["digest"]}
        inputs = [run, original, references, *oracles]
        with create_run_folder(
            out, yaml.safe_dump(made), force=force, inputs=inputs, why_not_ours=why_not_evidence
        ) as half:
            bundle.write_evidence(half, record, keys, observations, log, plain_ids=plain_ids, source=subject.folder)
    elif evidence_folder(run, None) is not None:
        bundle.write_evidence(subject.folder, record, keys, observations, log, plain_ids=plain_ids)
    else:
        progress.say(f"{run} cannot be written: the evidence is not kept. Add --out DIR to keep it there.")
    return replace(result, sequence=sequence)


def evidence_folder(run: Path, out: Path | None) -> Path | None:
    """The folder that an audit writes its evidence into; None if it can write none."""
    return out or (run if os.access(run, os.W_OK) else None)


def why_not_evidence(folder: Path) -> str:
    """Why a folder is not one that an audit wrote for ``--out``."""
    return why_not_bundle(folder, RECORD, ("schema_version", "verdict", "items", "checkpoints"))


def _build_record(
    compared: Comparison,
    request: AuditRequest,
    result: api.AuditResult,
    log: Sequence[Mapping[str, Any]],
    claims: Sequence[str],
    sequence: RequestSequence | None,
) -> Record:
    """The record of an audit before it is sealed."""
    subject, models = compared.subject, compared.models
    return bundle.compose_record(
        subject.data,
        subject.split,
        {
            name: bundle.checkpoint_facts(m.meta, str(m.weights), file_digest(m.weights), m.claim)
            for name, m in models.items()
        },
        result.verdict,
        result.findings,
        Environment.current(torch.__version__, torch.get_num_threads(), str(devices.resolve_device(request.device))),
        criteria=request.criteria,
        changes=measure_changes(
            models["original"].load().model, models["subject"].load().model, models["subject"].meta["purged"]
        ),
        costs=compared.costs,
        config=subject.request
        | {"audit": {"watch": config.dump(request.watch), "criteria": config.dump(request.criteria)}},
        log=log,
        lineage=lineage(subject),
        goal=request.goal,
        warnings=claims,
        requests=sequence,
    )


@one_at_a_time
def report_run(run: Path) -> Path:
    """Write ``report.html`` again from the record and the observations that still exist; returns its path."""
    run = Path(run)
    record = bundle.require_record(run)
    meta = read_meta(run)
    files: dict[str, Path] = {}
    for role, facts in record.checkpoints.items():
        if facts.claim:
            files[role] = oracle_observations_path(run, facts.digest)
        elif role == "subject":
            files[role] = observations_path(run, meta, meta["split"])
        else:
            files[role] = find_observations(Path(facts.file).parent, meta["split"])
    foreign_original = run / f"original-{OBSERVATIONS_FILE}"
    if foreign_original.exists():
        files["original"] = foreign_original
    return bundle.write_report(run, record, artifacts.read_observations(files), read_log(run / LOG))
