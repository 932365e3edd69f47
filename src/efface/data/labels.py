"""Convert labels to positions in a list of class names. NumPy only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from efface.data.names import quote_first, read_number
from efface.data.text_files import as_texts
from efface.errors import EffaceError

UNKNOWN_LABEL = -1
NO_LABELS = ("-1", "nan")
"""Names of labels, in lower case, that often stand for an unknown one."""
MAX_CLASSES = 100_000
"""Integer labels may not make more classes than this, or than there are examples."""


def convert_labels(y: Any, classes: tuple[str, ...] | None, name: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Convert labels to int64 and return them with the class names."""
    if y is None:
        return None, ()
    values = np.asarray(y)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "uiUSO" or not len(values):
        raise EffaceError(
            f"The labels of {name} are {values.dtype} of shape {list(values.shape)}.",
            "Expected one integer or one name for each image.",
            "For one-hot labels: y.argmax(1).",
        )
    if values.dtype.kind in "ui":
        highest = int(values.max())
        if classes is None and highest >= max(MAX_CLASSES, len(values)):
            raise EffaceError(
                f"The highest label of {name} is {highest}, which would make {highest + 1} classes.",
                "An integer label is the position of a class.",
                "If these are names or ids: y.astype(str).",
            )
        if highest <= np.iinfo(np.int64).max:
            return values.astype(np.int64), classes or tuple(str(label) for label in range(highest + 1))
    labels = as_texts(values.tolist(), "labels", name)
    refuse_unknown_names(labels, classes or (), name)
    return encode_labels(labels, classes, name)


def refuse_unknown_names(labels: Iterable[str], classes: Collection[str], name: str) -> None:
    """Raise if a label that often stands for an unknown one, such as ``nan``, would become a class.

    Args:
        labels: The names of the labels.
        classes: Names that are stated to be classes.
        name: Name of the data in messages.

    """
    found = sorted({label for label in labels if _stands_for_none(label)} - set(classes))
    if found:
        raise EffaceError(
            f"{name} has the label {quote_first(found)}, which would become a class.",
            "Such a label often stands for an unknown one.",
            f"If so, leave the label of these examples empty (for a manifest: --set data.unknown={found[0]}). "
            "If it is a class, rename it.",
        )


def _stands_for_none(label: str) -> bool:
    return label.strip().lower() in NO_LABELS or read_number(label) == UNKNOWN_LABEL


def encode_labels(
    labels: Sequence[str], classes: tuple[str, ...] | None = None, name: str = "data"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Convert label names to int64.

    Args:
        labels: A class name for each example; an empty one is unknown.
        classes: All class names; by default those in ``labels``, sorted (as numbers if they all are).
        name: Name of the data in messages.

    Returns:
        The labels [N] (positions in the class names, -1 is unknown) and the class names.

    """
    present = {label for label in labels if label}
    numeric = all(label.isdecimal() for label in present)
    class_names = classes or tuple(sorted(present, key=(lambda label: (Decimal(label), label)) if numeric else None))
    index = {label: position for position, label in enumerate(class_names)} | {"": UNKNOWN_LABEL}
    unknown = sorted(present - set(class_names))
    if unknown:
        raise EffaceError(f"{len(unknown)} labels of {name} are not among its classes: {quote_first(unknown)}.")
    return np.array([index[label] for label in labels], dtype=np.int64), class_names
