"""The record: round trip, versions, damage, and that it contains no bare ids."""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from efface.auditing.evidence import Finding
from efface.errors import EffaceError
from efface.files import file_digest
from efface.reporting.environment import Environment
from efface.reporting.facts import LogFacts, PartChange
from efface.reporting.record import RECORD, SCHEMA, SCHEMA_VERSION, Record, contains_item, json_digest
from efface.reporting.redaction import KEY_FILE, Items, Redactor, read_key
from tests import records
from tests.records import SECRET, Moved


def unsealed(ids: list[str] | None = None, **changed) -> Record:
    """An unsealed record; ``ids`` sets the number of examples in the request."""
    record = records.blind().record
    request = record.request if ids is None else record.request.model_copy(update={"count": len(ids)})
    return record.model_copy(update={"items": Items(), "request": request, **changed})


@pytest.mark.parametrize("name", records.CASES)
def test_round_trip(name: str, tmp_path: Path):
    record = records.CASES[name]().record
    path = record.save(tmp_path, SECRET)
    again = Record.load(tmp_path)
    assert again.text() == record.text() == path.read_text(encoding="utf-8")
    assert (again.verdict, again.items, again.changes) == (record.verdict, record.items, record.changes)
    assert again.digest() == record.digest() == file_digest(path)
    assert again.verdict.exit_code == record.verdict.exit_code
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([KEY_FILE, RECORD, SCHEMA])


def test_the_saved_schema_accepts_the_record_and_describes_every_field(tmp_path: Path):
    jsonschema = pytest.importorskip("jsonschema")
    path = records.oracles().record.save(tmp_path, SECRET)
    schema, content = json.loads((tmp_path / SCHEMA).read_text()), json.loads(path.read_text())
    jsonschema.validate(content, schema)
    assert set(content) == set(schema["properties"])
    assert "keyed digests" in schema["$defs"]["Items"]["description"]
    content["verdict"]["word"] = "verified"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)


def test_membership_can_be_checked_only_with_the_key(tmp_path: Path):
    case = records.blind()
    case.record.save(tmp_path, SECRET)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert read_key(tmp_path / KEY_FILE) == SECRET
    assert contains_item(tmp_path / RECORD, case.ids[0]) and contains_item(tmp_path, case.ids[-1], tmp_path / KEY_FILE)
    assert not contains_item(tmp_path / RECORD, "train/99999") and not contains_item(tmp_path / RECORD, "")
    moved = tmp_path / "elsewhere.key"
    (tmp_path / KEY_FILE).rename(moved)
    with pytest.raises(EffaceError, match="no key at"):
        contains_item(tmp_path / RECORD, case.ids[0])
    moved.write_text("00" * 32)
    with pytest.raises(EffaceError, match="not the one of this record"):
        contains_item(tmp_path / RECORD, case.ids[0], moved)
    for broken in ("00", "no hexadecimal"):
        moved.write_text(broken)
        with pytest.raises(EffaceError, match="key"):
            contains_item(tmp_path / RECORD, case.ids[0], moved)


def test_digests_are_plain_hmac_so_that_any_tool_can_check_them():
    record, secret = unsealed(["a", "ü/b"]).sealed(["a", "ü/b"])
    assert secret is not None and len(secret) == 32
    assert set(record.items.values) == {hmac.new(secret, i.encode(), hashlib.sha256).hexdigest() for i in ("a", "ü/b")}


def test_every_record_has_its_own_secret():
    (one, first), (two, second) = (unsealed(["a"]).sealed(["a"]) for _ in range(2))
    assert first != second and one.items.values != two.items.values


def test_no_bare_id_is_anywhere_in_the_record(tmp_path: Path):
    ids = ["cats/tom.png", "photo of anna 1.jpg", "7", "p-1"]
    original = unsealed(
        ids,
        warnings=("'7' is a copy of cats/tom.png.", "7 copies: see (photo of anna 1.jpg), p-1!"),
        config={"forget": "@keys:7, p-1", "nested": [{"key": "7"}], "seed": 7, "ids": ids},
        findings=(Finding("m", 0.7, note="worst: p-1", details={"keys": ids, "change": [7.0]}),),
    )
    original = original.model_copy(
        update={
            "request": original.request.model_copy(update={"selector": "@keys:cats/tom.png,7,p-1"}),
            "split": original.split.model_copy(update={"warnings": ('no match for "7"',)}),
        }
    )
    record, secret = original.sealed(ids)
    text = record.text()
    for found in ("tom", "anna", "p-1", "'7'", '"7"', "keys:7", ",7", '\\"7\\"'):
        assert found not in text
    assert record.warnings[1].startswith("7 copies"), "a number that is not an id is kept"
    assert record.config["seed"] == 7 and record.findings[0].details["change"] == [7.0]
    assert record.request.selector.count("item:") == 3
    record.save(tmp_path, secret)
    assert all(contains_item(tmp_path, item) for item in ids)


