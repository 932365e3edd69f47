"""Evidence: from a judged audit to the files that stand for it: findings, record and report. numpy only.

``compose`` says everything in one record; ``write`` seals it (ids become keyed digests) and puts
``findings.json``, ``record.json``, its schema, ``items.key`` and ``report.html`` into a folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from efface.auditing.evidence import Cost, Finding
from efface.auditing.observations import Observations
from efface.auditing.sequential import RequestSequence
from efface.auditing.verdict import Criteria, Verdict
from efface.data.dataset import Data
from efface.data.split import Split
from efface.errors import EffaceError
from efface.files import write_text
from efface.reporting.environment import Environment
from efface.reporting.page import REPORT, render_report
from efface.reporting.record import (
    RECORD,
    CheckpointFacts,
    DataFacts,
    LogFacts,
    MeasuredChange,
    PartChange,
    Record,
    Request,
    SplitFacts,
    file_digest,
    json_digest,
)
from efface.reporting.redaction import KEY_FILE, read_key
from efface.training.history import SearchHistory, StoppingResult, from_dict

FINDINGS = "findings.json"


RECORDED_FILES = ("checkpoint.safetensors", "meta.json", "split.json", "observations.npz", "log.jsonl")
"""Files of a run folder whose digests the record holds."""


def checkpoint_facts(meta: Mapping[str, Any], file: str = "", sha256: str = "", claim: str = "") -> CheckpointFacts:
    """What the record says of a checkpoint, from the meta data that :meth:`Checkpoint.save` writes."""
    kept = {key: meta[key] for key in ("digest", "parent", "method", "origin", "exact", "seed", "split", "purged")}
    kept |= {
        "stopped": from_dict(StoppingResult, meta.get("stopped")),
        "search": from_dict(SearchHistory, meta.get("search")),
    }
    return CheckpointFacts(file=file, sha256=sha256, claim=claim, **kept)


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
    warnings: Sequence[str] = (),
    requests: RequestSequence | None = None,
) -> Record:
    """One unsealed record. ``checkpoints``: ``original``, ``subject``, ``oracle 1`` ...

    ``warnings``: beside those of the split.
    """
    provenance, subject = split.provenance, checkpoints["subject"]
    original = checkpoints["original"].digest
    settings = json.loads(json.dumps(dict(config or {}), default=str))
    return Record(
        request=Request(
            selector=str(provenance.get("selector")),
            count=len(split.forget),
            method=subject.method or {"name": "none"},
            goal=goal,
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
) -> Record:
    """Seal the record about ``ids`` and write all of it into an existing folder; the sealed record.

    A folder that was audited before keeps its key, so that digests of the same ids stay the same.
    """
    folder = Path(folder)
    there = {name: file_digest(folder / name) for name in RECORDED_FILES if (folder / name).exists()}
    record = record.model_copy(update={"files": there})
    secret = read_key(folder / KEY_FILE) if (folder / KEY_FILE).exists() else None
    record, secret = record.sealed(ids, plain_ids=plain_ids, secret=secret)
    write_text(folder / FINDINGS, json.dumps([asdict(one) for one in record.findings], indent=1) + "\n")
    record.save(folder, secret)
    write_report(folder, record, seen, log)
    return record


def write_report(
    folder: Path, record: Record, seen: Mapping[str, Observations], log: Sequence[Mapping[str, Any]]
) -> Path:
    """Render ``report.html`` from a record and what its models show; the page's path."""
    path = Path(folder) / REPORT
    write_text(path, render_report(record, seen, log))
    return path


def require_record(folder: Path) -> Record:
    """The record of an audited run."""
    if not (Path(folder) / RECORD).exists():
        raise EffaceError(f"{folder} has not been audited: it has no {RECORD}.", remedy=f"Run `efface audit {folder}`.")
    return Record.load(folder)
