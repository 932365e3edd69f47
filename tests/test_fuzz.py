"""A short fuzzing of everything that is read, with fixed seeds; and planted faults, which it must find.

``python -m research.fuzz TARGET --minutes 10`` goes on; ``--case SEED:NUMBER`` shows one case.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from research.fuzz import __main__ as fuzzing
from research.fuzz import mutations
from research.fuzz.cases import MARK, FuzzCase, WrongIdentity
from research.fuzz.texts import parse_list

from efface.errors import EffaceError

CASES = 180
TARGETS = ("lists", "manifests", "npz", "checkpoints", "runs")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fuzz all targets in a process of its own, whose memory and threads it limits; the folder of the results."""
    out = tmp_path_factory.mktemp("fuzz")
    words = ["all", "--cases", str(CASES), "--seed", "7", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-m", "research.fuzz", *words], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode in (0, 1), done.stderr
    return out


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_damaged_is_read_right_or_refused(results: Path, target: str):
    found = json.loads((results / f"fuzz_{target}.json").read_text(encoding="utf-8"))
    assert found["cases"] == CASES
    assert found["read"] > CASES / 20, "almost nothing could be read: this tests the first lines of the readers only"
    assert found["refused"] > CASES / 5
    assert [(one["kind"], one["what"], one["where"], one["case"]) for one in found["failures"]] == []


class Planted:
    """A target whose cases are one check."""

    def __init__(self, check: Callable[[Path], None]) -> None:
        self.check = check

    def make(self, rng: random.Random, folder: Path) -> FuzzCase:
        return FuzzCase("planted", b"content", lambda: self.check(folder))


def refuse(folder: Path) -> None:
    raise EffaceError("No.")


def refuse_wordlessly(folder: Path) -> None:
    raise EffaceError("")


def lose_a_key(folder: Path) -> None:
    {}["key"]


def mix_up(folder: Path) -> None:
    raise WrongIdentity("k1 instead of k2")


def run_code_and_refuse(folder: Path) -> None:
    (folder / MARK).touch()
    raise EffaceError("Refused, too late.")


def take_memory(folder: Path) -> None:
    bytearray(8 * 2**30)


def crash(folder: Path) -> None:
    os.kill(os.getpid(), 11)


@pytest.mark.parametrize(
    ("check", "kind"),
    [
        (lambda folder: None, "read"),
        (refuse, "refused"),
        (refuse_wordlessly, "exception"),
        (lose_a_key, "exception"),
        (mix_up, "wrong identity"),
        (run_code_and_refuse, "code run"),
        (take_memory, "memory"),
        (crash, "died"),
    ],
)
def test_a_planted_fault_is_found_and_the_cases_after_it_still_run(tmp_path: Path, check: Any, kind: str):
    tally = fuzzing.Tally()
    for start in (0, 1):
        numbers = range(start, 2)
        fuzzing.run_batch(Planted(check), "planted", 0, numbers, tmp_path / "case", tally, float("inf"))
        if kind != "died":
            break
    assert tally.cases == 2
    found = [(one.kind, one.count) for one in tally.failures]
    assert found == ([] if kind in ("read", "refused") else [(kind, 2)])
    assert (tally.read, tally.refused) == (2 * (kind == "read"), 2 * (kind == "refused"))


def test_a_hang_is_stopped(tmp_path: Path):
    def hang() -> None:
        while True:
            pass

    outcome, _, where = fuzzing.judge(FuzzCase("planted", b"", hang), tmp_path, seconds=0.2)
    assert outcome == "hang" and "hang" in where


@pytest.mark.parametrize("piece", mutations.EXPLOITS[:-1], ids=lambda piece: piece.split(b"\n")[0].decode())
def test_the_planted_code_would_run_if_it_were_unpickled(tmp_path: Path, piece: bytes):
    mark = tmp_path / MARK
    process = f"import pickle; pickle.loads({b'(' + piece.replace(b'{mark}', str(mark).encode()) + b'0N.'!r})"
    subprocess.run([sys.executable, "-c", process], capture_output=True, timeout=60)
    for _ in range(50):
        if mark.exists():
            break
        subprocess.run(["sleep", "0.02"], check=True)
    assert mark.exists()


def test_a_case_depends_on_its_number_alone():
    content = pickle.dumps({"a": [1, 2]}, protocol=2)
    made = [mutations.change_pickle(fuzzing.rng_of("x", 3, number), content) for number in (5, 5, 6)]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("change", [*mutations.BYTES, mutations.change_json, mutations.change_yaml])
def test_mutations_change_what_they_are_given(change: mutations.Mutation):
    content = b'{"a": [1, 2, "three"], "b": {"c": null, "d": "some longer text to be cut"}}'
    made = [change(random.Random(seed), content) for seed in range(400)]
    assert len(set(made)) > 50 and content not in made


@pytest.mark.parametrize(
    ("kind", "content", "ids"),
    [
        (".txt", b" a\r\nb\xe2\x80\xa8c\n", [" a", "b\u2028c"]),
        (".csv", b'n,key\n1,"a,b"\n', ["a,b"]),
        (".csv", b"key;n\na;1\n", ["a"]),
        (".json", b'{"keys": ["a", 1]}', ["a", "1"]),
        (".jsonl", b'"a"\n{"key": "b"}\n', ["a", "b"]),
        (".jsonl", b'"a"\n{', []),
    ],
)
def test_the_plain_parser(kind: str, content: bytes, ids: list[str]):
    assert parse_list(kind, content) == ids
