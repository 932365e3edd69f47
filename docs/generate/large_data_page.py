"""The tables of ``docs/results/large_data.md``: memory and time by ``benchmarks.large_data``, killed benches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.machine import RESULTS as SPEED
from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, made_by, table_head, table_row
from research.paths import RESULTS

MIB = 2**20
DECODES = {"memory": "decoded once into one array, as before", "lazy": "decoded when needed"}
WHERE = {"memory": "in memory, as before", "scratch": "large arrays in a file, mapped"}
TITLES = {
    "observations": "Observations", "embeddings": "Embeddings", "reading": "Reading pictures",
    "pictures": "Large pictures: pretrain, unlearn, audit", "thumbnails": "Small pictures: pretrain, unlearn, audit",
}  # fmt: skip
Row = Mapping[str, Any]


def page() -> list[str]:
    """All parts that were measured, as Markdown lines."""
    result = read_json(SPEED / "large_data.json")
    tables = {"observations": _observations, "embeddings": _embeddings, "reading": _reading}
    lines: list[str] = []
    for name, title in TITLES.items():
        part = result.get(name)
        if part and part["rows"]:
            rows = {row: one for row, one in part["rows"].items() if "said" not in one}
            lines += [f"## {title}", "", *tables.get(name, _verbs)(part, rows), "", _note(part, rows), ""]
    return [*lines, *_killed()] if (RESULTS / "killed_benches.json").exists() else lines[:-1]


def peak(row: Row | None) -> str:
    """The peak of a row in MiB."""
    return MISSING if row is None else _number(row["peak"] / MIB)


def seconds(row: Row | None) -> str:
    """The seconds of a row."""
    return MISSING if row is None else _number(row["seconds"])


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def _note(part: Mapping[str, Any], rows: Mapping[str, Row]) -> str:
    loads = [one["load_before"] for one in rows.values()]
    busy = f"the load of the machine was {min(loads):g} to {max(loads):g} before the rows began"
    return f"Peak of the largest process, Python and its libraries included. {made_by(part['machine'], note=busy)}"


def _observations(part: Mapping[str, Any], rows: Mapping[str, Row]) -> list[str]:
    most = part["settings"]["examples"]
    sizes = (most // 10, most)
    lines = [
        "A tiny classifier with 1 000 classes; 4 kB of logits for each example. Half of the examples of an audit are "
        "forgotten, half were never trained on; two models are observed.", "",
        *table_head("", *(f"{_number(n)} examples, MiB" for n in sizes), "growth, MiB", "seconds of the larger"),
    ]  # fmt: skip
    named = {name: f"observed, {title}" for name, title in WHERE.items()}
    named |= {"pretrain": "`pretrain`", "unlearn": "`unlearn`", "audit first": "`audit`, observing"}
    named["audit again"] = "`audit`, from stored observations"
    for name, title in named.items():
        found = [rows.get(f"{n} {name}") for n in sizes]
        few, many = found
        growth = MISSING if few is None or many is None else _number((many["peak"] - few["peak"]) / MIB)
        lines.append(table_row(title, *(peak(one) for one in found), growth, seconds(many)))
    return lines


def _embeddings(part: Mapping[str, Any], rows: Mapping[str, Row]) -> list[str]:
    held = part["settings"]
    size = held["items"] * held["views"] * held["dimensions"] * 4 / MIB
    lines = [
        f"{_number(held['items'])} items, {held['views']} views, {held['dimensions']} dimensions: two files of "
        f"{_number(size)} MiB.", "", *table_head("`efface audit --embeddings`", "MiB", "seconds"),
    ]  # fmt: skip
    return [*lines, *(table_row(name, peak(one), seconds(one)) for name, one in rows.items())]


def _reading(part: Mapping[str, Any], rows: Mapping[str, Row]) -> list[str]:
    held = part["settings"]
    lines = [
        f"{_number(held['pictures'])} JPEGs of 256 to 640 pixels, ViT-tiny at {held['side']} pixels, four steps of 64 "
        f"pictures. All decoded they are {_number(held['array'] / MIB)} MiB.", "",
        *table_head("source", "pictures are", "first, MiB", "again, MiB", "first, s", "again, s", "kept, MiB"),
    ]  # fmt: skip
    for source in ("pictures", "tars", "tables"):
        for decode, title in DECODES.items():
            first, again = (rows.get(f"{source} {decode} {turn}") for turn in ("first", "again"))
            if first is not None:
                kept = _number(first["kept"] / MIB)
                cells = (peak(first), peak(again), seconds(first), seconds(again), kept)
                lines.append(table_row({"pictures": "folder"}.get(source, source), title, *cells))
    if "same weights" in part:
        same = "the same weights, bit for bit" if part["same weights"] else "**different weights**"
        lines += ["", f"All of them end with {same}. Kept: what stays in the folder of caches."]
    return lines


def _verbs(part: Mapping[str, Any], rows: Mapping[str, Row]) -> list[str]:
    held = part["settings"]
    lines = [
        f"{_number(held['pictures'])} pictures, used at {held['side']} pixels, one epoch; all decoded they are "
        f"{_number(held['array'] / MIB)} MiB.", "",
        *table_head("", *(f"{title}: MiB" for title in DECODES.values()), "seconds, once", "seconds, when needed"),
    ]  # fmt: skip
    for verb in ("pretrain", "unlearn", "audit"):
        found = [rows.get(f"{decode} {verb}") for decode in DECODES]
        lines.append(table_row(f"`{verb}`", *map(peak, found), *map(seconds, found)))
    if "same weights" in part:
        lines += ["", f"Both end with {'the same' if part['same weights'] else '**different**'} weights."]
    return lines


def _killed() -> list[str]:
    result = read_json(RESULTS / "killed_benches.json")
    rounds = [one for one in result["rounds"] if one["in time"]]
    lines = ["## A bench that is killed", ""]
    lines += table_head("tasks run", "killed", "times", "tasks lost", "made twice", "other results", "left after 10 s")
    names = {"local": "`local`", "dask": "`dask://`, two workers", "slurm": "`slurm:`, submitit's local executor"}
    for place, what in dict.fromkeys((one["on"], one["killed"]) for one in rounds):
        chosen = [one for one in rounds if (one["on"], one["killed"]) == (place, what)]
        other = sum(not one["same results"] for one in chosen)
        counts = (_total(chosen, "lost"), _total(chosen, "twice"), other, _total(chosen, "orphans"))
        lines.append(table_row(names[place], what, len(chosen), *counts))
    text = (
        f"A bench of {result['tasks']} tasks, killed by SIGKILL at a random place. A scheduler is started again, a "
        "command is given again; journal, outcomes and results are compared with those of a bench that nobody killed."
    )
    return [*lines, "", f"{text} {made_by(result['machine'])}"]


def _total(rounds: Iterable[Row], name: str) -> int:
    return sum(one[name] for one in rounds)
