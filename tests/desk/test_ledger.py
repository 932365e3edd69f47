"""The ledger: states, idempotent requests, the chain, what is never in it; in SQLite and in PostgreSQL."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from efface.desk import LEGAL, RequestState, open_desk
from efface.desk.states import require_step
from efface.errors import EffaceError
from efface.reporting.redaction import hmac_digest

BOTH = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)


def everything(desk) -> str:
    """All that the ledger and its journal hold, as text."""
    tables = ("desk_events", "desk_requests", "desk_models", "desk_batches", "desk_artefacts")
    with desk.ledger.reading() as connection:
        found = [str(list(connection.execute(text(f"SELECT * FROM {name}")).mappings())) for name in tables]
    return "\n".join([*found, desk.ledger.journal.path.read_text()])


@BOTH
def test_the_same_request_twice_is_one_and_another_of_its_name_is_refused(desk, ids, tmp_path):
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(ids[:3]) + "\n")
    first = desk.add("DSR-1", listed, asked_by="A. Smith", received="2026-11-01")
    assert (first.state, first.received, first.deadline) == ("received", "2026-11-01T00:00:00Z", "2026-12-01")
    listed.unlink()
    assert desk.add("DSR-1", ids[2::-1], asked_by="A. Smith") == first
    assert len(desk.ledger.events("request DSR-1")) == 1
    for other in (
        {"forget": ids[:4], "asked_by": "A. Smith"},
        {"forget": ids[:3], "asked_by": "B. Smith"},
        {"forget": ids[:3], "asked_by": "A. Smith", "goal": "concept"},
        {"forget": ids[:3], "asked_by": "A. Smith", "deadline": "2026-12-02"},
        {"forget": ids[:3], "asked_by": "A. Smith", "received": "2026-11-02"},
    ):
        with pytest.raises(EffaceError, match="another request of the name DSR-1"):
            desk.add("DSR-1", **other)
    with pytest.raises(EffaceError, match="upper and lower case"):
        desk.add("dsr-1", ids[:3])
    assert desk.private.require_list("DSR-1").forget == tuple(ids[:3])


@BOTH
def test_neither_ids_nor_who_asked_are_in_the_ledger(desk, ids):
    desk.add("R1", ids[:5], asked_by="Ann Example <ann@example.org>")
    desk.plan(["R1"], {"method": "finetune"})
    held = everything(desk)
    assert "Ann" not in held and "example.org" not in held
    assert not [one for one in ids if f'"{one}"' in held or f"'{one}'" in held]
    secret = desk.private.key("R1")
    assert sorted(hmac_digest(secret, one) for one in ids[:5]) == json.loads(desk.rows(["R1"])[0]["items"])
    with pytest.raises(EffaceError, match="names one of the examples of R1, or who asked"):
        desk.refuse("R1", f"the picture '{ids[0]}' is not theirs")
    with pytest.raises(EffaceError, match="or who asked"):
        desk.refuse("R1", "not from ann example <ann@example.org>")


def test_private_files_can_be_read_by_their_owner_only(desk, ids):
    desk.add("R1", ids[:2])
    for path in (desk.private.key_path("R1"), desk.private.list_path("R1"), desk.ledger.journal.path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    desk.private.key_path("R1").chmod(0o644)
    with pytest.raises(EffaceError, match="Other users of this machine can read"):
        desk.private.key("R1")


@pytest.mark.parametrize("cut", ["replace", "open", "unlink"])
def test_a_key_whose_destruction_was_cut_is_gone_and_then_destroyed(desk, ids, monkeypatch, cut):
    desk.add("R1", ids[:2])
    secret = desk.private.key("R1")
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open" if cut == "open" else f"pathlib.Path.{cut}", lambda *words: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            desk.private.destroy_key("R1")
    assert desk.private.key("R1") == (secret if cut == "replace" else None)
    assert desk.private.destroy_key("R1") and not desk.private.destroy_key("R1")
    assert list((desk.home / "keys").iterdir()) == []


@BOTH
def test_with_its_key_destroyed_no_dictionary_finds_an_id_and_the_chain_is_whole(desk, ids):
    desk.add("R1", ids[:7])
    desk.plan(["R1"], {"method": "finetune"})
    values = set(json.loads(desk.rows(["R1"])[0]["items"]))
    secret = desk.private.key("R1")

    def found(keys):
        return {one for one in ids for key in keys if hmac_digest(key, one) in values}

    assert found([secret]) == set(ids[:7]), "the test itself can find them"
    assert desk.private.destroy_key("R1")
    left = everything(desk).encode() + b"".join(p.read_bytes() for p in desk.home.rglob("*") if p.is_file())
    assert secret.hex().encode() not in left and secret not in left
    guesses = [b"", b"R1", bytes.fromhex(desk.rows(["R1"])[0]["key_digest"]), bytes(32)]
    assert found(guesses) == set()
    check = desk.verify()
    assert check.valid and desk.show("R1").key == "destroyed"
    with pytest.raises(EffaceError, match="its key was destroyed"):
        desk.add("R1", ids[:7])


@pytest.mark.parametrize("before", RequestState)
@pytest.mark.parametrize("after", RequestState)
def test_only_legal_steps_are_taken(before, after):
    if after in LEGAL[before]:
        require_step("R", before, after)
    else:
        with pytest.raises(EffaceError, match=f"R is {before}, and cannot become {after}"):
            require_step("R", before, after)


def test_a_reason_is_needed_and_the_end_is_the_end(desk, ids):
    desk.add("R1", ids[:2])
    for decide in (desk.refuse, desk.withdraw, desk.discard):
        with pytest.raises(EffaceError, match="Nothing was said about why"):
            decide("R1", "  ")
    assert desk.withdraw("R1", "they changed their mind").state is RequestState.WITHDRAWN
    with pytest.raises(EffaceError, match="Nothing more happens"):
        desk.refuse("R1", "late")
    last = desk.ledger.events("request R1")[-1]
    assert (last.action, last.reason) == ("withdrawn", "they changed their mind")


CHANGES = {
    "event text": "UPDATE desk_events SET body = replace(body, 'received', 'Received') WHERE seq = 2",
    "event removed": "DELETE FROM desk_events WHERE seq = 2",
    "last event removed": "DELETE FROM desk_events WHERE seq = (SELECT max(seq) FROM desk_events)",
    "event filed elsewhere": "UPDATE desk_events SET subject = 'request R2' WHERE seq = 2",
    "digest": "UPDATE desk_events SET digest = replace(digest, substr(digest, 1, 1), 'z') WHERE seq = 3",
    "state": "UPDATE desk_requests SET state = 'released' WHERE id = 'R1'",
    "deadline": "UPDATE desk_requests SET deadline = '2030-01-01' WHERE id = 'R1'",
    "batch that no event set": "UPDATE desk_requests SET batch = 5 WHERE id = 'R1'",
    "request removed": "DELETE FROM desk_requests WHERE id = 'R1'",
    "head": "UPDATE desk_models SET head = '/elsewhere'",
    "artefact that no event made": "INSERT INTO desk_artefacts VALUES ('x','R1','key','p','removed','',0,'t')",
}


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_the_ledger_is_found(desk, ids, change):
    desk.add("R1", ids[:2])
    desk.add("R2", ids[2:4])
    assert desk.verify().valid
    with desk.ledger.engine.begin() as connection:
        assert connection.execute(text(CHANGES[change])).rowcount == 1
    assert not desk.verify().valid
    with pytest.raises(EffaceError, match="is not what was written"):
        desk.show("R2")


@BOTH
def test_requests_are_found_by_state_text_and_deadline(desk, ids):
    for number, day in enumerate(["2026-11-05", "2026-11-01", "2026-11-03"]):
        desk.add(f"R{number}", [ids[number]], received=day, deadline=f"2026-12-0{9 - number}")
    assert [one.id for one in desk.requests()] == ["R1", "R2", "R0"]
    assert [one.id for one in desk.requests(limit=1, offset=1)] == ["R2"]
    assert [one.id for one in desk.requests(search="r2")] == ["R2"] and desk.requests(search="%") == []
    desk.refuse("R1", "no such person")
    assert desk.counts()["refused"] == 1 and [one.id for one in desk.requests(state="refused")] == ["R1"]
    assert [one.id for one in desk.due(2, today="2026-12-06")] == ["R2"]
    assert [one.id for one in desk.due(3, today="2026-12-06")] == ["R2", "R0"]
    assert desk.due(30, today="2026-12-06")[0].days_left("2026-12-09") == -2
    with pytest.raises(EffaceError, match="no state called 'done'"):
        desk.requests(state="done")
    with pytest.raises(EffaceError, match="Did you mean 'R2'"):
        desk.show("R22")


def add_many(home: Path, url: str, first: str, ids: list[str]) -> None:
    with open_desk(home, url) as opened:
        for number, one in enumerate(ids):
            opened.add(f"{first}-{number}", [one])
            opened.add("shared", ids[:1])


@BOTH
def test_several_processes_write_one_chain(desk, ids):
    context = multiprocessing.get_context("spawn")
    url = desk.ledger.engine.url.render_as_string(hide_password=False)
    work = [context.Process(target=add_many, args=(desk.home, url, name, ids[:8])) for name in "abc"]
    for one in work:
        one.start()
    for one in work:
        one.join(60)
    assert [one.exitcode for one in work] == [0, 0, 0]
    assert len(desk.requests()) == 25 and desk.verify().valid
    assert [line.seq for line in desk.ledger.journal.lines()] == list(range(1, desk.verify().events + 1))


def test_a_ledger_behind_its_journal_is_refused_and_made_again_from_it(desk, ids, url):
    desk.add("R1", ids[:2])
    kept = Path(url).read_bytes()
    desk.add("R2", ids[2:4])
    desk.refuse("R1", "no such person")
    whole = desk.verify()
    desk.close()
    Path(url).write_bytes(kept)
    assert "restored from a backup" in desk.verify().problems[0]
    with pytest.raises(EffaceError, match="restored from a backup"):
        desk.add("R3", ids[4:6])
    assert [(one.what, one.request) for one in desk.replay()] == [("event lost", "R2"), ("event lost", "R1")]
    assert desk.replay(apply=True)[2:] == [] and desk.verify() == whole
    assert desk.request("R1").state is RequestState.REFUSED and desk.replay() == []


def test_a_journal_that_was_cut_is_completed(desk, ids):
    desk.add("R1", ids[:2])
    path = desk.ledger.journal.path
    whole = path.read_bytes()
    for size in (0, 1, len(whole) - 1, whole.index(b"\n") + 5):
        path.write_bytes(whole[:size])
        desk.ledger.catch_up()
        assert path.read_bytes() == whole
    path.unlink()
    desk.add("R2", ids[2:4])
    assert path.read_bytes().startswith(whole) and desk.verify().valid


def test_what_is_no_ledger_is_named(tmp_path):
    (tmp_path / "text").write_text("something else " * 100)
    for url, message in (
        (str(tmp_path / "text"), "cannot be used"),
        ("mysql://host/name", "cannot be in mysql"),
        ("postgresql://desk@127.0.0.1:1/none", "cannot be used"),
        ("nonsense://x", "cannot be in nonsense"),
        ("://", "names no ledger"),
    ):
        with pytest.raises(EffaceError, match=message):
            open_desk(tmp_path / "desk", url)


def test_a_ledger_of_a_later_format_is_refused(desk, url):
    with desk.ledger.engine.begin() as connection:
        connection.execute(text("UPDATE desk_format SET version = 2"))
    with pytest.raises(EffaceError, match=r"has format 2\. .* Upgrade"):
        open_desk(desk.home, url)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id": "../x"}, "cannot be called"),
        ({"id": ""}, "cannot be called"),
        ({"forget": "@nothing:3"}, "is no selector"),
        ({"forget": "nowhere.txt"}, "There is no file"),
        ({"forget": []}, "holds no ids"),
        ({"forget": ["a", "a"]}, "more than once"),
        ({"goal": "fun"}, "no goal called"),
        ({"model": "other"}, "no model called"),
        ({"deadline": "soon"}, "is no day"),
        ({"received": "2026-11-05", "deadline": "2026-11-04"}, "before the day"),
    ],
)
def test_a_wrong_request_leaves_nothing(desk, ids, values, message):
    with pytest.raises(EffaceError, match=message):
        desk.add(**({"id": "R1", "forget": ids[:2]} | values))
    assert desk.requests() == [] and not list((desk.home / "keys").glob("*")) if (desk.home / "keys").exists() else True


def test_listing_loads_neither_torch_nor_numpy(desk, ids, url, tmp_path):
    desk.add("R1", ids[:2])
    code = (
        "import sys; sys.argv = ['efface', 'request', 'list', '--desk', sys.argv[1], '--ledger', sys.argv[2]]\n"
        "from efface import cli\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'torch', 'numpy'} & set(sys.modules), 'heavy'"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    made = subprocess.run(
        [sys.executable, "-c", code, str(desk.home), url], env=environment, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("R1 ")


def test_a_desk_survives_a_move(desk, ids, url, tmp_path, original):
    desk.add("R1", ids[:2])
    desk.close()
    shutil.move(desk.home, tmp_path / "moved")
    with open_desk(tmp_path / "moved", url) as moved:
        assert moved.add("R1", ids[:2]).id == "R1" and moved.verify().valid
