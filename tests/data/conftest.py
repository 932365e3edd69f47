"""Fixtures of the tests of data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import shards


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(own_cache: Path) -> None:
    """No test of data reads or fills the cache of whoever runs it."""


@pytest.fixture
def encoded() -> list[shards.Picture]:
    """Twelve pictures of three classes, to be written as a folder, as tars and as tables."""
    return shards.draw()
