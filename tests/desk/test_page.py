"""The page of the desk: who may use it, what it shows, and one request from receipt to erasure."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("starlette", reason="the extra desk is not installed")
pytest.importorskip("multipart", reason="the extra desk is not installed")

from efface.desk import RequestState
from efface.desk.page import PageSettings
from efface.desk.page.guard import POLICY
from efface.desk.page.pages import method_names
from efface.desk.page.rendering import mark_commands
from efface.desk.page.work import DeskWorker, WorkStatus, write_status
from efface.desk.page.worker import _act
from efface.errors import EffaceError
from efface.reporting.signing import create_keys, load_signer, public_key_path
from efface.training.networks import own_module
from tests.desk.conftest import QUICK
from tests.desk.pages import ADDRESS, PageUser, words

PATHS = ("/", "/add", "/models", "/models/main", "/verify", "/ledger", "/work", "/requests/R1", "/static/page.css")
FORMS = (
    "/add", "/verify", "/ledger", "/work/stop",
    *(f"/requests/R1/{one}" for one in ("plan", "run", "release", "discard", "refuse", "withdraw", "look", "erase")),
)  # fmt: skip
HOSTILE = "<script>alert(1)</script>\"'&{{ 7777777*7 }}"


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("key") / "release.pem"
    create_keys(path)
    return path


@pytest.fixture
def user(desk, key) -> PageUser:
    return PageUser(desk, PageSettings(load_signer(key), public_key_path(key), QUICK, "ops")).open()


@pytest.fixture
def stranger(user) -> PageUser:
    user.client.cookies.clear()
    return user


def test_without_the_token_nothing_is_shown(stranger, desk, ids):
    desk.add("R1", ids[:2])
    for path in (*PATHS, "/nowhere"):
        for address in (path, f"{path}?token=wrong", f"{path}?token=", f"{path}?token=%C3%A9"):
            answer = stranger.client.get(address)
            assert answer.status_code == 401 and "R1" not in answer.text and "set-cookie" not in answer.headers
    stranger.client.cookies.set("efface-desk-8600", "wrong")
    assert {stranger.client.get(path).status_code for path in PATHS} == {401}


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(stranger):
    answer = stranger.client.get(f"/models?token={stranger.known.token}&x=1", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/models?x=1")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and stranger.known.token.lower() not in cookie
    away = stranger.client.get(f"//evil.example/%2e?token={stranger.known.token}", follow_redirects=False)
    assert not away.headers.get("location", "/x").startswith("//")


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({"origin": "https://evil.example"}, {}),
        ({"origin": "null"}, {}),
        ({"origin": "http://127.0.0.1:8601"}, {}),
        ({"origin": "http://127.0.0.1.evil.example:8600"}, {}),
        ({}, {}),
        ({"origin": ADDRESS, "sec-fetch-site": "cross-site"}, {}),
        ({"origin": ADDRESS}, {"form": "wrong"}),
        ({"origin": ADDRESS}, {"form": ""}),
    ],
)
def test_a_form_from_elsewhere_is_refused(user, desk, ids, headers, fields):
    desk.add("R1", ids[:2])
    before = len(desk.ledger.events())
    for path in FORMS:
        sent = {"form": user.known.form, "reason": "x", "sure": "1", **fields}
        assert user.client.post(path, data=sent, headers=headers).status_code == 403, path
    assert len(desk.ledger.events()) == before and user.worker.status() is None


def test_every_form_of_the_application_is_among_those_that_are_tried(user):
    posts = {route.path for route in user.app.app.routes if "POST" in route.methods}  # pyright: ignore
    assert {path.replace("R1", "{id}") for path in FORMS} == posts


def test_another_name_of_the_host_is_refused(user):
    for host in ("evil.example", "evil.example:8600", "127.0.0.1:1", "127.0.0.1", "127.0.0.1:8600.evil.example", ""):
        assert user.client.get("/", headers={"host": host}).status_code == 421


def test_the_browser_is_told_to_load_nothing_from_elsewhere(user, desk, ids):
    desk.add("R1", ids[:2])
    assert "unsafe" not in POLICY
    for path in (*PATHS, "/nowhere", "/requests/nobody", "/models/nobody", "/static/nothing.css", "/?show=nonsense"):
        answer = user.client.get(path)
        assert answer.status_code == (404 if re.search("no(where|body|thing|nsense)", path) else 200), path
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["cache-control"] == "no-store" and answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"""(?:src|href|action)=["'](?:https?:)?//""", answer.text)
        assert not re.search(r"<[^>]* (?:style|on\w+)=|<style|<script>", answer.text)


