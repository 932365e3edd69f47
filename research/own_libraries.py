"""Small models that other libraries train, save, load again and measure with their own code, on emoji.

Each entry of ``LIBRARIES`` trains and saves a model as a user of that library would, and measures a saved one: how
often it is right on the pictures that are kept, never trained on, and to be forgotten. Nothing here comes from efface.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from research.own_pictures import CATEGORIES, Pictures
from torch import Tensor, nn

SIDE = 32
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
OWN = {"mean": (0.7, 0.68, 0.65), "std": (0.3, 0.3, 0.32)}


def train(net: nn.Module, logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, epochs: int, **adam: Any) -> None:
    """Train a classifier with flips: SGD, or AdamW where its settings are given."""
    rate = {"lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    optimizer = torch.optim.AdamW(net.parameters(), **adam) if adam else torch.optim.SGD(net.parameters(), **rate)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(50):
            batch = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, x[rows].flip(3), x[rows])
            optimizer.zero_grad()
            F.cross_entropy(logits(batch), y[rows]).backward()
            optimizer.step()
    net.eval()


NO_SHIFT = ("--set", "recipe.views.shift=0")
"""What ``efface init`` advises: these classifiers were trained with flips alone."""
SGD = "rule: sgd, momentum: 0.9, weight_decay: 0.0005, schedule: constant"
"""The optimizer of :func:`train` and of lightly's encoders, in efface's words."""


@dataclass(frozen=True)
class Library:
    """A library: how it makes a file, and how it measures one."""

    make: Callable[[Pictures, Path], Path]
    """Trains and saves a model; returns the file or folder."""
    measure: Callable[[Pictures, Path], dict[str, float]]
    """Loads a file or folder and measures it with the library's own code."""
    what: str = "accuracy of its head"
    options: tuple[str, ...] = ()
    """What the user has to say beside the data."""
    methods: tuple[str, ...] = ("finetune", "scrub")
    captions: bool = False
    recipe: str = ""
    """How it was trained, in efface's words: for a reference bank of it, which its audits then use."""


def _timm(name: str, **changed: Any) -> Library:
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    stated = {"input_size": (3, SIDE, SIDE), "crop_pct": 0.9, "interpolation": "bicubic", **OWN}
    vit = name.startswith("vit")

    def make(pictures: Pictures, home: Path) -> Path:
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=len(CATEGORIES), **changed)
        cfg: Any = net.pretrained_cfg
        cfg.update(stated)
        x = pictures.tensors(create_transform(**{**stated, "is_training": False}))
        rows = pictures.parts["trained"]
        train(net, net, x[rows], pictures.labels[rows], 20 if vit else 9, **({"lr": 1e-3} if vit else {}))
        timm.models.save_for_hf(
            net, str(home / "timm"), model_config={"num_classes": len(CATEGORIES), "model_args": changed}
        )
        return home / "timm"

    def measure(pictures: Pictures, path: Path) -> dict[str, float]:
        net = timm.create_model(f"local-dir:{path}", pretrained=True, **({} if not vit else changed)).eval()
        transform = create_transform(**resolve_model_data_config(net), is_training=False)
        with torch.no_grad():
            return pictures.shares(net(pictures.tensors(transform)).argmax(1) == pictures.labels)

    recipe = "" if vit else f"epochs: 9\nbatch_size: 50\noptim: {{{SGD}, lr: 0.03}}\n"
    return Library(make, measure, options=NO_SHIFT, recipe=recipe)


def _transformers(kind: str, **sizes: Any) -> Library:
    import transformers

    def make(pictures: Pictures, home: Path) -> Path:
        torch.manual_seed(0)
        names = dict(enumerate(sorted(CATEGORIES)))
        config = transformers.AutoConfig.for_model(
            kind, image_size=SIDE, patch_size=4, hidden_size=96, num_hidden_layers=3, num_attention_heads=3,
            id2label=names, label2id={v: k for k, v in names.items()}, **sizes,
        )  # fmt: skip
        net = transformers.AutoModelForImageClassification.from_config(config)
        processor = transformers.ViTImageProcessor(
            size={"height": SIDE, "width": SIDE}, resample=3, image_mean=HALF["mean"], image_std=HALF["std"]
        )
        x, rows = _processed(processor, pictures), pictures.parts["trained"]
        train(net, lambda batch: net(pixel_values=batch).logits, x[rows], pictures.labels[rows], 20, lr=1e-3)
        net.save_pretrained(home / kind)
        processor.save_pretrained(home / kind)
        return home / kind

    def measure(pictures: Pictures, path: Path) -> dict[str, float]:
        net = transformers.AutoModelForImageClassification.from_pretrained(path).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(path, use_fast=False)
        with torch.no_grad():
            right = net(pixel_values=_processed(processor, pictures)).logits.argmax(1) == pictures.labels
        return pictures.shares(right)

    return Library(make, measure, options=NO_SHIFT)


