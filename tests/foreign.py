"""Tiny checkpoints as other libraries save them, made with their classes where possible, else with their exact keys."""

from __future__ import annotations

import argparse
import copy
import json
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efface.training.networks.backbones import Backbone
from efface.training.objectives.shared import build_projector

DIM, HIDDEN, OUT, KEYS = 32, 16, 8, 24
State = dict[str, Tensor]


@dataclass
class Case:
    """A saved checkpoint and the tensors that must be found in it."""

    path: Path
    layout: str
    backbone: State
    """Name here to tensor."""
    head: State | None = None
    momentum: State = field(default_factory=dict)
    others: dict[str, set[str]] = field(default_factory=dict)
    """Role to names here, for all other roles."""


def resnet() -> nn.Module:
    """A ResNet with torchvision's names: resnet10, 4 to 32 channels, 3x3 stem."""
    return Backbone(name="resnet10", width=4, stride=1).build(3, (8, 8))


VIT_SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


def vit(**changed: Any) -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", **(VIT_SIZES | {"num_classes": 0} | changed))


def mlp(dim: int = DIM, *, norm: bool = False) -> nn.Module:
    return build_projector(dim, HIDDEN, OUT, norm=norm)


class Owner(nn.Module):
    """A module with the given submodules, parameters and buffers."""

    def __init__(self, **owned: Any) -> None:
        super().__init__()
        for name, value in owned.items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
            elif isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)


def own(module: nn.Module, drop: tuple[str, ...] = ()) -> State:
    """The module's state dict, without names that start with one of ``drop``."""
    return {k: v for k, v in module.state_dict().items() if not k.startswith(drop or ("?",))}


def tower(backbone: nn.Module, head: nn.Module | None) -> State:
    both = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    return both | ({f"head.{k}": v for k, v in head.state_dict().items()} if head is not None else {})


def sgd(module: nn.Module) -> dict[str, Any]:
    """The state of SGD with momentum after one step."""
    module = copy.deepcopy(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def with_fc(network: nn.Module, head: nn.Module, name: str = "fc") -> nn.Module:
    network.add_module(name, head)
    return network


def parallel(state: State) -> State:
    """A state dict with the names of DistributedDataParallel."""
    fresh = OrderedDict((f"module.{k}", v) for k, v in state.items())
    fresh._metadata = OrderedDict(version=1)  # pyright: ignore
    return fresh


def moco_v2(folder: Path, name: str = "checkpoint_0199.pth.tar") -> Case:
    q, head = resnet(), mlp()
    k, momentum = resnet(), mlp()
    both = Owner(
        encoder_q=with_fc(copy.deepcopy(q), head),
        encoder_k=with_fc(copy.deepcopy(k), momentum),
        queue=nn.functional.normalize(torch.randn(OUT, KEYS), dim=0),
        queue_ptr=torch.tensor([8]),
    )
    content = {
        "epoch": 200,
        "arch": "resnet10",
        "state_dict": parallel(both.state_dict()),
        "optimizer": sgd(both.get_submodule("encoder_q")),
    }
    torch.save(content, folder / name)
    others = {"queue": {"queue"}, "buffers": {"queue_ptr"}}
    return Case(folder / name, "moco", own(q), own(head), tower(k, momentum), others)


def moco_v1(folder: Path) -> Case:
    q, k = resnet(), resnet()
    head = nn.Linear(DIM, OUT)
    both = Owner(
        encoder_q=with_fc(copy.deepcopy(q), head),
        encoder_k=with_fc(copy.deepcopy(k), head),
        queue=torch.randn(OUT, KEYS),
        queue_ptr=torch.zeros(1, dtype=torch.long),
    )
    torch.save({"epoch": 1, "arch": "resnet10", "state_dict": both.state_dict()}, folder / "v1.pth.tar")
    others = {"queue": {"queue"}, "buffers": {"queue_ptr"}}
    numbered = nn.Sequential(head)
    return Case(folder / "v1.pth.tar", "moco", own(q), own(numbered), tower(k, numbered), others)


def moco_v3(folder: Path) -> Case:
    q, k = vit(), vit()
    heads = [nn.Sequential(nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, OUT)) for _ in "qk"]
    predictor = mlp(OUT, norm=True)
    both = Owner(
        base_encoder=with_fc(copy.deepcopy(q), heads[0], "head"),
        momentum_encoder=with_fc(copy.deepcopy(k), heads[1], "head"),
        predictor=predictor,
    )
    content = {
        "epoch": 3,
        "arch": "vit_small",
        "state_dict": parallel(both.state_dict()),
        "optimizer": {},
        "scaler": {},
    }
    torch.save(content, folder / "v3.pth.tar")
    others = {"predictor": set(predictor.state_dict())}
    return Case(folder / "v3.pth.tar", "moco_v3", own(q), own(heads[0]), tower(k, heads[1]), others)


