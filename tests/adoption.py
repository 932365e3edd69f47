"""Trained models saved as checkpoints of other libraries, and helpers to import them and unlearn from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from efface import api
from efface.data.dataset import Data
from efface.interop.architecture import IMAGENET
from efface.runs import run, train
from efface.runs.foreign import load_foreign
from efface.training import optim
from efface.training.augment import Views
from efface.training.checkpoint import Checkpoint
from efface.training.model import Model
from efface.training.networks.backbones import Backbone
from efface.training.objectives.shared import ProjectorLayer
from tests import foreign, tiny
from tests.foreign import Owner

SPLIT = {"train": 90, "valid": 30, "holdout": 30, "test": 30}
QUICK = {"name": "finetune", "epochs": 1, "batch_size": 30}
BODY = Backbone(name="resnet8", width=8, stride=1)
MILD = Views(crop=(0.6, 1.0), brightness=0.2, contrast=0.2, saturation=0, hue=0, grayscale=0)


def drawn(n: int = 180, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Images of four colored corners with noise: class 0 has horizontal stripes, 1 vertical ones, and 2 none."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = rng.uniform(40, 200, (n, channels, 2, 2)).repeat(4, 2).repeat(4, 3) + rng.normal(0, 12, (n, channels, 8, 8))
    stripes = np.where(np.arange(8) % 2, 25, -25)
    x[y == 0] += stripes[:, None]
    x[y == 1] += stripes
    return x.clip(0, 255).astype(np.uint8), y.astype(np.int64)


def trained_by(name: str, epochs: int, **options: Any) -> Model:
    """Train a model on the images for some epochs."""
    chosen = type(tiny.SMALL[name])(**({"dim": 8, "hidden": 12} if name != "cross_entropy" else {}) | options)
    recipe = tiny.recipe(
        name, objective=chosen, backbone=BODY, channels=3, epochs=epochs, batch_size=15, mean=IMAGENET[0],
        std=IMAGENET[1], optim=optim.Optim(lr=0.05), views=MILD,
    )  # fmt: skip
    data = Data.from_arrays(*drawn())
    return api.pretrain(data, api.split(data, **SPLIT), recipe=recipe, device="cpu").model.eval()


@cache
def backbone() -> Model:
    """Train a classifier; all other models share its backbone."""
    return trained_by("cross_entropy", 12)


@cache
def trained(name: str, **options: Any) -> Model:
    """Build a model for one objective and projector on the trained backbone; the other parts are random."""
    if name == "cross_entropy":
        return backbone()
    chosen = type(tiny.SMALL[name])(**{"dim": 8, "hidden": 12} | options)
    recipe = tiny.recipe(name, objective=chosen, backbone=BODY, channels=3, mean=IMAGENET[0], std=IMAGENET[1])
    model = recipe.start(3).eval()
    model.backbone.load_state_dict(backbone().backbone.state_dict())
    if model.momentum_encoder is not None:
        model.add_momentum_encoder()
        with torch.no_grad():
            for value in model.get_submodule("momentum_encoder").parameters():
                value += 0.01
    return model


def parts(model: Model) -> dict[str, nn.Module]:
    momentum = model.momentum_encoder
    found = {"body": model.backbone, "head": model.head, "predictor": model.predictor}
    found |= {"momentum": momentum.backbone, "momentum_head": momentum.head} if momentum is not None else {}
    return {name: module for name, module in found.items() if module is not None}


def moco_file(model: Model, folder: Path) -> Path:
    p = parts(model)
    heads = [p["head"], p["momentum_head"]]
    heads = [head[0] if len(head) == 1 else head for head in heads]  # pyright: ignore
    q, k = (foreign.with_fc(foreign.copy.deepcopy(p[b]), h) for b, h in zip(("body", "momentum"), heads, strict=True))
    both = Owner(encoder_q=q, encoder_k=k, queue=model.queue.T.contiguous(), queue_ptr=torch.tensor([3]))  # pyright: ignore
    content = {
        "epoch": 9,
        "arch": "resnet8",
        "state_dict": foreign.parallel(both.state_dict()),
        "optimizer": foreign.sgd(q),
    }
    torch.save(content, folder / "moco.pth.tar")
    return folder / "moco.pth.tar"


def solo_file(model: Model, folder: Path) -> Path:
    p = parts(model)
    queue = model.queue
    both = Owner(
        backbone=p["body"],
        classifier=nn.Linear(32, 3),
        projector=p["head"],
        momentum_backbone=p["momentum"],
        momentum_projector=p["momentum_head"],
        **({"predictor": p["predictor"]} if "predictor" in p else {}),
        **({"queue": torch.stack([queue.T, queue.T])} if queue is not None else {}),
    )
    method = "mocov2plus" if queue is not None else "byol"
    (folder / "args.json").write_text(json.dumps({"method": method, "data": {"dataset": "imagenet100"}}))
    torch.save(foreign.lightning(both), folder / "solo.ckpt")
    return folder / "solo.ckpt"


def lightly_file(model: Model, folder: Path) -> Path:
    p = parts(model)
    stem, stages = ("conv1", "bn1"), ("layer1", "layer2", "layer3")
    between = [nn.ReLU(), nn.Identity()]  # torchvision's, the max-pool taken out
    ours = [[p["body"].get_submodule(n) for n in names] for names in (stem, stages)]
    children = nn.Sequential(*ours[0], *between, *ours[1])
    both = Owner(backbone=children, projection_head=Owner(layers=p["head"]), criterion=nn.Identity())
    torch.save(both.state_dict(), folder / "lightly.pt")
    return folder / "lightly.pt"


def solo_simple_file(model: Model, folder: Path) -> Path:
    """solo-learn's SimSiam."""
    p = parts(model)
    both = Owner(backbone=p["body"], classifier=nn.Linear(32, 3), projector=p["head"], predictor=p["predictor"])
    (folder / "args.json").write_text(json.dumps({"method": "simsiam", "data": {"dataset": "imagenet100"}}))
    torch.save(foreign.lightning(both), folder / "simsiam.ckpt")
    return folder / "simsiam.ckpt"


