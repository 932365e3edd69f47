"""The tables of ``docs/results/bench.md``: for every grid whose results are there, what it gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import figure, table_head, table_row
from research.benches import file_of

GRIDS = ("half-hour", "fashion-resnet", "fashion-vit", "fashion-contrastive")


def results_of(name: str) -> dict[str, Any] | None:
    """The results of a grid, as :mod:`research.benches` kept them; None if it was not run."""
    file = file_of(name)
    return read_json(file) if file.exists() else None


def cells_of(result: dict[str, Any], world: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    """The reported models of a world whose fields have the ``wanted`` values."""
    wanted |= {"family": world["family"], "forget": world["forget"], "role": "reporting"}
    return [one for one in result["cells"] if all(one[key] == value for key, value in wanted.items())]


def by_seed(cells: Iterable[dict[str, Any]], key: str = "gap") -> dict[int, float]:
    """The measured value by seed of the world; the mean if a world has several (retrained models)."""
    values: dict[int, list[float]] = {}
    for one in cells:
        if one[key] is not None:
            values.setdefault(one["seed"], []).append(one[key])
    return {seed: sum(found) / len(found) for seed, found in values.items()}


def below(mine: dict[int, float], theirs: dict[int, float]) -> str:
    """In how many of the common seeds the first value is the smaller."""
    both = mine.keys() & theirs.keys()
    return f"{sum(mine[seed] < theirs[seed] for seed in both)} of {len(both)}" if both else "–"


def counted(verdicts: dict[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in verdicts.items()) or "failed"


def said(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def made(pieces: Iterable[dict[str, Any]]) -> list[str]:
    """Command and wall time of each piece; pieces that share a folder have one journal, and so one time."""
    runs: dict[tuple[Any, ...], list[str]] = {}
    for one in pieces:
        key = one["tasks"], one["seconds"], one["pauses"], one["created"][:10]
        runs.setdefault(key, []).append(f"`{one['command']}`")
    lines = []
    for (tasks, seconds, waits, day), commands in runs.items():
        pauses = f" (not counting {waits} that waited long for the machine)" if waits else ""
        lines.append(
            f"* {' and '.join(commands)}: {tasks} tasks in {seconds / 60:.0f} minutes{pauses}, on a shared "
            f"machine; {day}."
        )
    return lines


def power(world: dict[str, Any]) -> str:
    """What the audit detected in the originals, and in how many of them it had power."""
    seen = world["powered"]
    signals = [
        f"`{name}` {figure(one['power'])} (power in {seen[name][0]} of {seen[name][1]})"
        for name, one in world["original"]["signals"].items()
    ]
    most, of = max(seen.values(), key=lambda hits: hits[0])
    word = (
        "The audit had power in every world."
        if most == of
        else f"The audit had power on some signal in {most} of {of} worlds; no other world can show a removal."
        if most
        else "The audit had power in no world, so its verdicts mean nothing here."
    )
    return f"Membership AUC of F in the original, calibrated: {', '.join(signals)}. {word}"


def spread_of(result: dict[str, Any], world: dict[str, Any]) -> str:
    """The range of the methods' gaps, compared with the noise floor and with doing nothing."""
    floor, original = world["floor"]["mean"], world["original"]["gap"]
    gaps = {line["label"]: line["gap"]["mean"] for line in world["methods"] if line["gap"]}
    least, most = min(gaps, key=lambda name: gaps[name]), max(gaps, key=lambda name: gaps[name])
    plain = by_seed(cells_of(result, world, kind="original"))
    better, close = [], []
    for name in gaps:
        mine = by_seed(cells_of(result, world, label=name, chosen=True))
        if all(mine.get(seed, 1.0) < value for seed, value in plain.items()):
            better.append(name)
        if abs(gaps[name] - original["mean"]) < floor:
            close.append(name)
    return (
        f"Noise floor {figure(world['floor'], 4)} (n = {world['floor']['n']}); the original {figure(original, 4)}, "
        f"{original['mean'] / floor:.1f} floors. Methods lie between {gaps[least]:.4f} ({least}, "
        f"{gaps[least] / floor:.1f} floors) and {gaps[most]:.4f} ({most}). Closer to retraining than the original on "
        f"every seed: {said(better) or 'none'}. Within one floor of the original, so hardly distinguishable from "
        f"doing nothing: {said(close) or 'none'}."
    )