def lightning(module: nn.Module, **more: Any) -> dict[str, Any]:
    """The entries of a checkpoint that Lightning's trainer saves."""
    return {
        "epoch": 4,
        "global_step": 40,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": module.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {
            "ModelCheckpoint{}": {"best_model_path": "/runs/best.ckpt", "best_model_score": torch.tensor(1.0)}
        },
        "optimizer_states": [sgd(module)],
        "lr_schedulers": [{"last_epoch": 3}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"batch_size": 4},
    } | more


def solo_moco(folder: Path, dataset: str = "cifar10") -> Case:
    q, k, head, momentum = resnet(), resnet(), mlp(), mlp()
    both = Owner(
        backbone=q,
        classifier=nn.Linear(DIM, 3),
        momentum_backbone=k,
        projector=head,
        momentum_projector=momentum,
        queue=nn.functional.normalize(torch.randn(2, OUT, KEYS), dim=1),
        queue_ptr=torch.zeros(1, dtype=torch.long),
    )
    args = {"method": "mocov2plus", "backbone": {"name": "resnet18"}, "data": {"dataset": dataset}, "max_epochs": 5}
    (folder / "args.json").write_text(json.dumps(args))
    torch.save(lightning(both), folder / "mocov2plus-ep=4.ckpt")
    others = {
        "queue": {"queue"},
        "buffers": {"queue_ptr"},
        "extras": {"classifier.weight", "classifier.bias"},
    }
    return Case(folder / "mocov2plus-ep=4.ckpt", "solo", own(q), own(head), tower(k, momentum), others)


def solo_old_simclr(folder: Path) -> Case:
    body, head = resnet(), mlp()
    both = Owner(encoder=body, classifier=nn.Linear(DIM, 3), projector=head)
    (folder / "args.json").write_text(json.dumps({"method": "simclr", "encoder": "resnet18", "dataset": "cifar100"}))
    torch.save(lightning(both), folder / "old.ckpt")
    return Case(
        folder / "old.ckpt", "solo", own(body), own(head), {}, {"extras": {"classifier.weight", "classifier.bias"}}
    )


def lightly_moco_example(folder: Path) -> Case:
    from lightly.models.modules.heads import MoCoProjectionHead
    from lightly.models.resnet import ResNetGenerator

    nets = [ResNetGenerator("resnet-9", width=1 / 16) for _ in "qk"]
    heads = [MoCoProjectionHead(DIM, HIDDEN, OUT) for _ in "qk"]
    bodies = [nn.Sequential(*list(net.children())[:-1], nn.AdaptiveAvgPool2d(1)) for net in nets]
    both = Owner(
        backbone=bodies[0],
        projection_head=heads[0],
        backbone_momentum=bodies[1],
        projection_head_momentum=heads[1],
    )
    torch.save(lightning(both), folder / "moco.ckpt")
    q, k = ({n.replace("shortcut", "downsample"): v for n, v in own(net, ("linear",)).items()} for net in nets)
    head, momentum = (own(h.layers) for h in heads)
    both_momentum = {f"backbone.{n}": v for n, v in k.items()} | {f"head.{n}": v for n, v in momentum.items()}
    return Case(folder / "moco.ckpt", "lightly", q, head, both_momentum)


