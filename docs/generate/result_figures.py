"""The one figure at the head of each result page, drawn from ``research/results`` and ``benchmarks/results``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from benchmarks.machine import RESULTS as SPEED
from benchmarks.machine import read_json
from docs.generate import new_audits_page, request_figures
from docs.generate.bench_pages import GRIDS, results_of
from docs.generate.charts import FIGURES, HALF, Dot, Rows, draw_lines, draw_rows, range_dot, spread_dot
from research.paths import RESULTS


def verdict() -> None:
    """How often each word is said, against the number of forgotten examples."""
    rows = read_json(RESULTS / "verdicts.json")["synthetic"]["rows"]

    def line(truth: float, word: str) -> list[tuple[float, float]]:
        chosen = [row for row in rows if (row["truth"], row["original"], row["holdout"]) == (truth, 0.65, 1000)]
        return [(row["n"], 100 * row["rates"]["0.05"].get(word, 0.0)) for row in chosen]

    draw_lines(
        FIGURES / "verdict_rates.svg",
        "How often the verdict decides",
        "Share of worlds with the verdict removed where nothing is left, and residue where a trace is left, by the "
        "number of forgotten examples, with 1 000 never-trained ones.",
        {
            "nothing left: removed": line(0.5, "removed"),
            "AUC 0.6 left: residue": line(0.6, "residue"),
            "AUC 0.6 left: removed": line(0.6, "removed"),
        },
        ("forgotten examples", "per cent of worlds"),
    )


def attacks() -> None:
    """AUC of every signal, without and with references."""
    signals = read_json(RESULTS / "references.json")["signals"]
    rows = {
        name: (spread_dot(one["a0"]), Dot(one["a1"]["mean"], *_ends(one["a1 of the first"])))
        for name, one in signals.items()
    }
    draw_rows(
        FIGURES / "attack_signals.svg",
        "Which signal tells most",
        "AUC of each signal for forgotten against never-trained examples, without and with retrained references.",
        ("without references", "with 13 references, 95 % interval"),
        [Rows("", rows, HALF)],
        "AUC in a model that was trained on the forgotten examples",
    )


def _ends(row: dict[str, float]) -> tuple[float, float]:
    return row["low"], row["high"]


def attackers() -> None:
    """What three attackers see of each method, on the output's margin."""
    rows = read_json(RESULTS / "attackers.json")["rows"]
    drawn = dict[str, tuple[Dot | None, ...]]()
    for name, row in rows.items():
        seen = [row[level]["signals"]["logits.margin"] for level in ("A0", "A1")]
        dots: list[Dot | None] = [Dot(one["value"], one["low"], one["high"]) for one in seen]
        for part in ("ulira.auc", "ulira.retain.auc"):
            found = row.get("A2", {}).get(f"populations.logits.margin.{part}")
            dots.append(None if found is None or found["value"] is None else Dot(found["value"]))
        drawn["untouched" if name == "original" else name] = tuple(dots)
    draw_rows(
        FIGURES / "attackers.svg",
        "What three attackers see",
        "AUC on the margin of the logits: the model alone, with 8 references, and with 32 pairs of models.",
        ("A0", "A1, 8 references", "A2 on forgotten", "A2 on retained"),
        [Rows("", drawn, HALF)],
        "AUC, margin of the logits",
    )


def bench() -> None:
    """Average gap of every method in every world."""
    panels = []
    for grid in GRIDS:
        result = results_of(grid)
        for world in result["ranking"] if result else ():
            rows = {line["label"]: (spread_dot(line["gap"]),) for line in world["methods"] if line["gap"]}
            cut = {name: row for name, row in rows.items() if row[0].value < 0.08}
            goals = {"retrained": world["floor"]["mean"], "original": world["original"]["gap"]["mean"]}
            panels.append(Rows(f"{grid}: {world['family']}, {world['forget']}", cut, goals))
    draw_rows(
        FIGURES / "bench_gaps.svg",
        "Average gap to retrained models",
        "Average gap of every method in every world; methods with a gap above 0.08 are left out.",
        ("average gap",),
        panels,
        "average gap to the retrained models; smaller is better",
    )


