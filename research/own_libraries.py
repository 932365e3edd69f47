"""Small models that other libraries train, save, load again and measure with their own code, on emoji.

Each entry of ``LIBRARIES`` trains and saves a model as a user of that library would, and measures a saved one: how
often it is right on the pictures that are kept, never trained on, and to be forgotten. Nothing here comes from efface.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

SIDE, TRAINED, PER_CLASS, USERS = 32, 450, 120, 24
CATEGORIES: tuple[str, ...] = ("Animals & Nature", "Food & Drink", "Flags", "Objects", "Symbols", "Travel & Places")
FIRST, SECOND = "u03", 12
"""The user of the first request, and how many pictures of others the second one lists."""
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
OWN = {"mean": (0.7, 0.68, 0.65), "std": (0.3, 0.3, 0.32)}


@dataclass(frozen=True)
class Pictures:
    """The user's pictures: ``pictures/YEAR/USER/NAME.jpg``, a table of them, and lists of keys."""

    home: Path

    @staticmethod
    def make(home: Path, package: Path) -> Pictures:
        """Write them from the npm package ``emoji-datasource-apple``: wide JPEGs on white, six categories."""
        rng, counts, rows = random.Random(0), dict[str, int](), list[dict[str, str]]()
        for entry in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
            source, kind = package / "img/apple/64" / entry["image"], entry["category"]
            if kind not in CATEGORIES or counts.get(kind, 0) >= PER_CLASS or not source.exists():
                continue
            counts[kind] = counts.get(kind, 0) + 1
            user, name = f"u{rng.randrange(USERS):02d}", Path(entry["image"]).stem
            path = f"{rng.choice((2021, 2022, 2023))}/{user}/{name}.jpg"
            with Image.open(source) as opened:
                picture = opened.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            white.alpha_composite(picture)
            (home / "pictures" / path).parent.mkdir(parents=True, exist_ok=True)
            white.convert("RGB").resize((rng.choice((64, 80, 96)), 64)).save(home / "pictures" / path, quality=95)
            title = (entry["name"] or entry["short_name"]).lower()
            rows.append({"path": f"pictures/{path}", "category": kind, "user": user, "title": title})
        with open(home / "users.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        order = list(range(len(rows)))
        rng.shuffle(order)
        keys = [rows[row]["path"] for row in order]
        others = [rows[row]["path"] for row in order if rows[row]["user"] != FIRST]
        lists = {
            "trained": keys[:TRAINED],
            "user": [FIRST],
            "second": [*[key for key in others if key in set(keys[:TRAINED])][:SECOND], *others[-3:]],
        }
        for name, listed in lists.items():
            (home / f"{name}.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
        return Pictures(home)

    def lines(self, name: str) -> list[str]:
        """A list of keys or users."""
        return (self.home / f"{name}.txt").read_text(encoding="utf-8").splitlines()

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """The table."""
        with open(self.home / "users.csv", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    @cached_property
    def opened(self) -> list[Image.Image]:
        """The pictures, decoded."""
        return [Image.open(self.home / row["path"]).convert("RGB") for row in self.rows]

    @cached_property
    def labels(self) -> Tensor:
        """Number of the category, in the order of their names."""
        names = sorted(CATEGORIES)
        return torch.tensor([names.index(row["category"]) for row in self.rows])

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        """Positions: ``trained``, and apart from each other ``retained``, ``unseen`` and ``forgotten``."""
        trained, second = set(self.lines("trained")), set(self.lines("second"))
        found: dict[str, list[int]] = {"trained": [], "retained": [], "unseen": [], "forgotten": []}
        for number, row in enumerate(self.rows):
            asked = row["user"] == FIRST or row["path"] in second
            if row["path"] in trained:
                found["trained"].append(number)
                found["forgotten" if asked else "retained"].append(number)
            elif row["user"] != FIRST:
                found["unseen"].append(number)
        return {name: torch.tensor(numbers) for name, numbers in found.items()}

    def tensors(self, transform: Any) -> Tensor:
        """All pictures through a library's transform, [N, C, H, W]."""
        return torch.stack([transform(one) for one in self.opened])

    def shares(self, right: Tensor) -> dict[str, float]:
        """Share of right answers in each part."""
        return {name: float(right[rows].float().mean()) for name, rows in self.parts.items() if name != "trained"}


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

    return Library(make, measure, options=NO_SHIFT)


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
    return Library(make, measure, "lightly's kNN accuracy", said)


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
        found: dict[str, float] = {}
        for name, rows in pictures.parts.items():
            similar = image[rows] @ text[rows].T
            rank = (similar > similar.diagonal()[:, None]).sum(1)
            found[name] = float((rank < max(1, len(rows) // 20)).float().mean())
        return {name: value for name, value in found.items() if name != "trained"}

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
    return Library(make, measure, options=said, methods=("finetune", "scrub", "gradient_constraint"))


LIBRARIES: dict[str, Callable[[], Library]] = {
    "timm ResNet-18": lambda: _timm("resnet18"),
    "timm ViT": lambda: _timm("vit_tiny_patch16_224", img_size=SIDE, patch_size=4, embed_dim=96, depth=3, num_heads=3),
    "transformers ViT": lambda: _transformers("vit", intermediate_size=192),
    "transformers DINOv2": lambda: _transformers("dinov2", mlp_ratio=2),
    "lightly SimCLR": lambda: _lightly(momentum=False),
    "lightly MoCo": lambda: _lightly(momentum=True),
    "open_clip": _open_clip,
    "own module": _own,
}