def lightly_torchvision_example(folder: Path) -> Case:
    from lightly.models.modules.heads import SimCLRProjectionHead
    from torchvision.models import resnet18

    net, head = resnet18(), SimCLRProjectionHead(512, HIDDEN, OUT)
    both = Owner(backbone=nn.Sequential(*list(net.children())[:-1]), projection_head=head)
    torch.save(both.state_dict(), folder / "simclr.pth")
    return Case(folder / "simclr.pth", "lightly", own(net, ("fc",)), own(head.layers))


def _benchmark(folder: Path, trained: str, momentum: str) -> Case:
    from lightly.models.modules.heads import MoCoProjectionHead

    q, k, heads = resnet(), resnet(), [MoCoProjectionHead(DIM, HIDDEN, OUT) for _ in "qk"]
    names = {trained: q, trained.replace("backbone", "projection_head"): heads[0], momentum: k}
    names[momentum.replace("backbone", "projection_head")] = heads[1]
    names["online_classifier"] = Owner(classification_head=nn.Linear(DIM, 3))
    path = folder / f"{trained}.ckpt"
    torch.save(lightning(Owner(**names)), path)
    momentum = tower(k, heads[1].layers)
    others = {"extras": {f"online_classifier.classification_head.{n}" for n in ("weight", "bias")}}
    return Case(path, "lightly", own(q), own(heads[0].layers), momentum, others)


def lightly_key_benchmark(folder: Path) -> Case:
    return _benchmark(folder, "backbone", "key_backbone")


def lightly_teacher_benchmark(folder: Path) -> Case:
    return _benchmark(folder, "backbone", "teacher_backbone")


def lightly_query_benchmark(folder: Path) -> Case:
    return _benchmark(folder, "query_backbone", "backbone")


def lightly_student_benchmark(folder: Path) -> Case:
    return _benchmark(folder, "student_backbone", "backbone")


def lightly_swav(folder: Path) -> Case:
    from lightly.models.modules.heads import SwaVProjectionHead, SwaVPrototypes

    body, head, prototypes = resnet(), SwaVProjectionHead(DIM, HIDDEN, OUT), SwaVPrototypes(OUT, KEYS)
    torch.save(lightning(Owner(backbone=body, projection_head=head, prototypes=prototypes)), folder / "swav.ckpt")
    others = {"prototypes": set(prototypes.state_dict())}
    return Case(folder / "swav.ckpt", "lightly", own(body), own(head.layers), {}, others)


