"""Evidence: from a judged audit to the files that stand for it: findings, record and report. numpy only.

``compose`` says everything in one record; ``write`` seals it (ids become keyed digests) and puts
``findings.json``, ``record.json``, its schema, ``items.key`` and ``report.html`` into a folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from efface.audits import Cost, Finding
from efface.data import Data
from efface.drift import Requests
from efface.environment import Environment
from efface.errors import EffaceError
from efface.folder import disk_errors, write_text
from efface.items import KEY, read_key
from efface.looks import Search, Stopped, from_dict
from efface.observations import Observations
from efface.record import (
    RECORD,
    CheckpointFacts,
    DataFacts,
    LogFacts,
    Moved,
    PartChange,
    Record,
    Request,
    SplitFacts,
    digest_of,
    file_digest,
)
from efface.report import REPORT, render
from efface.splits import Split
from efface.verdict import Criteria, Verdict

FINDINGS = "findings.json"
BESIDE = ("checkpoint.safetensors", "meta.json", "split.json", "observations.npz", "log.jsonl")
"""Files of a run folder whose digests the record holds."""


def checkpoint_facts(meta: Mapping[str, Any], file: str = "", sha256: str = "", claim: str = "") -> CheckpointFacts:
    """What the record says of a checkpoint, from the meta data that :meth:`Checkpoint.save` writes."""
    kept = {key: meta[key] for key in ("digest", "parent", "method", "origin", "exact", "seed", "split", "purged")}
    kept |= {"stopped": from_dict(Stopped, meta.get("stopped")), "search": from_dict(Search, meta.get("search"))}
    return CheckpointFacts(file=file, sha256=sha256, claim=claim, **kept)


def compose(
    data: Data,
    split: Split,
    checkpoints: Mapping[str, CheckpointFacts],
    verdict: Verdict,
    findings: Sequence[Finding],
    environment: Environment,
    *,
    criteria: Criteria,
    changes: Sequence[Moved] = (),
    costs: Mapping[str, Cost] | None = None,
    config: Mapping[str, Any] | None = None,
    log: Sequence[Mapping[str, Any]] = (),
    lineage: Sequence[str] = (),
    goal: str = "",
    warnings: Sequence[str] = (),
    requests: Requests | None = None,
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
        config_digest=digest_of(settings),
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


def write(
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
    there = {name: file_digest(folder / name) for name in BESIDE if (folder / name).exists()}
    record = record.model_copy(update={"files": there})
    secret = read_key(folder / KEY) if (folder / KEY).exists() else None
    record, secret = record.sealed(ids, plain_ids=plain_ids, secret=secret)
    write_text(folder / FINDINGS, json.dumps([asdict(one) for one in record.findings], indent=1) + "\n")
    record.save(folder, secret)
    write_report(folder, record, seen, log)
    return record


def further(name: str) -> str:
    """The file in which a verb of its own keeps its findings about a run."""
    return f"findings-{name}.json"


@dataclass(frozen=True)
class Further:
    """What other verbs kept about a run."""

    findings: list[Finding]
    claims: list[str]
    """What is said of the models they compared it with that nobody checked."""


def keep_further(
    folder: Path, name: str, subject: Observations, found: Sequence[Finding], claims: Sequence[str] = ()
) -> Path:
    """Keep findings about a run beside it, for the next audit to take into the record; the file's path.

    ``claims``: what is said of the models that it was compared with and nobody checked.
    """
    path = Path(folder) / further(name)
    content = {
        "model": subject.model,
        "split": subject.split,
        "claims": list(claims),
        "findings": [asdict(one) for one in found],
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def read_further(folder: Path, subject: Observations) -> Further:
    """What other verbs kept about this very model and split; what is about another is left out."""
    found = Further([], [])
    for path in sorted(Path(folder).glob(further("*"))):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if (content["model"], content["split"]) == (subject.model, subject.split):
                found.findings.extend(TypeAdapter(list[Finding]).validate_python(content["findings"]))
                claims = TypeAdapter(list[str]).validate_python(content.get("claims", []))
                found.claims.extend(f"{path.name}: {claim}" for claim in claims)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EffaceError(
                f"{path} cannot be read as findings.", str(error), "Delete it, or make it again."
            ) from error
    return found


def write_report(
    folder: Path, record: Record, seen: Mapping[str, Observations], log: Sequence[Mapping[str, Any]]
) -> Path:
    """Render ``report.html`` from a record and what its models show; the page's path."""
    path = Path(folder) / REPORT
    write_text(path, render(record, seen, log))
    return path


def read_observations(files: Mapping[str, Path]) -> dict[str, Observations]:
    """The observations that can still be found, by role; the page says what is missing."""
    return {role: Observations.load(path) for role, path in files.items() if path.exists()}


def keep_observations(path: Path, seen: Observations) -> None:
    """Replace a file of observations as a whole."""
    with disk_errors(path):
        fresh = path.with_name(path.name + ".tmp")
        seen.save(fresh)
        fresh.replace(path)


def require_record(folder: Path) -> Record:
    """The record of an audited run."""
    if not (Path(folder) / RECORD).exists():
        raise EffaceError(f"{folder} has not been audited: it has no {RECORD}.", remedy=f"Run `efface audit {folder}`.")
    return Record.load(folder)
