"""What later audits find beside a run: observations and extra findings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from efface.auditing.evidence import Finding
from efface.auditing.observations import Observations
from efface.errors import EffaceError
from efface.files import disk_errors, write_text


def findings_file_name(name: str) -> str:
    """The file in which a verb of its own keeps its findings about a run."""
    return f"findings-{name}.json"


@dataclass(frozen=True)
class ExtraFindings:
    """What other verbs kept about a run."""

    findings: list[Finding]
    claims: list[str]
    """What is said of the models they compared it with that nobody checked."""


def save_extra_findings(
    folder: Path, name: str, subject: Observations, found: Sequence[Finding], claims: Sequence[str] = ()
) -> Path:
    """Keep findings about a run beside it, for the next audit to take into the record; the file's path.

    ``claims``: what is said of the models that it was compared with and nobody checked.
    """
    path = Path(folder) / findings_file_name(name)
    content = {
        "model": subject.model,
        "split": subject.split,
        "claims": list(claims),
        "findings": [asdict(one) for one in found],
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def read_extra_findings(folder: Path, subject: Observations) -> ExtraFindings:
    """What other verbs kept about this very model and split; what is about another is left out."""
    found = ExtraFindings([], [])
    for path in sorted(Path(folder).glob(findings_file_name("*"))):
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


def read_observations(files: Mapping[str, Path]) -> dict[str, Observations]:
    """The observations that can still be found, by role; the page says what is missing."""
    return {role: Observations.load(path) for role, path in files.items() if path.exists()}


def save_observations(path: Path, seen: Observations) -> None:
    """Replace a file of observations as a whole."""
    with disk_errors(path):
        fresh = path.with_name(path.name + ".tmp")
        seen.save(fresh)
        fresh.replace(path)


@dataclass(frozen=True, eq=False)
class SavedFindings:
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