def test_other_methods_are_refused(user):
    for method in ("PUT", "DELETE", "PATCH"):
        assert user.client.request(method, "/", headers={"origin": ADDRESS}).status_code == 405


def test_what_people_wrote_is_shown_and_not_run(user, desk, ids):
    user.send("/add", id="R1", model="main", goal="individual", forget="\n".join(ids[:2]), asked_by=HOSTILE)
    user.send("/requests/R1/refuse", reason=HOSTILE.replace("script", "img"))
    for path in ("/requests/R1", "/requests/%3Cscript%3E", "/?show=all&search=%3Cscript%3E%22", "/?show=%3Cscript%3E"):
        page = user.client.get(path).text
        assert "<script" not in page and "<img" not in page and "54444439" not in page
    assert HOSTILE in words(user.get("/requests/R1").replace("&lt;", "&amp;lt;").replace("&gt;", "&amp;gt;")).replace(
        "&lt;", "<"
    ).replace("&gt;", ">")
    wrong = user.send("/add", 400, id=HOSTILE, model="main", goal="individual", forget="a")
    assert "<script" not in wrong and "cannot be called" in words(wrong) and 'value="&lt;script&gt;' in wrong


def test_what_is_wrong_is_said_and_what_was_entered_is_kept(user, ids):
    page = user.send(
        "/add", 400, id="R1", model="main", goal="individual", forget=f"{ids[0]}\n{ids[0]}", asked_by="Ann"
    )
    assert "listed more than once" in words(page) and ids[0] in page and 'value="Ann"' in page
    assert "holds no ids" in words(user.send("/add", 400, id="R1", model="main", goal="individual", forget=""))
    assert "is no day" in words(
        user.send("/add", 400, id="R1", model="main", goal="individual", forget=ids[0], deadline="soon")
    )
    sent = {"file": ("ids.txt", "\n".join(ids[:3]).encode())}
    assert "One of them is meant" in words(user.send("/add", 400, sent, id="R1", model="main", forget=ids[0]))
    assert "R1" in user.send("/add", files=sent, id="R1", model="main", goal="individual")
    assert "Nothing was said about why" in words(user.send("/requests/R1/withdraw", 400, reason=" "))


def test_states_and_deadlines_in_the_inbox(user, desk, ids):
    assert "There is no request yet" in user.get("/")
    for number, name in enumerate(("late", "soon", "far", "gone")):
        deadline = {"late": "2026-01-31", "far": "2099-01-01"}.get(name)
        desk.add(name, [ids[number]], received="2026-01-01", deadline=deadline or "2099-12-31")
    desk.refuse("gone", "no such person")
    page = user.get("/")
    assert all(f"/requests/{name}" in page for name in ("late", "soon", "far")) and "/requests/gone" not in page
    assert re.search(r"\d+ days late", words(page))
    due = user.get("/?show=due")
    assert "/requests/late" in due and "/requests/far" not in due
    assert "/requests/gone" in user.get("/?show=refused") and "/requests/gone" in user.get("/?show=all&search=GO")
    assert "Nothing was found" in user.get("/?search=nobody") and "Nothing was found" in user.get("/?page=99")
    for page in ("0", "-1", "x", "9" * 30, "²"):
        assert "/requests/late" in user.get(f"/?page={page}")


def test_the_inbox_goes_page_by_page(user, desk, ids):
    for number in range(51):
        desk.add(f"R{number:02}", [ids[number]], received=f"2026-01-01T00:00:{number:02}Z")
    first, second = user.get("/"), user.get("/?page=2")
    assert "/requests/R49" in first and "/requests/R50" not in first and 'rel="next"' in first
    assert "/requests/R50" in second and 'rel="prev"' in second and 'rel="next"' not in second