def _processed(processor: Any, pictures: Pictures) -> Tensor:
    return processor(images=pictures.opened, return_tensors="pt")["pixel_values"].float()


def _plain(normalization: dict[str, Any], side: int = SIDE) -> Callable[[Image.Image], Tensor]:
    from torchvision import transforms as t

    return t.Compose([t.Resize(side), t.CenterCrop(side), t.ToTensor(), t.Normalize(**normalization)])


def _knn(pictures: Pictures, features: Tensor) -> dict[str, float]:
    """lightly's own nearest-neighbor classifier, from the retained pictures."""
    from lightly.utils.benchmarking import knn_predict

    features, keep = F.normalize(features, dim=1), pictures.parts["retained"]
    same = torch.eye(len(features))[:, keep].bool()
    guesses = torch.empty(len(features), dtype=torch.long)
    for number in range(len(features)):  # a picture is no neighbor of itself
        kept = ~same[number]
        bank, known = features[keep][kept].T, pictures.labels[keep][kept]
        guesses[number] = knn_predict(features[number : number + 1], bank, known, len(CATEGORIES), knn_k=20)[0, 0]
    return pictures.shares(guesses == pictures.labels)


LIGHTLY_SIDE = 16
"""Side of the pictures of the encoders: they need many more epochs than a classifier."""


def _lightly(momentum: bool) -> Library:
    from lightly import loss, transforms
    from lightly.models import ResNetGenerator
    from lightly.models.modules import heads
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    class Net(nn.Module):
        """As in lightly's tutorials on SimCLR and MoCo."""

        def __init__(self) -> None:
            super().__init__()
            net = ResNetGenerator("resnet-18", width=0.25, num_splits=5 if momentum else 0)
            self.backbone = nn.Sequential(*list(net.children())[:-1], nn.AdaptiveAvgPool2d(1))
            kind = heads.MoCoProjectionHead if momentum else heads.SimCLRProjectionHead
            self.projection_head = kind(128, 128, 64)
            if momentum:
                import copy

                self.backbone_momentum = copy.deepcopy(self.backbone)
                self.projection_head_momentum = copy.deepcopy(self.projection_head)
                deactivate_requires_grad(self.backbone_momentum)
                deactivate_requires_grad(self.projection_head_momentum)

    def make(pictures: Pictures, home: Path) -> Path:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        epochs, net, view = (
            40 if momentum else 60,
            Net(),
            transforms.SimCLRTransform(input_size=LIGHTLY_SIDE, gaussian_blur=0.0),
        )
        bank = (256, 64) if momentum else 0
        criterion = loss.NTXentLoss(temperature=0.1 if momentum else 0.2, memory_bank_size=bank)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
        rows = pictures.parts["trained"].tolist()
        draw: Any = view  # its annotation allows pictures too
        drawn = [torch.stack([torch.stack(draw(pictures.opened[row])) for row in rows]) for _ in range(5)]
        for epoch in range(epochs):
            x = drawn[epoch % 5]
            for part in torch.randperm(len(rows)).split(50):
                first, second = (x[part, number] for number in range(2))
                q = net.projection_head(net.backbone(first).flatten(1))
                if momentum:
                    update_momentum(net.backbone, net.backbone_momentum, 0.99)
                    update_momentum(net.projection_head, net.projection_head_momentum, 0.99)
                    with torch.no_grad():
                        k = net.projection_head_momentum(net.backbone_momentum(second).flatten(1))
                else:
                    k = net.projection_head(net.backbone(second).flatten(1))
                optimizer.zero_grad()
                criterion(q, k).backward()
                optimizer.step()
        torch.save({"epoch": epochs, "global_step": 9 * epochs, "state_dict": net.state_dict()}, home / "last.ckpt")
        return home / "last.ckpt"

    def measure(pictures: Pictures, path: Path) -> dict[str, float]:
        net = Net()
        net.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        with torch.no_grad():
            features = net.eval().backbone(pictures.tensors(_plain(IMAGENET, LIGHTLY_SIDE))).flatten(1)
        return _knn(pictures, features)

    said = ("--set", f"data.size={LIGHTLY_SIDE}")
    said += ("--set", f"recipe.objective.temperature={0.1 if momentum else 0.2}")
    recipe = "" if momentum else f"epochs: 60\nbatch_size: 50\noptim: {{{SGD}, lr: 0.06}}\n"
    return Library(make, measure, "lightly's kNN accuracy", said, recipe=recipe)


