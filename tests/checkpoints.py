"""Checkpoints of supervised models, of image-text models and of efface, and all fixtures by layout."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.foreign import (
    OUT,
    VIT_SIZES,
    Case,
    Owner,
    State,
    barlow,
    dino,
    ibot,
    lightly_key_benchmark,
    lightly_moco_example,
    lightly_query_benchmark,
    lightly_student_benchmark,
    lightly_swav,
    lightly_teacher_benchmark,
    lightly_torchvision_example,
    mae,
    mlp,
    mmlab,
    moco_v1,
    moco_v2,
    moco_v3,
    own,
    parallel,
    resnet,
    sgd,
    solo_moco,
    solo_old_simclr,
    swav,
    swav_released,
    tower,
    vicreg,
    vit,
    with_fc,
)


def torchvision_resnet(folder: Path) -> Case:
    from torchvision.models import resnet18

    net = resnet18(num_classes=3)
    torch.save(net.state_dict(), folder / "resnet18-abc.pth")
    return Case(folder / "resnet18-abc.pth", "plain", own(net, ("fc",)), own(net.fc))


def torchvision_vgg(folder: Path) -> Case:
    from torchvision.models.vgg import VGG

    features = nn.Sequential(nn.Conv2d(3, 512, 3), nn.ReLU())
    with torch.device("meta"):  # its linear layers have 100 million weights
        net = VGG(features, num_classes=3, init_weights=False)
    net.classifier[0], net.classifier[3] = nn.Linear(49, 8), nn.Linear(8, 8)
    net.classifier[6] = nn.Linear(8, 3)
    torch.save(net.state_dict(), folder / "vgg.pth")
    return Case(folder / "vgg.pth", "plain", own(net, ("classifier.6",)), own(net.classifier[6]))


def timm_vit(folder: Path) -> Case:
    from safetensors.torch import save_file

    net = vit(num_classes=3)
    save_file(net.state_dict(), folder / "vit.safetensors", metadata={"format": "pt", "note": "kept"})
    return Case(folder / "vit.safetensors", "plain", own(net, ("head.",)), own(net.get_submodule("head")))


def timm_trainer(folder: Path) -> Case:
    net, averaged = vit(num_classes=3), vit(num_classes=3)
    content = {
        "epoch": 3,
        "arch": "vit_tiny_patch16_224",
        "state_dict": net.state_dict(),
        "optimizer": sgd(net),
        "version": 2,
        "args": argparse.Namespace(model="vit_tiny_patch16_224", mean=None),
        "state_dict_ema": averaged.state_dict(),
        "metric": 71.0,
    }
    torch.save(content, folder / "last.pth.tar")
    momentum = tower(averaged, None)
    momentum = {k.replace("backbone.head.", "head."): v for k, v in momentum.items()}
    return Case(folder / "last.pth.tar", "plain", own(net, ("head.",)), own(net.get_submodule("head")), momentum)


def save_timm_folder(net: Any, folder: Path, **sizes: Any) -> None:
    """Write timm's own folder of a network with three classes; older timm does not know the sizes it was made with."""
    from timm.models._hub import save_for_hf  # timm.models has it in newer versions only

    save_for_hf(net, folder, model_config={"num_classes": 3}, model_args=sizes or None)


def timm_folder(folder: Path) -> Case:
    net = vit(num_classes=3)
    save_timm_folder(net, folder / "timm_vit", **VIT_SIZES)
    return Case(folder / "timm_vit", "plain", own(net, ("head.",)), own(net.get_submodule("head")))


def simclr_wrapped(folder: Path) -> Case:
    body, head = resnet(), mlp()
    both = Owner(backbone=with_fc(copy.deepcopy(body), head))
    torch.save({"epoch": 9, "arch": "resnet18", "state_dict": both.state_dict(), "optimizer": {}}, folder / "c.pth.tar")
    return Case(folder / "c.pth.tar", "plain", own(body), own(head))


