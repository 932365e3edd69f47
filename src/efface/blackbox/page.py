"""The files of a data owner's audit: findings, what they were made from, and one page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from efface import __version__, figures, svg
from efface.audits.alignment_matrix import alignment_matrix
from efface.blackbox.agreement import SIGNAL
from efface.blackbox.arrays import Pair, paired, read
from efface.blackbox.heatmap import heatmap
from efface.blackbox.judging import Judged, conclude
from efface.errors import EffaceError
from efface.folder import REQUEST, write_text, writing
from efface.record import file_digest
from efface.report import REPORT, count, data, moment, number, span
from efface.verdict import Criteria
from efface.words import SYMBOLS, words_of

FINDINGS, AUDIT = "findings.json", "audit.json"
SHOWN = 40
"""Items of each kind in a heat map at most: the first of a random order that is always the same."""


def audit(
    embeddings: Sequence[Path],
    control: Sequence[Path] | None,
    out: Path,
    *,
    views: int | None = None,
    criteria: Criteria | None = None,
    force: bool = False,
) -> Judged:
    """Read the files (before, after), judge them, and write ``out``: findings.json, audit.json, report.html."""
    parts = _parts(embeddings, control, views)
    judged = conclude(parts["forget"], parts.get("control"), criteria)
    files = [*embeddings, *(control or ())]
    request = {"embeddings": [str(f) for f in embeddings], "control": [str(f) for f in control or ()], "views": views}
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
    with writing(out, json.dumps(request), force=force) as folder:
        write_text(folder / FINDINGS, json.dumps([asdict(one) for one in judged.findings], indent=1) + "\n")
        write_text(folder / AUDIT, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
        write_text(folder / REPORT, render(judged, parts, about))
    return judged


def _parts(embeddings: Sequence[Path], control: Sequence[Path] | None, views: int | None) -> dict[str, Pair]:
    before, after = (read(path, views) for path in embeddings)
    if set(before) != set(after):
        raise EffaceError(f"Only one of {embeddings[0]} and {embeddings[1]} has control items.")
    if control:
        if "control" in before:
            raise EffaceError(
                f"There are two sets of control items: in {embeddings[0]} and in {control[0]}.",
                remedy="Leave --control out, or the arrays called control.",
            )
        before["control"], after["control"] = (read(path, views)["forget"] for path in control)
    parts = {name: paired(before[name], after[name], name) for name in before}
    if "control" in parts and parts["forget"].before.named and parts["control"].before.named:
        shared = np.intersect1d(parts["forget"].before.keys, parts["control"].before.keys)
        if len(shared):
            raise EffaceError(
                f"{len(shared)} items are both forgotten and control.",
                "What was trained on cannot stand for what was not.",
            )
    return parts


def render(judged: Judged, parts: Mapping[str, Pair], about: Mapping[str, Any]) -> str:
    """The page: no script, no network."""
    made = Environment(
        loader=PackageLoader("efface", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update({"count": count, "data": data, "span": span, "moment": moment})
    made.globals.update({"SYMBOLS": SYMBOLS})
    style = resources.files("efface").joinpath("templates/report.css").read_text(encoding="utf-8")
    one, evidence = judged.verdict, judged.evidence
    return made.get_template("embeddings.html").render(
        judged=judged,
        about=about,
        created=datetime.fromisoformat(about["created"]),
        headline=_headline(judged),
        style=Markup(style),
        maps=maps(parts),
        intervals=figures.intervals(one.signals, one.delta, one.alpha) if one else None,
        scores=figures.histograms(evidence, SIGNAL) if evidence else None,
        roc=figures.roc(evidence, SIGNAL) if evidence else None,
    )


def _headline(judged: Judged) -> str:
    """The answer in a few words."""
    if judged.verdict is not None:
        return words_of(judged.verdict).headline
    return "Nothing was changed." if judged.word == "residue" else "These embeddings alone do not decide."


def maps(parts: Mapping[str, Pair]) -> figures.Figure:
    """AM before, AM after and their difference, of some of the items; with a control, those stand behind the line."""
    rng = np.random.default_rng(0)
    rows = {name: np.sort(rng.permutation(len(pair))[:SHOWN]) for name, pair in parts.items()}
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
        figures.Plot(title, heatmap(f"am-{n}", title, m, top, cut), _note(m, cut, told))
        for n, title, m, top, told in drawn
    )
    line = " Behind the line: never-trained items." if "control" in parts else ""
    caption = (
        "Each cell: how similar the views of two items are, on average; on the diagonal the own pairs, two views of "
        f"one item. Full shade is 1, in the last map {number(most)}.{line}{_drawn(parts, rows)}"
    )
    key = tuple((svg.sample(kind), text) for kind, text in (("heat-warm", "above 0"), ("heat-cold", "below 0")))
    return figures.Figure(plots, caption, key)


def _drawn(parts: Mapping[str, Pair], rows: Mapping[str, np.ndarray]) -> str:
    """How many of the items are in the maps, where not all are: the findings are means over all of them."""
    kinds = {"forget": "items", "control": "never-trained items"}
    some = [f"{len(rows[n])} of {count(len(pair))} {kinds[n]}" for n, pair in parts.items() if len(rows[n]) < len(pair)]
    return f" Drawn, and averaged under each map: {' and '.join(some)}; the findings below are of all." if some else ""


def _note(matrix: np.ndarray, cut: int, told: tuple[str, str]) -> str:
    """Means of the diagonal, by the names that the findings have: of the items, and of the never-trained ones."""
    own = np.diag(matrix)
    said = f"{told[0]} {number(float(own[:cut].mean()))}"
    return said + (f", {told[1]} {number(float(own[cut:].mean()))}" if len(own) > cut else "")


__all__ = ["AUDIT", "FINDINGS", "REQUEST", "audit", "render"]
