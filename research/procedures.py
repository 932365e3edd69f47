"""What rehearsals show of several procedures, on every signal: one table row for each.

    efface references ORIGINAL --bank 8 --out bank
    efface unlearn ORIGINAL --forget @random:20 --method NAME --out run     (reference_matching: --bank bank)
    efface rehearse run --requests 29
    python -m research.procedures bank ORIGINAL-rehearsals/*               research/results/procedures.json

All are calibrated by the half of the bank that audits use where a method was given the other half.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from benchmarks.machine import machine, write_json
from research.paths import RESULTS

from efface import config
from efface.auditing import signals
from efface.auditing.attacks.learned import LearnedAttack, attach_scores, fit_attack
from efface.auditing.bank_file import load_bank
from efface.auditing.observations import Observations
from efface.auditing.pooled_placements import Rehearsal, pool_placements
from efface.auditing.reference_bank import ReferenceBank
from efface.runs.rehearsal_plan import RehearsalPlan
from efface.unlearning.methods import METHODS

SHOWN = ("margin", "alignment", "norm")
app = typer.Typer(add_completion=False)


def name_method(settings: dict[str, Any]) -> str:
    """The method's name, and the settings in which it differs from its defaults."""
    name = str(settings["name"])
    usual = config.dump(METHODS[name]())
    changed = [
        f"{key} {value:g}" for key, value in settings.items() if isinstance(value, float) and value != usual[key]
    ]
    return ", ".join([name, *changed])


def pool_signals(home: Path, half: ReferenceBank, attack: LearnedAttack | None) -> dict[str, Any]:
    """Pool the rehearsals of a folder on every signal, forgotten and retained examples, with 90 % intervals."""
    made: list[Rehearsal] = []
    for file in sorted(home.glob("rehearsal-*.npz")):
        observed = Observations.load(file)
        references = half.calibrate(observed)
        made.append(Rehearsal(observed if attack is None else attach_scores(attack, observed, references), references))
    return pool_rehearsals(made, float(np.median([one.observed.meta["cost"]["seconds"] for one in made])))


def pool_rehearsals(made: Sequence[Rehearsal], seconds: float) -> dict[str, Any]:
    """The same of rehearsals that are at hand; ``seconds``: what one of them took."""
    row: dict[str, Any] = {
        "requests": len(made),
        "examples": len(set[str]().union(*(one.observed.of("forget", "keys").tolist() for one in made))),
        "seconds": round(seconds, 2),
    }
    for name in [f"{space}.{kind}" for space in made[0].observed.spaces for kind in SHOWN] + [signals.LEARNED]:
        if all(signals.has_signal(one.observed, "forget", name) for one in made):
            row[name] = [round(value, 4) for value in pool_placements(made, name).interval(0.9)]
            row[f"{name} of the retained"] = round(pool_placements(made, name, "retain").value, 4)
    return row


@app.command()
def main(
    bank: Annotated[Path, typer.Argument(help="The reference bank.")],
    homes: Annotated[list[Path], typer.Argument(help="Folders of rehearsals, finished or not.")],
) -> None:
    """Pool the rehearsals that are there, and write the table's numbers."""
    half = load_bank(bank).part_for("audit")
    attack = fit_attack(half)
    rows: list[dict[str, Any]] = []
    for home in homes:
        plan = RehearsalPlan.load(home)
        about = {"method": name_method(plan.method), "kind": plan.describe_kind()}
        rows.append(about | pool_signals(home, half, attack))
        print(rows[-1], flush=True)
    write_json(RESULTS / "procedures.json", {
        "made by": "python -m research.procedures BANK REHEARSALS...",
        "bank": {"models": half.models, "share": half.meta.get("share")}, "rows": rows, **machine(),
    })  # fmt: skip


if __name__ == "__main__":
    app()
