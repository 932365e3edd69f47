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
from efface.auditing.controls import describe_change
from efface.auditing.criteria import Criteria
from efface.auditing.observers.weight_changes import measure_changes
from efface.auditing.reference_bank import ReferenceBank
from efface.auditing.sequential import RequestSequence
from efface.auditing.validation import decide_with_rehearsals
from efface.data.pixel_caches import list_residual_caches, purge_caches
from efface.data.split import EARLIER
from efface.errors import EffaceError
from efface.files import LOG, file_digest
from efface.reporting import bundle
from efface.reporting.environment import Environment
from efface.reporting.facts import Case
from efface.reporting.recheck import require_same_findings, require_same_verdict, select_recorded
from efface.reporting.record import RECORD, SCHEMA_VERSION, Record
from efface.runs import artifacts
from efface.runs.binding import fixed_criteria, stored_file, withheld_file
from efface.runs.calibration import bank_facts, open_bank, recorded_bank
from efface.runs.comparison import Comparison, build_comparison, lineage
from efface.runs.folder import create_run_folder, read_log
from efface.runs.method_bank import used_bank
from efface.runs.ownership import one_at_a_time, why_not_bundle
from efface.runs.procedure import RehearsedProcedure, open_rehearsals, rehearse_with_bank
from efface.runs.rehearsal_plan import find_rehearsals
from efface.runs.requests import AuditRequest
from efface.runs.run import OpenedRun, Progress
from efface.runs.sequential import audit_sequence
from efface.training import devices
from efface.training.checkpoint import CONTENT, META, read_meta
from efface.training.processes import join_processes


@one_at_a_time
def audit_run(
    run: Path,
    request: AuditRequest | Mapping[str, Any],
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    references: Path | None = None,
    bank: Path | None = None,
    rehearsals: Path | None = None,
    plain_ids: bool = False,
    recheck: bool = False,
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
        bank: A reference bank of the original (:mod:`efface.runs.reference_bank`): it calibrates every score, and the
            attack that is learned on it decides as well.
        rehearsals: Rehearsals of this request's procedure (:mod:`efface.runs.rehearsals`); by default those beside the
            original that stand for it, if there are any. With a bank, retraining needs none: the bank is its rehearsal.
        plain_ids: Write bare keys into the record instead of digests.
        recheck: Observe every model anew instead of using stored observations.
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
    world = join_processes(request.device)
    compared = build_comparison(
        run, request.watch, request.device, progress,
        original=original, oracles=oracles, references=references, consent=request.consent, checks=request,
        recheck=recheck, withheld=request.withheld,
    )  # fmt: skip
    subject, observations = compared.subject, compared.observations
    known = None if bank is None else open_bank(bank, compared)
    extra = artifacts.read_extra_findings(subject.folder, observations["subject"])
    fixed = fixed_criteria(subject.meta)
    request = replace(request, criteria=request.criteria or fixed)
    result = api.judge_observations(
        observations["original"],
        observations["subject"],
        compared.oracles,
        criteria=request.criteria,
        costs=compared.costs,
        unlearned=compared.unlearned,
        fixed=fixed,
        claimed=compared.claimed,
        bank=known,
    )
    result.findings.extend(extra.findings)
    procedure = _find_procedure(compared, bank, known, rehearsals, progress)
    if procedure is not None:
        rehearsed = procedure.judge(result.evidence, request.criteria or fixed, fixed)
        result = replace(result, verdict=decide_with_rehearsals(result.verdict, rehearsed))
    sequence = audit_sequence(
        subject,
        compared.models,
        original,
        request.criteria or fixed,
        fixed,
        replace(compared.binder, withheld=None),
        request.device,
        progress,
        request.consent,
    )
    log = read_log(subject.folder / LOG)
    keys = subject.split.keys(subject.data, "forget")
    asked = [*keys, *subject.split.keys(subject.data, EARLIER)]
    look = purge_caches if request.purge_cache else list_residual_caches
    caches = world.lead(lambda: look(subject.data, asked, subject.at_hand.former_roots))
    residual = [f"{cache}: {done}" for cache, done in caches.items()]
    origin = _describe_origin(subject, request.criteria or fixed, fixed)
    for sentence in (*origin, *residual):
        progress.say(sentence)
    warnings = (*origin, *compared.claims, *extra.claims, *compared.notes, *residual)
    record = _build_record(compared, request, result, log, warnings, sequence)
    facts = bank_facts(bank, known, divided=used_bank(subject.meta))
    held = None if procedure is None else procedure.facts()
    record = record.model_copy(
        update={"fixed_criteria": fixed, "bank": facts, "rehearsals": held, "withheld": compared.withheld}
    )
    if out is not None:
        made = {"verb": "audit", "run": str(subject.folder.resolve()), "digest": subject.meta["digest"]}
        inputs = [run, original, references, bank, *oracles]
        with create_run_folder(
            out, yaml.safe_dump(made), force=force, inputs=inputs, why_not_ours=why_not_evidence
        ) as half:
            bundle.write_evidence(half, record, keys, observations, log, plain_ids=plain_ids, source=subject.folder)
    elif not world.leads:
        pass  # the first process writes
    elif evidence_folder(run, None) is not None:
        bundle.write_evidence(subject.folder, record, keys, observations, log, plain_ids=plain_ids)
    else:
        progress.say(f"{run} cannot be written: the evidence is not kept. Add --out DIR to keep it there.")
    return replace(result, sequence=sequence)


def _find_procedure(
    compared: Comparison, bank: Path | None, known: ReferenceBank | None, named: Path | None, progress: Progress
) -> RehearsedProcedure | None:
    """The rehearsals of the audited procedure: those named, those beside the original, or for retraining the bank."""
    if named is not None:
        return open_rehearsals(named, compared, known)
    if compared.subject.meta["exact"]:
        found = rehearse_with_bank(known, compared, bank) if bank is not None and known is not None else None
        if isinstance(found, str):
            progress.say(found)
            return None
        return found
    home = find_rehearsals(compared.subject)
    if home is None:
        return None
    try:
        procedure = open_rehearsals(home, compared, known)
    except EffaceError as error:
        progress.say(f"The rehearsals in {home} are not used. {error.what} {error.why}")
        return None
    progress.say(f"Using the rehearsals in {home}")
    return procedure


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
        criteria=request.criteria or Criteria(),
        changes=measure_changes(
            models["original"].load().model, models["subject"].load().model, models["subject"].meta["purged"]
        ),
        costs=compared.costs,
        config=subject.request
        | {"audit": {"watch": config.dump(request.watch), "criteria": config.dump(request.criteria)}},
        log=log,
        lineage=lineage(subject),
        goal=request.goal,
        case=Case(**vars(request.case)),
        warnings=claims,
        requests=sequence,
    )


