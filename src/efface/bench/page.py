"""The page of a bench: one self-contained HTML file, without scripts or network access. numpy only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from markupsafe import Markup

from efface.bench import charts
from efface.bench.tables import mean_and_spread
from efface.reporting.figures.audit import Plot, slug
from efface.reporting.format import template_environment

PAGE = "bench.html"


@dataclass(frozen=True)
class ScenarioSection:
    """The section of the page about one family and forget set."""

    id: str
    title: str
    line: Mapping[str, Any]
    """The entry of the ranking."""
    sizes: Mapping[str, int]
    counts: Sequence[int] | None
    """Number of forgotten and of never-trained examples in the evaluation of the attack."""
    gaps: Markup | None
    pareto: Markup | None
    signals: Sequence[str]
    settings: Sequence[Mapping[str, Any]]
    """Every setting that was compared, with its score and gap."""


@dataclass(frozen=True)
class MethodCard:
    """The card of one method, over all worlds."""

    label: str
    method: str
    idea: str
    worlds: Sequence[tuple[ScenarioSection, Mapping[str, Any], Mapping[str, Any], Sequence[Plot]]]
    """For each world: its section, the line of the ranking, the selected setting, and the ROC curves."""
    unfit: Sequence[tuple[str, str]]
    """Families to which the method does not apply, with the reason."""


def render_bench(results: Mapping[str, Any]) -> str:
    """Render the page from the content of ``results.json``. Equal results give equal bytes."""
    worlds = [_world(results, line) for line in results["ranking"]]
    style = resources.files("efface.reporting").joinpath("templates/report.css").read_text(encoding="utf-8")
    rows = results["rows"]
    return (
        template_environment()
        .get_template("bench.html")
        .render(
            results=results,
            style=Markup(style),
            worlds=worlds,
            cards=_cards(results, worlds),
            overall=overall(results["ranking"]) if len(worlds) > 1 else [],
            failed=[row for row in rows if row["status"] != "done"],
            done=sum(row["status"] == "done" for row in rows),
            seeds=results["grid"]["seeds"],
            config=json.dumps(results["grid"], indent=2, ensure_ascii=False),
            points=charts.points,
            signed=charts.format_signed_points,
        )
    )


def _world(results: Mapping[str, Any], line: Mapping[str, Any]) -> ScenarioSection:
    name = slug(f"{line['family']}-{line['forget']}")
    facts = results["families"][line["family"]]
    shown = [
        row
        for row in results["rows"]
        if (row["family"], row["forget"], row["kind"], row["status"])
        == (line["family"], line["forget"], "original", "done")
    ]
    return ScenarioSection(
        name,
        f"{line['family']}, {line['forget']}",
        line,
        facts["sizes"][line["forget"]],
        shown[0]["counts"] if shown else None,
        charts.gaps(name, line),
        charts.pareto(name, line),
        list(line["original"]["signals"]),
        _settings(results, line),
    )


def _settings(results: Mapping[str, Any], line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of methods with several, with mean score and gap on the selection seeds."""
    listed: list[dict[str, Any]] = []
    for pick in results["picks"]:
        if (pick["family"], pick["forget"]) != (line["family"], line["forget"]):
            continue
        settings = results["families"][line["family"]]["methods"][pick["label"]]["settings"]
        if len(settings) == 1:
            continue
        rows = zip(describe_settings(settings), pick["scores"], pick["gaps"], strict=True)
        listed += [
            {
                "label": pick["label"],
                "number": number + 1,
                "setting": text,
                "score": score,
                "gap": gap,
                "chosen": number == pick["chosen"],
                "by_oracle": number == pick["by_oracle"],
            }
            for number, (text, score, gap) in enumerate(rows)
        ]
    return listed


def describe_settings(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe each setting by the fields that differ between them; a single setting has an empty description."""
    flat = [_flatten(one) for one in settings]
    varied = [key for key in flat[0] if len({json.dumps(one.get(key)) for one in flat}) > 1] if flat else []
    return [", ".join(f"{key} {one.get(key)}" for key in varied) for one in flat]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, one in value.items():
        flat |= _flatten(one, f"{prefix}{key}.") if isinstance(one, Mapping) else {prefix + key: one}
    return flat


def _cards(results: Mapping[str, Any], worlds: Sequence[ScenarioSection]) -> list[MethodCard]:
    """One card per method of the grid, in order of first appearance."""
    labels = list(dict.fromkeys(line["label"] for world in worlds for line in world.line["methods"]))
    labels += [one["label"] for one in results["unfit"] if one["label"] and one["label"] not in labels]
    made: list[MethodCard] = []
    for label in dict.fromkeys(labels):
        facts = [family["methods"][label] for family in results["families"].values() if label in family["methods"]]
        unfit = [(one["family"], one["reason"]) for one in results["unfit"] if one["label"] == label]
        runs = [
            (world, line, _setting(results, world, line), _rocs(results, world, line))
            for world in worlds
            for line in world.line["methods"]
            if line["label"] == label
        ]
        made.append(
            MethodCard(label, facts[0]["method"] if facts else label, facts[0]["idea"] if facts else "", runs, unfit)
        )
    return made


def _setting(results: Mapping[str, Any], world: ScenarioSection, line: Mapping[str, Any]) -> Mapping[str, Any]:
    """The selected setting: a short description and all of its fields."""
    settings = results["families"][world.line["family"]]["methods"][line["label"]]["settings"]
    if line["setting"] is None:
        return {"text": "none finished", "fields": {}}
    text = describe_settings(settings)[line["setting"]] or "one setting"
    return {"text": text, "fields": _flatten(settings[line["setting"]])}


def _rocs(results: Mapping[str, Any], world: ScenarioSection, line: Mapping[str, Any]) -> list[Plot]:
    """ROC curves of the selected setting on the reporting seeds."""
    here = [
        row
        for row in results["rows"]
        if (row["family"], row["forget"], row["role"]) == (world.line["family"], world.line["forget"], "reporting")
    ]
    by_kind = {kind: [row for row in here if row["kind"] == kind] for kind in ("original", "oracle")}
    mine = [row for row in here if row["label"] == line["label"] and row["chosen"]]
    name = f"{world.id}-{slug(line['label'])}"
    drawn = [
        charts.draw_method_roc(name, signal, mine, by_kind["original"], by_kind["oracle"]) for signal in world.signals
    ]
    return [plot for plot in drawn if plot is not None]


def overall(ranking: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Summarize each method over all worlds: gap, relative rank, worlds within the noise floor; best rank first."""
    seen: dict[str, dict[str, list[Any]]] = {}
    for world in ranking:
        floor, known = charts.mean(world["floor"]), [line for line in world["methods"] if line["gap"]]
        for rank, line in enumerate(known, 1):
            one = seen.setdefault(line["label"], {"gap": [], "rank": [], "within": [], "removed": []})
            one["gap"].append(line["gap"]["mean"])
            one["rank"].append((rank - 1) / max(1, len(known) - 1))
            one["within"].append(floor is not None and line["gap"]["mean"] <= floor)
            one["removed"].append((line["verdicts"].get("removed", 0), line["n"]))
    rows = [
        {
            "label": label,
            "worlds": len(one["gap"]),
            "gap": mean_and_spread(one["gap"]),
            "rank": sum(one["rank"]) / len(one["rank"]),
            "within": sum(one["within"]),
            "removed": sum(count for count, _ in one["removed"]),
            "of": sum(of for _, of in one["removed"]),
        }
        for label, one in seen.items()
    ]
    return sorted(rows, key=lambda row: (row["rank"], row["label"]))
