"""What a signed bundle states, who may sign it, and the schema of our predicate."""

from __future__ import annotations

import copy
import hashlib
import json
import stat
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1 import statement_pb2

from efface.auditing.sequential import RequestSequence
from efface.auditing.verdict import EXIT_CODES
from efface.errors import EffaceError
from efface.reporting import predicates, signing
from efface.reporting.predicates import OUTCOMES, PROVENANCE, SVR, TEST_RESULT, Unlearning, derive_svr, expected_types
from efface.reporting.refusals import NOTHING_CHECKED, REASONS, Reason
from efface.reporting.statements import describe_unlearning
from efface.reporting.verify import Verification, verify_bundle
from tests import records
from tests.bundles import WEIGHTS, bundle, case, lines, payload_of, reason_of, resigned, sha256, signer, statements

SCHEMA = json.loads(resources.files("efface.reporting").joinpath("schemas/unlearning-v1.schema.json").read_text())


def stated(name: str, **changed: Any) -> Unlearning:
    record = case(name).record.model_copy(update=changed)
    return describe_unlearning(record, record.digest(), request_id="", release="audited")


def by_kind(name: str) -> dict[str, dict[str, Any]]:
    return {one["predicateType"]: one["predicate"] for one in map(payload_of, lines(name))}


# ---- what is stated ----


@pytest.mark.parametrize("name", sorted(set(records.CASES) - {"evil"}))
def test_every_audit_makes_a_good_bundle(name):
    assert reason_of(bundle(name)) is None
    record, found = case(name).record, by_kind(name)
    outcome = {0: "PASSED", 3: "FAILED", 4: "WARNED", 5: "FAILED"}[record.verdict.exit_code]
    assert found[TEST_RESULT]["result"] == outcome
    assert (SVR in found) == (record.verdict.word in ("removed", "validated"))
    ours = found[predicates.UNLEARNING]
    assert ours["forgetSet"]["count"] == len(case(name).ids)
    assert ours["record"]["sha256"] == record.digest()
    assert [one["name"] for one in ours["findings"]] == [one.name for one in record.findings]
    assert [one["interval"] for one in ours["findings"]] == [
        None if one.interval is None else list(one.interval) for one in record.findings
    ]
    assert set(record.verdict.limits) < set(ours["outOfScope"])
    assert found[PROVENANCE]["runDetails"]["byproducts"][0]["digest"] == {"sha256": record.digest()}


def test_every_verdict_word_has_an_outcome_and_two_alone_pass():
    assert {word for word in EXIT_CODES if OUTCOMES.get(word) == "PASSED"} == {"removed", "validated"}
    assert all(OUTCOMES.get(word, "WARNED") != "PASSED" for word in ("", "never heard of", "Removed", "removed "))


def test_nothing_in_a_bundle_names_the_forgotten():
    record = case("removed").record
    hidden = record.model_copy(
        update={
            "request": record.request.model_copy(update={"selector": "@group:anna"}),
            "data": record.data.model_copy(update={"name": "pictures of anna", "classes": ("anna", "berta")}),
            "config": {"forget": "@group:anna", "data": {"path": "/home/anna"}, "forget_seed": 7},
            "warnings": ("anna is in test too",),
            "split": record.split.model_copy(update={"seed": 424242}),
        }
    )
    made = describe_unlearning(hidden, record.digest(), request_id="DSR-1", release="audited")
    text = json.dumps([made.content(), *[one.content() for one in statements("removed")]])
    assert "anna" not in text and "424242" not in text and '"seed"' not in text
    for one in case("removed").ids:
        assert f'"{one}"' not in text and one not in text and hashlib.sha256(one.encode()).hexdigest() not in text
    assert record.items.values[0] not in text


def test_the_commitment_belongs_to_the_record():
    record, ours = case("removed").record, by_kind("removed")[predicates.UNLEARNING]["forgetSet"]
    values = "".join(f"{one}\n" for one in record.items.values)
    assert ours["valuesDigest"] == hashlib.sha256(values.encode()).hexdigest()
    assert ours["keyDigest"] == hashlib.sha256(records.SECRET).hexdigest()


def test_a_record_with_bare_ids_cannot_be_signed():
    made = case("removed")
    plain, _ = made.record.sealed(made.ids, plain_ids=True)
    with pytest.raises(EffaceError, match="bare ids"):
        describe_unlearning(plain, plain.digest(), request_id="", release="audited")


def test_an_unchecked_claim_is_stated_and_certifies_nothing():
    checkpoints = dict(case("removed").record.checkpoints)
    checkpoints["oracle 1"] = checkpoints["original"].model_copy(update={"claim": "that it never saw them"})
    made = stated("removed", checkpoints=checkpoints)
    assert (made.outcome, made.passes) == ("PASSED", False)
    assert SVR not in expected_types(made)
    assert [(one.about, one.claim) for one in made.claims] == [("oracle 1", "that it never saw them")]


