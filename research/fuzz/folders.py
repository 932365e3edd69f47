"""Run folders: every file that is read back."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from research.fuzz import mutations as damage
from research.fuzz.cases import MARK, FuzzCase, WrongIdentity
from research.fuzz.files import show
from research.fuzz.mutations import change_bytes

from efface.errors import EffaceError
from efface.interop.inspect import inspect_checkpoint
from efface.runs import audit, run, train


class Runs:
    """Run folders: every file that is read back, in a run that was unlearned and audited."""

    OPENED = ("meta.json", "config.yaml", "split.json", "checkpoint.safetensors")
    REPORTED = ("observations.npz", "record.json", "log.jsonl")

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True)
        rng = np.random.default_rng(0)
        y = np.arange(120) % 3
        x = (rng.uniform(0, 120, (120, 1, 8, 8)) + 40 * y[:, None, None, None]).astype(np.uint8)
        np.savez(home / "pictures.npz", x=x, y=y)
        small: dict[str, Any] = {
            "backbone": {"name": "resnet8", "width": 8, "stride": 1},
            "batch_size": 20,
            "epochs": 1,
        }
        split = {"train": 40, "valid": 20, "holdout": 30, "test": 30}
        settings: dict[str, Any] = {
            "data": str(home / "pictures.npz"),
            "split": split,
            "recipe": small,
            "device": "cpu",
        }
        original, self.run = home / "original", home / "tuned"
        train.pretrain_run(original, settings | {"objective": "cross_entropy"})
        forget = {"forget": "@random:10", "method": {"name": "finetune", "epochs": 1}, "device": "cpu"}
        train.unlearn_run(original, self.run, forget)
        audit.audit_run(self.run, {"device": "cpu"})
        opened = run.open_run(self.run)
        self.forget, self.digest = sorted(self._forgotten(opened)), opened.meta["digest"]

    @staticmethod
    def _forgotten(opened: run.OpenedRun) -> list[str]:
        return opened.data.keys[opened.split.forget].tolist()

    def make(self, rng: random.Random, folder: Path) -> FuzzCase:
        """Damage one file of the run."""
        there = folder / "run"
        shutil.copytree(self.run, there)
        name = rng.choice((*self.OPENED, *self.REPORTED))
        content = self._change(rng, name, (there / name).read_bytes(), str(folder / MARK))
        (there / name).write_bytes(content)

        def check() -> None:
            steps: dict[Callable[[], object], tuple[str, ...]] = {
                lambda: self._check_opened(there, name): self.OPENED,
                lambda: show(inspect_checkpoint(there)): ("meta.json", "checkpoint.safetensors"),
                lambda: audit.report_run(there): ("meta.json", *self.REPORTED),
            }
            outcomes = [self._try(step) for step, files in steps.items() if name in files]
            refused = [error for error in outcomes if error is not None]
            if refused:
                raise refused[0]

        return FuzzCase(name, content, check)

    @staticmethod
    def _try(step: Callable[[], object]) -> Exception | None:
        """Run one step; an error that the user can fix does not keep the next one from being tried."""
        try:
            step()
        except EffaceError as error:
            return error
        return None

    def _check_opened(self, there: Path, name: str) -> None:
        opened = run.open_run(there)
        checkpoint = opened.checkpoint()
        if name == "meta.json":
            return  # it names the digests of the others: who may change it is for signatures to say
        if sorted(self._forgotten(opened)) != self.forget:
            raise WrongIdentity(f"other examples count as forgotten: {sorted(self._forgotten(opened))[:5]}")
        if checkpoint.model.digest() != self.digest:
            raise WrongIdentity("other weights were loaded")

    @staticmethod
    def _change(rng: random.Random, name: str, content: bytes, mark: str) -> bytes:
        if rng.random() < 0.2:
            return change_bytes(rng, content)
        if name.endswith(".yaml"):
            return damage.change_yaml(rng, content, mark)
        if name.endswith(".npz"):
            return damage.change_zip(rng, content, lambda rng, _, inside: damage.change_npy(rng, inside, mark))
        if name.endswith(".safetensors"):
            return damage.change_safetensors(rng, content)
        return (damage.change_json_lines if name.endswith(".jsonl") else damage.change_json)(rng, content)