def claims() -> None:
    """How many claims hold, by paper."""
    from docs.generate import claims as page

    text = "\n".join(page.page())
    words = ("holds here", "undecided here", "does not hold here")
    counts = {word: sum(line.count(f"| {word} |") for line in text.splitlines()) for word in words}
    draw_rows(
        FIGURES / "claims.svg",
        "The papers' claims in small worlds",
        "; ".join(f"{word}: {count} comparisons" for word, count in counts.items()),
        ("comparisons",),
        [Rows("", {word: (Dot(count),) for word, count in counts.items()}, {"": 0})],
        "comparisons of two methods in one world",
    )


def foreign() -> None:
    """The signal before and after, and in the references."""
    result = read_json(RESULTS / "foreign.json")
    drawn = dict[str, tuple[Dot, ...]]()
    for method in ("finetune", "gradient_constraint"):
        for one in result[method]["verdict"]["signals"]:
            drawn[f"{method}, {one['signal']}"] = (Dot(one["power"][0]), Dot(one["value"], one["low"], one["high"]))
    draw_rows(
        FIGURES / "foreign.svg",
        "A model that lightly trained",
        "AUC of forgotten against never-trained examples before and after unlearning, less two references.",
        ("before", "after, 90 % interval"),
        [Rows("", drawn, HALF)],
        "AUC with two references",
    )


def layouts() -> None:
    """How far features moved by unlearning, and how far the written file is from the run, in powers of ten."""
    found = read_json(RESULTS / "layouts.json")["features"]

    def power(value: float) -> Dot | None:
        return Dot(math.log10(value)) if value > 0 else None

    draw_rows(
        FIGURES / "layouts.svg",
        "Written back and loaded by its own library",
        "Largest difference of features between the run and the file as its own library loads it, and how far "
        "unlearning moved them, in powers of ten. No dot: exactly equal.",
        ("file against run", "moved by unlearning"),
        [Rows("", {one["name"]: (power(one["difference"]), power(one["moved"])) for one in found}, {})],
        "largest difference of a feature, power of ten",
    )


def speed() -> None:
    """Images per second against lightly."""
    result = read_json(SPEED / "throughput.json")
    sides = [f"{side} {how}" for side in ("efface", "lightly", "bare") for how in ("bfloat16", "float32")]
    names = {side: side.replace("bare", "network alone,") for side in sides}
    panels = [
        Rows(
            f"SimCLR, {result[name]['images']}",
            {
                names[side]: (Dot(one["median"], one["least"], one["most"]),)
                for side in sides
                if (one := result[name].get(side))
            },
            {"": 0},
        )
        for name in ("pretraining gray", "pretraining color")
    ]
    draw_rows(
        FIGURES / "speed.svg",
        "Images per second",
        "Images per second in SimCLR pretraining, median and range of the rounds: efface, lightly and the "
        "forward and backward passes of the network alone, in turns.",
        ("images per second",),
        panels,
        "images per second",
    )


def stopping() -> None:
    """Distance to retraining with and without early stopping."""
    rows = read_json(RESULTS / "stopping.json")["families"]["all"]
    draw_rows(
        FIGURES / "stopping.svg",
        "With and without early stopping",
        "Distance to retrained models over 20 worlds, mean and standard deviation.",
        ("distance",),
        [Rows("", {name: (spread_dot(row["distance"]),) for name, row in rows.items()}, {"": 0})],
        "distance to retrained models; smaller is better",
    )


def emoji() -> None:
    """What is left of the pair's signal, and what retrieval is kept."""
    result = read_json(RESULTS / "emoji.json")["reporting"]
    panels = [
        Rows(
            {"random": "100 random pairs", "flags": "all flags"}[kind],
            {
                name: (spread_dot(row["pair.margin.a1"]), spread_dot(row["recall1.retain"]))
                for name, row in rows.items()
                if row["n"] and row.get("pair.margin.a1")
            },
            HALF,
        )
        for kind, rows in result.items()
    ]
    draw_rows(
        FIGURES / "emoji.svg",
        "Forgetting pairs, and its price",
        "AUC of forgotten pairs with one oracle, and recall at 1 on the retained pairs, by method.",
        ("AUC of forgotten pairs", "recall@1 of retained pairs"),
        panels,
        "AUC: 0.5 is the goal; recall: more is better",
    )