def barlow_file(model: Model, folder: Path) -> Path:
    p = parts(model)
    both = Owner(backbone=p["body"], projector=p["head"], bn=nn.BatchNorm1d(8, affine=False))
    torch.save({"epoch": 1, "model": foreign.parallel(both.state_dict()), "optimizer": {}}, folder / "barlow.pth")
    return folder / "barlow.pth"


def vicreg_file(model: Model, folder: Path) -> Path:
    p = parts(model)
    both = Owner(backbone=p["body"], projector=p["head"])
    torch.save({"epoch": 1, "model": foreign.parallel(both.state_dict()), "optimizer": {}}, folder / "vicreg.pth")
    return folder / "vicreg.pth"


def swav_file(model: Model, folder: Path) -> Path:
    p = parts(model)
    both = foreign.with_fc(foreign.copy.deepcopy(p["body"]), p["head"], "projection_head")
    both.add_module("prototypes", nn.Linear(8, 20, bias=False))
    torch.save(
        {"epoch": 1, "state_dict": foreign.parallel(both.state_dict()), "amp": {"scale": 1.0}}, folder / "swav.pth"
    )
    return folder / "swav.pth"


def half_file(model: Model, folder: Path) -> Path:
    p = parts(model)
    both = foreign.with_fc(foreign.copy.deepcopy(p["body"]), p["head"])
    state = {k: v.contiguous().half() if v.is_floating_point() else v for k, v in both.state_dict().items()}
    save_file(state, folder / "half.safetensors", metadata={"format": "pt"})
    return folder / "half.safetensors"