def test_no_unkeyed_digest_confirms_a_guess_at_the_ids():
    plain = unsealed(["a"], split=records.removed().record.split.model_copy(update={"digest": "5" * 64}))
    record, _ = plain.sealed(["a"], secret=SECRET)
    expected = "hmac-sha256:" + hmac.new(SECRET, b"5" * 64, hashlib.sha256).hexdigest()
    assert record.split.digest == record.checkpoints["subject"].split == expected
    files = records.removed().record.files
    assert files["checkpoint.safetensors"] == "c" * 64 and files["split.json"].startswith("hmac-sha256:")
    assert record.config_digest == json_digest(record.config)
    again, _ = record.model_copy(update={"items": Items()}).sealed(["a"], secret=SECRET)
    assert again.split.digest == expected, "sealing twice keys once"


def test_plain_ids_only_on_request(tmp_path: Path):
    (tmp_path / KEY_FILE).write_text("of an earlier record")
    record, secret = unsealed(["b", "a"], config={"forget": "@keys:a,b"}).sealed(["b", "a"], plain_ids=True)
    assert secret is None and record.items.values == ("a", "b") and record.config["forget"] == "@keys:a,b"
    record.save(tmp_path)
    assert not (tmp_path / KEY_FILE).exists()
    assert contains_item(tmp_path, "a") and not contains_item(tmp_path, "c")


def test_records_that_cannot_be_saved(tmp_path: Path):
    with pytest.raises(EffaceError, match="counts 300 examples, but 1 ids"):
        unsealed().model_copy(update={"request": unsealed().request.model_copy(update={"count": 300})}).sealed(["a"])
    with pytest.raises(EffaceError, match="more than once"):
        unsealed(["a", "a"]).sealed(["a", "a"])
    with pytest.raises(EffaceError, match="cannot be saved"):
        unsealed(["a"]).save(tmp_path)
    record, _ = unsealed(["a"]).sealed(["a"])
    with pytest.raises(EffaceError, match="not the one of this record"):
        record.save(tmp_path, SECRET)
    with pytest.raises(EffaceError, match="cannot be saved"):
        record.save(tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is written when something is wrong"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused_with_its_path(value: float, tmp_path: Path):
    bad = (Finding("m", 0.5), Finding("m2", 0.5, details={"roc": {"fpr": [0.0, value]}}))
    with pytest.raises(EffaceError, match=r"findings\[1\]\.details\.roc\.fpr\[1\]"):
        unsealed(["a"], findings=bad).sealed(["a"])


def test_a_newer_schema_is_refused(tmp_path: Path):
    path = records.blind().record.save(tmp_path, SECRET)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"schema_version": SCHEMA_VERSION + 1, "new_field": 1}))
    with pytest.raises(EffaceError, match=f"newer efface: record schema {SCHEMA_VERSION + 1}.*Upgrade"):
        Record.load(path)


def test_damage_is_named(tmp_path: Path):
    path = tmp_path / RECORD
    with pytest.raises(EffaceError, match="no record at"):
        Record.load(path)
    good = records.blind().record.text()
    for text, message in (
        (good[:100], "cannot be read"),
        ("[]", "holds a list"),
        ("{}", "schema_version is None"),
        ('{"schema_version": true}', "schema_version is True"),
        (good.replace('"count": 200', '"count": "many"', 1), "request.count"),
        (good.replace('"inconclusive"', '"verified"'), "verdict.word"),
        (good.replace('"warnings"', '"warningz"', 1), "warningz"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(EffaceError, match=message):
            Record.load(path)


def test_small_parts():
    assert PartChange.of(Moved("twin", 5, 0.0, 0.0)).changed is False
    assert PartChange.of(Moved("head", 5, 0.0, 1e-9, "x")).changed is True
    here = Environment.current("9.9", 2)
    assert here.torch == "9.9" and here.threads == 2 and here.cpu and here.platform
    facts = LogFacts.of([
        {"step": 1, "phase": "a", "terms": {"t": 2.0}},
        {"step": 2, "phase": "a", "terms": {"t": 1.0}},
        {"step": 3, "terms": {"t": 7.0}},
    ])  # fmt: skip
    assert facts is not None and facts.steps == 3 and facts.phases == {"a": 2, "train": 1}
    assert facts.terms["a.t"].model_dump() == {
        "steps": 2, "first": 2.0, "last": 1.0, "lowest": 1.0, "highest": 2.0,
    }  # fmt: skip
    assert LogFacts.of([]) is None


def test_redaction_keeps_other_words():
    redact = Redactor({"a", "cat.png", "12"}, SECRET)
    assert redact("a concatenated cat.pngs 12 of 12") == "a concatenated cat.pngs 12 of 12"
    assert redact("see cat.png.") == f"see {redact.name('cat.png')}."
    assert redact("12") == redact.name("12") and redact({"12": None, "x": True}) == {"12": None, "x": True}


def test_no_torch():
    code = "import sys, efface.reporting.record; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
