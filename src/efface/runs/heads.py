"""The verbs ``heads``: fit a head on embeddings, delete rows from it exactly, check that, and predict with it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.labels import convert_labels
from efface.errors import EffaceError
from efface.files import file_digest, hold_lock, make_folder
from efface.reporting.environment import Environment
from efface.reporting.exact_record import ExactCheck, ExactRecord, seal_items, write_secret
from efface.reporting.redaction import new_secret
from efface.runs.head_store import HEAD_FILE, SECRET, Deletion, HeadDescription, HeadStore, name_digests, places_of
from efface.runs.ownership import require_apart
from efface.runs.vectors import Vectors, find_places, read_labels, read_vectors
from efface.unlearning.heads import NeighborHead, RidgeHead, row_digests

REFIT_LIMIT = 1e-9
"""Largest difference of any weight from refitting that counts as none."""
Head = RidgeHead | NeighborHead


@dataclass(frozen=True)
class HeadSettings:
    """What head is fitted."""

    kind: str = "ridge"
    penalty: float = 1.0
    """λ of a ridge head."""
    neighbors: int = 20
    """How many rows of a kNN head vote."""


def fit_head(
    embeddings: Path,
    out: Path,
    settings: HeadSettings = HeadSettings(),
    *,
    labels: Path | None = None,
    without: Sequence[str] = (),
) -> HeadDescription:
    """Fit a head into the folder ``out``.

    Args:
        embeddings: A file of embeddings; see :func:`efface.runs.vectors.read_vectors`.
        out: Folder to write; it must not exist.
        settings: Kind and settings.
        labels: Table with the columns key and label; by default the labels in the file of embeddings.
        without: Keys to leave out.

    Raises:
        EffaceError: ``out`` exists, a file cannot be read, or an embedding has no label.

    """
    out, embeddings = Path(out), Path(embeddings)
    if settings.kind not in ("ridge", "knn"):
        raise EffaceError(f"There is no head of the kind '{settings.kind}'.", remedy="Use --kind ridge or --kind knn.")
    _require_free(out)
    require_apart(out, [embeddings, labels])
    vectors, names = _labeled(embeddings, labels)
    sha = file_digest(embeddings)
    kept = np.setdiff1d(np.arange(len(vectors.keys)), vectors.find(list(without), str(embeddings)))
    y, classes = convert_labels(np.array(names), None, str(labels or embeddings))
    if y is None or not len(kept):
        raise EffaceError(f"{embeddings} has no rows to fit a head on.", remedy="Give other embeddings.")
    keys, features, y = vectors.keys[kept], np.asarray(vectors.features)[kept], y[kept]
    head = _fit(keys, features, y, classes, settings)
    secret = new_secret()
    make_folder(out.parent)
    half = out.with_name(f"{out.name}.partial")
    busy = EffaceError(f"{out} is being written by another process.", remedy="Wait, or choose another --out.")
    with hold_lock(out, busy):
        _require_free(out)
        store = _empty_folder(half)
        write_secret(half / SECRET, secret)
        arrays = _write_arrays(store, head) | {"names": store.write_rows("names", name_digests(keys.tolist(), secret))}
        described = HeadDescription(
            kind="ridge" if settings.kind == "ridge" else "knn",
            classes=classes,
            penalty=settings.penalty if settings.kind == "ridge" else None,
            neighbors=settings.neighbors if settings.kind == "knn" else None,
            width=features.shape[1],
            rows=len(kept),
            fitted=len(kept),
            encoder=vectors.encoder,
            embeddings=str(embeddings.resolve()),
            labels="" if labels is None else str(Path(labels).resolve()),
            embeddings_sha256=sha,
            arrays=arrays,
        )
        store.commit(described)
        half.rename(out)
    return described


def delete_rows(
    folder: Path, keys: Sequence[str], *, embeddings: Path | None = None, labels: Path | None = None
) -> Deletion:
    """Delete rows from a head, as if it had never been fitted on them, and write a record of it into its folder.

    A kNN head loses the rows. From the sums of a ridge head the rows' terms are subtracted, for which their embeddings
    are needed. The statistics before are removed: their difference to those after would give the rows away.

    Args:
        folder: The folder of the head.
        keys: Keys of the rows.
        embeddings: Where the embeddings of a ridge head are now; by default where they were.
        labels: Where their labels are now.

    Raises:
        EffaceError: A key was not fitted, its embedding or label differs from what was fitted, or a file is damaged.

    """
    folder, began = Path(folder), time.perf_counter()
    store = HeadStore(folder)
    store.describe()
    with hold_lock(folder / HEAD_FILE):
        before = store.describe()
        store.remove_rest(before)
        names = places_of(store.read(before, "names"))
        wanted = [bytes(one) for one in name_digests(list(keys), store.secret()).tolist()]
        gone = find_places(names, wanted, f"the head {folder}", list(keys))
        if len(gone) == before.rows:
            raise EffaceError(
                f"These are all {before.rows} rows of the head.", "Nothing would be left.", "Delete the folder instead."
            )
        arrays = dict(before.arrays)
        if before.kind == "ridge":
            arrays |= _subtract(store, before, list(keys), gone, embeddings, labels)
        else:
            arrays |= {name: store.without(name, arrays[name], gone) for name in ("features", "labels")}
        arrays |= {name: store.without(name, arrays[name], gone) for name in ("rows", "names")}
        number = len(before.deletions) + 1
        after = before.model_copy(update={"arrays": arrays, "rows": before.rows - len(gone)})
        done = Deletion(
            created=datetime.now(UTC).replace(microsecond=0).isoformat(),
            count=len(gone),
            before=before.digest(),
            after=after.digest(),
            seconds=round(time.perf_counter() - began, 4),
            record=f"deletion-{number:04d}.json",
        )
        after = after.model_copy(update={"deletions": (*before.deletions, done)})
        _write_record(folder, before, after, list(keys))
        store.commit(after)
    return done


def check_head(folder: Path, *, embeddings: Path | None = None, labels: Path | None = None) -> ExactCheck:
    """Fit the head again on the rows that are left, compare, and add the result to the record of the last deletion.

    Args:
        folder: The folder of the head.
        embeddings: The embeddings; by default where they were. Rows that were deleted from them may be missing.
        labels: Their labels.

    Raises:
        EffaceError: Rows of the head are not among the embeddings.

    """
    folder = Path(folder)
    store = HeadStore(folder)
    store.describe()
    with hold_lock(folder / HEAD_FILE):
        described = store.describe()
        head = load_head(folder, described)
        vectors, y = _as_fitted(described, embeddings, labels, folder)
        names = places_of(name_digests(vectors.keys.tolist(), store.secret()))
        stored = [bytes(one) for one in store.read(described, "names").tolist()]
        absent = sum(one not in names for one in stored)
        if absent:
            raise EffaceError(
                f"{absent} of {described.rows} rows of the head are not among the embeddings.",
                "It can be fitted again only on the rows that it was fitted on.",
                "Give the embeddings that it was fitted on: --embeddings FILE.",
            )
        rows = np.array([names[one] for one in stored], dtype=np.int64)
        keys, features, left = vectors.keys[rows], np.asarray(vectors.features)[rows], y[rows]
        again = _fit(keys, features, left, described.classes, _settings(described))
        check = _compare(head, again, described.rows)
        if described.deletions:
            path = folder / described.deletions[-1].record
            ExactRecord.load(path).with_check(check).save(path)
    return check


def load_head(folder: Path, described: HeadDescription | None = None) -> Head:
    """Read a head from its folder; see :mod:`efface.unlearning.heads`."""
    store = HeadStore(Path(folder))
    described = store.describe() if described is None else described
    read = {name: store.read(described, name) for name in described.arrays if name != "names"}
    if described.kind == "ridge":
        head: Head = RidgeHead(read["gram"], read["moments"], read["rows"], described.classes, described.penalty or 1.0)
    else:
        head = NeighborHead(
            read["features"], read["labels"], read["rows"], described.classes, described.neighbors or 20
        )
    if len(head.rows) != described.rows:
        raise EffaceError(
            f"{folder} is damaged.", f"It has {len(head.rows)} rows, and {HEAD_FILE} says {described.rows}."
        )
    return head


def predict_classes(folder: Path, embeddings: Path) -> tuple[np.ndarray, list[str]]:
    """Predict the class of each embedding in a file.

    Returns:
        The keys, and the class of each.

    """
    described = HeadStore(Path(folder)).describe()
    vectors = read_vectors(embeddings)
    _require_encoder(described, vectors, embeddings)
    found = load_head(folder, described).predict(np.asarray(vectors.features))
    return vectors.keys, [described.classes[one] for one in found.tolist()]


def _fit(keys: np.ndarray, features: np.ndarray, y: np.ndarray, classes: Sequence[str], settings: HeadSettings) -> Head:
    if settings.kind == "ridge":
        return RidgeHead.fit(keys, features, y, classes, settings.penalty)
    return NeighborHead.fit(keys, features, y, classes, settings.neighbors)


def _settings(described: HeadDescription) -> HeadSettings:
    return HeadSettings(described.kind, described.penalty or 1.0, described.neighbors or 20)


def _write_arrays(store: HeadStore, head: Head) -> dict[str, Any]:
    rows = {"rows": store.write_rows("rows", head.rows)}
    if isinstance(head, RidgeHead):
        return rows | {"gram": (store.write("gram", head.gram),), "moments": (store.write("moments", head.moments),)}
    long = {"features": head.features, "labels": head.labels}
    return rows | {name: store.write_rows(name, value) for name, value in long.items()}


def _subtract(
    store: HeadStore,
    before: HeadDescription,
    keys: list[str],
    gone: np.ndarray,
    embeddings: Path | None,
    labels: Path | None,
) -> dict[str, Any]:
    """The sums of a ridge head without some rows, as new files."""
    vectors, y = _as_fitted(before, embeddings, labels, store.folder, rows=True)
    found = vectors.find(keys, str(embeddings or before.embeddings))
    features, y = np.array(vectors.features[found]), y[found]
    head = load_head(store.folder, before)
    assert isinstance(head, RidgeHead)
    digests = row_digests(vectors.keys[found], features, y)
    if [bytes(one) for one in digests.tolist()] != [bytes(one) for one in head.rows[gone].tolist()]:
        head.without(vectors.keys[found], features, y)  # says which rows differ
    less = head.without(vectors.keys[found], features, y)
    return {"gram": (store.write("gram", less.gram),), "moments": (store.write("moments", less.moments),)}


def _as_fitted(
    described: HeadDescription, embeddings: Path | None, labels: Path | None, folder: Path, *, rows: bool = False
) -> tuple[Vectors, np.ndarray]:
    """The embeddings of a head, and their labels as positions among its classes."""
    path = Path(embeddings or described.embeddings)
    if not path.is_file():
        raise EffaceError(
            f"The embeddings of {folder} are not at {path}.",
            "A head keeps sums, and needs the rows themselves to subtract them or to fit again.",
            "Say where they are now: --embeddings FILE.",
        )
    table = labels or (Path(described.labels) if described.labels else None)
    vectors, names = _labeled(path, table, rows=rows)
    _require_encoder(described, vectors, path)
    places = {name: place for place, name in enumerate(described.classes)}
    return vectors, np.array([places.get(name, len(places)) for name in names], dtype=np.int64)


def _labeled(embeddings: Path, labels: Path | None, *, rows: bool = False) -> tuple[Vectors, tuple[str, ...]]:
    vectors = read_vectors(embeddings, rows=rows)
    if labels is not None:
        return vectors, read_labels(labels, vectors.keys)
    if vectors.labels is None:
        raise EffaceError(
            f"{embeddings} has no labels.",
            "A head is fitted on labels.",
            "Give a table of key and label: --labels FILE.",
        )
    return vectors, vectors.labels


def _require_encoder(described: HeadDescription, vectors: Vectors, path: Path) -> None:
    if vectors.features.shape[1] != described.width:
        raise EffaceError(
            f"The embeddings in {path} have {vectors.features.shape[1]} numbers, and the head takes {described.width}.",
            "They are of another encoder.",
            "Embed with the encoder that the head was fitted on.",
        )
    if described.encoder and vectors.encoder and described.encoder != vectors.encoder:
        raise EffaceError(
            f"The embeddings in {path} are of another encoder.",
            f"The head was fitted on {described.encoder[:12]}; these are of {vectors.encoder[:12]}.",
            "Embed with the encoder that the head was fitted on.",
        )


def _compare(head: Head, again: Head, rows: int) -> ExactCheck:
    """Compare a head with one that was fitted again on the same rows."""
    what = f"the head was fitted again on the {rows} rows that are left"
    if isinstance(head, RidgeHead) and isinstance(again, RidgeHead):
        largest = float(np.abs(head.solve() - again.solve()).max())
        measured = f"largest difference of a weight {largest:.2e}, limit {REFIT_LIMIT:g}"
        same = sorted(head.rows.tolist()) == sorted(again.rows.tolist())
        return ExactCheck(name="refit", what=what, measured=measured, passed=same and largest <= REFIT_LIMIT)
    assert isinstance(head, NeighborHead)
    assert isinstance(again, NeighborHead)
    pairs = ((head.features, again.features), (head.labels, again.labels), (head.rows, again.rows))
    same = all(one.shape == other.shape and one.tobytes() == other.tobytes() for one, other in pairs)
    return ExactCheck(
        name="refit", what=what, measured=f"rows {'equal' if same else 'different'}, bit for bit", passed=same
    )


def _write_record(folder: Path, before: HeadDescription, after: HeadDescription, keys: list[str]) -> None:
    """Write the record of a deletion and its key, before the description that names it."""
    items, secret = seal_items(keys)
    settings = {"penalty": before.penalty} if before.kind == "ridge" else {"neighbors": before.neighbors}
    record = ExactRecord(
        kind="head",
        method={"name": f"heads.{before.kind}", **settings},
        items=items,
        original=(before.digest(), file_digest(folder / HEAD_FILE)),
        unlearned=(after.digest(), description_digest(after)),
        parts={"rows_before": before.rows, "rows_after": after.rows, "width": after.width},
        source=before.embeddings_sha256,
        environment=Environment.current("", 1),
    )
    path = folder / after.deletions[-1].record
    write_secret(path.with_suffix(".key"), secret)
    record.save(path)


def description_digest(described: HeadDescription) -> str:
    """SHA-256 that ``head.json`` will have."""
    text = json.dumps(described.model_dump(mode="json"), indent=1) + "\n"
    return hashlib.sha256(text.encode()).hexdigest()


def describe_head(described: HeadDescription) -> Mapping[str, Any]:
    """A head as a JSON object, without its files."""
    facts = described.model_dump(mode="json", exclude={"arrays", "format"})
    return facts | {"digest": described.digest()}


def _require_free(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise EffaceError(f"{out} exists already.", "A head is never replaced.", "Choose another --out, or remove it.")


def _empty_folder(half: Path) -> HeadStore:
    """An empty folder to write into; what a killed command left there is removed."""
    if half.exists():
        strange = [one.name for one in half.iterdir() if one.suffix not in (".npy", ".json", ".key", ".tmp")]
        if half.is_symlink() or not half.is_dir() or strange:
            raise EffaceError(f"{half} is in the way.", "It holds other files.", "Move it, or choose another --out.")
        for one in half.iterdir():
            one.unlink()
    half.mkdir(exist_ok=True)
    return HeadStore(half)