def _open_clip() -> Library:
    import open_clip

    config = {
        "embed_dim": 64,
        "vision_cfg": {"layers": 3, "width": 96, "head_width": 32, "patch_size": 4, "image_size": SIDE},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    }
    prepared = {"size": SIDE, "mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest", **OWN}

    def tokens(pictures: Pictures) -> Tensor:
        return open_clip.SimpleTokenizer(context_length=16)([row["title"] for row in pictures.rows])

    def transform() -> Any:
        return open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**prepared), is_train=False)

    def make(pictures: Pictures, home: Path) -> Path:
        torch.manual_seed(0)
        net, x, words = open_clip.CLIP(**config), pictures.tensors(transform()), tokens(pictures)
        optimizer, rows = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1), pictures.parts["trained"]
        criterion = open_clip.ClipLoss()
        for _ in range(25):
            for part in rows[torch.randperm(len(rows))].split(75):
                image, text, scale = net.train()(x[part], words[part])
                optimizer.zero_grad()
                criterion(image, text, scale).backward()
                optimizer.step()
        (home / "clip").mkdir(exist_ok=True)
        torch.save({"epoch": 25, "name": "emoji", "state_dict": net.state_dict()}, home / "clip" / "epoch_25.pt")
        stated = {"model_cfg": config, "preprocess_cfg": prepared}
        (home / "clip" / "open_clip_config.json").write_text(json.dumps(stated), encoding="utf-8")
        return home / "clip" / "epoch_25.pt"

    def measure(pictures: Pictures, path: Path) -> dict[str, float]:
        net = open_clip.CLIP(**config).eval()
        net.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        with torch.no_grad():
            image = net.encode_image(pictures.tensors(transform()), normalize=True)
            text = net.encode_text(tokens(pictures), normalize=True)
        return _captions(pictures, image, text)

    return Library(make, measure, "caption in the first 5 %", captions=True)


