"""Files of arrays, and checkpoints of other libraries."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from research.fuzz import mutations as damage
from research.fuzz.cases import MARK, FuzzCase, WrongIdentity
from research.fuzz.mutations import change_bytes
from safetensors.torch import save_file

from efface.auditing.embeddings.arrays import read_embeddings
from efface.auditing.observations import Observations
from efface.data.dataset import Data
from efface.data.sources import load
from efface.interop.inspect import inspect_checkpoint
from efface.training.networks.backbones import Backbone


class Npz:
    """Arrays: data sets, embeddings and observations, as .npz and .npy."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True)
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, (12, 3, 4, 4)).astype(np.uint8)
        keys = np.array([f"k{i}" for i in range(12)])
        np.savez(home / "data.npz", x=x, y=np.arange(12) % 3, keys=keys, classes=np.array(["a", "b", "c"]))
        named: dict[str, Any] = {"group": keys, "text": keys, "official": np.array(["train"] * 8 + ["test"] * 4)}
        np.savez_compressed(home / "more.npz", x=x[:, 0], y=np.array(["a", "b", ""] * 4), keys=keys, **named)
        z = rng.normal(size=(6, 2, 5)).astype(np.float32)
        np.savez(home / "embeddings.npz", forget=z, control=z + 1, forget_keys=keys[:6], control_keys=keys[6:])
        np.save(home / "embeddings.npy", z)
        Observations("m", "s", {"forget/keys": keys, "forget/loss": z}, {"spaces": ["backbone"]}).save(
            home / "seen.npz"
        )
        self.seeds = {path.name: path.read_bytes() for path in sorted(home.iterdir())}

    def make(self, rng: random.Random, folder: Path) -> FuzzCase:
        """Damage one of the files."""
        name = rng.choice(list(self.seeds))
        content, mark = self.seeds[name], str(folder / MARK)

        def inner(rng: random.Random, member: str, inside: bytes) -> bytes:
            return damage.change_npy(rng, inside, mark)

        if rng.random() < 0.3:
            content = change_bytes(rng, content)
        elif name.endswith(".npy"):
            content = damage.change_npy(rng, content, mark)
        else:
            content = damage.change_zip(rng, content, inner)
        path = folder / name
        path.write_bytes(content)
        read: Callable[[Path], object] = (
            read_embeddings if "embeddings" in name else Observations.load if name == "seen.npz" else load
        )
        return FuzzCase(name, content, lambda: require_same_order(read(path)))


def require_same_order(made: object) -> None:
    """Check a data set against itself: as many keys as images, and each key found at its place."""
    if isinstance(made, Data):
        places = made.positions(made.keys.tolist())
        if len(made.keys) != len(made.x) or places.tolist() != list(range(len(made.x))):
            raise WrongIdentity("the keys do not name the images")


class Checkpoints:
    """Checkpoints of other libraries: torch's zip and old format, safetensors, shards, bare pickles."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True)
        network = Backbone(name="resnet8", width=2, stride=1).build(3, (8, 8))
        state = {name: value.contiguous() for name, value in network.state_dict().items()}
        content = {"epoch": 3, "arch": "resnet8", "state_dict": state, "optimizer": {"state": {0: torch.ones(3)}}}
        torch.save(content, home / "zip.pth")
        torch.save(content, home / "old.pth", _use_new_zipfile_serialization=False)
        save_file(state, home / "one.safetensors", {"format": "pt"})
        names = list(state)
        index = {name: f"model-{1 + (i > 9)}.safetensors" for i, name in enumerate(names)}
        for file in set(index.values()):
            save_file({name: state[name] for name in names if index[name] == file}, home / file)
        (home / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        (home / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["x"], "hidden_size": 8}))
        (home / "bare.pkl").write_bytes(pickle.dumps({"state_dict": {"a": [1, 2.5, "x"], "b": b"bytes"}}, protocol=2))
        self.seeds = {path.name: path.read_bytes() for path in sorted(home.iterdir())}

    def make(self, rng: random.Random, folder: Path) -> FuzzCase:
        """Damage one of the files; a shard, an index or a settings file is read with its neighbours."""
        name = rng.choice(list(self.seeds))
        content, mark = self.seeds[name], str(folder / MARK)

        def inner(rng: random.Random, member: str, inside: bytes) -> bytes:
            return damage.change_pickle(rng, inside, mark) if member.endswith(".pkl") else change_bytes(rng, inside)

        changed = content
        while changed == content:
            if rng.random() < 0.25:
                changed = change_bytes(rng, content)
            elif name == "zip.pth":
                changed = damage.change_zip(rng, content, inner)
            elif name.endswith(".safetensors"):
                changed = damage.change_safetensors(rng, content)
            elif name.endswith(".json"):
                changed = damage.change_json(rng, content)
            else:
                changed = damage.change_pickle(rng, content, mark)
        several = name.startswith(("model", "config"))
        if several:
            for other in ("model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json", "config.json"):
                (folder / other).write_bytes(self.seeds[other])
        (folder / name).write_bytes(changed)
        path = folder if several else folder / name
        return FuzzCase(name, changed, lambda: show(inspect_checkpoint(path)))


def show(made: Any) -> None:
    """What the command line does with a result."""
    "\n".join(made.lines()).encode("utf-8", "replace")
    json.dumps(made.as_dict())
