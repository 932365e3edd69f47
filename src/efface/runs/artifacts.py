"""Files in a run folder that later audits read: observations, and findings of other verbs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efface.auditing.evidence import Finding
from efface.auditing.observations import Observations
from efface.errors import EffaceError
from efface.files import atomic_path, read_json, write_text
from efface.runs.stored import StoredFindings
from efface.schema import parse_record


def findings_file_name(name: str) -> str:
    """Name of the file in which a verb stores its findings about a run."""
    return f"findings-{name}.json"


@dataclass(frozen=True)
class ExtraFindings:
    """Findings that other verbs stored about a run."""

    findings: list[Finding]
    claims: list[str]
    """What is stated about the models that they compared it with, but was not checked."""


def save_extra_findings(
    folder: Path, name: str, subject: Observations, found: Sequence[Finding], claims: Sequence[str] = ()
) -> Path:
    """Store findings about a run in its folder; the next audit takes them into the record.

    Args:
        folder: The run folder.
        name: Name of the verb; an earlier file of the same verb is replaced.
        subject: The observations that the findings are about.
        found: The findings.
        claims: What is stated about the models that the run was compared with, but was not checked.

    Returns:
        The path of the file.

    """
    path = Path(folder) / findings_file_name(name)
    content = {
        "model": subject.model,
        "split": subject.split,
        "claims": list(claims),
        "findings": [asdict(one) for one in found],
    }
    content = json.loads(json.dumps(content))
    write_text(path, json.dumps(content | {"digest": _findings_digest(content)}, indent=1) + "\n")
    return path


def _require_unedited(content: Mapping[str, Any], path: Path, remedy: str) -> None:
    if "digest" in content and content["digest"] != _findings_digest(content):
        raise EffaceError(
            f"{path} cannot be read as findings.",
            "It was edited or damaged: its content does not match its own digest.",
            remedy,
        )


def _findings_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of stored findings, without the digest itself."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_extra_findings(folder: Path, subject: Observations) -> ExtraFindings:
    """Read the findings that other verbs stored about this model and split; those about others are left out."""
    found = ExtraFindings([], [])
    for path in sorted(Path(folder).glob(findings_file_name("*"))):
        what, remedy = "file of findings", "Delete it, or make it again."
        content = read_json(path, what, remedy=remedy)
        stored = parse_record(StoredFindings, content, path, what, remedy)
        _require_unedited(content, path, remedy)
        if (stored.model, stored.split) == (subject.model, subject.split):
            found.findings.extend(stored.findings)
            found.claims.extend(f"{path.name}: {claim}" for claim in stored.claims)
    return found


def read_observations(files: Mapping[str, Path]) -> dict[str, Observations]:
    """Read the observations whose files still exist, by role."""
    return {role: Observations.load(path) for role, path in files.items() if path.exists()}


def save_observations(path: Path, observations: Observations) -> None:
    """Write a file of observations atomically."""
    with atomic_path(path) as fresh:
        observations.save(fresh)


@dataclass(frozen=True, eq=False)
class SavedFindings:
    """Findings that were stored in a run folder."""

    findings: list[Finding]
    file: Path | None
    """Where they are stored; None if the run folder cannot be written."""
    claims: list[str]
    """What is stated about the retrained references but was not checked; repeated in the next audit's record."""

    def as_dict(self) -> dict[str, Any]:
        """The findings as a JSON object."""
        rows = {
            one.name: {"value": one.value, "original": one.original, "oracle": one.oracle, "note": one.note}
            for one in self.findings
        }
        return rows | {"file": self.file and str(self.file), "claims": self.claims}

    def lines(self) -> list[str]:
        """The findings as lines to print."""
        return [
            *(f"{o.name}: {'none' if o.value is None else f'{o.value:.4g}'} ({o.note})" for o in self.findings),
            f"Stored for the next audit: {self.file}" if self.file else "Not stored: the run folder cannot be written.",
        ]
