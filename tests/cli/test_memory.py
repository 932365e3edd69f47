"""When memory ends, every verb says what to do, with exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from efface.errors import explain_memory
from efface.runs import model_description

ENDED = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError(),
)


@pytest.mark.parametrize("error", ENDED, ids=lambda one: type(one).__name__)
def test_the_end_of_memory_has_a_remedy(error, efface, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(model_description, "describe_model", fail)
    code, _, err = efface("init", tmp_path / "x.pth", "--data", "digits")
    assert code == 2
    assert "The memory does not suffice" in err and "--set method.batch_size=N" in err
    assert "Traceback" not in err


def test_other_errors_are_not_about_memory() -> None:
    assert explain_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert explain_memory(ValueError("out of memory")) is None
