"""The data of a run as they are now: found again if they were moved, and compared with what the run was made with.

Forgotten examples may be gone: erasing them is what a request is about. Of the retained ones nothing may be missing but
what a later request forgot. Every picture is compared with the record of the run (:mod:`efface.data.identity`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.dataset import Data, quote_first
from efface.data.identity import DataDifference, DataIdentity
from efface.data.lazy_pixels import LazyPixels
from efface.data.preprocessing_files import read_preprocessing
from efface.data.shards.hub import is_hub_path
from efface.data.shards.paths import is_pattern
from efface.data.sources import SOURCES, load
from efface.data.split import SPLIT_PARTS, Split, read_split
from efface.errors import EffaceError
from efface.files import REQUEST, SPLIT
from efface.runs.folder import read_request
from efface.training.checkpoint import META, read_meta

DataSettings = str | Mapping[str, Any] | None
"""A data source by name or path, or a mapping with ``source`` and its options."""
PATHS = ("root", "cache")
"""Options of sources that are paths."""
PATH_SOURCES = ("folder", "manifest", "npz", "parquet", "tar")
"""Sources whose data are at a path."""
FILE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".tar", ".parquet", ".arrow")
"""Suffixes of data that are one file, beside which others may be."""
OTHER_PICTURES = "Their files were replaced or edited, or are decoded differently here"


@dataclass(frozen=True, kw_only=True)
class DataChecks:
    """Where the data of a run are now, and which differences from what it was made with are accepted."""

    data: DataSettings = None
    """Where the data are now, and options that differ; by default as when the run was made."""
    allow_changed: bool = False
    """Go on although examples to forget are not the pictures that were trained on. An audit does not look at these."""
    allow_absent: bool = False
    """Go on although retained examples are missing that no later request forgot."""


@dataclass(frozen=True, eq=False)
class DataAtHand:
    """The data of a run as they are now, with its split and what differs from when the run was made."""

    data: Data
    split: Split
    identity: DataIdentity | None = None
    """What the run was made with; None if an older efface made it, which did not record it."""
    difference: DataDifference | None = None
    notes: tuple[str, ...] = ()
    """What is different, as sentences for the user and for the record."""
    stored: DataSettings = None
    """The settings of the data that the run stored."""

    @property
    def former_roots(self) -> tuple[str, ...]:
        """Where the data were when the original and this run were made, as far as it is known."""
        recorded = None if self.identity is None else self.identity.facts.get("source")
        sources = [as_options(value) for value in (recorded, self.stored)]
        paths = [Path(str(one.get("root") or one.get("source") or "")) for one in sources]
        return tuple(str(p.parent if p.suffix in FILE_SUFFIXES else p) for p in paths if p.is_absolute())

    def require_trained_pictures(self, positions: np.ndarray, allow: bool) -> list[str]:
        """Raise unless the examples to forget are those that were trained on; with ``allow``, return a warning."""
        if self.difference is None:
            return []
        changed = positions[self.difference.changed[positions]]
        if not len(changed):
            return []
        what = _describe_forgotten(self, changed, len(positions))
        if not allow:
            raise _changed_error(what, self)
        return [f"{what} It was asked to go on."]


def load_data(settings: Mapping[str, Any]) -> Data:
    """Load the data named by ``settings["data"]``: a source, a path, or a mapping with ``source`` and its options."""
    value = settings.get("data")
    if not value:
        raise EffaceError(
            "Nothing was said about the data.", remedy="Add --data NAME or --data PATH; `efface data` lists the names."
        )
    options = as_options(value)
    return load(str(options.pop("source", options.pop("name", ""))), **options)


def absolute_data(value: DataSettings) -> DataSettings:
    """Make the paths of data settings absolute, so that a run finds its data from any directory."""
    if not value:
        return value
    options = as_options(value)
    source = options.get("source", options.get("name"))
    named = "source" if "source" in options else "name"
    paths = [*(name for name in PATHS if options.get(name)), *([] if source is None or source in SOURCES else [named])]
    local = [name for name in paths if not is_hub_path(str(options[name]))]
    options |= {name: str(Path(str(options[name])).expanduser().absolute()) for name in local}
    preprocessing = read_preprocessing(options.get("preprocessing"))
    options |= {} if preprocessing is None else {"preprocessing": preprocessing.as_settings()}
    return options["source"] if isinstance(value, str) else options


def stored_data(value: DataSettings) -> dict[str, Any]:
    """The data settings as a run stores them: absolute, and as they were given where that differs."""
    absolute = absolute_data(value)
    return {"data": absolute} | ({} if absolute == value else {"data_given": value})


def locate_data(request: Mapping[str, Any], moved: DataSettings = None) -> dict[str, Any]:
    """The settings of a run's data, from where they are now.

    Args:
        request: The run's ``config.yaml``.
        moved: Where the user says that they are, and options that differ; None: as stored.

    Raises:
        EffaceError: The stored path does not exist any more, and ``moved`` does not say where it is.

    """
    options = as_options(request["data"])
    if moved:
        changes = as_options(moved)
        if options.get("root") and changes.get("source") not in (None, *SOURCES):
            changes["root"] = changes.pop("source")
        return as_options(absolute_data(options | changes))
    source = str(options.get("source", options.get("name")))
    path = options.get("root") if source in SOURCES else source
    if path and (source not in SOURCES or source in PATH_SOURCES):
        given = as_options(request.get("data_given") or {})
        near = given.get("root") if source in SOURCES else given.get("source")
        if not _leads_to_data(str(path)):
            if not near or not _leads_to_data(str(near)):
                raise EffaceError(
                    f"The data are no longer at {path}.",
                    "The run was made with them" + (f", given as {near}." if near and near != path else "."),
                    "Say where they are now: --data PATH.",
                )
            options |= as_options(absolute_data(options | given))
    return options


def _leads_to_data(path: str) -> bool:
    """Whether there is something at a path; a pattern of shards, or a name of the Hub, is judged when it is read."""
    return is_hub_path(path) or is_pattern(path) or Path(path).expanduser().exists()


def settings_now(request: Mapping[str, Any], checks: DataChecks | None) -> Any:
    """The stored settings of a run's data; where the user says that they were moved, those of where they are now."""
    return locate_data(request, checks.data) if checks and checks.data else request["data"]