def efface_file(folder: Path) -> Case:
    from safetensors.torch import save_file

    from tests import tiny

    model = tiny.recipe("moco", channels=3).start(0)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "ours.safetensors")
    momentum = own(model.get_submodule("momentum_encoder"))
    others = {"queue": {"queue"}, "buffers": {"mean", "std"}}
    return Case(folder / "ours.safetensors", "efface", own(model.backbone), own(model.head), momentum, others)


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
}


def saved(model: Any, folder: Path, **how: Any) -> State:
    """Save a model as transformers does, and return its tensors by their names in the file."""
    import warnings

    from safetensors.torch import load_file

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **how)
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def hf_vit(folder: Path) -> Case:
    t = pytest.importorskip("transformers", reason="transformers is not installed")
    state = saved(t.ViTForImageClassification(t.ViTConfig(**SMALL, num_labels=3)), folder / "vit")
    head = {k.removeprefix("classifier."): v for k, v in state.items() if k.startswith("classifier.")}
    body = {k.removeprefix("vit."): v for k, v in state.items() if k.startswith("vit.")}
    return Case(folder / "vit", "transformers:vit", body, head)


def hf_dinov2(folder: Path) -> Case:
    t = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {k: v for k, v in SMALL.items() if k != "intermediate_size"}
    state = saved(t.Dinov2Model(t.Dinov2Config(**sizes, mlp_ratio=2)), folder / "dinov2")
    return Case(folder / "dinov2", "transformers:dinov2", state)


def hf_clip(folder: Path, **how: Any) -> Case:
    t = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {k: v for k, v in SMALL.items() if k not in ("image_size", "patch_size")}
    text = sizes | {"vocab_size": 20, "max_position_embeddings": 6, "eos_token_id": 2, "bos_token_id": 1}
    config = t.CLIPConfig(text_config=text | {"pad_token_id": 0}, vision_config=SMALL, projection_dim=8)
    state = saved(t.CLIPModel(config), folder / "clip", **how)
    start = "vision_model."
    body = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
    text = {k for k in state if k.startswith("text_")}
    head = {"weight": state["visual_projection.weight"]}
    return Case(folder / "clip", "transformers:clip", body, head, {}, {"text": text, "scale": {"logit_scale"}})


def hf_sharded(folder: Path) -> Case:
    return hf_clip(folder, max_shard_size="5KB")


def open_clip(folder: Path) -> Case:
    library = pytest.importorskip("open_clip", reason="open_clip is not installed")
    vision = {"layers": 1, "width": 64, "patch_size": 4, "image_size": 8}
    text = {"context_length": 6, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    net = library.CLIP(embed_dim=OUT, vision_cfg=vision, text_cfg=text)
    content = {"epoch": 2, "name": "run", "state_dict": parallel(net.state_dict()), "optimizer": sgd(net)}
    torch.save(content, folder / "epoch_2.pt")
    text = {k for k in net.state_dict() if not k.startswith("visual.") and k != "logit_scale"}
    return Case(
        folder / "epoch_2.pt",
        "open_clip",
        own(net.visual, ("proj",)),
        {"proj": net.visual.proj},
        {},
        {"text": text, "scale": {"logit_scale"}},
    )


FIXTURES: dict[str, tuple[Callable[[Path], Case], ...]] = {
    "efface": (efface_file,),
    "transformers": (hf_vit, hf_dinov2, hf_clip, hf_sharded),
    "moco": (moco_v1, moco_v2),
    "moco_v3": (moco_v3,),
    "dino": (dino, ibot),
    "solo": (solo_moco, solo_old_simclr),
    "lightly": (
        lightly_moco_example,
        lightly_torchvision_example,
        lightly_key_benchmark,
        lightly_teacher_benchmark,
        lightly_query_benchmark,
        lightly_student_benchmark,
        lightly_swav,
    ),
    "mae": (mae,),
    "swav": (swav, swav_released),
    "barlow": (barlow, vicreg),
    "mmlab": (mmlab,),
    "open_clip": (open_clip,),
    "plain": (torchvision_resnet, torchvision_vgg, timm_vit, timm_trainer, timm_folder, simclr_wrapped),
}
"""Layout to the functions that write its files."""
