"""The tables of ``docs/exact.md``: time of deleting from a head, and cost and utility of sharded training."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import RESULTS as SPEED
from benchmarks.machine import read_json
from docs.generate.markdown import made_by, spread, table_head, table_row
from research.paths import RESULTS

KINDS = {"ridge": "ridge", "knn": "kNN"}
NAMES = {"digits": "digits", "fashion-mnist": "Fashion-MNIST"}


def page() -> list[str]:
    """Both tables, as Markdown lines."""
    return [*heads(), "", *shards()]


def heads() -> list[str]:
    """Seconds of requests to a head."""
    found = read_json(SPEED / "heads.json")
    lines = [f"## Measured: heads at {found['rows']:,} rows of {found['width']} numbers".replace(",", " "), ""]
    lines += table_head("head", "delete 1 row", "delete 10", "delete 1 000", "fitted again")
    for kind, title in KINDS.items():
        one = found[kind]
        times = [spread(one[str(count)]["cpu"]) for count in (1, 10, 1000)]
        lines.append(table_row(title, *times, one["measured"]))
    note = (
        "Delete: seconds of one processor for the whole request, files and record included; median "
        "(minimum to maximum). Other work ran on the machine, so that waiting is not counted. Fitted again: after all "
        "requests."
    )
    return [*lines, "", f"{note} {made_by(found)}"]


def shards() -> list[str]:
    """Cost and utility against the number of shards."""
    result = read_json(RESULTS / "shards.json")
    lines = ["## Measured: shards", ""]
    rows: list[dict[str, Any]] = result["rows"]
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data]
        sizes = list(own[0]["cost"])
        lines += [f"### {NAMES.get(data, data)}: SimCLR on {own[0]['train']} examples", ""]
        titles = [f"steps for k = {size}" for size in sizes]
        lines += table_head("S", "R", *titles, "kNN", "linear", "kNN, mean", "linear, mean", "bit-equal", "kept")
        for row in sorted(own, key=lambda one: (one["slices"], one["shards"])):
            cost = [f"{100 * row['cost'][size]:.0f} %" for size in sizes]
            ways = [f"{100 * row[name]['mean']:.1f}" for name in MEASURES]
            equal, kept = f"{row['equal']} of {row['seeds']}", f"{row['kept_bytes'] / 2**20:.1f} MiB"
            lines.append(table_row(row["shards"], row["slices"], *cost, *ways, equal, kept))
        lines.append("")
    text = (
        "Steps: share of the optimizer steps of a training from the beginning that a request of k random examples "
        "takes, mean over many requests. kNN and linear: accuracy on test, in percent, of the 20 nearest training "
        "examples and of a linear probe on the features side by side; mean: on their average. Bit-equal: trainings in "
        "which one example was deleted and the weights equal those of its shard trained from the beginning without it."
    )
    return [*lines, text, "", made_by(result, "`python -m research.shards make` and `table`")]


MEASURES = ("concat.knn", "concat.linear", "mean.knn", "mean.linear")