def load_recorded(settings: Mapping[str, Any], identity: DataIdentity | None, keys: Collection[str] = ()) -> Data:
    """Load the data of a run so that what is missing now does not change the rest.

    A random subset is drawn from what is there, the number of channels is guessed from it, and classes are numbered by
    what is there; all three are taken from the run instead.

    Args:
        settings: The source and its options.
        identity: What the run was made with; None if it was not recorded.
        keys: The keys of the run's split.

    """
    try:
        data = load_data({"data": settings})
    except EffaceError:
        if not settings.get("limit") or not keys:
            raise
        data = None  # fewer may be left than the limit
    if data is None or (settings.get("limit") and not set(keys) <= set(data.keys.tolist())):
        settings = {**settings, "limit": frozenset(keys)}
        data = load_data({"data": settings})
    if identity is None:
        return data
    decoded = isinstance(data.x, (np.memmap, LazyPixels))
    if decoded and data.shape != identity.shape and not settings.get("channels") and identity.shape:
        data = load_data({"data": {**settings, "channels": identity.shape[0]}})
    if data.shape != identity.shape:
        now, then = ("x".join(map(str, shape)) for shape in (data.shape, identity.shape))
        raise EffaceError(
            f"The images of {data.name} are {now}, and those of the run were {then}.",
            "Channels, height and width must be the same.",
            f"Set data.size={identity.shape[-1]} or data.channels={identity.shape[0]}, or name the run's own data.",
        )
    return identity.number(data)


def read_identity(folder: Path, meta: Mapping[str, Any]) -> DataIdentity | None:
    """Read what a run was made with; None if an older efface made it."""
    return DataIdentity.load(folder, meta["identity"]) if meta.get("identity") else None


