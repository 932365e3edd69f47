"""Record: everything that was asked, done and found, in one versioned JSON file beside its own schema.

It holds what a report needs besides the observations and the log, and what an auditor needs to check it
later: digests of the checkpoints, the data, the split and the configuration. Which examples it is about is
written as keyed digests only (see :mod:`efface.reporting.redaction`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pydantic import AwareDatetime, Field, ValidationError

from efface._version import __version__
from efface.auditing.evidence import Cost, Finding
from efface.auditing.sequential import RequestSequence
from efface.auditing.verdict import Criteria, Verdict
from efface.errors import EffaceError
from efface.files import read_json, write_text
from efface.reporting.environment import Environment
from efface.reporting.redaction import KEY_FILE, KEYED, Items, Redactor, hmac_digest, new_secret, read_key, write_key
from efface.schema import RecordModel
from efface.training.history import SearchHistory, StoppingResult

SCHEMA_VERSION = 1
RECORD, SCHEMA = "record.json", "record.schema.json"
UNKEYED = (".safetensors", ".npz", ".jsonl")
"""Files whose plain digest cannot confirm a guess at the ids: they do not consist of ids alone."""


class Request(RecordModel):
    """What was asked."""

    selector: str
    """How the examples were named, as the user wrote it."""
    count: int
    """How many examples that was."""
    method: dict[str, Any]
    """``name`` and every hyper-parameter of the method."""
    goal: str = ""
    """Individual erasure, class or concept removal, disgorgement; empty where the request said nothing."""


class DataFacts(RecordModel):
    """The data set."""

    name: str
    digest: str
    size: int
    """Number of examples."""
    shape: tuple[int, ...] = ()
    """Channels, height, width."""
    classes: tuple[str, ...] = ()
    """Names of the classes; empty where the data has no labels."""
    skipped: tuple[dict[str, Any], ...] = ()
    """Broken items that were left out: ``key``, ``path``, ``error``."""


class SplitFacts(RecordModel):
    """How the data was divided."""

    digest: str
    """Keyed in a sealed record: a plain digest of few ids can be guessed."""
    sizes: dict[str, int]
    """Examples per part."""
    random: bool | None = None
    """Whether the forget set is a random draw."""
    matched: str | None = None
    """What the holdout was matched to the forget set by: ``class``, ``group`` or nothing."""
    seed: int | None = None
    warnings: tuple[str, ...] = ()


class CheckpointFacts(RecordModel):
    """One checkpoint that the record speaks of."""

    digest: str
    """SHA-256 over its named tensors."""
    parent: str | None = None
    """Digest of the checkpoint it was made from."""
    method: dict[str, Any] | None = None
    """What made it; None for an original."""
    origin: str = ""
    """The package that brought the method; empty for those of efface."""
    exact: bool = False
    """Whether it never saw the forget set."""
    seed: int | None = None
    split: str = ""
    """Digest of the split it was made with; keyed in a sealed record."""
    file: str = ""
    """Where its weights are, as the engineer knows it."""
    sha256: str = ""
    """SHA-256 of that file."""
    purged: dict[str, str] = Field(default_factory=dict)
    """What was done with the state that remembers training images: part to action."""
    claim: str = ""
    """What is said of it that nobody checked, such as that it never saw the forget set."""
    stopped: StoppingResult | None = None
    """When and why its method was stopped; None where nobody looked on."""
    search: SearchHistory | None = None
    """What was tried, where its method was chosen by unseen examples."""


class MeasuredChange(Protocol):
    """How far one part moved, as the torch side measures it."""

    @property
    def part(self) -> str:
        """Backbone, head, ... as in :class:`PartChange`."""
        ...

    @property
    def numbers(self) -> int:
        """How many numbers."""
        ...

    @property
    def relative(self) -> float:
        """L2 norm of the change, relative."""
        ...

    @property
    def largest(self) -> float:
        """Largest change of one number."""
        ...

    @property
    def note(self) -> str:
        """What was done with it."""
        ...


class PartChange(RecordModel):
    """What unlearning changed in one part of the model."""

    part: str
    """Backbone, head, twin, queue, or the BatchNorm statistics of one of them."""
    numbers: int
    """How many numbers it holds."""
    relative: float
    """L2 norm of the change over the L2 norm of the original part."""
    largest: float
    """Largest absolute change of one number."""
    changed: bool
    note: str = ""
    """What was done with it, where it was purged."""

    @staticmethod
    def of(moved: MeasuredChange) -> PartChange:
        """From the torch side's measurement."""
        return PartChange(
            part=moved.part,
            numbers=moved.numbers,
            relative=moved.relative,
            largest=moved.largest,
            changed=moved.largest > 0,
            note=moved.note,
        )


