"""The record of an audit: the request, what was done and what was found, as one versioned JSON file.

The record is saved next to its JSON schema. It holds everything the report needs apart from the observations and
the training log, and the digests of checkpoints, data, split and configuration, so that an auditor can check it
later. The forgotten examples appear as keyed digests only (see :mod:`efface.reporting.redaction`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, Field, ValidationError

from efface._version import __version__
from efface.auditing.criteria import Criteria
from efface.auditing.evidence import Cost, Finding
from efface.auditing.sequential import RequestSequence
from efface.auditing.verdict import Verdict
from efface.errors import EffaceError
from efface.files import read_json, write_text
from efface.reporting.environment import Environment
from efface.reporting.facts import (
    BankFacts,
    CheckpointFacts,
    DataFacts,
    LogFacts,
    PartChange,
    RehearsalFacts,
    Request,
    SplitFacts,
    WithheldFacts,
)
from efface.reporting.redaction import KEY_FILE, KEYED, Items, Redactor, hmac_digest, new_secret, read_key, write_key
from efface.reporting.request_redaction import hide_request
from efface.schema import RecordModel

SCHEMA_VERSION = 3
RECORD, SCHEMA = "record.json", "record.schema.json"
UNKEYED = (".safetensors", ".npz", ".jsonl")
"""Files with a plain digest. They do not consist of ids alone, so their digest cannot confirm a guess at the ids."""

HANDED_BACK = "foreign/"
"""Where the files in another library's layout are; they are weights, and their digests are plain."""
DESCRIPTIONS = (".json", ".txt", ".md")
"""Suffixes of files beside weights that hold none."""


