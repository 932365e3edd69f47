"""Embeddings of a library's own folder equal what the library computes from the same picture files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efface.runs.embed import embed_checkpoint
from efface.runs.model_description import describe_model
from tests import checkpoints

SHAPES = ((40, 60), (61, 37), (33, 33), (50, 90), (44, 38))
LARGEST = 1e-4
"""Largest difference of a feature that counts as equal."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, (height, width) in enumerate(SHAPES):
        coarse = rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def opened(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]


def compare(checkpoint: Path, pictures: Path, tmp_path: Path, theirs: torch.Tensor, **settings: Any) -> float:
    """The largest difference between the library's features and those of ``embed``."""
    out = tmp_path / "vectors.npz"
    data = {"source": str(pictures), "cache": str(tmp_path / "cache")}
    embed_checkpoint(checkpoint, out, {"data": data, **settings}, everything=True)
    with np.load(out) as file:
        return float(np.abs(file["embeddings"] - theirs.detach().float().numpy()).max())


@torch.no_grad()
def test_timm_folder(pictures: Path, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=3).eval()
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 64, 64), "crop_pct": 0.9}
    net.pretrained_cfg |= {**own, "interpolation": "bicubic"}
    checkpoints.save_timm_folder(net, tmp_path / "model")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, num_classes=0).eval()
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    theirs = loaded(torch.stack([transform(image) for image in opened(pictures)]))
    assert compare(tmp_path / "model", pictures, tmp_path, theirs) < LARGEST


@torch.no_grad()
def test_timm_training_script(pictures: Path, tmp_path: Path) -> None:
    import argparse

    import timm

    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=3).eval()
    args = {"model": "resnet18", "crop_pct": 1.0, "interpolation": "bilinear", "mean": [0.5, 0.4, 0.3]}
    args |= {"std": None, "img_size": 64, "input_size": None}
    content = {"arch": "resnet18", "state_dict": net.state_dict(), "args": argparse.Namespace(**args), "version": 2}
    torch.save(content, tmp_path / "last.pth.tar")
    cfg = timm.data.resolve_data_config(args, model=net)
    transform: Any = timm.data.create_transform(**cfg)
    net.reset_classifier(0)
    theirs = net(torch.stack([transform(image) for image in opened(pictures)]))
    assert compare(tmp_path / "last.pth.tar", pictures, tmp_path, theirs) < LARGEST


@pytest.mark.parametrize("turned", [False, True])
def test_init_prints_the_difference_to_the_library(pictures: Path, tmp_path: Path, turned: bool) -> None:
    import timm

    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=3).eval()
    net.pretrained_cfg |= {"input_size": (3, 32, 32), "crop_pct": 0.9}
    checkpoints.save_timm_folder(net, tmp_path / "model")
    for number in range(12):
        home = tmp_path / "data" / "abc"[number % 3]
        home.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if turned else 1
        Image.open(pictures / f"{number % 5}.png").save(home / f"{number}.png", exif=exif)
    data = {"source": str(tmp_path / "data"), "cache": str(tmp_path / "cache")}
    split = {"train": 6, "valid": 2, "holdout": 2, "test": 2}
    made = describe_model(tmp_path / "model", tmp_path / "model.yaml", {"data": data, "split": split, "device": "cpu"})
    found = next(one for one in made.checks if one.topic == "library")
    assert "largest difference of a feature to timm's own" in found.note
    assert found.word == ("undecided" if turned else "passed")
    assert ("orientation=stored" in found.remedy) == turned


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
HF: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "vit": lambda t: (
        t.ViTModel(t.ViTConfig(**SMALL, image_size=32, patch_size=8)),
        t.ViTImageProcessor(size={"height": 32, "width": 32}),
    ),
    "dinov2": lambda t: (
        t.Dinov2Model(t.Dinov2Config(**{k: v for k, v in SMALL.items() if k != "intermediate_size"}, image_size=28)),
        t.BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 28, "width": 28}),
    ),
    "convnext": lambda t: (
        t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
        t.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875),
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", HF)
def test_transformers_folder(pictures: Path, tmp_path: Path, kind: str) -> None:
    t = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    net, processor = HF[kind](t)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
    own = t.AutoImageProcessor.from_pretrained(tmp_path / "model")
    inputs = torch.cat([own(image, return_tensors="pt")["pixel_values"] for image in opened(pictures)])
    theirs = net.eval()(pixel_values=inputs).pooler_output.flatten(1)
    assert compare(tmp_path / "model", pictures, tmp_path, theirs) < LARGEST


@torch.no_grad()
def test_open_clip_folder(pictures: Path, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    towers = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    prepared = {"mean": [0.3] * 3, "std": [0.2] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    model = open_clip.CLIP(**towers)
    folder = tmp_path / "clip"
    folder.mkdir()
    content = {"model_cfg": towers, "preprocess_cfg": prepared}
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    cfg = open_clip.transform.PreprocessCfg(size=32, **prepared)
    transform = open_clip.transform.image_transform_v2(cfg, is_train=False)
    images = torch.stack([transform(image) for image in opened(pictures)])
    theirs = model.eval().encode_image(images)
    captions = tmp_path / "data.csv"
    rows = [f"{pictures / f'{number}.png'},picture {number}" for number in range(len(SHAPES))]
    captions.write_text("\n".join(["path,caption", *rows]), encoding="utf-8")
    assert compare(folder, captions, tmp_path, theirs, space="projector") < LARGEST


@torch.no_grad()
def test_torchvision_weights_with_stated_preparation(pictures: Path, tmp_path: Path) -> None:
    from torchvision.models import resnet18
    from torchvision.transforms._presets import ImageClassification

    torch.manual_seed(0)
    net = resnet18(num_classes=3).eval()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    transform = ImageClassification(crop_size=56, resize_size=64)
    net.fc = torch.nn.Identity()
    theirs = net(torch.stack([transform(image) for image in opened(pictures)]))
    out, data = tmp_path / "vectors.npz", {"source": str(pictures), "cache": str(tmp_path / "cache")}
    data["preprocessing"] = {"resize": 64, "crop": [56, 56]}
    embed_checkpoint(tmp_path / "resnet18.pth", out, {"data": data}, everything=True)
    assert np.abs(np.load(out)["embeddings"] - theirs.numpy()).max() < LARGEST


@torch.no_grad()
def test_a_network_for_blue_green_red(pictures: Path, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    net = resnet18(num_classes=3).eval()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    net.fc = torch.nn.Identity()
    x = np.stack([np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) for image in opened(pictures)])
    bgr = torch.from_numpy(x[..., ::-1].copy()).permute(0, 3, 1, 2).float()  # 0 to 255, as Caffe's networks have it
    theirs = net(bgr - torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1))
    data = {"source": str(pictures), "cache": str(tmp_path / "cache")}
    data["preprocessing"] = {"resize": 32, "mode": "exact"}
    recipe = {"order": "bgr", "mean": [104 / 255, 117 / 255, 123 / 255], "std": 1 / 255}
    out = tmp_path / "vectors.npz"
    embed_checkpoint(tmp_path / "resnet18.pth", out, {"data": data, "recipe": recipe}, everything=True)
    largest = float(theirs.abs().max())
    assert np.abs(np.load(out)["embeddings"] - theirs.numpy()).max() < LARGEST * max(1.0, largest)