class TermFacts(RecordModel):
    """One named loss term over a run."""

    steps: int
    first: float
    last: float
    lowest: float
    highest: float


class LogFacts(RecordModel):
    """What the training log says in short; the log itself stays beside the record."""

    steps: int
    phases: dict[str, int]
    """Steps per phase."""
    terms: dict[str, TermFacts]
    """By ``phase.term``."""

    @staticmethod
    def of(log: Iterable[Mapping[str, Any]]) -> LogFacts | None:
        """The summary of a log; None of an empty one."""
        phases: dict[str, int] = {}
        seen: dict[str, list[float]] = {}
        for line in log:
            phase = str(line.get("phase", "train"))
            phases[phase] = phases.get(phase, 0) + 1
            for name, value in line.get("terms", {}).items():
                seen.setdefault(f"{phase}.{name}", []).append(float(value))
        terms = {
            name: TermFacts(steps=len(v), first=v[0], last=v[-1], lowest=min(v), highest=max(v))
            for name, v in seen.items()
        }
        return LogFacts(steps=sum(phases.values()), phases=phases, terms=terms) if phases else None


class Record(RecordModel):
    """A request, what was done about it, and what the evidence says."""

    schema_version: int = SCHEMA_VERSION
    efface_version: str = __version__
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    request: Request
    data: DataFacts
    split: SplitFacts
    checkpoints: dict[str, CheckpointFacts]
    """``original``, ``subject`` (the unlearned one), ``oracle 1`` ..."""
    lineage: tuple[str, ...] = ()
    """Digests from the first ancestor to the subject."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The resolved configuration."""
    config_digest: str = ""
    """SHA-256 of the configuration as written here."""
    environment: Environment
    items: Items = Items()
    """Which examples; filled by :meth:`sealed`."""
    changes: tuple[PartChange, ...] = ()
    findings: tuple[Finding, ...] = ()
    criteria: Criteria = Criteria()
    """What counts as removed, fixed before looking."""
    verdict: Verdict
    cost: dict[str, Cost] = Field(default_factory=dict)
    """``subject``, ``original``, ``oracle``, where known."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the files beside the record, by name; keyed where a file lists ids."""
    warnings: tuple[str, ...] = ()
    """What somebody should look at: duplicates of forgotten examples elsewhere, small parts ..."""
    log: LogFacts | None = None
    sequence: RequestSequence | None = None
    """Where this was not the first request: all of them together, and how far the model has come."""

    def sealed(
        self, ids: Sequence[str], *, plain_ids: bool = False, secret: bytes | None = None
    ) -> tuple[Record, bytes | None]:
        """This record about ``ids``, and the secret to save with it (None with ``plain_ids``).

        Every id is taken out of selector, configuration, warnings and findings, and whatever digest could
        confirm a guess at the ids is keyed. Raises unless the request counts as many examples as ids.
        """
        if len(ids) != self.request.count:
            raise EffaceError(
                f"The request counts {self.request.count} examples, but {len(ids)} ids were given.",
                "A record must name every example it is about.",
            )
        plain = self.model_dump(mode="python")
        if plain_ids:
            made = plain | {"items": Items.of(ids, None), "config_digest": json_digest(self.config)}
            return Record.model_validate(made), None
        secret = secret or new_secret()
        hidden = json.loads(self.text())
        _redact(hidden, Redactor(ids, secret))
        hidden["split"]["digest"] = _keyed(secret, hidden["split"]["digest"])
        for facts in hidden["checkpoints"].values():
            facts["split"] = _keyed(secret, facts["split"])
        hidden["files"] = {
            name: value if name.endswith(UNKEYED) else _keyed(secret, value) for name, value in hidden["files"].items()
        }
        hidden["config_digest"] = json_digest(hidden["config"])
        hidden["items"] = Items.of(ids, secret)
        return Record.model_validate(hidden), secret

    def text(self) -> str:
        """The record as JSON, the same bytes for the same content; raises on a number that is not finite."""
        _refuse_nonfinite(self.model_dump(mode="python"), "")
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"

    def digest(self) -> str:
        """SHA-256 of ``record.json`` as written."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def save(self, folder: Path, secret: bytes | None = None) -> Path:
        """Write ``record.json``, its schema and, with a secret, ``items.key`` (mode 0600); the record's path.

        Each file is replaced as a whole. Raises for a record not sealed, or sealed with another secret.
        """
        folder = Path(folder)
        if self.items.count != self.request.count or (self.items.scheme == "plain") != (secret is None):
            raise EffaceError(
                f"This record cannot be saved: it is about {self.request.count} examples and lists "
                f"{self.items.count}, {'without' if secret is None else 'with'} a key.",
                "A record is saved sealed, together with the key it was sealed with.",
                "Save what Record.sealed returned.",
            )
        text = self.text()
        if secret is None:
            (folder / KEY_FILE).unlink(missing_ok=True)
        else:
            self.items.contains("", secret)  # raises where the secret is another record's
            write_key(folder, secret)
        write_text(folder / SCHEMA, json.dumps(schema(), indent=1) + "\n")
        write_text(folder / RECORD, text)
        return folder / RECORD

    @staticmethod
    def load(path: Path) -> Record:
        """Read ``record.json`` (or the folder it is in); damage and newer versions are errors that say so."""
        path = Path(path)
        path = path / RECORD if path.is_dir() else path
        content = read_json(
            path, "record", missing="Run `efface audit` first.", remedy="Audit once more, or restore it."
        )
        version = content.get("schema_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise EffaceError(
                f"{path} is not a record.",
                f"Its schema_version is {version!r}.",
                "Name the record.json of a run.",
            )
        if version > SCHEMA_VERSION:
            raise EffaceError(
                f"{path} was written by a newer efface: record schema {version}.",
                f"This one ({__version__}) reads up to schema {SCHEMA_VERSION}.",
                "Upgrade efface.",
            )
        try:
            return Record.model_validate(content)
        except ValidationError as error:
            raise EffaceError(
                f"{path} is damaged: {error.error_count()} of its fields are not as the schema says.",
                "; ".join(_where(one) for one in error.errors()[:3]) + ".",
                "Restore it from where it came, or run `efface audit` again.",
            ) from error


def schema() -> dict[str, Any]:
    """The JSON schema of a record."""
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"efface-record-{SCHEMA_VERSION}",
    }
    return head | Record.model_json_schema(mode="serialization")


def contains_item(record: Path, item: str, key: Path | None = None) -> bool:
    """Whether the example ``item`` is in the record's request. ``key``: by default the file beside it."""
    path = Path(record)
    items = Record.load(path).items
    if items.scheme == "plain":
        return items.contains(item, None)
    beside = (path if path.is_dir() else path.parent) / KEY_FILE
    return items.contains(item, read_key(Path(key) if key else beside))


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as ``sha256sum`` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _redact(record: dict[str, Any], redaction: Redactor) -> None:
    """Where free text and labels stand; fixed words (the verdict's, names of parts) are left alone."""
    record["request"] = redaction(record["request"])
    record["config"], record["warnings"] = redaction(record["config"]), redaction(record["warnings"])
    record["data"]["skipped"] = redaction(record["data"]["skipped"])
    record["split"]["warnings"] = redaction(record["split"]["warnings"])
    for finding in record["findings"]:
        finding["note"], finding["details"] = redaction(finding["note"]), redaction(finding["details"])


def _keyed(secret: bytes, digest: str) -> str:
    return f"{KEYED}{hmac_digest(secret, digest)}" if digest and not digest.startswith(KEYED) else digest


def _where(error: Any) -> str:
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"


def _refuse_nonfinite(value: Any, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise EffaceError(
            f"The record would hold {value} at {path}.",
            "JSON has no such number, and a measurement that failed must be None with a note.",
        )
    if isinstance(value, dict):
        for key, one in value.items():
            _refuse_nonfinite(one, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for i, one in enumerate(value):
            _refuse_nonfinite(one, f"{path}[{i}]")
