"""What a command may replace: what proves to be its own, apart from its input, and once the new is complete."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from efface.errors import EffaceError
from efface.files import EPOCH, REQUEST, hold_lock, write_text
from efface.runs import ownership
from efface.runs.folder import create_run_folder, failed_log_path, partial_path
from efface.runs.ownership import require_apart, why_not_a_run
from efface.training.checkpoint import content_digest
from tests.commands import JUDGED, TINY, call, refused

TRAIN = ["pretrain", "--data", "digits", "--objective", "simclr", *TINY, "--quiet"]
LOOK = ["--set", "watch={views: 2, gradient: false}", "--device", "cpu", "--quiet"]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def project(folder: Path) -> Path:
    """A project of somebody: sources, a repository, and a configuration."""
    for name in ("config.yaml", "src/main.py", ".git/HEAD", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("lr: 0.1\n")
    return folder


def unlike(kind: str, run: Path, out: Path) -> Path:
    """Folders that are no run folders of ours, though each looks a little like one."""
    if kind == "project":
        return project(out)
    if kind == "project with a verb":
        project(out)
        (out / "config.yaml").write_text("verb: pretrain\n")
        return out
    shutil.copytree(run, out)
    if kind == "other weights":
        shutil.copy(run.parent / "tuned" / "checkpoint.safetensors", out)
    elif kind == "newer format":
        meta = json.loads((out / "meta.json").read_text())
        (out / "meta.json").write_text(json.dumps(meta | {"format": 99}))
    elif kind == "damaged":
        (out / "meta.json").write_text("{")
    elif kind == "repository inside":
        project(out / "work")
    return out


@pytest.mark.parametrize(
    "kind", ["project", "project with a verb", "other weights", "newer format", "damaged", "repository inside"]
)
def test_force_replaces_no_folder_that_does_not_prove_to_be_a_run(efface, made, tmp_path, kind):
    out = unlike(kind, made / "original", tmp_path / "out")
    before = content(out)
    refused(efface(*TRAIN, "--out", out, "--force"), str(out), "--force does not replace")
    assert content(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["partial", "failed"])
def test_no_other_folder_with_a_name_of_ours_is_removed(tmp_path, kind):
    out = tmp_path / "out"
    theirs = project(partial_path(out) if kind == "partial" else failed_log_path(out))
    before = content(theirs)
    if kind == "partial":
        with pytest.raises(EffaceError, match="does not replace"), create_run_folder(out, "verb: audit", force=True):
            pass
    else:
        from efface.errors import DivergenceError

        def diverge() -> None:
            with create_run_folder(out, "verb: audit") as half:
                (half / "log.jsonl").touch()
                raise DivergenceError({"task": float("nan")}, 1)

        with pytest.raises(DivergenceError):
            diverge()
        assert len(list(tmp_path.glob("out.failed-*"))) == 1
    assert content(theirs) == before


def test_the_old_run_stays_until_the_new_one_is_complete_and_comes_back_after_a_failure(made, tmp_path, monkeypatch):
    out = Path(shutil.copytree(made / "original", tmp_path / "out"))
    before = content(out)

    def attempt(error: BaseException | None = None) -> None:
        with create_run_folder(out, "verb: pretrain", force=True):
            assert content(out) == before
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt):
        attempt(KeyboardInterrupt())
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self == partial_path(out):
            assert not out.exists()
            raise OSError(5, "the disk is broken")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="broken"):
            attempt()
    assert content(out) == before and why_not_a_run(out) == ""
    attempt()
    assert list(content(out)) == [REQUEST]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_audit_of_embeddings_and_a_run_do_not_replace_each_other(efface, made, tmp_path):
    vectors = [tmp_path / f"{number}.npy" for number in range(2)]
    for number, path in enumerate(vectors):
        np.save(path, np.random.default_rng(number).normal(size=(40, 2, 6)))
    run = Path(shutil.copytree(made / "original", tmp_path / "run"))
    before = content(run)
    judge = ["audit", "--embeddings", *vectors, "--quiet", "--out"]
    refused(efface(*judge, run, "--force"), "It is a run folder")
    assert content(run) == before
    assert efface(*judge, tmp_path / "judged")[0] in JUDGED
    refused(efface(*judge, tmp_path / "judged"), "exists already")
    assert efface(*judge, tmp_path / "judged", "--force")[0] in JUDGED
    refused(efface(*TRAIN, "--out", tmp_path / "judged", "--force"), "--force does not replace")
    refused(efface(*judge, vectors[0], "--force"), str(vectors[0]))


def test_the_result_never_takes_the_place_of_the_input(efface, made, tmp_path):
    run = Path(shutil.copytree(made / "original", tmp_path / "run"))
    (tmp_path / "link").symlink_to(run)
    before = content(run)
    words = ["unlearn", run, "--forget", "@random:5", "--method", "finetune", "--force", "--quiet", "--out"]
    for out in (run, tmp_path / "link", run / "inside", run / "a" / ".." / "b", tmp_path / "link" / "inside"):
        refused(efface(*words, out), "cannot be written")
    listed = tmp_path / "listed"
    shutil.copytree(made / "tuned", listed)
    (listed / "ids.txt").write_text(json.loads((run / "split.json").read_text())["parts"]["retain"][0])
    words[3] = str(listed / "ids.txt")
    refused(efface(*words, listed), "a folder that contains")
    assert content(run) == before and (listed / "ids.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "listed", "run"]


def test_paths_are_compared_by_what_they_lead_to(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "l").symlink_to(tmp_path / "a")
    for out, read in (("a", "l"), ("l/b", "a"), ("a", "a/b"), ("l", "a/b"), ("a/new", "l")):
        with pytest.raises(EffaceError, match="cannot be written"):
            require_apart(tmp_path / out, [tmp_path / read])
    for out, read in (("c", "a"), ("ab", "a"), ("a/c", "a/b"), ("a", "gone")):
        require_apart(tmp_path / out, [tmp_path / read, None])


def test_references_and_bench_write_into_no_folder_of_something_else(efface, made, tmp_path):
    original = Path(shutil.copytree(made / "original", tmp_path / "original"))
    theirs = project(tmp_path / "theirs")
    before = content(original), content(theirs)
    for out in (original, theirs):
        refused(efface("references", made / "tuned", "--out", out, "--count", 1, "--quiet"), str(out))
    refused(efface("references", made / "tuned", "--out", made / "tuned" / "refs", "--quiet"), "inside")
    (tmp_path / "grid.yaml").write_text("data: digits\n")
    from efface.bench.runner import _bench_lock

    for out in (original, theirs):
        with pytest.raises(EffaceError, match="not the folder of a bench"), _bench_lock(out):
            pass
    assert (content(original), content(theirs)) == before


def test_embed_replaces_only_embeddings(efface, made, tmp_path):
    pictures, table = tmp_path / "pictures.npz", tmp_path / "table.npy"
    np.savez(pictures, x=np.zeros(3), y=np.zeros(3))
    np.save(table, np.zeros((5, 2), np.float32))
    for path in (pictures, table):
        before = path.read_bytes()
        refused(
            efface("embed", made / "tuned", "--out", path, "--force", "--device", "cpu"), "does not hold embeddings"
        )
        assert path.read_bytes() == before
    for name in ("v.npz", "v.npy"):
        for words in ([], ["--force"]):
            assert efface("embed", made / "tuned", "--out", tmp_path / name, "--device", "cpu", *words)[0] == 0
        refused(efface("embed", made / "tuned", "--out", tmp_path / name, "--device", "cpu"), "exists already")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["pictures.npz", "table.npy", "v.keys.txt", "v.npy", "v.npz"]


def test_a_damaged_epoch_is_named_and_training_starts_again(efface, made, tmp_path, monkeypatch):
    from efface.training import checkpoint

    class Cut(BaseException):
        pass

    def cut(self, *words):
        save(self, *words)
        raise Cut

    save = checkpoint.EpochStore.save
    wanted = json.loads((made / "original" / "meta.json").read_text())["digest"]
    for number, damage in enumerate((b"", b"\0" * 500, None, "another")):
        out = tmp_path / f"out{number}"
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.EpochStore, "save", cut)
            with pytest.raises(Cut):
                call(*TRAIN, "--out", out)
        path = partial_path(out) / EPOCH
        if damage == "another":
            state = torch.load(path, weights_only=True)
            torch.save(state | {"model": {name: one[:1] for name, one in state["model"].items() if one.dim()}}, path)
        else:
            path.write_bytes(path.read_bytes()[:3000] if damage is None else damage)
        code, _, err = efface(*[word for word in TRAIN if word != "--quiet"], "--out", out)
        assert code == 0, err
        assert f"{path} is damaged and was ignored" in err and "Traceback" not in err
        assert json.loads((out / "meta.json").read_text())["digest"] == wanted


def test_a_request_that_was_cut_while_it_was_written_is_continued(tmp_path):
    out, request = tmp_path / "out", "verb: pretrain\nseed: 1\n"
    for left in ("", request[:7], None):
        half = partial_path(out)
        half.mkdir()
        (half / f"{REQUEST}.1-ab.tmp").write_text("verb")
        if left is not None:
            (half / REQUEST).write_text(left)
        with create_run_folder(out, request):
            pass
        assert [path.name for path in out.iterdir()] == [REQUEST]
        shutil.rmtree(out)


# ---- several processes ----


def start(*words: object, **more: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "efface", *map(str, words)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **more)  # pyright: ignore


def test_of_two_equal_commands_the_second_is_refused_at_once(efface, tmp_path):
    out = tmp_path / "out"
    with hold_lock(out):
        began = time.monotonic()
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                with create_run_folder(out, "verb: audit"):
                    os.write(write, b"written")
            except EffaceError as error:
                os.write(write, str(error).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(write)
        with os.fdopen(read) as pipe:
            assert "in use by another process" in pipe.read()
        assert time.monotonic() - began < 5 and not partial_path(out).exists()
    with create_run_folder(out, "verb: audit"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_audits_of_one_run_wait_for_each_other_and_leave_a_record_with_its_own_key(made, tmp_path):
    import hashlib

    for name in ("original", "tuned", "oracle"):
        shutil.copytree(made / name, tmp_path / name)
    both = [
        start("audit", tmp_path / "tuned", "--original", tmp_path / "original", "--oracle", tmp_path / "oracle", *LOOK)
        for _ in range(2)
    ]
    for one in both:
        said = one.communicate(timeout=300)
        assert one.returncode in JUDGED and "Traceback" not in said[1], said
    record = json.loads((tmp_path / "tuned" / "record.json").read_text())
    key = bytes.fromhex((tmp_path / "tuned" / "items.key").read_text().strip())
    assert record["items"]["key_digest"] == hashlib.sha256(key).hexdigest()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".lock"))]


def test_a_file_that_two_processes_write_is_one_of_theirs(tmp_path):
    path = tmp_path / "f.json"
    children = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            for _ in range(50):
                write_text(path, str(number) * 5000)
            os._exit(0)
        children.append(pid)
    seen = set()
    for _ in range(200):
        if path.exists():
            seen.add(path.read_text())
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    assert all(len(text) == 5000 and len(set(text)) == 1 for text in seen)
    assert [one.name for one in tmp_path.iterdir()] == ["f.json"]


def descendants(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            child = int(status.parent.name)
            found += [child, *descendants(child)]
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_killed_references_leave_no_workers(made, tmp_path):
    for name in ("original", "tuned"):
        shutil.copytree(made / name, tmp_path / name)
    request = tmp_path / "tuned" / "config.yaml"
    stored = yaml.safe_load(request.read_text()) | {"from": str(tmp_path / "original")}
    request.write_text(yaml.safe_dump(stored))
    meta = tmp_path / "tuned" / "meta.json"
    content = json.loads(meta.read_text())
    content["recipe"]["epochs"] = 100_000
    meta.write_text(json.dumps(content | {"content_digest": content_digest(content)}))
    running = start("references", tmp_path / "tuned", "--out", tmp_path / "refs", "--count", 2, "--jobs", 2, "--quiet")
    workers: list[int] = []
    try:
        for _ in range(600):
            workers = descendants(running.pid)
            if len(list((tmp_path / "refs").glob("out-*.partial/log.jsonl"))) == 2:
                break
            assert running.poll() is None, running.communicate()
            time.sleep(0.2)
        assert len(workers) >= 2
        running.send_signal(signal.SIGKILL)
        running.wait()
        for _ in range(50):
            alive = [pid for pid in workers if Path(f"/proc/{pid}").exists() and not ended(pid)]
            if not alive:
                break
            time.sleep(0.2)
        assert not alive
    finally:
        running.kill()
        running.communicate()


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# ---- what cannot be written ----


AS_NOBODY = """
import contextlib, io, json, os, sys, torch
torch.set_num_threads(1)
from tests.cuts import perform
warm, home, told = sys.argv[1:]
def audit(place, *more):
    words = ["audit", place + "/tuned", "--set", "watch={views: 2, gradient: false}", "--device", "cpu", *more]
    return perform({"words": [words]}, "")[:2]
