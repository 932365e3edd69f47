"""Fixtures of the tests of the desk: ledgers in SQLite and in a real PostgreSQL, and a small model."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from efface.desk import Desk, open_desk
from efface.runs import train
from tests.desk.servers import find_binaries, postgresql, server_user

TINY = {
    "data": {"source": "digits", "limit": 400},
    "split": {"train": 120, "valid": 60, "holdout": 120, "test": 80},
    "recipe": {"objective": "cross_entropy", "backbone": {"width": 8, "stride": 1}, "batch_size": 30, "epochs": 2},
}
QUICK: dict[str, Any] = {
    "method": {"name": "finetune", "epochs": 1},
    "device": "cpu",
    "audit": {"watch": {"views": 2, "gradient": False, "bank": 20, "cap": 20, "test_cap": 20}},
}
"""Settings of a plan that run in a second."""


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a PostgreSQL server of the tests' own."""
    if find_binaries() is None or server_user() is None:
        pytest.skip("PostgreSQL is not installed, or there is no user but root to run it")
    home = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # the path of a socket must be short
    try:
        with postgresql(home) as url:
            yield url
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new ledger of the kind that the test is given: ``sqlite`` or ``postgresql``."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return str(tmp_path / "ledger.sqlite")
    import psycopg

    server = request.getfixturevalue("server")
    name = f"desk_{abs(hash(str(tmp_path)))}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # pyright: ignore[reportArgumentType]
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny classifier, of which every test gets a copy."""
    folder = tmp_path_factory.mktemp("desk") / "original"
    train.pretrain_run(folder, TINY)
    return folder


@pytest.fixture
def original(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it, because erasing removes models."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("desk") / "original")


@pytest.fixture(scope="session")
def ids(trained: Path) -> list[str]:
    """The ids that it was trained on."""
    return json.loads((trained / "split.json").read_text())["parts"]["retain"]


@pytest.fixture
def desk(tmp_path: Path, url: str, original: Path) -> Iterator[Desk]:
    """A desk with the model ``main``."""
    with open_desk(tmp_path / "desk", url) as opened:
        opened.add_model("main", original, actor="ops")
        yield opened
