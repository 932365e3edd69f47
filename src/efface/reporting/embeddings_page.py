"""The report page of an audit that had nothing but embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from efface.auditing.audits.alignment_matrix import alignment_matrix
from efface.auditing.embeddings.agreement import SIGNAL
from efface.auditing.embeddings.arrays import EmbeddingPair
from efface.auditing.embeddings.verdict import EmbeddingVerdict
from efface.auditing.formatting import format_count, format_number
from efface.reporting.figures import audit as figures_audit
from efface.reporting.figures import svg
from efface.reporting.figures.heatmap import heatmap
from efface.reporting.format import format_data, format_interval, format_time
from efface.reporting.wording import SYMBOLS, wording_for

MAP_ITEMS = 40
"""Items of each kind in a heat map at most: the first of a random order that is always the same."""


def render_embeddings_page(
    judged: EmbeddingVerdict, parts: Mapping[str, EmbeddingPair], about: Mapping[str, Any]
) -> str:
    """The page: no script, no network."""
    made = Environment(
        loader=PackageLoader("efface.reporting", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update({"count": format_count, "data": format_data, "span": format_interval, "moment": format_time})
    made.globals.update({"SYMBOLS": SYMBOLS})
    style = resources.files("efface.reporting").joinpath("templates/report.css").read_text(encoding="utf-8")
    one, evidence = judged.verdict, judged.evidence
    return made.get_template("embeddings.html").render(
        judged=judged,
        about=about,
        created=datetime.fromisoformat(about["created"]),
        headline=_headline(judged),
        style=Markup(style),
        maps=draw_alignment_maps(parts),
        intervals=figures_audit.draw_intervals(one.signals, one.delta, one.alpha) if one else None,
        scores=figures_audit.draw_histograms(evidence, SIGNAL) if evidence else None,
        roc=figures_audit.draw_roc(evidence, SIGNAL) if evidence else None,
    )


def _headline(judged: EmbeddingVerdict) -> str:
    """The answer in a few words."""
    if judged.verdict is not None:
        return wording_for(judged.verdict).headline
    return "Nothing was changed." if judged.word == "residue" else "These embeddings alone do not decide."


def draw_alignment_maps(parts: Mapping[str, EmbeddingPair]) -> figures_audit.Figure:
    """AM before, AM after and their difference, of some of the items; with a control, those stand behind the line."""
    rng = np.random.default_rng(0)
    rows = {name: np.sort(rng.permutation(len(pair))[:MAP_ITEMS]) for name, pair in parts.items()}
    cut = len(rows["forget"])
    matrices = [
        alignment_matrix(np.concatenate([getattr(pair, when).z[rows[name]] for name, pair in parts.items()]))
        for when in ("before", "after")
    ]
    change = matrices[0] - matrices[1]
    most = float(np.abs(change).max())
    own = ("own pairs", "never-trained")
    drawn = (
        ("before", "Before", matrices[0], 1.0, own),
        ("after", "After", matrices[1], 1.0, own),
        ("change", "Change (before less after)", change, most, ("forget score", "control score")),
    )
    plots = tuple(
        figures_audit.Plot(title, heatmap(f"am-{n}", title, m, top, cut), _note(m, cut, told))
        for n, title, m, top, told in drawn
    )
    line = " Behind the line: never-trained items." if "control" in parts else ""
    caption = (
        "Each cell: how similar the views of two items are, on average; on the diagonal the own pairs, two views of "
        f"one item. Full shade is 1, in the last map {format_number(most)}.{line}{_drawn(parts, rows)}"
    )
    key = tuple((svg.draw_key_line(kind), text) for kind, text in (("heat-warm", "above 0"), ("heat-cold", "below 0")))
    return figures_audit.Figure(plots, caption, key)


def _drawn(parts: Mapping[str, EmbeddingPair], rows: Mapping[str, np.ndarray]) -> str:
    """How many of the items are in the maps, where not all are: the findings are means over all of them."""
    kinds = {"forget": "items", "control": "never-trained items"}
    some = [
        f"{len(rows[n])} of {format_count(len(pair))} {kinds[n]}"
        for n, pair in parts.items()
        if len(rows[n]) < len(pair)
    ]
    return f" Drawn, and averaged under each map: {' and '.join(some)}; the findings below are of all." if some else ""


def _note(matrix: np.ndarray, cut: int, told: tuple[str, str]) -> str:
    """Means of the diagonal, by the names that the findings have: of the items, and of the never-trained ones."""
    own = np.diag(matrix)
    said = f"{told[0]} {format_number(float(own[:cut].mean()))}"
    return said + (f", {told[1]} {format_number(float(own[cut:].mean()))}" if len(own) > cut else "")