def _describe_origin(subject: OpenedRun, criteria: Criteria, fixed: Criteria) -> list[str]:
    """What a reader should know of how the criteria and the description of the run came about."""
    found: list[str] = []
    if criteria != fixed:
        found.append(
            f"The criteria were changed after unlearning: {describe_change(criteria, fixed)}. 'Removed' is said only "
            "if the criteria fixed before say it too."
        )
    if CONTENT not in subject.meta:
        found.append(
            f"{subject.folder} was made by an older efface: its description has no digest, and no criteria were fixed "
            "with it."
        )
    return found


@one_at_a_time
def report_run(run: Path, progress: Progress | None = None, *, language: str = "en") -> Path:
    """Write ``report.html`` again from the record and the observations that still exist; returns its path.

    Args:
        run: An audited run.
        progress: Receives messages.
        language: Language of the first page: ``en``, or ``de``, which is written beside it as ``report.de.html``.

    Raises:
        EffaceError: The record, the findings or the observations were edited, or the verdict is not the one that they
            lead to.

    """
    run, progress = Path(run), progress or Progress()
    record = bundle.require_record(run)
    if record.schema_version < SCHEMA_VERSION:
        progress.say(f"The record of {run} has schema {record.schema_version}: nothing shows whether it was edited.")
    require_same_findings(run, record)
    shown = artifacts.read_observations(_observation_files(run, record))
    kept = select_recorded(record, shown)
    for role in shown.keys() - kept.keys():
        progress.say(f"The stored observations of the {role} are not those of the record, and are not shown.")
    require_same_verdict(run, record, kept, recorded_bank(record))
    return bundle.write_report(run, record, kept, read_log(run / LOG), language=language)


def _observation_files(run: Path, record: Record) -> dict[str, Path]:
    """Where the observations of each model of a record are, by role."""
    meta = read_meta(run)
    files: dict[str, Path] = {}
    for role, facts in record.checkpoints.items():
        folder = run if role == "subject" else Path(facts.file).parent
        there = {"digest": facts.digest, "split": ""}
        if not facts.claim and (folder / META).exists():
            there = read_meta(folder)
        files[role] = stored_file(folder, run, there, meta["split"])
        if record.withheld is not None:
            files[role] = withheld_file(run, facts.digest, record.withheld.digest)
    return files