def open_data(
    folder: Path, request: Mapping[str, Any], meta: Mapping[str, Any], checks: DataChecks, *, judged: bool
) -> DataAtHand:
    """Load the data of a run, and check that they are those it was made with.

    Args:
        folder: The run folder.
        request: Its ``config.yaml``.
        meta: Its ``meta.json``.
        checks: Where the data are now, and which differences are accepted.
        judged: Whether the forgotten examples are looked at: changed ones are then an error.

    Raises:
        EffaceError: The data are missing or others, retained examples are missing, or examples to forget have changed.

    """
    identity, stored = read_identity(folder, meta), read_split(folder)
    keys = [key for part in stored["parts"].values() for key in part]
    data = load_recorded(locate_data(request, checks.data), identity, keys)
    difference = None if identity is None else identity.compare(data)
    changed = set() if difference is None else set(data.keys[difference.changed].tolist())
    gone = changed & {key for part, keys in stored["parts"].items() if part != "retain" for key in keys}
    split = Split.load(folder, data, may_lack=SPLIT_PARTS, without=gone)
    if split.digest(data) != meta["split"]:
        raise EffaceError(
            f"The split stored in {folder} is not the one its checkpoint was made with.",
            remedy="Restore the folder from where it came, or make it again.",
        )
    here = DataAtHand(data, split, identity, difference)
    _require_retained(here, folder, checks.allow_absent)
    _require_classes(here)
    lost = data.positions(sorted(gone & set(stored["parts"]["forget"])))
    if judged and len(lost) and not checks.allow_changed:
        raise _changed_error(_describe_forgotten(here, lost, split.sizes()["forget"]), here)
    return replace(here, notes=tuple(_describe_differences(here, gone)), stored=request["data"])


def data_of_run(folder: Path) -> Data:
    """Load the data of a run folder from where they are, without its split."""
    stored = read_split(folder)["parts"] if (folder / SPLIT).is_file() else {}
    keys = [key for part in stored.values() for key in part]
    return load_recorded(locate_data(read_request(folder)), read_identity(folder, read_meta(folder)), keys)


def describe_changes(folder: Path, data: Data, positions: np.ndarray) -> list[str]:
    """Describe how many examples are not the pictures that the run in ``folder`` was made with; empty if none are."""
    identity = read_identity(folder, read_meta(folder)) if (folder / META).is_file() else None
    if identity is None or identity.shape != data.shape:
        return []
    changed = int(identity.compare(identity.number(data)).pictures[positions].sum())
    total = len(positions)
    return [f"{changed} of {total} images are not the pictures that the run was made with."] if changed else []


def require_same_pictures(before: DataIdentity, data: Data, split: Split, folder: Path) -> None:
    """Raise if the data changed since a training was begun in ``folder``: resuming it would mix two data sets."""
    stored, trained = read_split(folder)["parts"], split.train
    difference = before.compare(before.number(data))
    changed = trained[difference.changed[trained]]
    keys = {part: set(split.keys(data, part)) for part in ("forget", "retain")}
    moved = {key for part in keys for key in keys[part] ^ set(stored.get(part, ()))}
    if len(changed) or moved or data.classes[: len(before.classes)] != before.classes:
        count, names = (len(changed), data.keys[changed].tolist()) if len(changed) else (len(moved), sorted(moved))
        what = f"{count} of {len(trained)} training examples have" if count else "The class names have"
        raise EffaceError(
            f"{what} changed since the training in {folder} was begun" + (f": {quote_first(names)}." if names else "."),
            "Resuming it would train on a mixture of two data sets.",
            f"Restore the data, or delete {folder} to begin again.",
        )


def forgotten_later(folder: Path) -> set[str]:
    """Keys that runs beside ``folder``, made from it or from each other, were asked to forget."""
    beside = Path(folder).resolve().parent
    runs = [one for one in beside.iterdir() if (one / META).is_file() and (one / REQUEST).is_file()]
    described = {one: read_meta(one) for one in runs}  # by digests: paths in requests do not survive a move
    made, found, grew = {read_meta(folder)["digest"]}, set[str](), True
    while grew:
        new = [one for one, meta in described.items() if meta["parent"] in made and meta["digest"] not in made]
        grew, made = bool(new), made | {described[one]["digest"] for one in new}
        for one in new:
            found |= set(read_split(one)["parts"]["forget"])
    return found


