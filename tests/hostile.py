"""Malicious, broken and unusual checkpoints, each with the command to run on it and the expected result."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests import foreign
from tests.adoption import SPLIT, half_file, moco_file, trained

MARK = "went-off"
"""The file that malicious code creates beside the checkpoint if it is run."""


class Bomb:
    """Runs a shell command when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / MARK

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@dataclass(frozen=True)
class Hostile:
    """A file, and what the command must do with it."""

    name: str
    make: Callable[[Path], Path]
    exit: int
    says: str
    """A part of what the command prints."""
    unlearn: bool = False
    """Whether the command is ``unlearn`` instead of ``inspect``."""


def tensors() -> dict[str, torch.Tensor]:
    return foreign.resnet().state_dict()


def bomb(folder: Path) -> Path:
    torch.save({"state_dict": tensors(), "optimizer": Bomb(folder)}, folder / "bomb.pth")
    return folder / "bomb.pth"


def bare_bomb(folder: Path) -> Path:
    (folder / "bomb.ckpt").write_bytes(pickle.dumps({"state_dict": Bomb(folder)}, protocol=2))
    return folder / "bomb.ckpt"


def bomb_in_folder(folder: Path) -> Path:
    home = folder / "model"
    home.mkdir()
    (home / "config.json").write_text('{"model_type": "vit"}')
    torch.save(Bomb(folder), home / "pytorch_model.bin")
    return home


def zip_slip(folder: Path) -> Path:
    """A torch file whose archive has a member that would be extracted outside of the folder."""
    home = folder / "inner"
    home.mkdir()
    torch.save(tensors(), home / "slip.pth")
    with zipfile.ZipFile(home / "slip.pth", "a") as archive:
        archive.writestr(f"../{MARK}", "x")
    return home / "slip.pth"