def world_lines(result: dict[str, Any], world: dict[str, Any]) -> list[str]:
    """One world: its sizes, the power of the audit, and its table."""
    sizes = result["sizes"][world["family"]][world["forget"]]
    signals = list(world["original"]["signals"])
    lines = [
        f"{said(f'{count} {part}' for part, count in sizes.items() if count)}. {power(world)}",
        "",
        spread_of(result, world),
        "",
        *table_head(
            *("", "n", "average gap", "below the original", "oracle-picked"),
            *(f"F, {name}" for name in signals),
            *("utility", "examples, share", "verdicts"),
        ),
    ]
    plain = by_seed(cells_of(result, world, kind="original"))
    retrained, untouched = {"label": "retrained (noise floor)"}, {"label": "original"}
    for line in (*world["methods"], retrained | world["oracle"], untouched | world["original"]):
        other, same = line.get("oracle_picked"), line.get("by_oracle") == line.get("setting")
        mine = by_seed(cells_of(result, world, label=line["label"], chosen=True))
        cells = [
            str(line["gap"]["n"] if line["gap"] else 0),
            figure(line["gap"], 4),
            below(mine, plain) if "method" in line else "",
            "the same" if other and same else figure(other and other["gap"], 4),
            *(figure(line["signals"].get(name, {}).get("auc")) for name in signals),
            figure(line["utility"]),
            figure(line["share"]["examples"]),
            counted(line["verdicts"]),
        ]
        lines.append(table_row(line["label"], *cells))
    total = Counter[str]()
    for line in world["methods"]:
        total.update(line["verdicts"])
    return [*lines, "", f"All methods together: {counted(dict(total.most_common()))}."]


def page() -> list[str]:
    """All grids, as Markdown lines."""
    lines: list[str] = []
    for name in GRIDS:
        result = results_of(name)
        lines += [f"## Results of `{name}.yaml`", ""]
        if result is None:
            lines += ["Not measured yet.", ""]
            continue
        seeds, machine = result["grid"]["seeds"], result["machine"]
        lines += [
            *made(result["pieces"]),
            "",
            f"Mean ± standard deviation over the seeds {said(seeds['reporting'])}; settings chosen on seed "
            f"{said(seeds['selection'])}. {machine['cpu']}, torch {machine['torch']}, one thread per model.",
            "",
        ]
        for world in result["ranking"]:
            lines += [f"### {name}: {world['family']}, {world['forget']}", "", *world_lines(result, world), ""]
        idle = [f"{one['label'] or one['forget']} ({one['family']}): {one['reason']}" for one in result["unfit"]]
        lines += ["Not applicable:", "", *(f"* {one}" for one in idle), ""] if idle else []
    return lines


def evidence(method: str) -> list[str]:
    """The results of one method over all grids, for its page."""
    rows = []
    for name in GRIDS:
        result = results_of(name)
        for world in result["ranking"] if result else ():
            for place, line in enumerate(world["methods"], 1):
                if line["method"] != method or not line["gap"]:
                    continue
                aucs = " / ".join(f"{one['auc']['mean']:.3f}" for one in line["signals"].values())
                cells = [
                    f"{name}: {world['family']}, {world['forget']}",
                    line["label"],
                    f"{place} of {len(world['methods'])}",
                    figure(line["gap"], 4),
                    f"{world['floor']['mean']:.4f} / {world['original']['gap']['mean']:.4f}",
                    aucs,
                    f"{line['utility']['mean']:.3f} / {world['oracle']['utility']['mean']:.3f}",
                    counted(line["verdicts"]),
                ]
                rows.append(table_row(*cells))
    if not rows:
        return []
    titles = ("world", "entry", "place", "average gap", "floor / original", "F, A1", "utility / retrained", "verdicts")
    more = (
        "[How to read this](../results/bench.md); [the papers' claims](../results/claims.md); "
        "[which method to choose](../guides/which_method.md)."
    )
    return ["## Results of the benches", "", *table_head(*titles), *rows, "", more, ""]