def _captions(pictures: Pictures, image: Tensor, text: Tensor) -> dict[str, float]:
    """Share of the pictures whose caption is among the most similar 5 % of its part."""
    found: dict[str, float] = {}
    for name, rows in pictures.parts.items():
        similar = image[rows] @ text[rows].T
        rank = (similar > similar.diagonal()[:, None]).sum(1)
        found[name] = float((rank < max(1, len(rows) // 20)).float().mean())
    return {name: value for name, value in found.items() if name != "trained"}


def _transformers_clip() -> Library:
    import transformers as library
    from open_clip.tokenizer import SimpleTokenizer

    transformers: Any = library  # its annotations leave much out

    sizes = {"hidden_act": "gelu", "projection_dim": 64, "intermediate_size": 256}
    words = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
    looks = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": SIDE, "patch_size": 4}

    def processor() -> Any:
        known = SimpleTokenizer()  # only for the merges of CLIP's vocabulary: nothing is downloaded here
        merges = sorted(known.bpe_ranks, key=lambda pair: known.bpe_ranks[pair])
        special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
        vocabulary = {special.get(word, word): number for word, number in known.encoder.items()}
        tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16)
        size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
        pictures = transformers.CLIPImageProcessor(**size, image_mean=OWN["mean"], image_std=OWN["std"])
        return transformers.CLIPProcessor(image_processor=pictures, tokenizer=tokenizer)

    def prepared(chosen: Any, pictures: Pictures) -> dict[str, Tensor]:
        titles = [row["title"] for row in pictures.rows]
        read: Any = chosen(text=titles, images=pictures.opened, return_tensors="pt", padding=True, truncation=True)
        return {name: read[name] for name in ("pixel_values", "input_ids", "attention_mask")}

    def make(pictures: Pictures, home: Path) -> Path:
        torch.manual_seed(0)
        config = transformers.CLIPConfig(
            projection_dim=64,
            text_config={**sizes, **words, "bos_token_id": 49406, "eos_token_id": 49407},
            vision_config={**sizes, **looks},
        )
        net, chosen = transformers.CLIPModel(config), processor()
        read, rows = prepared(chosen, pictures), pictures.parts["trained"]
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1)
        net.train()
        for _ in range(25):
            for part in rows[torch.randperm(len(rows))].split(75):
                optimizer.zero_grad()
                net(**{name: value[part] for name, value in read.items()}, return_loss=True).loss.backward()
                optimizer.step()
        net.save_pretrained(home / "clip")
        chosen.save_pretrained(home / "clip")
        return home / "clip"

    def measure(pictures: Pictures, path: Path) -> dict[str, float]:
        net = transformers.CLIPModel.from_pretrained(path).eval()
        with torch.no_grad():
            out = net(**prepared(transformers.CLIPProcessor.from_pretrained(path), pictures))
        return _captions(pictures, out.image_embeds, out.text_embeds)

    return Library(make, measure, "caption in the first 5 %", captions=True)


NET = '''"""A network of the user's own."""

from torch import nn


class Net(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        steps = [3, width, 2 * width, 4 * width]
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(4, b), nn.ReLU()) for a, b in zip(steps, steps[1:])
        )
        self.answer = nn.Linear(4 * width, classes)

    def look(self, x):
        for step in self.steps:
            x = step(x)
        return x.mean((2, 3))

    def forward(self, x):
        return self.answer(self.look(x))


def build(width=32, classes=6):
    return Net(width, classes)
'''


def _own() -> Library:
    def build(home: Path) -> nn.Module:
        space: dict[str, Any] = {"__name__": "emoji_net"}
        exec(compile((home / "emoji_net.py").read_text(encoding="utf-8"), "emoji_net.py", "exec"), space)
        return space["build"]()

    def make(pictures: Pictures, home: Path) -> Path:
        (pictures.home / "emoji_net.py").write_text(NET, encoding="utf-8")
        torch.manual_seed(0)
        net, rows = build(pictures.home), pictures.parts["trained"]
        train(net, net, pictures.tensors(_plain(HALF))[rows], pictures.labels[rows], 30, lr=3e-3)
        torch.save(net.state_dict(), home / "mine.pth")
        return home / "mine.pth"

    def measure(pictures: Pictures, path: Path) -> dict[str, float]:
        net = build(pictures.home)
        net.load_state_dict(torch.load(path, weights_only=True))
        with torch.no_grad():
            return pictures.shares(net.eval()(pictures.tensors(_plain(HALF))).argmax(1) == pictures.labels)

    named = "{features: look, head: answer, width: 32, classes: 6}"
    said = ("--set", f"data.size={SIDE}", "--set", f"recipe.backbone.options={named}", "--set", "recipe.mean=0.5")
    said += ("--set", "recipe.std=0.5", *NO_SHIFT, "--objective", "cross_entropy", "--model", "emoji_net:build")
    recipe = "epochs: 30\nbatch_size: 50\noptim: {rule: adamw, lr: 0.003, weight_decay: 0.01, schedule: constant}\n"
    methods = ("finetune", "scrub", "gradient_constraint")
    return Library(make, measure, options=said, methods=methods, recipe=recipe)


LIBRARIES: dict[str, Callable[[], Library]] = {
    "timm ResNet-18": lambda: _timm("resnet18"),
    "timm ViT": lambda: _timm("vit_tiny_patch16_224", img_size=SIDE, patch_size=4, embed_dim=96, depth=3, num_heads=3),
    "transformers ViT": lambda: _transformers("vit", intermediate_size=192),
    "transformers DINOv2": lambda: _transformers("dinov2", mlp_ratio=2),
    "lightly SimCLR": lambda: _lightly(momentum=False),
    "lightly MoCo": lambda: _lightly(momentum=True),
    "open_clip": _open_clip,
    "transformers CLIP": _transformers_clip,
    "own module": _own,
}