def test_all_requests_together_can_only_make_the_outcome_worse():
    verdicts = {name: case(name).record.verdict for name in ("removed", "residue", "small")}
    found = {
        (one, other): stated(one, sequence=RequestSequence(steps=(), count=9, verdict=verdicts[other])).outcome
        for one in verdicts
        for other in verdicts
    }
    assert found["removed", "removed"] == "PASSED"
    assert found["removed", "small"] == found["small", "removed"] == found["small", "small"] == "WARNED"
    assert {found[pair] for pair in found if "residue" in pair} == {"FAILED"}
    none = stated("removed", sequence=RequestSequence(steps=(), count=9, note="the first original is gone"))
    assert (none.outcome, none.passes) == ("WARNED", False)


@pytest.mark.parametrize("name", ["removed", "residue", "oracles"])
def test_the_statements_are_read_by_the_official_in_toto_library(name):
    for line in lines(name):
        content = payload_of(line)
        read = json_format.ParseDict(content, statement_pb2.Statement())
        assert read.subject[0].digest["sha256"] == sha256(WEIGHTS[name])
        kinds = {TEST_RESULT: test_result_pb2.TestResult, PROVENANCE: provenance_pb2.Provenance}
        if content["predicateType"] in kinds:
            json_format.ParseDict(content["predicate"], kinds[content["predicateType"]]())


# ---- the verdict and its numbers ----


def signal(**changed: Any) -> dict[str, Any]:
    return {"signals": [{**one, **changed} for one in by_kind("removed")[predicates.UNLEARNING]["verdict"]["signals"]]}


@pytest.mark.parametrize(
    "numbers",
    [{"high": 0.56}, {"low": 0.44}, {"low": 0.52, "high": 0.48}, {"powered": False}, {"blinded": True}],
)
def test_removed_needs_numbers_that_carry_it(numbers):
    def lie(content: dict[str, Any]) -> None:
        content["predicate"]["verdict"].update(signal(**numbers))

    reason = reason_of(resigned("removed", 0, lie))
    expected = {Reason.VERDICT_CONTRADICTS_NUMBERS}
    assert reason in (expected | {Reason.STATEMENTS_DISAGREE} if "blinded" in numbers else expected)


def test_words_of_single_signals_must_fit():
    changed = {"verdict": stated("removed").verdict.model_copy(update={"word": "residue"})}
    assert "no signal is" in stated("removed").model_copy(update=changed).contradiction()
    mixed = [one.model_copy(update={"word": "inconclusive"}) for one in stated("removed").verdict.signals]
    changed = {"verdict": stated("removed").verdict.model_copy(update={"signals": tuple(mixed)})}
    assert "a signal is not" in stated("removed").model_copy(update=changed).contradiction()


# ---- the schema ----


def test_the_packaged_schema_is_the_one_of_the_code_and_valid():
    assert predicates.predicate_schema() == SCHEMA
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["outOfScope"]["minItems"] == 1


