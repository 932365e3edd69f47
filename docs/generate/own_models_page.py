"""The tables of ``docs/results/own_models.md``: models of other libraries, and wrong assumptions about them."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, made_by, table_head, table_row
from research.paths import RESULTS

TOLERATED = 0.02
"""How much worse a model may be before the page says so."""


def page() -> list[str]:
    """Tables of ``results/own_models.json`` and ``results/planted_assumptions.json``."""
    result = read_json(RESULTS / "own_models.json")
    parts, libraries = result["parts"], result["libraries"]
    lines = ["## From the library's file to the library's file", ""]
    lines += [
        f"720 emoji as JPEGs, in folders by year and user; {parts['trained']} trained on, {parts['forgotten']} to "
        f"forget in two requests, {parts['unseen']} of other users never trained on. Shares of right answers by the "
        "library's own code, with its own preprocessing, from the file that it wrote and from those that efface handed "
        "back.",
        "",
    ]
    lines += table_head(
        "model", "measured", "model", "retained", "never trained on", "forgotten", "said at once", "audit", "digest"
    )
    for name, row in libraries.items():
        lines.append(table_row(name, row["what"], "the library's", *_shares(row["before"]), "", "", ""))
        for method, done in row["methods"].items():
            lines.append(_method_row(method, done))
        second, third = row["second"], row.get("third", {})
        checked = _audit(third["second_audit"]) if "second_audit" in third else ["", ""]
        lines.append(table_row("", "", "second request", *_shares(second.get("after")), _second(second), *checked))
        if "after" in third:
            cells = [*_shares(third["after"]), _third(third), *_audit(third["audit"])]
            lines.append(table_row("", "", "third request", *cells))
    lines += [
        "",
        "Said at once: whether `efface unlearn` warns that the model has become worse by more than two points, on "
        "examples that it never saw or on retained ones, or has lost its utility; or says that too few examples tell. "
        "Audit: the verdict, with the number of models in a reference bank that was trained with the stated recipe, "
        "and whether the report says beside the verdict that the model is worse, or that too few examples tell. "
        "Digest: whether the record holds the SHA-256 of the handed-back file. The third request starts from "
        "the file that the second handed back.",
        "",
        *_worse_lines(libraries),
        "",
        "## Times and checks",
        "",
    ]
    lines += table_head("model", "checks of `efface init`", "init", "unlearn", "audit", "the whole story")
    for name, row in libraries.items():
        seconds = [done for done in row["methods"].values() if "audit" in done]
        checks = ", ".join(f"{topic} {word}" for topic, word in row["init"]["checks"].items()) or MISSING
        unlearn = _range([done["seconds"] for done in seconds])
        audit = _range([done["audit"]["seconds"] for done in seconds])
        lines.append(
            table_row(name, checks, f"{row['init']['seconds']:.0f} s", unlearn, audit, f"{row['seconds']:.0f} s")
        )
    lines += ["", "Seconds on a machine that did other work as well.", "", made_by(result["machine"]), ""]
    return [*lines, *planted_lines()]


def _worse_lines(libraries: dict[str, Any]) -> list[str]:
    """What became worse by more than two points, by the library's own code, and whether efface said so."""
    found: list[str] = []
    for name, row in libraries.items():
        for method, done in row["methods"].items():
            if "after" not in done:
                continue
            drops = {part: row["before"][part] - done["after"][part] for part in ("retained", "unseen")}
            worst = max(drops, key=lambda part: drops[part])
            if drops[worst] > TOLERATED:
                audit = done["audit"]
                said = _said(done)
                at_once = "NOT said at once" if said == "nothing" else f"said at once: {said}"
                headline = _headline(audit) or "NOTHING"
                where = "retained" if worst == "retained" else "never trained on"
                points = f"{100 * drops[worst]:.1f} points, {where}"
                found.append(f"{name} by `{method}`: {points} ({at_once}; in the report: {headline})")
        for request in ("second", "third"):
            after = row.get(request, {}).get("after", row["before"])
            drops = {part: row["before"][part] - after[part] for part in ("retained", "unseen")}
            worst = max(drops, key=lambda part: drops[part])
            if drops[worst] > TOLERATED:
                where = "retained" if worst == "retained" else "never trained on"
                found.append(f"{name} after the {request} request: {100 * drops[worst]:.1f} points, {where}")
    if not found:
        return ["By the library's own code, nothing became worse by more than two points."]
    return [f"Worse by more than two points, by the library's own code: {'; '.join(found)}. Nothing else is."]


def planted_lines() -> list[str]:
    """The table of planted assumptions."""
    result = read_json(RESULTS / "planted_assumptions.json")
    lines = ["## Wrong assumptions, planted", ""]
    lines += table_head("assumption", "planted", "efface said", "and to do", "goes in then")
    for name, row in result["rows"].items():
        said = f"{row['what']} {row['why']}".strip()
        lines.append(
            table_row(name, row["planted"], _cell(said), _cell(row["do"]), "yes" if row["mended"] else "not tried")
        )
    return [
        *lines,
        "",
        "Each was refused with exit code 2, before anything was changed.",
        "",
        made_by(result["machine"]),
    ]


def _method_row(method: str, done: dict[str, Any]) -> str:
    if "after" not in done:
        return table_row("", "", f"`{method}`", MISSING, MISSING, MISSING, _cell(done["error"][:200]), "", "")
    return table_row("", "", f"`{method}`", *_shares(done["after"]), _said(done), *_audit(done["audit"]))


def _said(done: dict[str, Any]) -> str:
    """What was said at once, in a word or two."""
    said = " ".join(done["said"])
    lost = "utility lost" if "lost utility" in said else "worse" if "WARNING" in said else ""
    return lost or ("undecided" if "worse by more than two points" in said else "nothing")


def _headline(audit: dict[str, Any]) -> str:
    """What the report says of the utility, in a word or two; empty if nothing."""
    if audit["utility_lost"]:
        return "utility lost"
    return "worse" if audit["utility_worse"] else "undecided" if audit["utility_undecided"] else ""


def _audit(audit: dict[str, Any]) -> list[str]:
    """The cells of an audit: verdict, and whether the digest is in the record."""
    bank = f", bank of {audit['bank']}" if audit["bank"] else ""
    headline = _headline(audit)
    word = f"{audit['word']} ({audit['level']}{bank}){'; ' * bool(headline)}{headline}"
    return [word, "yes" if audit["deployed"] else "NO"]


def _shares(found: dict[str, float] | None) -> list[str]:
    if not found:
        return [MISSING] * 3
    return [f"{found[name]:.3f}" for name in ("retained", "unseen", "forgotten")]


def _second(row: dict[str, Any]) -> str:
    said = "never-trained ids refused without `--skip-never-trained`" if row["refused_without_skip"] else "NOT refused"
    again = row.get("forgotten_before_refused")
    return f"{said}; forgotten users refused again: {'yes' if again else 'NO' if again is False else MISSING}"


def _third(row: dict[str, Any]) -> str:
    """Whether what was forgotten is refused again after each of the three requests."""
    refused = row["forgotten_before_refused"]
    said = "yes" if all(refused) else f"NO, after request {1 + refused.index(False)}"
    return f"from the second's file; forgotten before refused at each step: {said}"


def _range(seconds: list[float]) -> str:
    return f"{min(seconds):.0f} to {max(seconds):.0f} s" if seconds else MISSING


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "∣").split())
