"""`request run` and `erase`, cut at changes to files and to the ledger, and killed at random times.

By default some of the cuts are made, so that the suite stays short; EFFACE_ALL_CUTS=1 makes all of them, and 120 kills.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

ALL = bool(os.environ.get("EFFACE_ALL_CUTS"))


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Any]]]:
    """The process that forks and cuts."""
    home = tmp_path_factory.mktemp("desk-cuts")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.desk.cuts", home],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    given, taken = process.stdin, process.stdout

    def send(**job: Any) -> dict[str, Any]:
        given.write(json.dumps(job) + "\n")
        given.flush()
        return json.loads(taken.readline())

    yield send
    given.close()
    taken.close()
    process.wait(60)


@pytest.mark.parametrize("verb", ["run", "erase"])
def test_the_same_command_goes_on_after_every_cut(ask, verb):
    answer = ask(verb=verb, every=1 if ALL else {"run": 50, "erase": 30}[verb], first=0 if ALL else 5)
    sys.stderr.write(f"{verb}: {answer['operations']} operations, {answer['killed']} of {answer['cuts']} cut\n")
    assert answer["cuts"] > 0 and not answer["problems"], "\n".join(answer["problems"][:3])


@pytest.mark.parametrize("verb", ["run", "erase"])
def test_the_same_command_goes_on_after_a_kill_at_any_time(ask, verb):
    answer = ask(verb=verb, kills=60 if ALL else 1, seed=7)
    sys.stderr.write(f"{verb}: {answer['killed']} of {answer['cuts']} killed\n")
    assert answer["cuts"] > 0 and not answer["problems"], "\n".join(answer["problems"][:3])
