"""The tables of ``docs/results/attacks.md``: what references are worth."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import figure, made_by, percent, table_head, table_row
from research.paths import RESULTS


def page() -> list[str]:
    """Tables of ``results/references.json``."""
    result = read_json(RESULTS / "references.json")
    world, models, n = result["world"], result["models"], result["examples"]
    lines = [
        f"One world: SimCLR on {world['train']} Fashion-MNIST images for {world['epochs']} epochs, "
        f"seed {world['seed']}; "
        f"models that saw F: {models['saw F']}; that did not: {models['never saw F']}; each has a seed of its own; "
        f"F {n['forget']}, H {n['holdout']}, R {n['retain']} examples. Mean ± standard deviation over the models that "
        "saw F, each attacked in turn; in brackets the 95 % interval of the first of them, over its examples. Nothing "
        "here is a spread over worlds.",
        "",
        "**Which signal, which space.** AUC of F against H without references and with all of them; TPR at an FPR "
        "of 1 %; and *single example*: for one example of F, how often a model that saw it scores it higher than "
        "one that did not (mean over F, interval by bootstrap over F).",
        "",
        *table_head("signal", "A0", "A1", "TPR at 1 %, A1", "single example"),
    ]
    for signal, row in result["signals"].items():
        one = row["single example"]
        alone = f"{one['mean']:.3f} ({one['interval'][0]:.3f} to {one['interval'][1]:.3f})"
        first = row["a1 of the first"]
        known = f"{figure(row['a1'])} ({first['low']:.3f} to {first['high']:.3f})"
        cells = [figure(row["a0"]), known, percent(row["tpr at 1 %"], " %"), alone]
        lines.append(table_row(f"`{signal}`", *cells))
    said = [f"`{c['first']}` less `{c['second']}` {ranged(c)}" for c in result["contrasts"]]
    lines += ["", "Differences of AUC at A1 on the first original, paired by example: " + "; ".join(said) + "."]
    for signal, rows in result["counts"].items():
        names = list(next(iter(rows.values())))
        lines += [
            "",
            f"**How many references**, `{signal}`: AUC on the originals, over models and up to 20 draws of",
            "",
        ]
        lines[-2] += (
            " the references; *oracle*: the same attack on a model that never saw F; *rank agreement*: Spearman's "
        )
        lines[-2] += "ρ of the residuals of F between two disjoint sets of references."
        lines += table_head("references", *names)
        lines += [table_row(count, *(figure(row[name]) for name in names)) for count, row in rows.items()]
    lines += [
        "",
        "Where nearly all references are drawn the draws overlap, so their spread is too small. With a = 0.3 RMIA's "
        "ratio is almost the raw score where p is far below 1/2, as it is for the backbone's margin: a = 1 calibrates.",
    ]
    lines += ["", "**EncoderMI** on the originals, AUC:", "", *table_head("space, attack, fitted on", "AUC")]
    lines += [table_row(name, figure(row)) for name, row in result["encodermi"].items()]
    lines += [
        "",
        "**Example by example**, models of this world; beyond: share of F that stands out (5 % by chance); named: ",
    ]
    lines[-1] += (
        "at a false-discovery rate of 10 %; risen: share of R whose exposure rose (5 % by chance; retraining: in "
        "brackets)."
    )
    lines += ["", *table_head("model", "signal", "beyond", "named", "mean residual", "R risen")]
    for model, rows in result["per example"].items():
        for signal in ("backbone.margin", "projector.margin"):
            beyond, residual, risen = (rows.get(f"{signal}.{key}") for key in ("beyond", "residual", "retained.risen"))
            cells = [ranged(beyond, 100), str(beyond["discoveries"]), ranged(residual), "–"]
            if risen:
                cells[-1] = f"{ranged(risen, 100)} ({100 * risen['oracle']:.1f})"
            lines.append(table_row(model, f"`{signal}`", *cells))
    return [*lines, "", made_by(result["machine"], note="one thread per model")]


def ranged(row: dict[str, Any], scale: int = 1) -> str:
    """A value with its interval; shares in percent."""
    digits, sign = (1, " %") if scale == 100 else (3, "")
    between = row["interval"] if "interval" in row else (row["low"], row["high"])
    low, high = (f"{scale * v:.{digits}f}" for v in between)
    return f"{scale * row['value']:.{digits}f}{sign} ({low} to {high})"