class Record(RecordModel):
    """An unlearning request, what was done about it, and the evidence and verdict of the audit.

    Example:
        >>> record = Record.load(Path("runs/forgotten"))  # doctest: +SKIP
        >>> record.verdict.word  # doctest: +SKIP
        'removed'

    """

    schema_version: int = SCHEMA_VERSION
    efface_version: str = __version__
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    request: Request
    data: DataFacts
    split: SplitFacts
    checkpoints: dict[str, CheckpointFacts]
    """``original``, ``subject`` (the unlearned model), ``oracle 1`` ..."""
    lineage: tuple[str, ...] = ()
    """Model digests from the first ancestor to the subject."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The resolved configuration."""
    config_digest: str = ""
    """SHA-256 of ``config`` as stored here."""
    environment: Environment
    items: Items = Items()
    """The forgotten examples; filled in by :meth:`sealed`."""
    changes: tuple[PartChange, ...] = ()
    findings: tuple[Finding, ...] = ()
    criteria: Criteria = Criteria()
    """What counts as removed."""
    fixed_criteria: Criteria | None = None
    """The criteria that were fixed before unlearning; None in records of schema 1."""
    bank: BankFacts | None = None
    """The reference bank that scores were calibrated by; None without one, and in records before schema 3."""
    rehearsals: RehearsalFacts | None = None
    """The rehearsals of the procedure; None without any, and in records before schema 3."""
    withheld: WithheldFacts | None = None
    """Pictures that only the auditor has, which the holdout was compared with; None without any."""
    verdict: Verdict
    cost: dict[str, Cost] = Field(default_factory=dict)
    """Training cost of ``subject``, ``original`` and ``oracle``, where known."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the files next to the record, by name; keyed if a file lists ids."""
    warnings: tuple[str, ...] = ()
    """What a reader should check, such as duplicates of forgotten examples in other parts, or parts that are small."""
    log: LogFacts | None = None
    sequence: RequestSequence | None = None
    """All requests together and the drift of the model, if this was not the first request."""
    observations: dict[str, str] = Field(default_factory=dict)
    """Digest of the observations of each model, by role."""
    content_digest: str = ""
    """SHA-256 of everything else here, in canonical JSON: sorted keys, UTF-8. It tells changes that were not meant to
    be hidden; the verdict itself can be recomputed from the observations, and these from the weights."""

    def bound(self) -> Record:
        """The record with the digest of its content."""
        return self.model_copy(update={"content_digest": record_digest(self.model_dump(mode="json"))})

    def sealed(
        self, ids: Sequence[str], *, plain_ids: bool = False, secret: bytes | None = None
    ) -> tuple[Record, bytes | None]:
        """Replace every id in the record by a keyed digest.

        Ids are removed from selector, configuration, warnings and findings, and every digest that could confirm a
        guess at the ids is keyed.

        Args:
            ids: Ids of the forgotten examples, as many as ``request.count``.
            plain_ids: Store the bare ids and key nothing.
            secret: Key of the digests; a new random one by default.

        Returns:
            The sealed record, and the secret to save with it (None with ``plain_ids``).

        Raises:
            EffaceError: The number of ids is not ``request.count``, or an id is repeated.

        """
        if len(ids) != self.request.count:
            raise EffaceError(
                f"The request counts {self.request.count} examples, but {len(ids)} ids were given.",
                "A record must list every example of its request.",
            )
        plain = self.model_dump(mode="python")
        if plain_ids:
            content = plain | {"items": Items.of(ids, None), "config_digest": json_digest(self.config)}
            return Record.model_validate(content).bound(), None
        secret = secret or new_secret()
        hidden = json.loads(self.text())
        hidden = hide_request(hidden, secret)
        _redact(hidden, Redactor(ids, secret))
        hidden["split"]["digest"] = _keyed(secret, hidden["split"]["digest"])
        for facts in hidden["checkpoints"].values():
            facts["split"] = _keyed(secret, facts["split"])
        hidden["files"] = {
            name: value if name.endswith(UNKEYED) or name.startswith(HANDED_BACK) else _keyed(secret, value)
            for name, value in hidden["files"].items()
        }
        hidden["config_digest"] = json_digest(hidden["config"])
        hidden["items"] = Items.of(ids, secret)
        return Record.model_validate(hidden).bound(), secret

    def text(self) -> str:
        """The record as JSON. Equal records give equal bytes; a number that is not finite raises."""
        _refuse_nonfinite(self.model_dump(mode="python"), "")
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"

    def digest(self) -> str:
        """SHA-256 of ``record.json`` as written."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def save(self, folder: Path, secret: bytes | None = None) -> Path:
        """Write ``record.json``, its schema and, with a secret, ``items.key`` (mode 0600), each atomically.

        Returns:
            Path of ``record.json``.

        Raises:
            EffaceError: The record is not sealed, or was sealed with another secret.

        """
        folder = Path(folder)
        if self.items.count != self.request.count or (self.items.scheme == "plain") != (secret is None):
            raise EffaceError(
                f"This record cannot be saved: its request counts {self.request.count} examples, but it lists "
                f"{self.items.count}, {'without' if secret is None else 'with'} a key.",
                "Only a sealed record can be saved, together with the key it was sealed with.",
                "Save the record and the secret that Record.sealed returned.",
            )
        text = self.bound().text()
        if secret is not None:
            self.items.contains("", secret)  # raises if the secret belongs to another record
            write_key(folder, secret)
        write_text(folder / SCHEMA, json.dumps(schema(), indent=1) + "\n")
        write_text(folder / RECORD, text)
        if secret is None:
            (folder / KEY_FILE).unlink(missing_ok=True)  # last: until then the old record needs it
        return folder / RECORD

    @staticmethod
    def load(path: Path) -> Record:
        """Read a record.

        Args:
            path: ``record.json``, or the folder that contains it.

        Raises:
            EffaceError: There is no record, it is damaged, or it was written by a newer version of efface.

        """
        path = Path(path)
        path = path / RECORD if path.is_dir() else path
        content = read_json(
            path,
            "record",
            missing="Run `efface audit` first.",
            remedy="Run `efface audit` again, or restore it from a backup.",
        )
        version = content.get("schema_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise EffaceError(
                f"{path} is not a record.",
                f"Its schema_version is {version!r}.",
                "Pass the record.json of a run.",
            )
        if version > SCHEMA_VERSION:
            raise EffaceError(
                f"{path} was written by a newer efface: record schema {version}.",
                f"This version ({__version__}) reads schemas up to {SCHEMA_VERSION}.",
                "Upgrade efface.",
            )
        try:
            record = Record.model_validate(content)
        except ValidationError as error:
            raise EffaceError(
                f"{path} is damaged: {error.error_count()} of its fields do not match the schema.",
                "; ".join(_describe_error(one) for one in error.errors()[:3]) + ".",
                "Restore it from a backup, or run `efface audit` again.",
            ) from error
        if version > 1 and record.content_digest != record_digest(content):
            raise EffaceError(
                f"{path} was edited or damaged.",
                "Its content does not match its own digest.",
                "Restore it from a backup, or run `efface audit` again.",
            )
        return record


def schema() -> dict[str, Any]:
    """The JSON schema of a record."""
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"efface-record-{SCHEMA_VERSION}",
    }
    return head | Record.model_json_schema(mode="serialization")


def contains_item(record: Path, item: str, key: Path | None = None) -> bool:
    """Check whether an example is among the forgotten examples of a record.

    Args:
        record: ``record.json``, or the folder that contains it.
        item: Id of the example.
        key: Path of the key file; by default ``items.key`` next to the record.

    Raises:
        EffaceError: The key is missing or belongs to another record.

    """
    path = Path(record)
    items = Record.load(path).items
    if items.scheme == "plain":
        return items.contains(item, None)
    default_key = (path if path.is_dir() else path.parent) / KEY_FILE
    return items.contains(item, read_key(Path(key) if key else default_key))


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON-serializable value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def record_digest(content: Mapping[str, Any]) -> str:
    """Digest of a record's content, as JSON values, without the digest itself."""
    return json_digest({name: value for name, value in content.items() if name != "content_digest"})


def _redact(record: dict[str, Any], redact: Redactor) -> None:
    """Redact, in place, every field with free text or labels; fixed words (verdict, names of parts) are kept."""
    record["request"] = redact(record["request"])
    record["config"], record["warnings"] = redact(record["config"]), redact(record["warnings"])
    record["data"]["skipped"] = redact(record["data"]["skipped"])
    record["split"]["warnings"] = redact(record["split"]["warnings"])
    for finding in record["findings"]:
        finding["note"], finding["details"] = redact(finding["note"]), redact(finding["details"])


def _keyed(secret: bytes, digest: str) -> str:
    """The keyed form of a digest; empty and already keyed digests are returned as they are."""
    return f"{KEYED}{hmac_digest(secret, digest)}" if digest and not digest.startswith(KEYED) else digest


def _describe_error(error: Any) -> str:
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"


def _refuse_nonfinite(value: Any, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise EffaceError(
            f"The record would contain {value} at {path}.",
            "JSON has no such number; a measurement that failed must be None with a note.",
        )
    if isinstance(value, dict):
        for key, one in value.items():
            _refuse_nonfinite(one, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for i, one in enumerate(value):
            _refuse_nonfinite(one, f"{path}[{i}]")
