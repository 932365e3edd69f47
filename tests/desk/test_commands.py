"""The verbs of the desk on the command line: one request from receipt to erasure, exit codes, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import JUDGED, refused

PLAN = [
    "--method", "finetune", "--device", "cpu", "--set", "method.epochs=1",
    "--set", "audit.watch={views: 2, gradient: false, bank: 20, cap: 20, test_cap: 20}",
]  # fmt: skip


@pytest.fixture
def request_(tmp_path, efface, original):
    """Call a verb of the desk; returns its exit code, its JSON result, and standard error."""

    def call(verb, *words, place="request"):
        answer = efface(*([place, verb] if place else [verb]), *words, "--desk", tmp_path / "desk", "--json")
        assert "Traceback" not in answer[2]
        return answer[0], json.loads(answer[1].splitlines()[-1]) if answer[1] else {}, answer[2]

    assert call("model", original)[0] == 0
    return call


def test_one_request_from_receipt_to_erasure(request_, efface, ids, tmp_path):
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(ids[:4]))
    add = [
        "DSR-1",
        "--forget",
        listed,
        "--asked-by",
        "A. Smith",
        "--received",
        "2026-11-01",
        "--deadline",
        "2099-01-01",
    ]
    for _ in range(2):
        code, result, _ = request_("add", *add)
        assert (code, result["state"], result["deadline"]) == (0, "received", "2099-01-01")
    code, _, err = request_("add", "DSR-1", "--forget", "@class:3")
    assert code == 2 and "another request of the name DSR-1" in err
    code, plan, _ = request_("plan", "DSR-1", *PLAN)
    assert (code, plan["counts"], plan["settings"]["method"]["epochs"]) == (0, {"DSR-1": 4}, 1)
    code, made, _ = request_("run")
    assert code == made["exit_code"] and code in JUDGED
    assert efface("keys", "new", tmp_path / "k.pem")[0] == 0
    code, released, _ = request_("release", "DSR-1", "--key", tmp_path / "k.pem", "--reason", "tested")
    assert code == 0 and Path(released["bundles"]["DSR-1"]).exists()
    assert efface("verify", released["bundles"]["DSR-1"], "--key", tmp_path / "k.pub.pem")[0] == 0
    code, shown, _ = request_("show", "DSR-1")
    assert (code, shown["asked_by"], [one["action"] for one in shown["events"]]) == (
        0, "A. Smith", ["received", "planned", "unlearned", "audited", "released"],
    )  # fmt: skip
    assert request_("export", "DSR-1", "--out", tmp_path / "out.zip")[0] == 0 and (tmp_path / "out.zip").exists()
    refused(efface("request", "export", "DSR-1", "--out", tmp_path / "out.zip", "--desk", tmp_path / "desk"), "exists")
    code, erased, _ = request_("erase", "DSR-1", "--dry-run", place="")
    assert code == 3 and {one["outcome"] for one in erased["artefacts"]} >= {"removed", "listed"}
    assert request_("erase", "DSR-1", "--key", tmp_path / "k.pem", place="")[0] == 3
    code, shown, _ = request_("show", "DSR-1")
    assert shown["asked_by"] == "" and shown["bundle"].endswith(".erased.intoto.jsonl")
    assert efface("verify", shown["bundle"], "--key", tmp_path / "k.pub.pem")[0] == 0
    assert request_("verify")[0] == 0 and request_("replay")[0] == 0


def test_lists_and_deadlines(request_, ids):
    request_("add", "A", "--forget", f"@keys:{ids[0]}", "--received", "2026-01-01", "--deadline", "2026-01-31")
    request_("add", "B", "--forget", f"@keys:{ids[1]}", "--received", "2026-01-02", "--deadline", "2099-01-31")
    code, result, _ = request_("due")
    assert code == 3 and [one["id"] for one in result["requests"]] == ["A"]
    assert result["requests"][0]["days_left"] < 0
    assert request_("withdraw", "A", "--reason", "they changed their mind")[0] == 0
    assert request_("due")[0] == 0
    code, result, _ = request_("list", "--state", "withdrawn")
    assert [one["id"] for one in result["requests"]] == ["A"] and result["counts"]["received"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "none"], "no request called 'none'"),
        (["add", "../up", "--forget", "@class:3"], "cannot be called"),
        (["add", "A", "--forget", "nowhere.txt"], "There is no file"),
        (["add", "A", "--forget", "@class:3", "--goal", "fun"], "no goal called"),
        (["add", "A", "--forget", "@class:3", "--received", "yesterday"], "is no time"),
        (["plan", "none", "--method", "finetune"], "no request called"),
        (["run"], "No request about 'main' is planned"),
        (["run", "--model", "other"], "no model called 'other'"),
        (["refuse", "none", "--reason", "x"], "no request called"),
        (["list", "--state", "done"], "no state called"),
        (["list", "--due-by", "soon"], "is no day"),
        (["list", "--ledger", "mysql://host/x"], "cannot be in mysql"),
        (["model", "nowhere"], "There is no checkpoint at nowhere"),
    ],
)
def test_bad_input_is_refused_by_name(request_, efface, tmp_path, words, message):
    assert (tmp_path / "desk" / "ledger.sqlite").exists()
    refused(efface("request", *words, "--desk", tmp_path / "desk"), message)


def test_a_desk_in_a_file_is_refused(efface, tmp_path):
    (tmp_path / "file").write_text("x")
    refused(efface("request", "list", "--desk", tmp_path / "file"), "There is no desk at")
    refused(efface("request", "list", "--desk", tmp_path), "There is no ledger at")
    refused(efface("request", "add", "A", "--forget", "@class:3", "--desk", tmp_path / "new"), "There is no desk at")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