def classifier_folder(model: Model, folder: Path) -> Path:
    home = folder / "classifier"
    home.mkdir()
    both = foreign.with_fc(foreign.copy.deepcopy(model.backbone), model.head)
    save_file({k: v.contiguous() for k, v in both.state_dict().items()}, home / "model.safetensors")
    config = {
        "architecture": "resnet8",
        "pretrained_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    }
    (home / "config.json").write_text(json.dumps(config))
    (home / "optimizer.pt").write_bytes(b"moments")
    return home


def efface_file(model: Model, folder: Path) -> Path:
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "ours.safetensors")
    return folder / "ours.safetensors"


BIASED = (ProjectorLayer.LINEAR, ProjectorLayer.NORM, ProjectorLayer.RELU, ProjectorLayer.LINEAR)
LIGHTLY = (ProjectorLayer.PLAIN, ProjectorLayer.NORM, ProjectorLayer.RELU, ProjectorLayer.PLAIN, ProjectorLayer.NORM)
THREE = (
    ProjectorLayer.PLAIN,
    ProjectorLayer.NORM,
    ProjectorLayer.RELU,
    ProjectorLayer.PLAIN,
    ProjectorLayer.NORM,
    ProjectorLayer.RELU,
    ProjectorLayer.LINEAR,
    ProjectorLayer.BARE,
)
DEEP = (ProjectorLayer.PLAIN, ProjectorLayer.NORM, ProjectorLayer.RELU, ProjectorLayer.PLAIN, ProjectorLayer.BARE)
CASES: dict[str, tuple[Callable[[Model, Path], Path], str, dict[str, Any], str | None]] = {
    "moco": (moco_file, "moco", {"queue": 24}, None),
    "moco as simclr": (moco_file, "moco", {"queue": 24}, "simclr"),
    "solo moco": (solo_file, "moco", {"queue": 24}, None),
    "solo byol": (solo_file, "byol", {"layers": BIASED}, None),
    "solo byol as simclr": (solo_file, "byol", {"layers": BIASED}, "simclr"),
    "lightly simclr": (lightly_file, "simclr", {"layers": LIGHTLY}, None),
    "solo simsiam": (solo_simple_file, "simsiam", {"bottleneck": 5, "layers": THREE}, None),
    "barlow": (barlow_file, "barlow", {"layers": THREE[:-1]}, None),
    "vicreg": (vicreg_file, "vicreg", {"layers": BIASED}, None),
    "swav as simclr": (swav_file, "simclr", {"layers": DEEP}, None),
    "moco v1": (moco_file, "moco", {"queue": 24, "layers": (ProjectorLayer.LINEAR,), "hidden": None}, None),
    "float16": (half_file, "simclr", {}, None),
    "classifier": (classifier_folder, "cross_entropy", {}, None),
    "efface": (efface_file, "moco", {"queue": 24}, "moco"),
}


UNSHOWN: dict[str, dict[str, Any]] = {"efface": {"backbone": {"stride": 1}}}
"""Settings of the recipe that a case's file does not show and that are not what is assumed."""


def unlearn(path: Path, pictures: Path, out: Path, objective: str | None = None, **changed: Any) -> Checkpoint:
    settings: dict[str, Any] = {"data": str(pictures), "split": SPLIT, "forget": "@random:12", "method": QUICK}
    settings |= {"device": "cpu"} | ({"objective": objective} if objective else {}) | changed
    return train.unlearn_run(path, out, settings)


def imported(path: Path, pictures: Path, objective: str | None = None, **recipe: Any) -> Checkpoint:
    data = run.load_data({"data": str(pictures)})
    return load_foreign(path, data, {"objective": objective, "recipe": recipe}, 0)


def scrambled(path: Path) -> Path:
    """Shuffle the weights of the backbone's convolutions in a file: it still loads, but computes nonsense."""
    content = torch.load(path, weights_only=True)
    state = content["state_dict"]
    for name in state:
        if "encoder_q" in name and state[name].dim() == 4:
            order = torch.randperm(state[name].numel(), generator=torch.Generator().manual_seed(0))
            state[name] = state[name].flatten()[order].view_as(state[name])
    torch.save(content, path)
    return path
