"""The evidence bundle: the files that document one audit in a run folder. numpy only.

============================ ====================================================
``findings.json``            every finding
``record.json``              the record (see :mod:`efface.reporting.record`)
``record.schema.json``       the JSON schema of the record
``items.key``                the key of the digests of the forgotten examples
``report.html``              the report
============================ ====================================================

:func:`compose_record` collects the facts of an audit in a :class:`Record`; :func:`write_evidence` seals it (ids
become keyed digests) and writes the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from efface.auditing.criteria import Criteria
from efface.auditing.evidence import Cost, Finding
from efface.auditing.observations import Observations
from efface.auditing.sequential import RequestSequence
from efface.auditing.verdict import Verdict
from efface.data.dataset import Data
from efface.data.split import Split
from efface.errors import EffaceError
from efface.files import file_digest, write_text
from efface.reporting.environment import Environment
from efface.reporting.facts import (
    Case,
    CheckpointFacts,
    DataFacts,
    LogFacts,
    MeasuredChange,
    PartChange,
    Request,
    SplitFacts,
)
from efface.reporting.page import render_report, report_name
from efface.reporting.record import DESCRIPTIONS, HANDED_BACK, RECORD, Record, json_digest
from efface.reporting.redaction import KEY_FILE, read_key
from efface.reporting.translation import ENGLISH
from efface.training.history import SearchHistory, StoppingResult, from_dict

FINDINGS = "findings.json"
RECORDED_FILES = ("checkpoint.safetensors", "meta.json", "split.json", "observations.npz", "log.jsonl")
"""Files of a run folder whose digests are stored in the record."""


def checkpoint_facts(meta: Mapping[str, Any], file: str = "", sha256: str = "", claim: str = "") -> CheckpointFacts:
    """Describe a checkpoint for the record.

    Args:
        meta: The metadata that :meth:`Checkpoint.save` writes.
        file: Path of the weights.
        sha256: SHA-256 of that file.
        claim: Statement by the user that was not checked.

    """
    facts = {key: meta[key] for key in ("digest", "parent", "method", "origin", "exact", "seed", "split", "purged")}
    facts |= {
        "stopped": from_dict(StoppingResult, meta.get("stopped")),
        "search": from_dict(SearchHistory, meta.get("search")),
    }
    return CheckpointFacts(file=file, sha256=sha256, claim=claim, **facts)


def compose_record(
    data: Data,
    split: Split,
    checkpoints: Mapping[str, CheckpointFacts],
    verdict: Verdict,
    findings: Sequence[Finding],
    environment: Environment,
    *,
    criteria: Criteria,
    changes: Sequence[MeasuredChange] = (),
    costs: Mapping[str, Cost] | None = None,
    config: Mapping[str, Any] | None = None,
    log: Sequence[Mapping[str, Any]] = (),
    lineage: Sequence[str] = (),
    goal: str = "",
    case: Case | None = None,
    warnings: Sequence[str] = (),
    requests: RequestSequence | None = None,
) -> Record:
    """Collect the facts of an audit in an unsealed record.

    Args:
        data: The data set.
        split: The split, with the provenance of its forget set.
        checkpoints: By role: ``original``, ``subject`` (the unlearned model), ``oracle 1`` ...
        verdict: Verdict of the audit.
        findings: Findings of the audit.
        environment: Machine and versions.
        criteria: What counts as removed.
        changes: How much unlearning changed each part of the model.
        costs: Training cost of ``subject``, ``original`` and ``oracle``, where known.
        config: The resolved configuration.
        log: Lines of the training log.
        lineage: Model digests from the first ancestor to the subject; by default original and subject.
        goal: Goal of the request.
        case: What the office knows of it.
        warnings: Warnings in addition to those of the split.
        requests: All requests so far, if this was not the first.

    """
    provenance, subject = split.provenance, checkpoints["subject"]
    original = checkpoints["original"].digest
    settings = json.loads(json.dumps(dict(config or {}), default=str))
    return Record(
        request=Request(
            selector=str(provenance.get("selector")),
            count=split.sizes()["forget"],
            method=subject.method or {"name": "none"},
            goal=goal,
            case=case or Case(),
        ),
        data=_data_facts(data),
        split=_split_facts(data, split),
        checkpoints=dict(checkpoints),
        lineage=tuple(lineage) or tuple(dict.fromkeys((original, subject.digest))),
        config=settings,
        config_digest=json_digest(settings),
        environment=environment,
        changes=tuple(PartChange.of(one) for one in changes),
        findings=tuple(findings),
        criteria=criteria,
        verdict=verdict,
        cost=dict(costs or {}),
        warnings=(*provenance.get("warnings", ()), *warnings),
        log=LogFacts.of(log),
        sequence=requests,
    )


def _data_facts(data: Data) -> DataFacts:
    return DataFacts(
        name=data.name,
        digest=data.digest(),
        size=len(data),
        shape=data.shape,
        classes=data.classes,
        skipped=data.skipped,
    )


def _split_facts(data: Data, split: Split) -> SplitFacts:
    provenance = split.provenance
    return SplitFacts(
        digest=split.digest(data),
        sizes=split.sizes(),
        absent={part: len(keys) for part, keys in split.absent.items()},
        random=provenance.get("random"),
        matched=provenance.get("matched"),
        seed=provenance.get("seed"),
        warnings=tuple(provenance.get("warnings", ())),
    )


def write_evidence(
    folder: Path,
    record: Record,
    ids: Sequence[str],
    seen: Mapping[str, Observations],
    log: Sequence[Mapping[str, Any]] = (),
    *,
    plain_ids: bool = False,
    source: Path | None = None,
) -> Record:
    """Seal a record and write the evidence bundle into an existing folder.

    A folder that was audited before keeps its key, so that the same ids keep the same digests.

    Args:
        folder: The run folder.
        record: Record from :func:`compose_record`.
        ids: Ids of the forgotten examples.
        seen: Observations by role: ``original``, ``subject``, ``oracle 1`` ...
        log: Lines of the training log.
        plain_ids: Store bare ids instead of keyed digests.
        source: The run folder, if the bundle is written elsewhere.

    Returns:
        The sealed record.

    """
    folder = Path(folder)
    run = folder if source is None else source
    names = [*RECORDED_FILES, *list_handed_back(run)]
    digests = {name: file_digest(run / name) for name in names if (run / name).is_file()}
    seen_digests = {role: observed.digest for role, observed in seen.items()}
    record = record.model_copy(update={"files": digests, "observations": seen_digests})
    secret = read_key(run / KEY_FILE) if (run / KEY_FILE).exists() else None
    record, secret = record.sealed(ids, plain_ids=plain_ids, secret=secret)
    write_text(folder / FINDINGS, json.dumps([asdict(one) for one in record.findings], indent=1) + "\n")
    record.save(folder, secret)
    write_report(folder, record, seen, log)
    return record


def list_handed_back(run: Path) -> list[str]:
    """The files of weights that a run wrote in another library's layout, one of which may be the deployed one."""
    files = [path for path in sorted((run / HANDED_BACK).rglob("*")) if path.suffix not in DESCRIPTIONS]
    return [path.relative_to(run).as_posix() for path in files if path.is_file()]


def write_report(
    folder: Path,
    record: Record,
    seen: Mapping[str, Observations],
    log: Sequence[Mapping[str, Any]],
    *,
    language: str = ENGLISH,
) -> Path:
    """Render ``report.html`` from a record and the observations of its models, and return its path.

    In another language it is ``report.de.html``, beside the English one.
    """
    path = Path(folder) / report_name(language)
    write_text(path, render_report(record, seen, log, language=language))
    return path


def require_record(folder: Path) -> Record:
    """Load the record of a run folder; a run that was not audited raises."""
    if not (Path(folder) / RECORD).exists():
        raise EffaceError(f"{folder} has not been audited: it has no {RECORD}.", remedy=f"Run `efface audit {folder}`.")
    return Record.load(folder)