def test_one_request_from_receipt_to_erasure(user, desk, ids, key):
    user.send("/add", id="R1", model="main", goal="individual", forget="\n".join(ids[:6]), asked_by="A. Smith")
    user.send("/add", id="R2", model="main", goal="individual", forget="\n".join(ids[4:8]))
    assert "Make the plan" in user.get("/requests/R1")
    user.send("/requests/R1/plan", method="finetune", bank="nowhere/bank")
    user.finish()
    assert "There is no reference at nowhere/bank" in words(user.get("/requests/R1"))
    user.send("/requests/R1/plan", method="finetune", beside="R2")
    user.finish()
    page = user.get("/requests/R1")
    assert "8 training examples; 112 stay" in words(page) and "Nothing has been changed yet" in words(page)
    assert desk.batches() == [], "a plan changes nothing"
    user.send("/requests/R2/run")
    going = user.get("/requests/R1")
    assert "going on" in words(going) or "is done" in words(going)
    user.finish()
    assert {desk.request(one).state for one in ("R1", "R2")} == {RequestState.AUDITED}
    page, batch = user.get("/requests/R1"), desk.batch(1)
    assert f"Verdict of the audit: {batch.verdict['word']}" in words(page).replace(" .", ".")
    path = Path(batch.folder) / "report.html"
    whole = path.read_bytes()
    path.write_bytes(whole + b" ")
    assert "It was edited or replaced" in words(user.get("/requests/R1/report", 400))
    path.write_bytes(whole)
    report = user.client.get("/requests/R1/report")
    assert report.status_code == 200 and "sandbox" in report.headers["content-security-policy"]
    if batch.verdict["exit_code"]:
        assert "Give a reason" in words(user.send("/requests/R1/release", 400))
    user.send("/requests/R1/release", reason="tested")
    assert {desk.request(one).state for one in ("R1", "R2")} == {RequestState.RELEASED}
    archive = user.client.get("/requests/R1/archive")
    assert archive.headers["content-disposition"] == 'attachment; filename="R1.zip"'
    with zipfile.ZipFile(io.BytesIO(archive.content)) as opened:
        assert {"bundle.intoto.jsonl", "report.html", "request.json"} <= set(opened.namelist())
    look = user.send("/requests/R1/look", places="", remove_models="1")
    assert "nothing has been changed" in words(look) and desk.artefacts("R1") == []
    assert "was not ticked" in words(user.send("/requests/R1/erase", 400)) and desk.artefacts("R1") == []
    user.send("/requests/R1/erase", sure="1")
    assert "Removed : forget list" in words(user.get("/requests/R1"))
    history = words(user.get("/models/main"))
    assert "Batch 1: released (the newest model)" in history
    assert "is whole" in user.send("/ledger")
    signed = user.client.get("/requests/R1/bundle").content
    assert signed == desk.amended_path("R1").read_bytes(), "with the outcomes of erasing"
    weights = (Path(batch.folder) / "checkpoint.safetensors").read_bytes()
    good = user.send("/verify", files={"bundle": ("b.jsonl", signed), "weights": ("w", weights)})
    assert "The bundle is good" in good and "about request R1" in words(good)
    assert "weights_mismatch" in user.send("/verify", files={"bundle": ("b", signed), "weights": ("w", b"x")})
    assert "truncated" in user.send("/verify", files={"bundle": ("b", signed[:-1])})
    assert "No bundle was chosen" in user.send("/verify", 400)
    bad_key = {"bundle": ("b", signed), "key": ("k.pem", b"not a key")}
    assert "Nothing was checked" in user.send("/verify", files=bad_key)
    create_keys(key.with_name("other.pem"))
    other = public_key_path(key.with_name("other.pem")).read_bytes()
    assert "is refused" in user.send("/verify", files={"bundle": ("b", signed), "key": ("k.pem", other)})


