"""Bundles about exact deletions: what they state, what follows from what, and each change refused with its reason."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from efface.reporting import exact
from efface.reporting.environment import Environment
from efface.reporting.exact import EXACT, exact_schema
from efface.reporting.exact_record import ExactCheck, ExactRecord, compose_exact_statements, describe_exact
from efface.reporting.predicates import PROVENANCE, SVR, TEST_RESULT
from efface.reporting.redaction import Items
from efface.reporting.refusals import Reason
from efface.reporting.signing import canonical_json, sign_statements
from efface.reporting.verify import verify_content
from tests.bundles import payload_of, reason_of, sealed, signer
from tests.records import SECRET, WHEN

SCHEMA = Path(exact.__file__).parent / "schemas" / "exact-deletion-v1.schema.json"
PASSED = ExactCheck(name="refit", what="fitted again", measured="difference 1e-16", passed=True, created=WHEN)
FAILED = PASSED.model_copy(update={"passed": False, "measured": "difference 0.1"})


def record(*checks: ExactCheck, kind: str = "head") -> ExactRecord:
    return ExactRecord(
        kind=kind,
        created=datetime(2026, 3, 14, tzinfo=UTC),
        method={"name": "heads.ridge", "penalty": 1.0},
        items=Items.of(["a.png", "b.png"], SECRET),
        original=("1" * 64, "2" * 64),
        unlearned=("3" * 64, "4" * 64),
        parts={"rows_before": 10, "rows_after": 8},
        source="5" * 64,
        environment=Environment(
            python="3.11.7", torch="", platform="Linux", cpu="Example", threads=1, packages="6" * 64
        ),
        checks=checks,
    )


@cache
def bundle(*checks: ExactCheck, kind: str = "head") -> bytes:
    made = record(*checks, kind=kind)
    stated = describe_exact(made, "7" * 64, request_id="DSR-1")
    return sign_statements(compose_exact_statements(stated, "head.json", made), signer())


def kinds(content: bytes) -> list[str]:
    return [payload_of(line)["predicateType"] for line in content.splitlines()]


@pytest.mark.parametrize("kind", ["head", "shards"])
def test_a_pass_is_certified_only_with_a_check_that_passed(kind):
    passed, failed, unchecked = bundle(PASSED, kind=kind), bundle(FAILED, kind=kind), bundle(kind=kind)
    assert kinds(passed) == [EXACT, TEST_RESULT, SVR, PROVENANCE]
    assert kinds(failed) == kinds(unchecked) == [EXACT, TEST_RESULT, PROVENANCE]
    words = {}
    for name, content in (("passed", passed), ("failed", failed), ("unchecked", unchecked)):
        assert reason_of(content) is None
        found = verify_content(content, signer().public_key)
        assert found.stated is not None
        words[name] = (found.stated.verdict.word, found.stated.outcome, found.stated.passes)
    assert words == {
        "passed": ("removed", "PASSED", True),
        "failed": ("residue", "FAILED", False),
        "unchecked": ("unchecked", "WARNED", False),
    }
    with pytest.raises(Exception, match=r"not_passed|unchecked"):
        verify_content(unchecked, signer().public_key, require_pass=True)


def test_the_packaged_schema_is_that_of_the_predicate_and_admits_what_is_signed():
    assert json.loads(SCHEMA.read_text()) == exact_schema()
    for content in (bundle(PASSED), bundle(FAILED), bundle()):
        Draft202012Validator(exact_schema()).validate(payload_of(content.splitlines()[0])["predicate"])


def resigned(number: int, change: Callable[[dict[str, Any]], object], *checks: ExactCheck) -> bytes:
    """A bundle in which the true key signed a changed statement."""
    lines = bundle(*checks).splitlines(keepends=True)
    content = payload_of(lines[number])
    change(content)
    lines[number] = sealed(canonical_json(content))
    return b"".join(lines)


@pytest.mark.parametrize(
    ("number", "change", "checks", "reason"),
    [
        (0, lambda one: one["predicate"].update(outOfScope=[]), (PASSED,), Reason.MISSING_OUT_OF_SCOPE),
        (0, lambda one: one["predicate"].update(more=1), (PASSED,), Reason.INVALID_PREDICATE),
        (0, lambda one: one["predicate"].update(goal="other"), (PASSED,), Reason.INVALID_PREDICATE),
        (0, lambda one: one["predicate"]["verdict"].update(word="removed"), (FAILED,), Reason.MISSING_STATEMENT),
        (0, lambda one: one["predicate"]["verdict"].update(word="residue"), (PASSED,), Reason.STATEMENTS_DISAGREE),
        (0, lambda one: one["predicate"].update(checks=[]), (PASSED,), Reason.STATEMENTS_DISAGREE),
        (0, lambda one: one["predicate"]["unlearned"].update(file="9" * 64), (PASSED,), Reason.SUBJECT_MISMATCH),
        (0, lambda one: one["predicate"]["original"].update(file="9" * 64), (PASSED,), Reason.STATEMENTS_DISAGREE),
        (0, lambda one: one["predicate"]["forgetSet"].update(count=3), (PASSED,), Reason.STATEMENTS_DISAGREE),
        (1, lambda one: one["predicate"].update(result="FAILED"), (PASSED,), Reason.STATEMENTS_DISAGREE),
        (1, lambda one: one["subject"][0]["digest"].update(sha256="9" * 64), (PASSED,), Reason.SUBJECT_MISMATCH),
        (2, lambda one: one["predicate"].update(properties=["X"]), (PASSED,), Reason.STATEMENTS_DISAGREE),
        (0, lambda one: one.update(predicateType="urn:other"), (PASSED,), Reason.UNKNOWN_PREDICATE),
    ],
)
def test_each_change_that_the_true_key_signed_has_its_reason(number, change, checks, reason):
    assert reason_of(resigned(number, change, *checks)) is reason


def test_statements_that_are_missing_moved_or_of_another_bundle_are_refused():
    lines = bundle(PASSED).splitlines(keepends=True)
    assert reason_of(b"".join(lines[1:])) is Reason.MISSING_STATEMENT
    assert reason_of(b"".join(lines[:2] + lines[3:])) is Reason.MISSING_STATEMENT
    assert reason_of(b"".join([lines[1], lines[0], *lines[2:]])) is Reason.WRONG_ORDER
    assert reason_of(b"".join([*lines, lines[0]])) is Reason.DUPLICATE_STATEMENT
    other = bundle(FAILED).splitlines(keepends=True)
    assert reason_of(b"".join([other[0], *lines[1:]])) is Reason.STATEMENTS_DISAGREE
    assert reason_of(bundle(PASSED), by="somebody") is Reason.WRONG_KEY


def test_500_random_changes_are_all_refused():
    draw, whole = random.Random(0), bundle(PASSED)
    for _ in range(500):
        place, kind = draw.randrange(len(whole)), draw.randrange(3)
        if kind == 0:
            changed = whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :]
        elif kind == 1:
            changed = whole[:place] + whole[place + draw.randrange(1, 40) :]
        else:
            changed = whole[:place] + whole[place : place + 9] + whole[place:]
        assert changed == whole or reason_of(changed) is not None
