"""Run folders: complete or absent, replaced only on request, and a log that survives an interruption."""

from __future__ import annotations

import errno
import json

import pytest

from efface.errors import DivergenceError, EffaceError
from efface.files import EPOCH, LOG, REQUEST, disk_errors, write_text
from efface.runs.folder import JsonLines, create_run_folder, failed_log_path, partial_path, read_log

VERB = "verb: pretrain\n"


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    out = tmp_path / "run"
    with create_run_folder(out, "a: 1") as half:
        (half / "weights").write_text("x")
        (half / EPOCH).write_text("state")
        assert not out.exists()
    assert sorted(path.name for path in out.iterdir()) == [REQUEST, "weights"]
    assert not partial_path(out).exists()


def test_an_interrupted_attempt_is_resumed_only_by_the_same_request(tmp_path):
    out, resumed = tmp_path / "run", []

    def cut():
        with create_run_folder(out, VERB + "a: 1") as half:
            resumed.append((half / EPOCH).exists())
            (half / EPOCH).write_text("state")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut()
    with pytest.raises(EffaceError, match="another request") as refused, create_run_folder(out, VERB + "a: 2"):
        pass
    assert "a: 1 there, 2 here" in refused.value.why
    assert "--force" in refused.value.remedy and "--out" in refused.value.remedy
    with pytest.raises(KeyboardInterrupt):
        cut()
    assert resumed == [False, True]
    with create_run_folder(out, VERB + "a: 2", force=True) as half:
        assert not (half / EPOCH).exists()
    assert (out / REQUEST).read_text() == VERB + "a: 2"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def ends(out, request, name, text, error):
    """A request that writes one file and then fails."""
    with create_run_folder(out, request) as half:
        (half / name).write_text(text)
        raise error


@pytest.mark.parametrize("error", [EffaceError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failure_before_the_first_step_leaves_nothing(tmp_path, error):
    with pytest.raises((EffaceError, KeyboardInterrupt)):
        ends(tmp_path / "run", "a: 1", "split.json", "{}", error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", [LOG, EPOCH])
def test_a_later_failure_leaves_what_is_needed_to_resume(tmp_path, left):
    with pytest.raises(EffaceError, match="no"):
        ends(tmp_path / "run", "a: 1", left, "x", EffaceError("no"))
    assert (partial_path(tmp_path / "run") / left).exists()


def test_a_diverged_training_keeps_its_log_and_makes_room_for_a_changed_request(tmp_path):
    out = tmp_path / "run"
    for step in (5, 6):
        with pytest.raises(DivergenceError):
            ends(out, f"{VERB}lr: {step}", LOG, str(step), DivergenceError({"task": float("nan")}, step))
        assert not partial_path(out).exists()
        assert (failed_log_path(out) / LOG).read_text() == str(step)
    with create_run_folder(out, "lr: 0.1"):
        pass
    assert out.exists()


def test_the_error_for_another_request_says_what_differs(tmp_path):
    out, (stored, new) = tmp_path / "run", [f"a: {{b: {n}, c: 1}}\nd: {n}\n" for n in (1, 2)]
    half = partial_path(out)
    half.mkdir()
    (half / LOG).touch()
    with pytest.raises(EffaceError, match="does not say which"), create_run_folder(out, new):
        pass
    (half / REQUEST).write_text(stored)
    with (
        pytest.raises(EffaceError, match=r"a\.b: 1 there, 2 here; d: 1 there, 2 here\.") as refused,
        create_run_folder(out, new),
    ):
        pass
    assert "a.c" not in str(refused.value)
    (half / REQUEST).write_text("a: [")
    with pytest.raises(EffaceError, match="does not say which"), create_run_folder(out, new):
        pass
    (half / REQUEST).write_text("{}")
    many = "\n".join(f"s{n}: {n}" for n in range(7))
    with pytest.raises(EffaceError, match="s4: not set there, 4 here; and 2 more"), create_run_folder(out, many):
        pass


def test_existing_folders_are_kept_and_force_replaces_only_runs(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(EffaceError, match="exists already"), create_run_folder(tmp_path / "mine", "a: 1"):
        pass
    with pytest.raises(EffaceError, match=r"no meta\.json"), create_run_folder(tmp_path / "mine", "a: 1", force=True):
        pass
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot be written")])
def test_disk_errors_say_what_to_do(tmp_path, number, said):
    with pytest.raises(EffaceError, match=said), disk_errors(tmp_path):
        raise OSError(number, "x")
    with pytest.raises(OSError, match="strange"), disk_errors(tmp_path):
        raise OSError(errno.EIO, "strange")


def test_a_failed_write_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_text(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(EffaceError):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_a_resumed_log_drops_repeated_steps_and_a_truncated_last_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": n}) + "\n" for n in (1, 2, 3, 4)) + '{"step": 5, "ter')
    assert [record["step"] for record in read_log(path)] == [1, 2, 3, 4]
    log = JsonLines(path)
    log({"step": 3})
    log({"step": 4})
    log.close()
    assert [record["step"] for record in read_log(path)] == [1, 2, 3, 4]