def shards(folder: Path, **listed: str) -> Path:
    home = folder / "sharded"
    home.mkdir()
    state = tensors()
    names = list(state)
    cut = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for file, inside in cut.items():
        save_file({name: state[name] for name in inside}, home / file)
    where = {name: file for file, inside in cut.items() for name in inside} | listed
    (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return home


def shard_slip(folder: Path) -> Path:
    save_file({"secret": torch.zeros(1)}, folder / "secret.safetensors")
    return shards(folder, secret="../secret.safetensors")


def shard_missing(folder: Path) -> Path:
    home = shards(folder)
    (home / "model-2.safetensors").unlink()
    return home


def truncated_safetensors(folder: Path) -> Path:
    save_file(tensors(), folder / "cut.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "cut.safetensors").read_bytes()[:-100])
    return folder / "cut.safetensors"


def truncated_torch(folder: Path) -> Path:
    torch.save(tensors(), folder / "cut.pth")
    (folder / "cut.pth").write_bytes((folder / "cut.pth").read_bytes()[:2000])
    return folder / "cut.pth"


def lying_header(folder: Path) -> Path:
    """A safetensors file that claims a header of an exabyte."""
    (folder / "lie.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    return folder / "lie.safetensors"


def lying_offsets(folder: Path) -> Path:
    """A safetensors file whose tensor lies beyond its end."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4096]}}).encode()
    (folder / "far.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    return folder / "far.safetensors"


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    path = moco_file(trained("moco", queue=24), folder)
    content = torch.load(path, weights_only=True)
    content["state_dict"] = change(content["state_dict"])
    torch.save(content, path)
    return path


def wrong_shape(folder: Path) -> Path:
    name = "module.encoder_q.layer2.0.conv1.weight"
    return changed(folder, lambda state: state | {name: state[name][:, :4]})


def renamed(folder: Path) -> Path:
    names = {"conv": "convolution", "bn": "normalization", "layer": "stage"}

    def change(name: str) -> str:
        for old, new in names.items():
            name = name.replace(old, new)
        return name

    path = changed(folder, lambda state: {change(name): value for name, value in state.items()})
    torch.save(torch.load(path, weights_only=True) | {"arch": "resnet18"}, path)
    return path


def scattered(folder: Path) -> Path:
    torch.save({f"stage{i}.w": torch.zeros(2, 2) for i in range(3)}, folder / "own.pth")
    return folder / "own.pth"


def not_finite(folder: Path) -> Path:
    name = "module.encoder_q.conv1.weight"
    return changed(folder, lambda state: state | {name: torch.full_like(state[name], torch.nan)})


def quantized(folder: Path) -> Path:
    name = "module.encoder_q.conv1.weight"
    return changed(folder, lambda state: state | {name: state[name].to(torch.int8)})


def float16(folder: Path) -> Path:
    return half_file(trained("simclr"), folder)


def bfloat16(folder: Path) -> Path:
    def change(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}

    return changed(folder, change)


def a_class(folder: Path) -> Path:
    torch.save({"state_dict": tensors(), "best": Path("/runs/best")}, folder / "paths.ckpt")
    return folder / "paths.ckpt"


def pointer(folder: Path) -> Path:
    (folder / "lfs.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    return folder / "lfs.pth"


def page(folder: Path) -> Path:
    (folder / "page.pth").write_bytes(b"<!DOCTYPE html><html></html>")
    return folder / "page.pth"


CASES = (
    Hostile("pickle bomb beside the weights, .pth", bomb, 2, "refused, and nothing in it was run"),
    Hostile("pickle bomb, bare pickle", bare_bomb, 2, "refused, and nothing in it was run"),
    Hostile("pickle bomb in a folder of transformers", bomb_in_folder, 2, "refused, and nothing in it was run"),
    Hostile("pickle bomb, unlearned", bomb, 2, "refused, and nothing in it was run", True),
    Hostile("zip slip: an archive with ../member", zip_slip, 2, "not in a subdirectory"),
    Hostile("zip slip: a shard called ../secret", shard_slip, 2, "shard ../secret.safetensors is not in"),
    Hostile("a class of the training code", a_class, 2, "asks for: pathlib"),
    Hostile("truncated safetensors", truncated_safetensors, 2, "damaged or truncated"),
    Hostile("truncated .pth", truncated_torch, 2, "damaged, truncated"),
    Hostile("safetensors with a header of an exabyte", lying_header, 2, "damaged or truncated"),
    Hostile("safetensors with a tensor beyond its end", lying_offsets, 2, "damaged or truncated"),
    Hostile("Git LFS pointer", pointer, 2, "Git LFS pointer"),
    Hostile("web page", page, 2, "a web page"),
    Hostile("sharded safetensors", shards, 0, "layout  plain"),
    Hostile("sharded safetensors, one shard missing", shard_missing, 2, "shard model-2.safetensors is not in"),
    Hostile("names of no library", scattered, 2, "layout of no library"),
    Hostile("renamed keys", renamed, 2, "0 of 54 tensors match", True),
    Hostile("a tensor of another shape", wrong_shape, 2, "another architecture", True),
    Hostile("NaN in the weights", not_finite, 2, "not all finite", True),
    Hostile("quantized weights", quantized, 2, "quantized", True),
    Hostile("float16", float16, 0, "steps", True),
    Hostile("bfloat16", bfloat16, 0, "steps", True),
)


def told(words: list[str]) -> tuple[int, str]:
    """Run a command line in this process; return its exit code and everything it prints."""
    from efface import cli

    kept, printed = sys.argv, io.StringIO()
    sys.argv = ["efface", *words]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            cli.main()
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    finally:
        sys.argv = kept
    return code, printed.getvalue()


def tried(case: Hostile, folder: Path, pictures: Path) -> tuple[int, str, bool]:
    """Run the command on a case; return exit code, output, and whether code was run or a file written outside."""
    path = case.make(folder)
    words = ["inspect", str(path)]
    if case.unlearn:
        words = ["unlearn", str(path), "--data", str(pictures), "--forget", "@random:12", "--method", "finetune"]
        words += ["--set", "method.epochs=1", "--set", f"split={json.dumps(SPLIT)}", "--device", "cpu"]
        words += ["--out", str(folder / "out")]
    code, said = told(words)
    return code, said, (folder / MARK).exists()