audit(warm), audit(warm, "--out", warm + "/e")  # what is imported later could not be read without the rights of root
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
print(json.dumps([audit(home), audit(home, "--out", told + "/evidence")]))
"""


def test_a_read_only_run_is_audited_and_the_evidence_goes_where_it_is_told(made, tmp_path):
    home, told = tmp_path / "home", tmp_path / "told"
    for name in ("original", "tuned"):
        shutil.copytree(made / name, home / name)
    told.mkdir()
    told.chmod(0o777)
    for folder in (*tmp_path.parents, tmp_path):
        if folder.is_relative_to("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o755)
    for place in (tmp_path / "warm", home):
        if place != home:
            shutil.copytree(home, place)
        request = place / "tuned" / "config.yaml"
        request.write_text(yaml.safe_dump(yaml.safe_load(request.read_text()) | {"from": str(place / "original")}))
    for path in (*home.glob("*/*"), home / "original", home / "tuned", home):
        path.chmod(0o555 if path.is_dir() else 0o644)
    before = content(home)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", AS_NOBODY, tmp_path / "warm", home, told]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (code, said), (second, _) = json.loads(done.stdout.splitlines()[-1])
    assert code in JUDGED and second == code, said
    assert "utility.cka" in said and "Report:" not in said
    assert {"record.json", "items.key", "report.html"} <= set(content(told / "evidence"))
    assert content(home) == before
    for folder in (home, home / "original", home / "tuned"):
        folder.chmod(0o755)


def test_evidence_elsewhere_is_replaced_only_by_evidence(efface, made, tmp_path):
    run = Path(shutil.copytree(made / "tuned", tmp_path / "run"))
    words = ["audit", run, *LOOK, "--out"]
    assert efface(*words, tmp_path / "e")[0] in JUDGED
    assert not (run / "record.json").exists()
    refused(efface(*words, tmp_path / "e"), "exists already")
    assert efface(*words, tmp_path / "e", "--force")[0] in JUDGED
    refused(efface(*words, made / "oracle", "--force"), "--force does not replace")
    refused(efface(*words, run / "e"), "inside")


@pytest.mark.parametrize("where", ["closed pipe", "full", "ascii", "no stdout", "no stderr"])
def test_the_exit_code_of_a_verdict_survives_its_output(made, tmp_path, where):
    for name in ("original", "tuned"):
        if not (tmp_path / name).exists():
            shutil.copytree(made / name, tmp_path / name)
    words = ["audit", tmp_path / "tuned", "--original", tmp_path / "original", *LOOK[:-1]]
    code = call(*words)
    assert code in JUDGED
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"PYTHONIOENCODING": "ascii"} if where == "ascii" else {}
    ends = {"closed pipe": "| true; exit ${PIPESTATUS[0]}", "full": "> /dev/full", "no stdout": ">&-"}
    ends |= {"ascii": "", "no stderr": "2>&-"}
    line = f'"$@" {ends[where]}'
    done = subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, "-m", "efface", *map(str, words)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    if where == "full":
        assert done.returncode == 2 and "could not be printed" in done.stderr
    else:
        assert done.returncode == code, done.stderr
    if where == "ascii":
        assert "\\u03b4" in done.stdout


def test_a_home_that_cannot_be_written_is_named(efface, tmp_path, monkeypatch):
    from PIL import Image

    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "p" / name)
    monkeypatch.setenv("HOME", "/proc")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    refused(efface("pretrain", "--data", tmp_path / "p", "--out", tmp_path / "o"), "/proc/.cache", "data.cache")
    assert ownership.WRITING_VERBS and not (tmp_path / "o").exists()


def test_the_cache_of_pixels_removes_no_partial_folder_of_another_kind(tmp_path):
    from PIL import Image

    from efface.data.sources import load

    run = partial_path(tmp_path / "cache" / "run")
    run.mkdir(parents=True)
    os.utime(run, (0, 0))
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "p" / name)
    load(str(tmp_path / "p"), cache=str(tmp_path / "cache"))
    assert run.exists()
