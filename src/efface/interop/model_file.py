"""``model.yaml``: what is known or assumed about a model, where each value comes from, and how it was checked.

It is written by ``efface init`` and read by every verb that takes a checkpoint. A value that a person corrects has the
source ``stated``. Checks hold only for the values that they were made with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import MinLen
from pydantic import Field

from efface import config
from efface.errors import EffaceError
from efface.files import file_digest, write_text
from efface.interop.assumptions import AssumptionCheck, with_check_remedy
from efface.interop.containers import weights_file
from efface.schema import FirstFormat, HexDigest, Name, StoredModel, parse_record

HEADER = """\
# What is known or assumed about a model. Correct a value where it is wrong, and set its source to "stated".
# Sources: file (the weights say so), config (a file beside them does), sniffed (from names and shapes),
# assumed (nothing says so), stated (you did).
"""
MODEL_FILE_REMEDY = "Write it again: efface init CHECKPOINT --data DATA."
YAML_SUFFIXES = (".yaml", ".yml")


class Source(StrEnum):
    """Where a value comes from."""

    FILE = "file"
    CONFIG = "config"
    SNIFFED = "sniffed"
    ASSUMED = "assumed"
    STATED = "stated"


class Value(StoredModel):
    """One value of a model."""

    value: Any = None
    source: Source
    note: str = ""
    """What names the source more exactly, or says what is not known."""


class StoredCheck(StoredModel):
    """The result of one check."""

    topic: Name
    word: Literal["passed", "failed", "undecided"]
    note: str = ""
    remedy: str = ""
    tried: dict[str, str] = Field(default_factory=dict)
    """What was tried, and how well it fits."""


class ModelFile(StoredModel):
    """The content of a ``model.yaml``."""

    format: FirstFormat
    checkpoint: Name
    """The file or folder of weights."""
    sha256: HexDigest
    """Digest of the weights: see :func:`digest_weights`."""
    layout: Name
    values: Annotated[dict[str, Value], MinLen(1)]
    """``backbone``, ``objective``, ``classes``, ``preprocessing``, ``mean``, ``std``, ``order``, ``trained`` ..."""
    data: dict[str, Any] = Field(default_factory=dict)
    """The data that it was checked on."""
    checked: HexDigest | None = None
    """Digest of the values that the checks were made with."""
    checks: tuple[StoredCheck, ...] = ()

    def value(self, name: str) -> Any:
        """One value; None if it is not there."""
        return self.values[name].value if name in self.values else None

    @property
    def is_checked(self) -> bool:
        """Whether the values are those that the checks were made with."""
        return self.checked == digest_values(self.values)

    def settings(self) -> dict[str, Any]:
        """The settings that the values stand for, as the verbs take them."""
        recipe = {key: self.value(key) for key in ("backbone", "mean", "std", "order") if self.value(key) is not None}
        stated = self.values.get("views")
        recipe |= {"views": stated.value} if stated is not None and stated.source is Source.STATED else {}
        recipe |= self.value("recipe") or {}
        objective = self.value("objective") or {}
        options = {key: value for key, value in objective.items() if key != "name"}
        recipe |= {"objective": objective} if options else {}
        data = {key: self.value(key) for key in ("preprocessing", "size", "classes", "channels")}
        found: dict[str, Any] = {"recipe": recipe, "data": {k: v for k, v in data.items() if v is not None}}
        found |= {"objective": objective["name"]} if objective.get("name") else {}
        if self.value("trained") is not None:
            found["split"] = {"trained": self.value("trained")}
        if self.value("fresh_head"):
            found["fresh_head"] = True
        return found


def write_model_file(path: Path, content: ModelFile) -> None:
    """Write a ``model.yaml``, atomically."""
    plain = json.loads(content.model_dump_json(exclude_defaults=False))
    write_text(path, HEADER + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110))


def read_model_file(path: Path) -> ModelFile:
    """Read a ``model.yaml``.

    Raises:
        EffaceError: There is no such file, or it is none.

    """
    if not Path(path).is_file():
        raise EffaceError(f"There is no model file {path}.", remedy="Write it: efface init CHECKPOINT --data DATA.")
    return parse_record(ModelFile, config.read(Path(path)), Path(path), "description of a model", MODEL_FILE_REMEDY)


def is_model_file(path: Path) -> bool:
    """Whether a path is meant as a ``model.yaml``, by its suffix."""
    return path.suffix.lower() in YAML_SUFFIXES and path.is_file()


def require_same_weights(model: ModelFile, path: Path, file: Path) -> None:
    """Raise an error unless the weights at ``path`` are those that a model file describes."""
    found = digest_weights(path)
    if found != model.sha256:
        raise EffaceError(
            f"{file} describes another checkpoint than {path}.",
            f"SHA-256 of its weights: {model.sha256[:16]}; of these: {found[:16]}.",
            f"Describe this one: efface init {path} --data DATA.",
        )


def require_sound(model: ModelFile, file: Path) -> list[str]:
    """Raise an error if a value has failed its check; return what is to be said otherwise.

    Raises:
        EffaceError: A value is assumed and does not fit the training images.

    """
    if not model.is_checked:
        return [f"{file}: its values were changed after they were checked"]
    failed = [one for one in model.checks if one.word == "failed"]
    if failed:
        first = failed[0]
        raise EffaceError(
            f"{file} has a value that does not fit the training images: {first.topic}.",
            f"{first.note}.",
            with_check_remedy(f"{first.remedy} Do that with efface init --force, or correct the file."),
        )
    return [f"{file}: {one.topic}: {one.note}. {one.remedy}" for one in model.checks if one.word == "undecided"]


def store_checks(checks: Iterable[AssumptionCheck]) -> tuple[StoredCheck, ...]:
    """Checks as they are stored, those that failed worst first."""
    ordered = sorted(checks, key=lambda one: -one.gain if one.word == "failed" else float("inf"))
    return tuple(
        StoredCheck(
            topic=one.topic, word=one.word, note=one.note, remedy=one.remedy,
            tried={trial.name: trial.fit.describe() for trial in one.trials},
        )
        for one in ordered
    )  # fmt: skip


def digest_values(values: Mapping[str, Value]) -> str:
    """SHA-256 of the values, without their sources and notes."""
    plain = {name: json.loads(json.dumps(one.value)) for name, one in values.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def digest_weights(path: Path) -> str:
    """SHA-256 of a file of weights; of a folder, that of the digests of its files of weights, in the order of names."""
    found = weights_file(path)
    if found is None:
        raise EffaceError(f"{path} holds no weights that are known here.", remedy="Name the file of weights itself.")
    if found.suffix != ".json":
        return file_digest(found)
    listed = json.loads(found.read_text(encoding="utf-8")).get("weight_map") or {}
    shards = sorted({str(name) for name in listed.values()})
    return hashlib.sha256("".join(file_digest(found.parent / name) for name in shards).encode()).hexdigest()
