"""Wrong assumptions about a checkpoint are planted: each is refused with the line that mends it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from efface import api
from efface.data.dataset import Data
from efface.data.split import partition
from efface.errors import EffaceError
from efface.interop.views_check import check_views
from efface.runs import adoption, train
from efface.runs.foreign import start_from_foreign
from efface.training import optim
from efface.training.augment import Views
from efface.training.model import Model
from efface.training.networks.backbones import Backbone
from efface.training.objectives import CrossEntropy, SimClr
from efface.training.objectives.shared import ProjectorLayer
from efface.training.recipe import ColorOrder, Recipe
from tests import foreign, tiny

N, SIDE = 180, 16
BODY = Backbone(name="resnet8", width=8, stride=1)
SPLIT = {"train": 120, "valid": 20, "holdout": 20, "test": 20}
FEW = {"name": "finetune", "epochs": 1, "batch_size": 40}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@cache
def colored(wide: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [N, 3, SIDE, SIDE or twice that] whose class is how red they are; wide ones show it at both sides."""
    rng = np.random.default_rng(0)
    y, width = np.arange(N) % 3, SIDE * (1 + wide)
    x = rng.uniform(60, 160, (N, 3, 4, width // 4)).repeat(4, 2).repeat(4, 3) + rng.normal(0, 8, (N, 3, SIDE, width))
    bars = np.r_[:6, width - 6 : width] if wide else np.arange(width)
    x[:, 0, :, bars] = rng.normal(0, 25, (len(bars), N, SIDE)) + (50, 120, 190)[0]
    x[:, 0, :, bars] += 70 * y[None, :, None]
    return x.clip(0, 255).astype(np.uint8), y.astype(np.int64)


@cache
def striped() -> tuple[np.ndarray, np.ndarray]:
    """Pictures whose class is the width of their stripes: what is seen depends on the scale."""
    rng = np.random.default_rng(0)
    y = np.arange(N) % 3
    waves = np.stack([np.where(np.arange(SIDE) // width % 2, 45, -45) for width in (1, 2, 4)])
    x = rng.uniform(90, 160, (N, 3, 4, 4)).repeat(4, 2).repeat(4, 3) + rng.normal(0, 12, (N, 3, SIDE, SIDE))
    x += waves[y][:, None, None, :]
    return x.clip(0, 255).astype(np.uint8), y.astype(np.int64)


def learned(x: np.ndarray, y: np.ndarray, *, objective: Any = None, rows: Any = None, **changed: Any) -> Model:
    """A network that knows the pictures at ``rows``, by default the first 120."""
    settings: dict[str, Any] = {"objective": objective or CrossEntropy(), "backbone": BODY, "channels": 3, **IMAGENET}
    settings |= {"size": x.shape[2:], "classes": 3, "epochs": 10, "batch_size": 20, "views": Views.none()}
    settings |= {"optim": optim.Optim(lr=0.05)} | changed
    data = Data.from_arrays(x, y)
    taken = data.take(np.arange(120) if rows is None else rows)
    part = api.split(taken, train=len(taken) - 3, valid=1, holdout=1, test=1)
    return api.pretrain(taken, part, recipe=Recipe(**settings), device="cpu").model.eval()


def as_classifier(model: Model, folder: Path) -> Path:
    """Save a network as a state dict with torchvision's names."""
    both = foreign.with_fc(copy.deepcopy(model.backbone), copy.deepcopy(model.head))
    torch.save(both.state_dict(), folder / "theirs.pth")
    return folder / "theirs.pth"


def as_arrays(x: np.ndarray, y: np.ndarray, folder: Path) -> str:
    np.savez(folder / "data.npz", x=x, y=y)
    return str(folder / "data.npz")


def as_pictures(x: np.ndarray, y: np.ndarray, folder: Path, names: tuple[str, ...] = ("a", "b", "c")) -> dict[str, Any]:
    for row, (pixels, label) in enumerate(zip(x, y, strict=True)):
        home = folder / "data" / names[label]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(home / f"{row:03d}.png")
    return {"source": str(folder / "data"), "cache": str(folder / "cache")}


def unlearn(path: Path, data: Any, folder: Path, **changed: Any) -> None:
    settings: dict[str, Any] = {"data": data, "split": SPLIT, "forget": "@random:12", "method": FEW, "device": "cpu"}
    train.unlearn_run(path, folder / "out", settings | changed)


def refused(path: Path, data: Any, folder: Path, *words: str, **changed: Any) -> EffaceError:
    with pytest.raises(EffaceError) as caught:
        unlearn(path, data, folder, **changed)
    error = caught.value
    for word in words:
        assert word in str(error), str(error)
    assert str(error).count("check=false") <= 1, str(error)
    assert not (folder / "out").exists()
    return error


def mended(error: EffaceError, data: Any) -> dict[str, Any]:
    """The settings that the remedy of an error states, as the command line reads them."""
    import shlex

    from efface.cli.options import settings_of

    words = shlex.split(error.remedy.split("If it is right")[0].rstrip(". "))
    lines = [word for before, word in pairwise(words) if before == "--set"]
    found = settings_of(None, lines, data=data)
    if "--objective" in words:
        found["objective"] = words[words.index("--objective") + 1].rstrip(".")
    return found


def goes_in_once_mended(path: Path, data: Any, folder: Path, error: EffaceError, **before: Any) -> None:
    found = mended(error, data)
    changed = {
        key: {**value, **found.get(key, {})} if isinstance(value, Mapping) else value for key, value in before.items()
    }
    unlearn(path, found.pop("data"), folder, **(found | changed))


@pytest.mark.parametrize(
    ("true", "line"),
    [
        ({"mean": 0.5, "std": 0.5}, "recipe.mean=0.5 --set recipe.std=0.5"),
        ({"mean": 0.0, "std": 1 / 255}, "recipe.std=0.00392157"),
        ({**IMAGENET, "order": ColorOrder.BGR}, "recipe.order=bgr"),
    ],
)
def test_normalization_and_order_of_colors(true: dict[str, Any], line: str, tmp_path: Path) -> None:
    path = as_classifier(learned(*colored(), **true), tmp_path)
    data = as_arrays(*colored(), tmp_path)
    error = refused(path, data, tmp_path, "does not fit its training images: normalization", line, "check=false")
    goes_in_once_mended(path, data, tmp_path, error)


def test_normalization_of_an_encoder_without_labels(tmp_path: Path) -> None:
    x, y = colored()
    views = Views(crop=(0.5, 1.0), hue=0, grayscale=0)
    model = learned(x, y, objective=SimClr(dim=8, hidden=12), mean=0.5, std=0.5, views=views, epochs=15)
    path = as_classifier(model, tmp_path)
    np.savez(tmp_path / "data.npz", x=x)
    data = str(tmp_path / "data.npz")
    error = refused(path, data, tmp_path, "normalization", "recipe.mean=0.5 --set recipe.std=0.5", objective="simclr")
    settings = mended(error, data) | {"objective": "simclr", "split": SPLIT}
    start_from_foreign(path, settings, 0, print, check=True, device="cpu")


def test_order_of_the_classes(tmp_path: Path) -> None:
    path = as_classifier(learned(*colored()), tmp_path)
    data = as_pictures(*colored(), tmp_path, names=("1", "10", "2"))  # as text, which is not how they are counted
    error = refused(path, data, tmp_path, "classes", "--set data.classes=text")
    goes_in_once_mended(path, data, tmp_path, error)


def test_squashed_pictures(tmp_path: Path) -> None:
    x, y = colored(wide=True)
    squashed = np.stack(
        [
            np.asarray(Image.fromarray(one.transpose(1, 2, 0)).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
            for one in x
        ]
    ).transpose(0, 3, 1, 2)
    path = as_classifier(learned(np.ascontiguousarray(squashed), y), tmp_path)
    data = as_pictures(x, y, tmp_path) | {"size": SIDE}
    error = refused(path, data, tmp_path, "pictures", "data.preprocessing.mode=exact")
    goes_in_once_mended(path, data, tmp_path, error)


def test_size_of_the_pictures(tmp_path: Path) -> None:
    x, y = striped()
    path = as_classifier(learned(x, y), tmp_path)
    data = as_pictures(x, y, tmp_path) | {"size": 2 * SIDE}
    error = refused(path, data, tmp_path, "pictures", f"--set data.size={SIDE}")
    goes_in_once_mended(path, data, tmp_path, error)


def test_transparency_that_was_dropped(tmp_path: Path) -> None:
    x, y = colored()
    path = as_classifier(learned(x, y), tmp_path)
    data = as_pictures(x, y, tmp_path)
    for file in Path(data["source"]).rglob("*.png"):
        image = Image.open(file).convert("RGBA")
        image.putalpha(0)
        image.save(file)
    error = refused(path, data, tmp_path, "pictures", "data.preprocessing.transparency=drop")
    goes_in_once_mended(path, data, tmp_path, error)


def test_rotation_that_was_ignored(tmp_path: Path) -> None:
    x, y = colored()
    x = (x * np.array([0.0, 1, 1])[:, None, None]).astype(np.uint8)  # only where the bright bar is tells the class
    for row, label in enumerate(y):
        x[row, :, (2, 8, 13)[label] : (2, 8, 13)[label] + 2] = 250
    path = as_classifier(learned(x, y), tmp_path)
    data = as_pictures(x, y, tmp_path)
    rng = np.random.default_rng(0)
    for file in Path(data["source"]).rglob("*.png"):
        exif = Image.Exif()
        exif[0x0112] = int(rng.choice([1, 3, 6, 8]))
        Image.open(file).copy().save(file, exif=exif)
    error = refused(path, data, tmp_path, "pictures", "data.preprocessing.orientation=stored")
    goes_in_once_mended(path, data, tmp_path, error)


def test_attention_heads(tmp_path: Path) -> None:
    options = {"img_size": SIDE, "patch_size": 4, "embed_dim": 192, "depth": 2, "num_heads": 12}
    backbone = Backbone(name="timm:vit_tiny_patch16_224", options=options)
    x, y = striped()
    y = np.random.default_rng(1).permutation(y)  # nothing to learn but by heart, with all that the network has
    made = {"optim": optim.Optim(rule=optim.OptimizerType.ADAMW, lr=1e-3), "epochs": 30}
    model = learned(x, y, backbone=backbone, **made)
    state = {**model.backbone.state_dict(), **{f"head.{k}": v for k, v in model.head.state_dict().items()}}
    torch.save(state, tmp_path / "vit.pth")
    data = as_arrays(x, y, tmp_path)
    trained = np.array([f"{row:05d}" for row in range(120)])
    (tmp_path / "trained.txt").write_text("\n".join(trained), encoding="utf-8")
    split = {"trained": str(tmp_path / "trained.txt"), "valid": 20, "holdout": 20, "test": 20}
    error = refused(tmp_path / "vit.pth", data, tmp_path, "attention heads", "num_heads=12", split=split)
    goes_in_once_mended(tmp_path / "vit.pth", data, tmp_path, error, split=split)


def test_stride_of_the_stem(tmp_path: Path) -> None:
    x, y = striped()
    path = as_classifier(learned(x, y, backbone=Backbone(name="resnet8", width=8, stride=2)), tmp_path)
    data = as_arrays(x, y, tmp_path)
    error = refused(path, data, tmp_path, "stem", "recipe.backbone.stride=2")
    goes_in_once_mended(path, data, tmp_path, error)


@pytest.mark.parametrize("hidden", [None, 12])
def test_a_classifier_that_is_taken_for_an_encoder(hidden: int | None, tmp_path: Path) -> None:
    layers = (ProjectorLayer.LINEAR, ProjectorLayer.RELU, ProjectorLayer.LINEAR)
    objective = CrossEntropy() if hidden is None else CrossEntropy(layers=layers, hidden=hidden)
    path = as_classifier(learned(*colored(), objective=objective), tmp_path)
    data = as_arrays(*colored(), tmp_path)
    refused(path, data, tmp_path, "--objective cross_entropy", objective="simclr")
    unlearn(path, data, tmp_path, objective="cross_entropy")


def test_an_encoder_that_is_taken_for_a_classifier(tmp_path: Path) -> None:
    x, y = striped()
    views = Views(crop=(0.5, 1.0), hue=0, grayscale=0)
    path = as_classifier(learned(x, y, objective=SimClr(dim=3, hidden=12), views=views, epochs=15), tmp_path)
    said: list[str] = []
    settings = {"data": as_arrays(x, y, tmp_path), "objective": "cross_entropy", "split": SPLIT}
    with pytest.raises(EffaceError, match=r"does not fit its training images: classes.*--set check=false"):
        start_from_foreign(path, settings, 0, said.append, check=True, device="cpu")


def test_test_data_that_are_taken_for_training_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x, y = colored()
    y = rng.permutation(y)  # nothing to learn but by heart
    path = as_classifier(learned(x, y, epochs=60), tmp_path)
    data = as_arrays(x, y, tmp_path)
    lists = {"trained": range(120), "tested": range(120, N)}
    for name, rows in lists.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{row:05d}" for row in rows), encoding="utf-8")
    sizes = {"valid": 15, "holdout": 15, "test": 15}
    wrong = {"trained": str(tmp_path / "tested.txt"), **sizes}
    refused(path, data, tmp_path, "trained on", "split.trained=FILE", split=wrong)
    unlearn(path, data, tmp_path, split={"trained": str(tmp_path / "trained.txt"), **sizes})


def test_a_head_for_other_classes_than_those_of_the_data(tmp_path: Path) -> None:
    x, y = colored()
    path = as_classifier(learned(x, y), tmp_path)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(N) % 5)
    refused(path, str(tmp_path / "data.npz"), tmp_path, "head", "cross_entropy")


def test_what_is_right_as_it_is_goes_in_without_a_doubt(tmp_path: Path) -> None:
    said: list[str] = []
    x, y = colored()
    path = as_classifier(learned(x, y), tmp_path)
    settings = {"data": as_arrays(x, y, tmp_path), "split": SPLIT, "forget": "@random:12", "method": FEW}
    train.unlearn_run(path, tmp_path / "out", settings | {"device": "cpu"}, progress=train.Progress(say=said.append))
    assert not [one for one in said if "does not fit" in one or "not what reached it in training" in one]


def test_augmentations_that_it_never_saw_are_said(tmp_path: Path) -> None:
    """Training on with shifts would change this network far more than forgetting does."""
    rng = np.random.default_rng(0)
    x = rng.integers(60, 160, (N, 3, SIDE, SIDE), dtype=np.uint8)
    y = np.arange(N) % 3
    for row, label in enumerate(y):
        x[row, :, :, 4 + label] = 250  # the class is where the line is, to the pixel
    path, data = as_classifier(learned(x, y), tmp_path), as_arrays(x, y, tmp_path)
    settings = {"data": data, "split": SPLIT, "device": "cpu"}
    said: list[str] = []
    start_from_foreign(path, settings, 0, said.append, check=True, device="cpu")
    (doubt,) = (one for one in said if ": views: " in one)
    assert "--set recipe.views.shift=0" in doubt and "it was trained without them" in doubt
    stated = settings | {"recipe": {"views": {"shift": 0, "flip": False}}}
    said.clear()
    start_from_foreign(path, stated, 0, said.append, check=True, device="cpu")
    assert not [one for one in said if ": views: " in one]
    at_home = learned(x, y, views=Views(**{**vars(Views.none()), "shift": 2, "flip": True}), epochs=1)
    assert check_views(at_home, torch.rand(8, 3, SIDE, SIDE), np.zeros(8, int), Views.none()).word == "passed"


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    path = as_classifier(learned(*colored(), mean=0.0, std=1 / 255), tmp_path)
    unlearn(path, as_arrays(*colored(), tmp_path), tmp_path, check=False)


@pytest.mark.parametrize(("trained", "word"), [(slice(0, 40), "passed"), (slice(40, 80), "failed")])
def test_an_image_text_model_is_asked_about_its_pairs(trained: slice, word: str) -> None:
    """Views of training images mean nothing to it; pairs that it has learned by heart say what it was trained on."""
    x, y = tiny.images(80)
    texts = tuple(f"{row % 9} {row // 9}" for row in range(80))
    data = Data.from_arrays(x, y, text=texts)
    model = tiny.recipe("clip").start(0).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    images, words = torch.from_numpy(x[:40]).float() / 255, list(texts[:40])
    for _ in range(150):
        pairs = model.project(model.features(images)), model.encode_text(words)
        a, b = (torch.nn.functional.normalize(one, dim=-1) for one in pairs)
        loss = torch.nn.functional.cross_entropy(a @ b.T / 0.1, torch.arange(40))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    split = partition(data, train=40, seed=0)
    stated, others = np.arange(80)[trained], np.setdiff1d(np.arange(80), np.arange(80)[trained])
    split = replace(split, retain=stated, valid=others[:20], holdout=others[20:30], test=others[30:])
    loaded: Any = SimpleNamespace(recipe=tiny.recipe("clip"), model=model)
    settings = {"split": {"trained": "list.txt"}}
    one = adoption.Adoption(cast("Any", None), loaded, data, split, settings, 0, torch.device("cpu"))
    checks = adoption._check_trained(one, model.eval())
    assert [check.word for check in checks] == [word] and "their captions" in checks[0].note
    silent = replace(one, data=Data.from_arrays(x, y))
    assert adoption._check_trained(silent, model) == []  # without captions nothing is known about its pairs
