"""Fixtures that several files of tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from efface.training import loop


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small color pictures of three classes, with labels, in an .npz file."""
    from tests.adoption import drawn

    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    x, y = drawn()
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture(autouse=True, scope="session")
def same_precision_everywhere() -> Iterator[None]:
    """The default precision depends on the machine; figures that tests look at shall not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "prefers_bfloat16", lambda device: False)
        yield
