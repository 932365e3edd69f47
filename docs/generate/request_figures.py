"""The figures of the pages about requests: small ones, one person, every size, a whole class, many in a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.machine import read_json
from docs.generate import ablation_page, every_size_page, request_sizes_page, successive_page, whole_class_page
from docs.generate.charts import FIGURES, HALF, Dot, Rows, draw_rows, range_dot
from research.paths import RESULTS


def small_requests() -> None:
    """Where the forgotten of a small request end, in both spaces, by method and size of the request."""
    rows = read_json(RESULTS / "small_requests.json")["rows"]
    chosen = ("margin_matching", "margin_matching, hinge", "finetune", "retrain")

    def dot(value: dict[str, float | None]) -> Dot | None:
        mean, error = value["mean"], value["error"]
        return None if mean is None else Dot(mean) if error is None else Dot(mean, mean - error, mean + error)

    panels = [
        Rows(
            f"{size} forgotten",
            {
                row["name"]: (dot(row["backbone.margin.forget"]), dot(row["projector.margin.forget"]))
                for name in chosen
                for row in rows
                if (row["k"], row["name"]) == (size, name)
            },
            HALF,
        )
        for size in (1, 10, 60)
    ]
    draw_rows(
        FIGURES / "small_requests.svg",
        "Small requests",
        "Mean placement of the forgotten examples among never-trained ones, over requests of 1, 10 and 60 examples, "
        "with one standard error.",
        ("backbone", "projector"),
        panels,
        "placement among never-trained examples; 0.5 is guessing",
    )


def people() -> None:
    """Where the forgotten pictures of one person end, and those of the others, pooled over rehearsals."""
    rows = dict[str, tuple[Dot | None, ...]]()
    for row in request_sizes_page.order_people():
        signals = row["signals"]
        if signals is not None:
            kept = (Dot(signals[f"{name} of the retained"]) for name in ("projector.margin", "learned"))
            gone = (Dot(*row["pooled"][name]) for name in ("projector.margin", "learned"))
            rows[f"{row['method']}, {row['asked']}"] = (*gone, *kept)
    draw_rows(
        FIGURES / "people.svg",
        "One person's three pictures",
        "AUC of forgotten pictures against never-trained ones, pooled over rehearsed persons, with 90 % intervals, and "
        "that of the retained pictures.",
        ("forgotten, margin", "forgotten, learned", "retained, margin", "retained, learned"),
        [Rows("method, persons rehearsed", rows, HALF)],
        "AUC against never-trained pictures",
    )


def every_size() -> None:
    """Where the forgotten of requests of every size end, over SimCLR worlds."""
    rows = [row for row in read_json(RESULTS / "every_size.json")["rows"] if row["family"] == "simclr"]
    names = ("backbone.margin", "projector.margin", "learned")
    panels = list[Rows]()
    for size in sorted({row["size"] for row in rows}):
        drawn = dict[str, tuple[Dot | None, ...]]()
        for method in every_size_page.METHODS:
            found = [row for row in rows if (row["size"], row["method"]) == (size, method)]
            if found:
                drawn[method] = tuple(range_dot(row["forgotten"][name][0] for row in found) for name in names)
        panels.append(Rows(f"{size} forgotten", drawn, {**HALF, "from": 0.45, "to": 0.55}))
    draw_rows(
        FIGURES / "every_size.svg",
        "Requests of every size",
        "AUC of forgotten against never-trained examples in each of several worlds, mean and range, by the size of the "
        "request and by method.",
        ("margin, backbone", "margin, projector", "learned"),
        panels,
        "AUC against never-trained examples; 0.5 is guessing",
    )


def whole_class() -> None:
    """What is left of a whole class, and whether the model can be told from a retrained one by its neighbors."""
    rows, panels = read_json(RESULTS / "whole_class.json")["rows"], list[Rows]()
    for family, title in request_sizes_page.FAMILIES.items():
        drawn = dict[str, tuple[Dot | None, ...]]()
        for method in whole_class_page.METHODS:
            found = [row for row in rows if (row["family"], row["method"]) == (family, method)]
            if found:
                signals = list(found[0]["signals"])[:2]
                told = (whole_class_page.value_of(row, "neighbor_class.detection") for row in found)
                dots = (range_dot(row["signals"][name] for row in found) for name in signals)
                drawn[method] = (*dots, range_dot(value for value in told if value is not None))
        if drawn:
            panels.append(Rows(title, drawn, HALF))
    draw_rows(
        FIGURES / "whole_class.svg",
        "One class forgotten",
        "AUC of the class's trained pictures against never-trained ones, and of telling the model from a retrained one "
        "by the classes that take its pictures; mean and range over seeds.",
        ("margin, backbone", "margin, output", "neighbors"),
        panels,
        "AUC; 0.5 is guessing",
    )


def ablation() -> None:
    """Where the forgotten end with one part of a method left out or changed."""
    rows, panels = read_json(RESULTS / "ablation.json")["rows"], list[Rows]()
    for family, title in ablation_page.FAMILIES.items():
        drawn = dict[str, tuple[Dot | None, ...]]()
        for method, variant in ablation_page.VARIANTS:
            mine = ("family", "method", "variant")
            found = [row for row in rows if tuple(row[key] for key in mine) == (family, method, variant)]
            if found:
                names = ("backbone.margin", "projector.margin", "learned")
                label = variant if variant == "as it is" else f"{method.removesuffix('_matching')}: {variant}"
                drawn[label] = tuple(range_dot(row["forgotten"][name][0] for row in found) for name in names)
        if drawn:
            panels.append(Rows(title, drawn, HALF))
    draw_rows(
        FIGURES / "ablation.svg",
        "What each part is for",
        "AUC of forgotten against never-trained examples with one part of a method left out or changed, mean and range "
        "over originals.",
        ("margin, backbone", "margin, projector", "learned"),
        panels,
        "AUC; 0.5 is guessing",
    )


def successive() -> None:
    """What is left of all that was forgotten so far, along twenty requests, and of what it is compared with."""
    rows, panels = read_json(RESULTS / "successive.json")["rows"], list[Rows]()
    for family, title in successive_page.FAMILIES.items():
        mine = [row for row in rows if row["family"] == family]
        drawn = dict[str, tuple[Dot | None, ...]]()
        for name, looks in successive_page.looked_at(mine) if mine else ():
            drawn[name] = (
                range_dot(look["forgotten"]["projector.margin"][0] for look in looks),
                range_dot(look["retained"]["projector.margin"] for look in looks),
                range_dot(look["knn"] for look in looks),
            )
        if drawn:
            panels.append(Rows(title, drawn, HALF))
    draw_rows(
        FIGURES / "successive.svg",
        "Twenty requests, one after the other",
        "AUC of all that were forgotten so far and of the retained, by the margin in the projector, and accuracy of "
        "nearest neighbors; mean and range over originals.",
        ("forgotten", "retained", "kNN accuracy"),
        panels,
        "AUC against never-trained examples; share of right neighbors",
    )


DRAWN: tuple[Callable[[], Any], ...] = (small_requests, people, every_size, ablation)
