"""The forget-retain figure agrees with the findings, and its axes point in the right directions."""

from __future__ import annotations

import pytest

from efface.auditing.audits.collateral import Collateral
from efface.auditing.audits.membership import Membership
from efface.auditing.evidence import Evidence
from efface.reporting.figures import audit
from efface.reporting.figures.forget_retain import draw_forget_retain, forget_retain_point
from tests import records
from tests.worlds import World, by_name

CASES = {name: audit.build_evidence(make().observations) for name, make in records.CASES.items()}
SEEN = {name: evidence for name, evidence in CASES.items() if evidence is not None}


def signals_of(evidence: Evidence) -> list[str]:
    """Every signal whose collateral damage was measured."""
    names = by_name(Collateral().findings(evidence))
    return [n.removeprefix("collateral.").removesuffix(".auc") for n in names if n.endswith(".auc")]


@pytest.mark.parametrize("name", SEEN)
def test_the_unlearned_model_is_drawn_where_the_findings_say(name: str):
    evidence = SEEN[name]
    collateral = by_name(Collateral().findings(evidence))
    member = by_name(Membership().findings(evidence))
    who, form = ("oracle", ".calibrated.auc") if evidence.oracles else ("original", ".auc")
    assert signals_of(evidence)
    for signal in signals_of(evidence):
        at = forget_retain_point(evidence, evidence.subject, evidence.oracles, signal)
        assert at is not None
        assert at[0] == pytest.approx(member[f"membership.{signal}{form}"].value)
        assert at[1] == pytest.approx(-(collateral[f"collateral.{signal}.vs_{who}"].value or 0))


def test_forgetting_everything_is_higher_and_forgetting_nothing_is_further_right():
    world = World(7, forget=400, holdout=400)
    many = (world.oracle(1), world.oracle(2))

    def at(forget: float, retain: float) -> tuple[float, float]:
        subject = world.model("subject", {"forget": forget, "retain": retain})
        evidence = Evidence(world.original(), subject, many)
        found = forget_retain_point(evidence, subject, many, signals_of(evidence)[0])
        assert found is not None
        return found

    exact, everybody, nobody = at(0.0, 1.0), at(0.0, 0.0), at(1.0, 1.0)
    assert everybody[1] > exact[1] + 0.1
    assert abs(everybody[0] - exact[0]) < 0.1
    assert nobody[0] > exact[0] + 0.1
    assert abs(nobody[1] - exact[1]) < 0.1


def test_retrained_models_are_drawn_only_if_there_are_several():
    for evidence in SEEN.values():
        drawn = str(draw_forget_retain(evidence, signals_of(evidence)[:1], 0.05).plots[0].svg)  # pyright: ignore[reportOptionalMemberAccess]
        diamonds = drawn.count('class="mark oracle"')
        assert diamonds == (len(evidence.oracles) if len(evidence.oracles) > 1 else 0)
        assert drawn.count('class="mark subject"') == drawn.count('class="mark original"') == 1


def test_no_figure_without_observations_of_retained_examples():
    evidence = next(iter(SEEN.values()))
    assert draw_forget_retain(evidence, ["no.such.signal"], 0.05) is None
