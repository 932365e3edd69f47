"""Audit embeddings without access to the model: read two files, and write findings and a report page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from efface._version import __version__
from efface.auditing.criteria import Criteria
from efface.auditing.embeddings.arrays import EmbeddingPair, match_embeddings, read_embeddings
from efface.auditing.embeddings.verdict import EmbeddingVerdict, judge_embedding_pairs
from efface.errors import EffaceError
from efface.files import file_digest, write_text
from efface.reporting.embeddings_page import render_embeddings_page
from efface.reporting.page import REPORT
from efface.runs.folder import create_run_folder
from efface.runs.ownership import why_not_bundle

EMBEDDING_FINDINGS, AUDIT = "findings.json", "audit.json"


def audit_embeddings(
    embeddings: Sequence[Path],
    control: Sequence[Path] | None,
    out: Path,
    *,
    views: int | None = None,
    criteria: Criteria | None = None,
    force: bool = False,
) -> EmbeddingVerdict:
    """Judge embeddings from before and after unlearning, and write ``findings.json``, ``audit.json``, ``report.html``.

    Args:
        embeddings: Files of embeddings of the forgotten items: before, after.
        control: Files of embeddings of items that were never trained on: before, after.
        out: Folder to write.
        views: Number of views per item, in consecutive rows.
        criteria: Criteria of the verdict; only ``delta`` and ``alpha`` are used.
        force: Replace ``out`` if it exists.

    Raises:
        EffaceError: A file cannot be read, or the files do not belong together.

    """
    parts = _parts(embeddings, control, views)
    judged = judge_embedding_pairs(parts["forget"], parts.get("control"), criteria)
    files = [*embeddings, *(control or ())]
    request = {
        "verb": "audit",
        "embeddings": [str(f) for f in embeddings],
        "control": [str(f) for f in control or ()],
        "views": views,
    }
    criteria = criteria or Criteria()
    about: dict[str, Any] = {
        "format": 1,
        "efface": __version__,
        "created": datetime.now(UTC).replace(microsecond=0).isoformat(),
        "files": {str(file): file_digest(file) for file in files},
        "shapes": {name: {w: list(getattr(p, w).z.shape) for w in ("before", "after")} for name, p in parts.items()},
        "delta": criteria.delta,
        "alpha": criteria.alpha,
        "word": judged.word,
        "sentence": judged.sentence,
        "limits": list(judged.limits),
    }
    with create_run_folder(
        out, json.dumps(request), force=force, inputs=files, why_not_ours=why_not_embeddings_audit
    ) as folder:
        write_text(folder / EMBEDDING_FINDINGS, json.dumps([asdict(one) for one in judged.findings], indent=1) + "\n")
        write_text(folder / AUDIT, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        write_text(folder / REPORT, render_embeddings_page(judged, parts, about))
    return judged


def why_not_embeddings_audit(folder: Path) -> str:
    """Why a folder is none that an audit of embeddings wrote."""
    return why_not_bundle(folder, AUDIT, ("format", "efface", "files", "word", "limits"))


def _parts(embeddings: Sequence[Path], control: Sequence[Path] | None, views: int | None) -> dict[str, EmbeddingPair]:
    """The pairs ``forget`` and, where there are control items, ``control``, each matched by key."""
    before, after = (read_embeddings(path, views) for path in embeddings)
    if set(before) != set(after):
        raise EffaceError(f"Only one of {embeddings[0]} and {embeddings[1]} has control items.")
    if control:
        if "control" in before:
            raise EffaceError(
                f"There are two sets of control items: in {embeddings[0]} and in {control[0]}.",
                remedy="Leave --control out, or the arrays called control.",
            )
        before["control"], after["control"] = (read_embeddings(path, views)["forget"] for path in control)
    parts = {name: match_embeddings(before[name], after[name], name) for name in before}
    if "control" in parts and parts["forget"].before.named and parts["control"].before.named:
        shared = np.intersect1d(parts["forget"].before.keys, parts["control"].before.keys)
        if len(shared):
            raise EffaceError(
                f"{len(shared)} items are both forgotten and control.",
                "Control items are items that were never trained on.",
            )
    return parts
