"""Run folders with damaged files: every verb that reads one names it, and exits with 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.commands import JUDGED, refused

READ_BY = {
    "unlearn": ("checkpoint.safetensors", "config.yaml", "meta.json", "split.json"),
    "audit": ("checkpoint.safetensors", "config.yaml", "meta.json", "split.json"),
    "audit with the oracle's": ("checkpoint.safetensors", "meta.json", "split.json"),
    "embed": ("checkpoint.safetensors", "config.yaml", "meta.json", "split.json"),
    "references": ("config.yaml", "meta.json", "split.json"),
    "report": ("record.json", "observations.npz"),
}
DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "another mapping": lambda content: b'{"a": 1}',
    "a list": lambda content: b"[1, 2]",
    "noise": lambda content: bytes(range(128, 256)) * 8,
    "half of a character": lambda content: (
        content.replace(b'": ', b'\\ud800": ', 1) if content[:1] == b"{" else b'{"\\ud800": 1}'
    ),
}
"""Ways in which a file may be damaged."""


def words_of(verb: str, home: Path, out: Path) -> list[str | Path]:
    """A call of the verb on the damaged run."""
    run = home / "run"
    return {
        "unlearn": ["unlearn", run, "--forget", "@random:0.1", "--method", "finetune", "--out", out],
        "audit": ["audit", run, "--oracle", home / "oracle"],
        "audit with the oracle's": ["audit", home / "tuned", "--oracle", run],
        "embed": ["embed", run, "--out", out / "e.npz"],
        "references": ["references", run, "--out", out],
        "report": ["report", run],
    }[verb]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb, names in READ_BY.items() for name in names])
def test_a_damaged_file_is_named(efface, made, tmp_path, verb, name, damage):
    for one in ("tuned", "oracle", "original"):
        shutil.copytree(made / one, tmp_path / one)
    whose = {"unlearn": "original", "audit with the oracle's": "oracle"}.get(verb, "tuned")
    shutil.copytree(made / whose, tmp_path / "run")
    path = tmp_path / "run" / name
    if not path.exists():
        efface("audit", tmp_path / "run", "--oracle", tmp_path / "oracle")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    refused(efface(*words_of(verb, tmp_path, tmp_path / "out")), str(path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("verb", ["audit", "report"])
def test_a_damaged_log_does_not_prevent_a_verdict(efface, made, tmp_path, verb, damage):
    for one in ("tuned", "oracle", "original"):
        shutil.copytree(made / one, tmp_path / one)
    shutil.copytree(made / "tuned", tmp_path / "run")
    efface("audit", tmp_path / "run", "--oracle", tmp_path / "oracle")
    path = tmp_path / "run" / "log.jsonl"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    code, _, err = efface(*words_of(verb, tmp_path, tmp_path / "out"))
    assert code in (JUDGED if verb == "audit" else (0,)), err