class DinoHead(nn.Module):
    """DINO's head: an MLP and a last layer with weight normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(16, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, OUT)
        )
        self.last_layer = Owner(
            weight_g=nn.Parameter(torch.ones(KEYS, 1)), weight_v=nn.Parameter(torch.randn(KEYS, OUT))
        )


def dino(folder: Path) -> Case:
    student, teacher, heads = vit(), vit(), [DinoHead(), DinoHead()]
    content = {
        "student": parallel(Owner(backbone=student, head=heads[0]).state_dict()),
        "teacher": Owner(backbone=teacher, head=heads[1]).state_dict(),
        "optimizer": sgd(student),
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", patch_size=16, out_dim=KEYS, local_crops_scale=[0.05, 0.4]),
        "dino_loss": {"center": torch.randn(1, KEYS)},
    }
    torch.save(content, folder / "checkpoint.pth")
    last = {"weight_g", "weight_v"}
    momentum = tower(teacher, heads[1].mlp) | {f"prototypes.{n}": heads[1].last_layer.state_dict()[n] for n in last}
    others = {"prototypes": last, "extras": {"dino_loss/center"}}
    return Case(folder / "checkpoint.pth", "dino", own(student), own(heads[0].mlp), momentum, others)


def ibot(folder: Path) -> Case:
    student, teacher = vit(), vit()
    masked = with_fc(copy.deepcopy(student), Owner(), "unused")
    masked.register_parameter("masked_embed", nn.Parameter(torch.zeros(1, 16)))
    content = {
        "student": parallel(Owner(backbone=masked, head=DinoHead()).state_dict()),
        "teacher": parallel(Owner(backbone=teacher, head=DinoHead()).state_dict()),
        "epoch": 3,
        "ibot_loss": {"center": torch.randn(1, KEYS), "center2": torch.randn(1, 1, KEYS)},
    }
    torch.save(content, folder / "ibot.pth")
    others = {
        "prototypes": {"weight_g", "weight_v"},
        "extras": {"student.masked_embed", "ibot_loss/center", "ibot_loss/center2"},
    }
    return Case(folder / "ibot.pth", "dino", own(student), None, {}, others)


def mae(folder: Path) -> Case:
    body = vit()
    decoder = Owner(
        mask_token=nn.Parameter(torch.zeros(1, 1, 8)),
        decoder_pos_embed=nn.Parameter(torch.zeros(1, 17, 8)),
        decoder_embed=nn.Linear(16, 8),
        decoder_blocks=nn.ModuleList([nn.Linear(8, 8)]),
        decoder_norm=nn.LayerNorm(8),
        decoder_pred=nn.Linear(8, 48),
    )
    model = OrderedDict(body.state_dict() | decoder.state_dict())
    content = {"model": model, "optimizer": sgd(body), "epoch": 9, "scaler": {"scale": 1.0}}
    torch.save(content | {"args": argparse.Namespace(model="mae_vit_base_patch16")}, folder / "checkpoint-9.pth")
    return Case(folder / "checkpoint-9.pth", "mae", own(body), None, {}, {"extras": set(decoder.state_dict())})


def swav(folder: Path) -> Case:
    body, head = resnet(), mlp(norm=True)
    both = with_fc(
        with_fc(copy.deepcopy(body), head, "projection_head"), nn.Linear(OUT, KEYS, bias=False), "prototypes"
    )
    content = {
        "epoch": 2,
        "state_dict": parallel(both.state_dict()),
        "optimizer": sgd(both),
        "amp": {"loss_scaler0": {}},
    }
    torch.save(content, folder / "ckp-2.pth")
    return Case(folder / "ckp-2.pth", "swav", own(body), own(head), {}, {"prototypes": {"weight"}})


def swav_released(folder: Path) -> Case:
    body, head = resnet(), mlp(norm=True)
    both = with_fc(
        with_fc(copy.deepcopy(body), head, "projection_head"), nn.Linear(OUT, KEYS, bias=False), "prototypes"
    )
    torch.save(parallel(both.state_dict()), folder / "swav.pth.tar")
    return Case(folder / "swav.pth.tar", "swav", own(body), own(head), {}, {"prototypes": {"weight"}})


def barlow(folder: Path) -> Case:
    body, head, last = resnet(), mlp(norm=True), nn.BatchNorm1d(OUT, affine=False)
    both = Owner(backbone=body, projector=head, bn=last)
    torch.save({"epoch": 1, "model": parallel(both.state_dict()), "optimizer": sgd(both)}, folder / "barlow.pth")
    others = {"extras": {f"bn.{name}" for name in last.state_dict()}}
    return Case(folder / "barlow.pth", "barlow", own(body), own(head), {}, others)


def vicreg(folder: Path) -> Case:
    body, head = resnet(), mlp(norm=True)
    both = Owner(backbone=body, projector=head)
    torch.save({"epoch": 1, "model": parallel(both.state_dict()), "optimizer": sgd(both)}, folder / "model.pth")
    return Case(folder / "model.pth", "barlow", own(body), own(head))


def mmlab(folder: Path) -> Case:
    body, neck, head = resnet(), mlp(), nn.Linear(DIM, 3)
    both = Owner(backbone=body, neck=neck, head=Owner(fc=head))
    torch.save({"meta": {"epoch": 3}, "state_dict": both.state_dict(), "optimizer": sgd(both)}, folder / "epoch_3.pth")
    return Case(folder / "epoch_3.pth", "mmlab", own(body), {f"neck.{k}": v for k, v in own(neck).items()} | own(head))