def test_what_fails_in_the_worker_is_said_on_the_page(user, desk, ids):
    desk.add("R1", [ids[0], "nowhere/nothing.png"])
    user.send("/requests/R1/plan", method="finetune")
    user.finish()
    page = words(user.get("/requests/R1"))
    assert "The plan failed" in page and "What to do" in page
    assert desk.request("R1").state is RequestState.RECEIVED


def test_commands_in_advice_are_code_and_all_else_is_escaped():
    assert mark_commands("Run `efface <x>` & wait") == "Run <code>efface &lt;x&gt;</code> &amp; wait"
    assert mark_commands("one ` alone <b>") == "one ` alone &lt;b&gt;"


def test_the_methods_that_are_offered_are_those_that_there_are():
    from efface.unlearning.methods import METHODS

    assert set(method_names()) >= set(METHODS) and len(method_names()) >= 19


def test_a_page_without_a_key_does_not_release(desk, ids):
    user = PageUser(desk).open()
    desk.add("R1", ids[:2])
    assert "started without a key" in words(user.send("/requests/R1/release", 400))
    assert "no public key" in words(user.send("/verify", files={"bundle": ("b", b"x")}))


def status_of(**changes) -> WorkStatus:
    given = {
        "action": "run",
        "requests": ("R1",),
        "process": 2**22 + 5,
        "state": "running",
        "began": "2026-01-01T00:00:00Z",
    }
    return WorkStatus.model_validate(given | changes)


def test_work_whose_process_was_killed_is_shown_as_cut(user, desk, ids):
    desk.add("R1", ids[:2])
    user.worker.folder.mkdir()
    write_status(user.worker.folder, status_of(message="step 3", step=3, steps=10))
    assert (user.worker.folder / "work.json").stat().st_mode & 0o77 == 0
    found = DeskWorker(desk.home, "").status()
    assert found is not None and found.state == "cut"
    assert "The run was cut" in words(user.get("/requests/R1"))
    with pytest.raises(EffaceError, match="Nothing is going on"):
        user.worker.stop()


def test_consent_to_a_network_of_the_users_own_goes_along(tmp_path, monkeypatch):
    """`efface desk --model their_net:build`: the process that plans and runs may build it, and no other one."""
    jobs: list[Any] = []
    for own in ((), ("their_net:build",)):
        worker = DeskWorker(tmp_path, "", lambda folder, job: jobs.append(job), own_modules=own)
        worker.start("run", ["R1"], "ops")
    monkeypatch.setattr(own_module, "_allowed", set())
    for job, allowed in zip(jobs, (set(), {"their_net:build"}), strict=True):
        with pytest.raises(EffaceError, match="no desk at"):
            _act(job | {"home": str(tmp_path / "nowhere")}, cast("Any", SimpleNamespace(say=print, step=print)))
        assert own_module._allowed == allowed


def test_a_damaged_state_of_the_work_is_named(user, desk, ids):
    user.worker.folder.mkdir()
    (user.worker.folder / "work.json").write_text("{")
    assert "work.json" in user.get("/", 400)


def test_planning_in_a_process_of_its_own(desk, ids, key):
    user = PageUser(desk, PageSettings(plan=QUICK), processes=True).open()
    desk.add("R1", ids[:4])
    user.send("/requests/R1/plan", method="finetune")
    assert "going on" in words(user.get("/work"))
    assert "does one thing at a time" in words(user.send("/requests/R1/run", 400))
    process = user.worker._process
    assert process is not None and process.wait(120) == 0
    assert "The plan is done" in words(user.get("/requests/R1")) and desk.request("R1").state is RequestState.PLANNED
    user.send("/requests/R1/run")
    user.send("/work/stop")
    process = user.worker._process
    assert process is not None and process.wait(120) != 0
    assert "The run was cut" in words(user.get("/requests/R1"))
    assert json.loads(json.dumps(desk.verify().valid))


def test_the_page_opens_without_torch():
    """Torch is most of the seconds of a start, and only a worker needs it."""
    code = "import sys\nimport efface.desk.page.server\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
