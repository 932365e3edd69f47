"""Refused commands of every verb: exit code 2, a reason, and nothing left behind or changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.commands import refused

REFUSED = {
    "pretrain: unknown setting": ["pretrain", "--data", "digits", "--set", "recipe.epoch=1", "--out", "o"],
    "pretrain: broken file": ["pretrain", "--data", "bad.npz", "--out", "o"],
    "pretrain: no split": ["pretrain", "--data", "digits", "--set", "split.train=9999", "--out", "o"],
    "unlearn: unknown id": ["unlearn", "{original}", "--forget", "@keys:none", "--method", "finetune", "--out", "o"],
    "unlearn: unknown method": ["unlearn", "{original}", "--forget", "@random:5", "--method", "x", "--out", "o"],
    "unlearn: unknown field": ["unlearn", "{original}", "--forget", "@random:5", "--method", "finetune",
                               "--set", "method.x=1", "--out", "o"],
    "unlearn: no checkpoint": ["unlearn", "bad.npz", "--forget", "@random:5", "--method", "finetune", "--out", "o"],
    "unlearn: existing folder": ["unlearn", "{original}", "--forget", "@random:5", "--method", "finetune",
                                 "--out", "{tuned}"],
    "audit: an original": ["audit", "{original}"],
    "audit: a model as oracle that saw them": ["audit", "{tuned}", "--oracle", "{original}"],
    "audit: unknown criterion": ["audit", "{tuned}", "--set", "criteria.x=1"],
    "audit: embeddings": ["audit", "--embeddings", "bad.npy", "bad.npy", "--out", "o"],
    "report: no audit": ["report", "{second}"],
    "relearn: nonsense": ["relearn", "{tuned}", "--steps", "0"],
    "references: an original": ["references", "{original}", "--out", "o"],
    "rehearse: an original": ["rehearse", "{original}"],
    "check: an original": ["check", "{original}"],
    "erase: nothing there": ["erase", "none"],
    "rewrite: no shards": ["rewrite", "bad.npz", "--forget", "grid.yaml"],
    "rewrite: a broken shard": ["rewrite", "bad.tar", "--forget", "grid.yaml"],
    "push: no run": ["push", "none", "--to", "o"],
    "pull: nothing there": ["pull", "none", "--out", "o"],
    "onnx: no run": ["onnx", "none", "--out", "o.onnx"],
    "desk: no key": ["desk", "--key", "none.pem"],
    "embed: bad suffix": ["embed", "{tuned}", "--out", "o.txt"],
    "embed: no projector": ["embed", "bad.npz", "--out", "o.npz"],
    "compat: not a run": ["compat", "{original}", "bad.npz"],
    "canaries plan: too few": ["canaries", "plan", "--data", "digits", "--count", "2", "--out", "o"],
    "canaries guess: no plan": ["canaries", "guess", "{tuned}", "--plan", "none"],
    "init: no checkpoint": ["init", "bad.npz", "--data", "digits"],
    "init: a run folder": ["init", "{original}", "--data", "digits"],
    "convert: unknown layout": ["convert", "{tuned}", "--as", "tflite", "--out", "o"],
    "convert: no file it came in": ["convert", "{tuned}", "--out", "o"],
    "inspect: nothing": ["inspect", "none.pth"],
    "inspect: damaged": ["inspect", "bad.npz"],
    "bench: unknown method": ["bench", "grid.yaml", "--out", "o"],
    "data: unknown": ["data", "digit"],
    "methods: unknown": ["methods", "scrubb"],
}  # fmt: skip


def state_of(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every file below the folders, with its size and time of change."""
    found = [path for folder in folders for path in folder.rglob("*")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found if path.is_file()} | {
        str(path): (0, 0) for path in found if path.is_dir()
    }


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_command_leaves_nothing_behind(efface, made, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no archive")
    np.save(tmp_path / "bad.npy", np.zeros((4, 2)))
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "grid.yaml").write_text("methods: [scrubb]\n", encoding="utf-8")
    words = [word.format(**{run: made / run for run in ("original", "tuned", "second")}) for word in REFUSED[name]]
    before = state_of(tmp_path, made)
    refused(efface(*words))
    assert state_of(tmp_path, made) == before


def test_every_verb_is_tried():
    from efface.cli import VERBS

    verbs = {verb.__name__.removesuffix("_command") for verb in VERBS}
    tried = {words[0] for words in REFUSED.values()}
    assert verbs - tried <= {"audits", "demo", "sign", "verify", "keygen"}
