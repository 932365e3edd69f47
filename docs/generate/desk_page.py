"""The tables of ``docs/results/desk.md``: a month of requests, cuts, changed bundles, and times at 100 000 requests."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.machine import RESULTS as SPEED
from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, made_by, spread, table_head, table_row
from research.paths import RESULTS

WAYS = {"desk_month": "commands, SQLite", "desk_month_page": "the page, PostgreSQL"}
ACTIONS = {
    "add": "write down", "close": "refuse or withdraw", "plan": "plan", "run": "unlearn and audit",
    "release": "release and sign", "erase": "erase", "verify": "verify a bundle",
}  # fmt: skip


def page() -> list[str]:
    """All tables, as Markdown lines."""
    return [*month(), "", *cuts(), "", *bundles(), "", *times()]


def month() -> list[str]:
    """The month by both ways: what the desk held in the end, its runs, and how long each action took."""
    found = {way: read_json(RESULTS / f"{name}.json") for name, way in WAYS.items()}
    rows: dict[str, list[object]] = {
        "released, refused, withdrawn": [
            ", ".join(str(one["counts"][state]) for state in ("released", "refused", "withdrawn"))
            for one in found.values()
        ],
        "examples forgotten": [one["forgotten"] for one in found.values()],
        "rows of them left in the vectors": [one["vectors_left"] for one in found.values()],
        "bundles that verify": [f"{one['bundles_verified']} of {one['bundles']}" for one in found.values()],
        "chain of the ledger": [
            f"{'whole' if one['chain']['valid'] else 'broken'}, {one['chain']['events']} events"
            for one in found.values()
        ],
        "newest model": [f"`{one['head']['folder']}`, `{one['head']['digest'][:12]}`" for one in found.values()],
        "what a restored file of vectors brought back, as `replay` lists it": [
            f"{len(one['restored_backup']['listed'])} of {len(one['restored_backup']['asked'])} requests; "
            f"{one['restored_backup']['after']} after erasing again"
            for one in found.values()
        ],
    }
    lines = ["## A month", "", *table_head("", *found)]
    lines += [table_row(name, *cells) for name, cells in rows.items()]
    first = next(iter(found.values()))
    lines += ["", *table_head("run", "requests", "examples", "state", "verdict", "all requests so far")]
    for run in first["runs"]:
        every = run["all_requests"]
        said = f"{every['word']} ({every['count']} examples)" if every else MISSING
        lines.append(table_row(run["batch"], len(run["requests"]), run["examples"], run["state"], run["verdict"], said))
    lines += ["", *table_head("what was erased", "how many")]
    lines += [table_row(name, count) for name, count in first["erased"].items()]
    lines += ["", *table_head("action", *(f"seconds, {way}" for way in found))]
    for action, title in ACTIONS.items():
        lines.append(table_row(title, *(spread(one["seconds"][action]) for one in found.values())))
    text = (
        "Runs, verdicts and outcomes are the same by both ways. Seconds: median (minimum to maximum) while other work "
        "ran on the machine."
    )
    return [*lines, "", f"{text} {made_by(first['machine'])}"]


def cuts() -> list[str]:
    """How often both verbs were killed, and with what outcome."""
    counts = read_json(RESULTS / "desk_cuts.json")["counts"]
    lines = ["## Killed and repeated", "", *table_head("command", "killed", "times", "another final state")]
    names = {"run": "`request run`", "erase": "`erase`"}
    lines += [table_row(names[one["verb"]], one["way"], one["killed"], len(one["problems"])) for one in counts]
    text = (
        "After each kill the same command is given again; ledger, journal, runs, bundles, artefacts and files are then "
        "compared with those of a command that was not killed. Made by `python -m research.desk_cuts`."
    )
    return [*lines, "", text]


def bundles() -> list[str]:
    """Changed bundles by reason, forgeries, and a dictionary of ids."""
    found = read_json(RESULTS / "bundles.json")
    mutants: dict[str, Any] = found["mutants"]
    lines = ["## Changed bundles and runs", "", *table_head("reason code", "bundles")]
    lines += [table_row(f"`{reason}`", count) for reason, count in mutants["reasons"].items()]
    lines += [
        "",
        f"{mutants['mutants']} changed bundles: {mutants['accepted']} accepted, {mutants['unexpected']} refused for "
        "another reason than expected.",
        "", *table_head("forgery", "what is said"),
    ]  # fmt: skip
    said = {one["forgery"]: re.sub(r"lazy-\d+", "run", one["said"]) for one in found["forgeries"]["rows"]}
    lines += [table_row(name, text.replace("|", "∣")) for name, text in said.items()]
    held = found["dictionary"]
    text = (
        f"Ids: of all {held['ids']} ids of the data, the {held['found_with_the_key']} of a request are found with its "
        f"key, and {held['found_without']} once it is destroyed; the chain of the ledger stays "
        f"{'whole' if held['chain_valid'] else 'broken'}."
    )
    return [*lines, "", text, "", made_by(found["machine"])]


def times() -> list[str]:
    """Seconds of commands and pages at 100 000 requests."""
    found = read_json(SPEED / "desk.json")
    lines = [f"## Times with {found['requests']:,} requests".replace(",", " "), ""]
    lines += table_head("", "n", "seconds", "seconds of one processor")
    rows = {f"`efface {name}`": one for name, one in found["commands"].items()}
    pages = dict(found["page"])
    rows["the page, from its start to its first page"] = pages.pop("start")
    rows |= {f"a page: {name}": one for name, one in pages.items()}
    lines += [table_row(name, one["n"], spread(one), spread(one["cpu"])) for name, one in rows.items()]
    text = (
        "Median (minimum to maximum); starting Python is part of it. Other work ran on the machine, which the seconds "
        "of the processor hardly count. `request verify` and `request show` check the whole chain."
    )
    return [*lines, "", f"{text} {made_by(found)}"]
