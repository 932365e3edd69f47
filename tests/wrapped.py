"""Checkpoints of a small classifier as averaging, compiling and profiling tools and lightly's tutorials write them."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from efface.interop.architecture import IMAGENET
from efface.training.model import Model
from efface.training.networks.backbones import BLOCKS, ResNet
from tests.adoption import drawn, trained
from tests.foreign import Case, Owner, lightning, moco_v2, own, parallel, sgd

DIM, CLASSES = 32, 3


class Classifier(ResNet):
    """The ResNet with torchvision's names and ``fc``, as a user's own code has it."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__(BLOCKS["resnet8"], 3, 8, 1)
        self.fc = head or nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(super().forward(x))


class Normalized(Classifier):
    """SalUn's: the normalization is a layer of the network, with buffers."""

    def __init__(self, mean: Any = IMAGENET[0], std: Any = IMAGENET[1]) -> None:
        super().__init__()
        self.normalize = Owner(mean=torch.tensor(mean).view(3, 1, 1), std=torch.tensor(std).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.normalize.mean) / self.normalize.std)  # pyright: ignore


def classifier(kind: type[Classifier] = Classifier) -> Any:
    """A classifier with high accuracy on the images of :func:`tests.adoption.drawn`."""
    model = trained("cross_entropy")
    net = kind()
    net.load_state_dict({**own(model.backbone), **{f"fc.{k}": v for k, v in own(model.head).items()}}, strict=False)
    return net.eval()


def images() -> tuple[Tensor, Tensor]:
    x, y = drawn()
    mean, std = (torch.tensor(row).view(3, 1, 1) for row in IMAGENET)
    return (torch.from_numpy(x).float() / 255 - mean) / std, torch.from_numpy(y)


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    """Accuracy in the user's own code, on images that it normalizes itself."""
    x, y = images()
    return float((net.eval()(x).argmax(1) == y).float().mean())


@torch.no_grad()
def averaged(net: nn.Module, steps: int = 3) -> AveragedModel:
    """torch's average of a network and its perturbed successors: almost the same function, other numbers."""
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    moved = copy.deepcopy(net)
    for _ in range(steps):
        for value in moved.parameters():
            value += 0.02 * value.std() if value.numel() > 1 else 0
        ema.update_parameters(moved)
    return ema.eval()