def altered(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in a JSON value, without most items of long lists."""
    inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in altered(one, (*path, key)))]


def test_schema_and_verifier_agree_on_every_altered_field():
    validator = jsonschema.Draft202012Validator(SCHEMA)
    ours = by_kind("removed")[predicates.UNLEARNING]
    ours["findings"] = ours["findings"][:1]
    assert validator.is_valid(ours)
    refused = 0
    for place in altered(ours)[1:]:
        for other in (None, "", " ", -1, 0.25, [], {}, True, "gone"):
            content = copy.deepcopy(ours)
            *above, last = place
            inside = content
            for step in above:
                inside = inside[step]
            if other == "gone":
                del inside[last]
            else:
                inside[last] = other
            valid = validator.is_valid(content)
            reason = reason_of(resigned("removed", 0, lambda s, c=content: s.update(predicate=c)))
            broken = reason in (Reason.INVALID_PREDICATE, Reason.MISSING_OUT_OF_SCOPE)
            assert valid != broken, (place, other, reason)
            refused += broken
    assert refused > 200


# ---- keys ----


def test_keys_are_private_and_never_replaced(tmp_path):
    path = tmp_path / "keys" / "release.pem"
    public = signing.create_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes(), public.read_bytes()
    for gone in (None, path, public):
        if gone is not None:
            kept = gone.read_bytes()
            gone.unlink()
        with pytest.raises(EffaceError, match="exists already"):
            signing.create_keys(path)
        if gone is not None:
            assert not gone.exists()
            gone.write_bytes(kept)
    path.chmod(0o600)
    assert (path.read_bytes(), public.read_bytes()) == before
    assert signing.load_signer(path).public_key == signing.load_public_key(public)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_private_key_that_others_can_use_is_refused(tmp_path, mode):
    signing.create_keys(tmp_path / "k.pem")
    (tmp_path / "k.pem").chmod(mode)
    with pytest.raises(EffaceError, match="Other users"):
        signing.load_signer(tmp_path / "k.pem")


def test_an_encrypted_key_needs_its_passphrase(tmp_path):
    signing.create_keys(tmp_path / "k.pem", b"open sesame")
    assert b"ENCRYPTED" in (tmp_path / "k.pem").read_bytes()
    for wrong, said in ((None, "is encrypted"), (b"", "is encrypted"), (b"open", "passphrase is wrong")):
        with pytest.raises(EffaceError, match=said):
            signing.load_signer(tmp_path / "k.pem", wrong)
    signer_ = signing.load_signer(tmp_path / "k.pem", b"open sesame")
    assert reason_of(signing.sign_statements(statements("removed"), signer_)) == Reason.WRONG_KEY


# ---- results ----


def test_files_that_are_not_there_or_of_another_kind_have_reasons(tmp_path):
    good, public = tmp_path / "b.intoto.jsonl", signing.create_keys(tmp_path / "k.pem")
    good.write_bytes(signing.sign_statements(statements("removed"), signing.load_signer(tmp_path / "k.pem")))
    weights = tmp_path / "w"
    weights.write_bytes(WEIGHTS["removed"])
    (tmp_path / "other").write_bytes(WEIGHTS["other"])
    huge = tmp_path / "huge"
    with open(huge, "wb") as file:
        file.truncate(10**10)
    for arguments, reason, code in (
        ((good, public, weights), None, 0),
        ((good, None, weights), Reason.NO_KEY, 2),
        ((good, tmp_path / "none", None), Reason.BAD_KEY, 2),
        ((good, tmp_path / "k.pem", None), Reason.BAD_KEY, 2),
        ((good, weights, None), Reason.BAD_KEY, 2),
        ((good, tmp_path, None), Reason.BAD_KEY, 2),
        ((tmp_path / "none", public, None), Reason.NO_BUNDLE, 2),
        ((tmp_path, public, None), Reason.NO_BUNDLE, 2),
        ((good, public, tmp_path / "none"), Reason.NO_WEIGHTS, 2),
        ((good, public, tmp_path), Reason.NO_WEIGHTS, 2),
        ((good, public, tmp_path / "other"), Reason.WEIGHTS_MISMATCH, 3),
        ((huge, public, None), Reason.TOO_LARGE, 3),
    ):
        found = verify_bundle(*arguments)
        assert (found.reason, found.exit_code) == (reason, code), arguments
        json.dumps(found.as_dict())


def test_what_was_checked_and_what_was_not_is_said(tmp_path):
    path, public = tmp_path / "b", signing.create_keys(tmp_path / "k.pem")
    (tmp_path / "w").write_bytes(WEIGHTS["removed"])
    path.write_bytes(signing.sign_statements(statements("removed"), signing.load_signer(tmp_path / "k.pem")))
    without, with_ = verify_bundle(path, public), verify_bundle(path, public, tmp_path / "w")
    assert any("--weights" in one for one in without.unchecked)
    assert not any("--weights" in one for one in with_.unchecked)
    assert len(with_.checked) == len(without.checked) + 1
    assert any("no trusted time" in one for one in with_.unchecked)


@pytest.mark.parametrize(("name", "reason"), [("removed", None), ("residue", "not_passed"), ("small", "not_passed")])
def test_a_pass_can_be_required(tmp_path, name, reason):
    path, public = tmp_path / "b", signing.create_keys(tmp_path / "k.pem")
    path.write_bytes(signing.sign_statements(statements(name), signing.load_signer(tmp_path / "k.pem")))
    assert verify_bundle(path, public).reason is None
    assert verify_bundle(path, public, require_pass=True).reason == reason


def test_every_reason_is_explained_and_has_its_exit_code():
    assert set(REASONS) == set(Reason)
    assert {one: Verification(one).exit_code for one in Reason} == {
        one: 2 if one in NOTHING_CHECKED else 3 for one in Reason
    }
    page = (Path(__file__).parents[2] / "docs" / "signed_bundle.md").read_text(encoding="utf-8")
    for reason, meaning in REASONS.items():
        assert f"| `{reason.value}` | {meaning} |" in page


def test_the_certificate_follows_from_the_evidence():
    assert by_kind("removed")[SVR] == derive_svr(stated("removed")).content()
    assert signer().public_key.keyid in bundle("removed").decode()
