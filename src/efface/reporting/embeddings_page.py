"""The report page of an audit of embeddings: arrays before and after unlearning, without the model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from typing import Any

import numpy as np
from markupsafe import Markup

from efface.auditing.audits.alignment_matrix import alignment_matrix
from efface.auditing.embeddings.agreement import SIGNAL
from efface.auditing.embeddings.arrays import EmbeddingPair
from efface.auditing.embeddings.verdict import EmbeddingVerdict
from efface.auditing.formatting import format_count, format_number
from efface.data.array_files import take_rows
from efface.reporting.figures import svg
from efface.reporting.figures.audit import Figure, Plot, draw_histograms, draw_intervals, draw_roc
from efface.reporting.figures.heatmap import heatmap
from efface.reporting.format import template_environment
from efface.reporting.wording import wording_for

MAP_ITEMS = 40
"""Largest number of items of each kind in a heat map: a random choice that is always the same."""


def render_embeddings_page(
    judged: EmbeddingVerdict, parts: Mapping[str, EmbeddingPair], about: Mapping[str, Any]
) -> str:
    """Render the report as one HTML page, without scripts or network access.

    Args:
        judged: Verdict of the audit of embeddings.
        parts: Embeddings before and after, of ``forget`` and, if given, of ``control`` (never-trained) items.
        about: ``created`` (ISO 8601), ``efface`` (version) and ``files`` (name to SHA-256).

    Returns:
        The page.

    """
    style = resources.files("efface.reporting").joinpath("templates/report.css").read_text(encoding="utf-8")
    verdict, evidence = judged.verdict, judged.evidence
    return (
        template_environment()
        .get_template("embeddings.html")
        .render(
            judged=judged,
            about=about,
            created=datetime.fromisoformat(about["created"]),
            headline=_headline(judged),
            style=Markup(style),
            maps=draw_alignment_maps(parts),
            intervals=draw_intervals(verdict.signals, verdict.delta, verdict.alpha) if verdict else None,
            scores=draw_histograms(evidence, SIGNAL) if evidence else None,
            roc=draw_roc(evidence, SIGNAL) if evidence else None,
        )
    )


def _headline(judged: EmbeddingVerdict) -> str:
    """The result in one short sentence."""
    if judged.verdict is not None:
        return wording_for(judged.verdict).headline
    return "Nothing was changed." if judged.word == "residue" else "These embeddings alone are not enough to decide."


def draw_alignment_maps(parts: Mapping[str, EmbeddingPair]) -> Figure:
    """Draw the alignment matrix of some items before, after, and the difference.

    Args:
        parts: Embeddings before and after, of ``forget`` and, if given, of ``control`` items. The control items
            come after the dividing line.

    """
    rng = np.random.default_rng(0)
    rows = {name: np.sort(rng.permutation(len(pair))[:MAP_ITEMS]) for name, pair in parts.items()}
    cut = len(rows["forget"])
    matrices = [
        alignment_matrix(np.concatenate([take_rows(getattr(pair, when).z, rows[name]) for name, pair in parts.items()]))
        for when in ("before", "after")
    ]
    change = matrices[0] - matrices[1]
    largest = float(np.abs(change).max())
    alignment = ("own pairs", "never-trained")
    maps = (
        ("before", "Before", matrices[0], 1.0, alignment),
        ("after", "After", matrices[1], 1.0, alignment),
        ("change", "Change (before minus after)", change, largest, ("forget score", "control score")),
    )
    plots = tuple(
        Plot(title, heatmap(f"am-{name}", title, matrix, full, cut), _note(matrix, cut, labels))
        for name, title, matrix, full, labels in maps
    )
    line = " Beyond the line: never-trained items." if "control" in parts else ""
    caption = (
        "Each cell shows the mean similarity between the views of two items; the diagonal shows own pairs, two views "
        f"of the same item. The darkest shade is 1, in the last map {format_number(largest)}."
        f"{line}{_sample(parts, rows)}"
    )
    key = tuple((svg.draw_key_line(kind), text) for kind, text in (("heat-warm", "above 0"), ("heat-cold", "below 0")))
    return Figure(plots, caption, key)


def _sample(parts: Mapping[str, EmbeddingPair], rows: Mapping[str, np.ndarray]) -> str:
    """How many items the maps show, if not all of them; the findings are means over all items."""
    kinds = {"forget": "items", "control": "never-trained items"}
    shown = [
        f"{len(rows[n])} of {format_count(len(pair))} {kinds[n]}"
        for n, pair in parts.items()
        if len(rows[n]) < len(pair)
    ]
    if not shown:
        return ""
    return f" The maps and the means below them use {' and '.join(shown)}; the findings use all of them."


def _note(matrix: np.ndarray, cut: int, labels: tuple[str, str]) -> str:
    """Means of the diagonal over the items and over the never-trained items, labelled as in the findings."""
    diagonal = np.diag(matrix)
    note = f"{labels[0]} {format_number(float(diagonal[:cut].mean()))}"
    return note + (f", {labels[1]} {format_number(float(diagonal[cut:].mean()))}" if len(diagonal) > cut else "")
