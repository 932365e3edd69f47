"""Pictures that only the auditor has: a control that nobody could prepare a model for.

Who unlearned the model knows the whole split, and can train on its never-trained parts as well, so that forgotten and
unseen examples look alike. Pictures from elsewhere, named first when the run is audited, show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from efface.auditing.controls import FEWEST
from efface.data.class_order import number_classes
from efface.data.dataset import UNKNOWN_LABEL, Data
from efface.data.duplicates import hash_pixels
from efface.data.sources import SOURCES
from efface.errors import EffaceError
from efface.reporting.facts import WithheldFacts
from efface.runs.data_at_hand import DataSettings, absolute_data, as_options, load_data
from efface.runs.run import OpenedRun

READ_ALIKE = ("preprocessing", "white")
"""Options of the run's data with which other pictures are read too."""


def load_withheld(settings: DataSettings, subject: OpenedRun) -> tuple[Data, int]:
    """Load an auditor's own pictures, read like the data of a run.

    Args:
        settings: Where they are: a source or path, or a mapping with ``source`` and its options.
        subject: The audited run.

    Returns:
        The pictures that are not among the run's data, and how many were left out because they are.

    Raises:
        EffaceError: They have another shape, no captions although the model needs them, or too few are left.

    """
    data = subject.data
    found = load_data({"data": absolute_data(_read_alike(settings, data, subject.request))})
    if found.shape != data.shape:
        here, there = ("x".join(map(str, one.shape)) for one in (found, data))
        raise EffaceError(
            f"The withheld pictures are {here}, and those of the run {there}.",
            "Channels, height and width must be the same.",
            f"Add --set withheld.size={data.shape[-1]}, or name pictures of that shape.",
        )
    if data.text is not None and found.text is None:
        raise EffaceError(
            f"{found.name} has no captions, and the run's data have.",
            "An image-text model is observed through them.",
            "Name a manifest with a column `caption`.",
        )
    held = {hash_pixels(data, row) for row in np.arange(len(data))}
    own = np.array([hash_pixels(found, row) not in held for row in np.arange(len(found))], dtype=bool)
    left_out = int((~own).sum())
    if int(own.sum()) < FEWEST:
        raise EffaceError(
            f"{int(own.sum())} withheld pictures are left, and at least {FEWEST} are needed.",
            f"{left_out} of {len(found)} are among the data of the run, where others could know them."
            if left_out
            else "So few show nothing.",
            "Name more pictures that nobody else has.",
        )
    return _number_alike(found.take(np.flatnonzero(own)) if left_out else found, data), left_out


def withheld_facts(withheld: Data | None, digest: str, left_out: int) -> WithheldFacts | None:
    """Describe the withheld pictures for the record, without naming them; None without any."""
    return None if withheld is None else WithheldFacts(digest=digest, count=len(withheld), left_out=left_out)


def _number_alike(found: Data, data: Data) -> Data:
    """The pictures with their classes numbered as in the run's data; -1 for a class that those do not have."""
    labels = None if data.y is None else number_classes(found, data.classes).y
    if labels is None:
        return replace(found, y=None, classes=())
    return replace(found, y=np.where(labels < len(data.classes), labels, UNKNOWN_LABEL), classes=data.classes)


def _read_alike(settings: DataSettings, data: Data, request: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, completed for a path by how the run's own pictures are read."""
    given, stored = as_options(settings), as_options(request["data"])
    source = str(given.get("source", given.get("name", "")))
    if source in SOURCES and source not in ("folder", "manifest"):
        return given
    alike = {name: stored[name] for name in READ_ALIKE if stored.get(name) is not None}
    pictures = source in SOURCES or not source.endswith(".npz")
    alike |= {"size": data.shape[-1], "channels": data.shape[0]} if pictures and "preprocessing" not in alike else {}
    return alike | given
