"""Who asked is not in the record: names of groups and lists, and seeds of draws."""

from __future__ import annotations

import json
from typing import Any

import pytest

from efface.reporting.record import Record
from efface.reporting.redaction import hmac_digest
from efface.reporting.request_redaction import hide_selector
from tests import records

SECRET = records.SECRET


def sealed(selector: str, **changed: Any) -> Record:
    made = records.blind()
    plain = made.record
    request = plain.request.model_copy(update={"selector": selector})
    config = {"forget": selector, "seed": 7, "forget_seed": 7, "note": f"asked by '{selector}'"}
    fields: dict[str, Any] = {"request": request, "config": config, "split": plain.split.model_copy(update={"seed": 7})}
    subject = plain.checkpoints["subject"].model_copy(update={"seed": 7})
    fields["checkpoints"] = plain.checkpoints | {"subject": subject}
    fields["warnings"] = ("The holdout has too few examples: 'anna' (3), 'ben' (1).", "Of 'carl' nothing is said.")
    again, _ = plain.model_copy(update=fields | changed).sealed(made.ids, secret=SECRET)
    return again


def keyed(name: str) -> str:
    return f"name:{hmac_digest(SECRET, name)[:12]}"


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("@group:anna", ["anna"]),
        ("@group:anna, ben", ["anna", "ben"]),
        ("/lists/of people/anna.txt", ["anna"]),
        ("@memorized:10%:/home/anna.csv", ["anna"]),
    ],
)
def test_names_are_keyed_wherever_they_stand(selector: str, names: list[str]):
    record = sealed(selector)
    text = record.text()
    for name in names:
        assert f"'{name}'" not in text and f":{name}" not in text and f"/{name}" not in text
        assert keyed(name) in record.request.selector and keyed(name) in record.warnings[0]
        assert keyed(name) in str(record.config["forget"]) and keyed(name) in str(record.config["note"])
    assert record.warnings[1] == "Of 'carl' nothing is said."
    assert record.split.seed == 7, "nothing was drawn with it"


def test_the_same_name_has_the_same_digest_and_its_kind_is_still_told():
    assert hide_selector("@group:anna", SECRET) == f"@group:{keyed('anna')}"
    assert hide_selector("ids/anna.csv", SECRET) == f"{keyed('anna')}.csv"
    assert hide_selector("@class:cat", SECRET) == "@class:cat"
    assert hide_selector("@group:anna", bytes(32)) != hide_selector("@group:anna", SECRET)


def test_no_seed_of_a_draw_is_left():
    record = sealed("@random:0.1")
    assert record.split.seed is None and record.checkpoints["subject"].seed is None
    assert "7" not in (str(record.config["seed"]), str(record.config["forget_seed"]))
    assert record.request.selector == "@random:0.1"
    assert json.loads(record.text())["config"]["seed"].startswith("hmac-sha256:")


def test_plain_records_keep_everything():
    made = records.blind()
    record, _ = made.record.model_copy(
        update={"request": made.record.request.model_copy(update={"selector": "@group:anna"})}
    ).sealed(made.ids, plain_ids=True)
    assert record.request.selector == "@group:anna"