def split(net: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the backbone and of the head, by their names here."""
    return own(net, ("fc.", "normalize.")), {k.removeprefix("fc."): v for k, v in own(net).items() if k[:3] == "fc."}


def momentum(net: nn.Module) -> dict[str, Tensor]:
    body, head = split(net)
    return {f"backbone.{k}": v for k, v in body.items()} | {f"head.{k}": v for k, v in head.items()}


def torchvision_reference(folder: Path) -> Case:
    """As torchvision's reference training writes it."""
    net = classifier()
    ema = averaged(net)
    args = argparse.Namespace(model="resnet8", model_ema=True)
    content = {"model": net.state_dict(), "optimizer": sgd(net), "lr_scheduler": {}, "epoch": 3, "args": args}
    torch.save(content | {"model_ema": ema.state_dict()}, folder / "model_3.pth")
    return Case(
        folder / "model_3.pth", "plain", *split(net), momentum(ema.module), {"bookkeeping": {"model_ema/n_averaged"}}
    )


def swa_alone(folder: Path) -> Case:
    """An AveragedModel alone, as ``torch.save(swa_model.state_dict())`` writes it."""
    ema = averaged(classifier())
    torch.save(ema.state_dict(), folder / "swa.pth")
    return Case(folder / "swa.pth", "plain", *split(ema.module), {}, {"bookkeeping": {"n_averaged"}})


def ema_in_lightning(folder: Path) -> Case:
    """A LightningModule that owns both: ``net.*`` and ``ema.module.*``."""
    net = classifier()
    ema = averaged(net)
    torch.save(lightning(Owner(net=net, ema=ema)), folder / "both.ckpt")
    others = {"bookkeeping": {"ema/n_averaged"}}
    return Case(folder / "both.ckpt", "plain", *split(net), momentum(ema.module), others)


def timm_ema(folder: Path) -> Case:
    """timm's ModelEmaV3 as a section: its names begin with ``module.``."""
    from timm.utils.model_ema import ModelEmaV3

    net = classifier()
    ema = ModelEmaV3(net, decay=0.5)
    ema.update(averaged(net).module, step=1)
    torch.save({"epoch": 1, "state_dict": parallel(net.state_dict()), "ema": ema.state_dict()}, folder / "ema.pth.tar")
    return Case(folder / "ema.pth.tar", "plain", *split(net), momentum(ema.module))


def mmengine_ema(folder: Path) -> Case:
    """mmengine's EMAHook: the average is ``state_dict``, and what was trained ``ema_state_dict`` with ``steps``."""
    net, body = classifier(), ResNet(BLOCKS["resnet8"], 3, 8, 1)
    body.load_state_dict(split(net)[0])
    state = Owner(backbone=body, head=Owner(fc=net.fc)).state_dict()
    other = {f"module.{k}": v + 0.01 if v.is_floating_point() else v for k, v in state.items()}
    content = {"meta": {"epoch": 1}, "state_dict": state, "ema_state_dict": other | {"steps": torch.tensor(9)}}
    torch.save(content, folder / "epoch_1.pth")
    expected = {f"backbone.{k}": other[f"module.backbone.{k}"] for k in split(net)[0]}
    expected |= {f"head.{k}": other[f"module.head.fc.{k}"] for k in ("weight", "bias")}
    return Case(folder / "epoch_1.pth", "mmlab", *split(net), expected, {"bookkeeping": {"ema_state_dict/steps"}})


def profiled(folder: Path) -> Case:
    """As thop leaves a network behind: two buffers in every module."""
    net = classifier()
    expected = split(net)
    for module in net.modules():
        module.register_buffer("total_ops", torch.ones(1, dtype=torch.float64))
        module.register_buffer("total_params", torch.ones(1, dtype=torch.float64))
    torch.save(net.state_dict(), folder / "profiled.pth")
    counters = {k for k in net.state_dict() if k.endswith(("total_ops", "total_params"))}
    return Case(folder / "profiled.pth", "plain", *expected, {}, {"bookkeeping": counters})


def salun(folder: Path) -> Case:
    net = classifier(Normalized)
    torch.save({"state_dict": net.state_dict(), "epoch": 3, "best_sa": 91.0}, folder / "salun.pth.tar")
    return Case(folder / "salun.pth.tar", "plain", *split(net), {}, {"buffers": {"mean", "std"}})


def compiled_inside(folder: Path) -> Case:
    """MoCo whose encoders were compiled one by one: ``module.encoder_q._orig_mod.*``."""
    case = moco_v2(folder)
    content = torch.load(case.path, weights_only=True)
    for part in ("encoder_q", "encoder_k"):
        content["state_dict"] = {
            k.replace(f"{part}.", f"{part}._orig_mod."): v for k, v in content["state_dict"].items()
        }
    torch.save(content, case.path)
    return case


def wrapped_inside(folder: Path) -> Case:
    """MoCo whose encoders were put into DistributedDataParallel one by one."""
    case = moco_v2(folder)
    content = torch.load(case.path, weights_only=True)
    state = {k.removeprefix("module."): v for k, v in content["state_dict"].items()}
    for part in ("encoder_q", "encoder_k"):
        state = {k.replace(f"{part}.", f"{part}.module."): v for k, v in state.items()}
    torch.save(content | {"state_dict": state}, case.path)
    return case


def sequential(net: nn.Module, *, relu: bool = True) -> nn.Sequential:
    """The children of a ResNet as a Sequential, as lightly's tutorials make it."""
    stem = [net.get_submodule(name) for name in ("conv1", "bn1")]
    stages = [net.get_submodule(name) for name in ("layer1", "layer2", "layer3")]
    return nn.Sequential(*stem, *([nn.ReLU(), nn.Identity()] if relu else []), *stages, nn.AdaptiveAvgPool2d(1))


def lightly_tutorial(folder: Path) -> Case:
    """``{"resnet18_parameters": ...}``, as lightly's tutorials save their backbone."""
    from lightly.models import ResNetGenerator

    net = ResNetGenerator("resnet-9", width=1 / 16, num_splits=2)
    body = nn.Sequential(*list(net.children())[:-1], nn.AdaptiveAvgPool2d(1))
    torch.save({"resnet18_parameters": body.state_dict()}, folder / "model.pth")
    expected = {k.replace("shortcut", "downsample"): v for k, v in own(net, ("linear",)).items()}
    return Case(folder / "model.pth", "plain", expected)


def sequential_classifier(folder: Path) -> Case:
    """The classifier of lightly's tutorial on MoCo: ``backbone.0.weight`` and ``fc.weight``, saved by Lightning."""
    net = classifier()
    torch.save(lightning(Owner(backbone=sequential(net), fc=net.fc)), folder / "classifier.ckpt")
    return Case(folder / "classifier.ckpt", "plain", *split(net))


def mlp_head(folder: Path) -> Case:
    """A classifier with dropout and a hidden layer in place of ``fc``."""
    model: Model = trained("cross_entropy")
    head = nn.Sequential(nn.Dropout(0.1), nn.Linear(DIM, DIM), nn.ReLU(), nn.Dropout(0.1), nn.Linear(DIM, CLASSES))
    with torch.no_grad():
        head[1].weight.copy_(torch.eye(DIM)), head[1].bias.zero_()  # pyright: ignore
        head[4].load_state_dict(model.head.state_dict())
    net = Classifier(head)
    net.load_state_dict(own(model.backbone), strict=False)
    torch.save(net.state_dict(), folder / "mlp.pth")
    return Case(folder / "mlp.pth", "plain", *split(net))


WRAPPED = (
    torchvision_reference,
    swa_alone,
    ema_in_lightning,
    timm_ema,
    mmengine_ema,
    profiled,
    salun,
    compiled_inside,
    wrapped_inside,
    lightly_tutorial,
    sequential_classifier,
    mlp_head,
)