def desk() -> None:
    """Time of the commands of a desk with 100 000 requests."""
    result = read_json(SPEED / "desk.json")
    rows = {
        name: (Dot(one["cpu"]["median"], one["cpu"]["least"], one["cpu"]["most"]),)
        for name, one in result["commands"].items()
    }
    draw_rows(
        FIGURES / "desk.svg",
        "The desk with 100 000 requests",
        "Processor time of each command, median and range.",
        ("processor time",),
        [Rows("", rows, {})],
        "seconds of one core",
    )


def own_models() -> None:
    """Accuracy by the library's own code, before and after."""
    result = read_json(RESULTS / "own_models.json")["libraries"]
    rows = dict[str, tuple[Dot | None, ...]]()
    for name, story in result.items():
        steps = {"before": story["before"]} | {m: one["after"] for m, one in story["methods"].items()}
        for request in ("second", "third"):
            if story.get(request, {}).get("after"):
                steps[f"{request} request"] = story[request]["after"]
        for step, shares in steps.items():
            rows[f"{name}, {step}"] = tuple(Dot(shares[part]) for part in ("retained", "unseen", "forgotten"))
    draw_rows(
        FIGURES / "own_models.svg",
        "A model of one's own, before and after",
        "Share of right answers by the library's own code on pictures kept, never trained on, and forgotten.",
        ("kept", "never trained on", "forgotten"),
        [Rows("", rows, {})],
        "share of right answers",
    )


def new_audits() -> None:
    """Three numbers beside the verdict, for models whose story is known."""
    rows = [row for row in read_json(RESULTS / "new_audits.json")["rows"] if row["world"] == "encoder"]
    keys = ("nonmember_share.signals", "relative_distance.position", "oracle_direction.signals.residual")
    drawn = dict[str, tuple[Dot | None, ...]]()
    for name, found in new_audits_page.by_model(rows).items():
        drawn[name] = tuple(
            range_dot(value for row in found if (value := row["findings"][key]["value"]) is not None) for key in keys
        )
    draw_rows(
        FIGURES / "new_audits.svg",
        "Three audits beside the verdict",
        "Share of non-members among the forgotten, place between retrained models and original, and residual along "
        "that way, of each model; mean and range where there are several.",
        ("non-member share", "position", "residual"),
        [Rows("", drawn, {"retrained": 0.0, "one": 1.0})],
        "retrained: share 1, position 0, residual 0; original: 0, 1, 1",
    )


def large_data() -> None:
    """Peak memory of each way to observe, for a tenth of the examples and for all."""
    part = read_json(SPEED / "large_data.json")["observations"]
    most = part["settings"]["examples"]
    names = {"store memory": "stored, in memory as before", "store scratch": "stored through a file"}
    names |= {"memory": "observed in memory, as before", "scratch": "observed through a file"}
    names |= {"audit first": "audit, observing", "audit again": "audit, stored observations"}
    rows = dict[str, tuple[Dot | None, ...]]()
    for name, title in names.items():
        found = [part["rows"].get(f"{n} {name}") for n in (most // 10, most)]
        if any(found):
            rows[title] = tuple(None if one is None else Dot(one["peak"] / 2**20) for one in found)
    draw_rows(
        FIGURES / "large_data.svg",
        "Memory by the number of examples",
        "Peak memory of a process that observes examples or audits them, for a tenth of the examples and for all.",
        tuple(f"{n:,} examples".replace(",", " ") for n in (most // 10, most)),
        [Rows("", rows, {})],
        "MiB, Python and its libraries included",
    )


DRAWN: tuple[Callable[[], Any], ...] = (
    verdict, attacks, attackers, bench, claims, foreign, layouts, speed, stopping, emoji, desk, own_models,
    new_audits, large_data, *request_figures.DRAWN,
)  # fmt: skip


def main() -> None:
    """Draw every figure."""
    for draw in DRAWN:
        draw()


if __name__ == "__main__":
    main()
