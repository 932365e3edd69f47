"""The plane of forgotten against retained: it stands where the findings say, and its directions are right."""

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
    """Every margin whose collateral is measured."""
    names = by_name(Collateral().findings(evidence))
    return [n.removeprefix("collateral.").removesuffix(".auc") for n in names if n.endswith(".auc")]


@pytest.mark.parametrize("name", SEEN)
def test_the_unlearned_model_stands_where_the_findings_say(name: str):
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


def test_who_forgets_everybody_stands_higher_and_who_forgets_nobody_to_the_right():
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


def test_one_retrained_model_has_no_place_of_its_own_and_several_have():
    for evidence in SEEN.values():
        drawn = str(draw_forget_retain(evidence, signals_of(evidence)[:1], 0.05).plots[0].svg)  # pyright: ignore[reportOptionalMemberAccess]
        diamonds = drawn.count('class="mark oracle"')
        assert diamonds == (len(evidence.oracles) if len(evidence.oracles) > 1 else 0)
        assert drawn.count('class="mark subject"') == drawn.count('class="mark original"') == 1


def test_nothing_seen_of_the_retained_is_no_figure():
    evidence = next(iter(SEEN.values()))
    assert draw_forget_retain(evidence, ["no.such.signal"], 0.05) is None
