"""Tables of ``docs/results/reference_bank.md``: procedures by rehearsals, error rates of the words, sizes of banks."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, figure, made_by, percent, table_head, table_row
from research.paths import RESULTS

SIGNALS = {
    "backbone.margin": "margin, backbone",
    "projector.margin": "margin, projector",
    "backbone.alignment": "alignment, backbone",
    "projector.alignment": "alignment, projector",
    "backbone.norm": "norm, backbone",
    "projector.norm": "norm, projector",
    "learned": "learned",
}


WORDS = {
    "removed": "validated",
    "residue": "leaves residue",
    "over-forgotten": "over-forgets",
    "inconclusive": "inconclusive",
}
"""Words of rehearsals, and what they are called for a procedure."""


def page() -> list[str]:
    """All tables whose numbers were made, as Markdown lines."""
    makers = {
        "procedures.json": procedures,
        "rehearsal_errors.json": errors,
        "small_worlds.json": real_worlds,
        "banks.json": banks,
    }
    return [line for name, make in makers.items() if (RESULTS / name).exists() for line in (*make(), "")][:-1]


def errors() -> list[str]:
    """How often each word is said about procedures of known truth: one row for each."""
    result = read_json(RESULTS / "rehearsal_errors.json")
    lines = [
        "### How often each word is said",
        "",
        *table_head("what the procedure leaves", "true AUC", *WORDS.values()),
    ]
    for name, row in result["rows"].items():
        said = (f"{row['words'].get(word, 0)} of {row['worlds']}" for word in WORDS)
        lines.append(table_row(name, f"{row['true_auc']:.3f}", *said))
    about = (
        f"Worlds of known truth: {result['requests']} rehearsed requests of {result['size']} examples each, resolution "
        "0.05, and two signals that decide."
    )
    return [*lines, "", f"{about} {made_by(result, '`' + result['made by'] + '`')}"]


def real_worlds() -> list[str]:
    """How often each word is said about real models of which the truth is known: one row for each procedure."""
    result = read_json(RESULTS / "small_worlds.json")
    names = list(next(iter(result["rows"].values()))["auc"])
    head = ("what the procedure leaves", *(f"AUC, {SIGNALS[name]}" for name in names), *WORDS.values())
    lines = ["### How often each word is said about real models", "", *table_head(*head)]
    for name, row in result["rows"].items():
        shown = ("{:.3f} ± {:.3f}".format(*row["auc"][signal]) for signal in names)
        said = (f"{row['words'].get(word, 0)} of {result['worlds']}" for word in WORDS)
        lines.append(table_row(name, *shown, *said))
    about = (
        f"{result['worlds']} worlds of eight encoders, each trained on another half of 1 000 digits and mirror images; "
        f"{result['requests']} rehearsed requests of {result['size']} examples each, of which the model that rehearses "
        "one was trained on none, a tenth, a half or all. AUC: mean over the worlds and its standard error."
    )
    return [*lines, "", about, "", *power(result), "", made_by(result, f"`{result['made by']}`")]


def power(result: dict[str, Any]) -> list[str]:
    """What each signal tells of the examples that a model was trained on, calibrated by a bank."""
    few = f"sets of {result['few']}"
    lines = ["### What each signal tells", "", *table_head("signal", "AUC", "single examples", few)]
    strongest_first = sorted(result["power"].items(), key=lambda one: -one[1][2]["mean"])
    for name, (auc, single, sets) in strongest_first:
        lines.append(
            table_row(
                SIGNALS.get(name, name.replace("_", " ")), figure(auc), percent(single, " %"), percent(sets, " %")
            )
        )
    about = (
        "Examples that a model was trained on against never-trained ones, in the same worlds: AUC, and how many of "
        f"them are told at 5 % false alarms, singly and as sets of {result['few']} by their mean placement. Mean ± "
        "standard deviation over the worlds."
    )
    return [*lines, "", about]


def banks() -> list[str]:
    """Retrained models judged by banks of several sizes and training times: one row for each bank."""
    result = read_json(RESULTS / "banks.json")
    names = list(result["rows"][0]["auc"])
    head = ("judged by", "epochs", "cost", *(f"AUC, {SIGNALS.get(name, name)}" for name in names), "AUC, learned")
    lines = ["### How large a bank must be", "", *table_head(*head, "retrained models", "untouched model")]
    for row in result["rows"]:
        share, seconds = (MISSING if "share" not in row else f"{100 * row['share']:.0f} %"), row.get("seconds")
        found = (row["auc"].get(name) for name in (*names, "learned"))
        shown = (MISSING if one is None else f"{one[0]:.3f} ± {one[1]:.3f}" for one in found)
        words = ", ".join(f"{word} {count}" for word, count in sorted(row["words"].items()))
        cost = MISSING if seconds is None else f"{seconds:.0f} s"
        lines.append(table_row(row["by"], share, cost, *shown, words, row["untouched"]))
    about = (
        f"{result['oracles']} models retrained without the same {result['forgotten']} of 600 digits. AUC of the "
        "forgotten: mean over the models and its standard error; .5 is the truth. Cost: training time of the bank, one "
        "thread."
    )
    return [*lines, "", f"{about} {made_by(result, '`python -m research.banks`')}"]


RETAINED = ("backbone.margin", "projector.margin", "learned")


def procedures() -> list[str]:
    """One row for each method, as Markdown lines."""
    result = read_json(RESULTS / "procedures.json")
    lines = [
        "### Procedures compared by their rehearsals",
        "",
        *table_head("method", "requests", *SIGNALS.values(), "retained", "time"),
    ]
    for row in result["rows"]:
        shown = (MISSING if name not in row else "{:.3f} ({:.3f} to {:.3f})".format(*row[name]) for name in SIGNALS)
        beside = " / ".join(f"{row[f'{name} of the retained']:.3f}" for name in RETAINED)
        requests = f"{row['requests']} × {row['kind'].split()[0]}"
        lines.append(table_row(row["method"], requests, *shown, beside, f"{row['seconds']:.1f} s"))
    said = (
        "AUC of the rehearsed examples against never-trained ones, 90 % interval; calibrated by a reference bank. "
        "Retained: the same of the retained, by the margins in both spaces and by the learned attack; of an untouched "
        "model as for `finetune`. Time: median of a request."
    )
    return [*lines, "", f"{said} {made_by(result, '`python -m research.procedures`')}"]
