"""Fixtures that several files of tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small color pictures of three classes, with labels, in an .npz file."""
    from tests.adoption import drawn

    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    x, y = drawn()
    np.savez(path, x=x, y=y)
    return path