def as_options(value: Any) -> dict[str, Any]:
    """Data settings as a mapping: a source or path by itself is its ``source``."""
    return {"source": value} if isinstance(value, str) else dict(value or {})


def _require_retained(here: DataAtHand, folder: Path, allow: bool) -> None:
    """Raise if retained examples are absent from the data that no later request forgot."""
    absent, total = here.split.absent.get("retain", ()), here.split.sizes()["retain"]
    if not absent:
        return
    if len(absent) == total:
        raise EffaceError(
            "The stored split does not fit the data.",
            f"None of the {total} retained examples of {folder} are in {here.data.name}: {quote_first(absent)}.",
            "Load the data that the split was made from, with the same source and the same options: --data PATH.",
        )
    unexplained = [] if allow else sorted(set(absent) - forgotten_later(folder))
    if unexplained:
        raise EffaceError(
            f"{len(unexplained)} of {total} retained examples of {folder} are not in {here.data.name}: "
            f"{quote_first(unexplained)}.",
            "The model was trained on them, and no request asked to forget them.",
            "Restore them, say where the data are (--data PATH), or go on without them: --allow-absent.",
        )


def _require_classes(here: DataAtHand) -> None:
    """Raise if examples that are trained on have a class that the checkpoint does not know."""
    data, difference = here.data, here.difference
    if data.y is None or difference is None or not difference.new_classes or here.identity is None:
        return
    trained = here.split.train
    unknown = trained[data.y[trained] >= len(here.identity.classes)]
    if len(unknown):
        names = sorted({data.classes[label] for label in data.y[unknown]})
        empty = difference.empty_classes
        raise EffaceError(
            f"{len(unknown)} training examples are of classes that the checkpoint does not know: {quote_first(names)}.",
            f"Its classes: {quote_first(here.identity.classes, 20)}."
            + (f" Without any example now: {quote_first(empty)}." if empty else ""),
            "Give the classes the names that they had when the checkpoint was made.",
        )


def _describe_forgotten(here: DataAtHand, changed: np.ndarray, total: int) -> str:
    difference = here.difference
    relabeled = difference is not None and not difference.pictures[changed].any()
    kind = "do not have the classes that were trained on" if relabeled else "are not the pictures that were trained on"
    return f"{len(changed)} of {total} requested examples {kind}: {quote_first(here.data.keys[changed].tolist())}."


def _changed_error(what: str, here: DataAtHand) -> EffaceError:
    return EffaceError(
        what,
        f"{OTHER_PICTURES}{describe_decoders(here.identity)}. What was trained on cannot be found through them.",
        "Restore the pictures, or go on with --set allow_changed=true.",
    )


def describe_decoders(identity: DataIdentity | None) -> str:
    """Say with which versions the pictures were decoded, if they differ; else empty."""
    import PIL

    then = None if identity is None else identity.facts.get("pillow")
    return "" if then in (None, PIL.__version__) else f" (Pillow {then} then, {PIL.__version__} now)"


def _describe_differences(here: DataAtHand, gone: Collection[str]) -> list[str]:
    """What is different from when the run was made, without naming the forgotten."""
    notes: list[str] = []
    if here.identity is None:
        notes.append(
            "What the pictures of this run were was not recorded (an older efface made it): changes go unnoticed."
        )
    counts = {part: len(keys) for part, keys in here.split.absent.items()}
    if counts:
        listed = ", ".join(f"{part} {count}" for part, count in counts.items())
        replaced = f" ({len(gone)} of them have other pictures under their names)" if gone else ""
        notes.append(f"Not in the data any more: {listed}{replaced}. The rest is used.")
    difference, identity = here.difference, here.identity
    if difference is None or identity is None:
        return notes
    for part in SPLIT_PARTS:
        positions = getattr(here.split, part)
        changed = int(difference.changed[positions].sum())
        if changed:
            notes.append(
                f"{changed} of {len(positions)} {part} examples are other pictures, or of other classes, than when the "
                f"run was made: {OTHER_PICTURES[0].lower()}{OTHER_PICTURES[1:]}{describe_decoders(identity)}."
            )
    if difference.new_classes:
        notes.append(f"New classes, which the checkpoint does not know: {quote_first(difference.new_classes)}.")
    return notes
