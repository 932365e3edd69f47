"""Pictures are prepared as their libraries prepare them: equal to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efface.data.preprocessing import Preprocessing
from efface.data.preprocessing_files import find_stated, read_file
from efface.data.sources import load
from efface.errors import EffaceError

SHAPES = ((40, 60), (61, 37), (33, 33), (24, 90), (20, 18))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several shapes, some smaller than a crop."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, (height, width) in enumerate(SHAPES):
        coarse = rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def pixels(folder: Path, cache: Path, preprocessing: Any) -> np.ndarray:
    return np.asarray(load(str(folder), preprocessing=preprocessing, cache=str(cache)).x).astype(np.float32) / 255


def their_pixels(folder: Path, transform: Any) -> np.ndarray:
    rows = [transform(Image.open(folder / f"{number}.png").convert("RGB")) for number in range(len(SHAPES))]
    return np.stack([np.asarray(row) for row in rows])


def normalized(x: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    return (x - np.array(mean).reshape(-1, 1, 1)) / np.array(std).reshape(-1, 1, 1)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"crop_pct": 1.0, "interpolation": "bilinear"},
        {"crop_mode": "squash", "crop_pct": 0.9},
        {"crop_mode": "border", "crop_pct": 0.9},
        {"input_size": (3, 32, 24)},
        {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "lanczos"},
    ],
)
def test_timm(pictures: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    from timm.data import create_transform, resolve_data_config

    cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 0.875, **changed}
    stated = find_stated({"config.json": {"pretrained_cfg": cfg}})
    assert stated is not None and stated.pixels is not None
    transform = create_transform(**resolve_data_config(pretrained_cfg=cfg))
    if "interpolation" not in changed and "interpolation=bilinear" in str(transform):
        pytest.skip("timm before 1.0.30 took bilinear for pictures that are not square, whatever was stated")
    theirs = their_pixels(pictures, transform)
    ours = normalized(pixels(pictures, tmp_path, stated.pixels.as_settings()), stated.mean, stated.std)
    assert np.abs(ours - theirs).max() < 1e-5


PROCESSORS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ViTImageProcessor", {"size": {"height": 24, "width": 32}}),
    ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "resample": 3, "rescale_factor": 1 / 127.5}),
    ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "do_normalize": False}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    ("BitImageProcessor", {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}}),
    ("DeiTImageProcessor", {"size": {"height": 36, "width": 36}, "crop_size": {"height": 31, "width": 31}}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    ("SiglipImageProcessor", {"size": {"height": 32, "width": 32}}),
)


@pytest.mark.parametrize("kind", [None, "Pil"])
@pytest.mark.parametrize(("name", "options"), PROCESSORS)
def test_transformers(pictures: Path, tmp_path: Path, name: str, options: dict[str, Any], kind: str | None) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    processor = getattr(transformers, name + (kind or ""), None)
    if processor is None:
        pytest.skip(f"this transformers has no {name}{kind}")
    made = processor(**options)
    made.save_pretrained(tmp_path / "model")
    stated = read_file(str(tmp_path / "model" / "preprocessor_config.json"))
    assert stated.pixels is not None
    theirs = their_pixels(pictures, lambda image: made(image, return_tensors="np")["pixel_values"][0])
    assert bool(stated.notes)  # the file does not say which of the two it was
    settings = stated.pixels.as_settings() | ({"library": "pillow"} if kind else {})
    ours = normalized(pixels(pictures, tmp_path / "cache", settings), stated.mean, stated.std)
    assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [32, (24, 32)])
def test_open_clip(pictures: Path, tmp_path: Path, mode: str, size: Any) -> None:
    library = pytest.importorskip("open_clip.transform", reason="open_clip is not installed")
    cfg = library.PreprocessCfg(size=size, resize_mode=mode, mean=(0.4,) * 3, std=(0.2,) * 3)
    content = {"preprocess_cfg": json.loads(json.dumps(cfg.__dict__))}
    stated = find_stated({"open_clip_config.json": content})
    assert stated is not None and stated.pixels is not None
    theirs = their_pixels(pictures, library.image_transform_v2(cfg, is_train=False))
    ours = normalized(pixels(pictures, tmp_path, stated.pixels.as_settings()), stated.mean, stated.std)
    assert np.abs(ours - theirs).max() < 1e-5


def test_torchvision(pictures: Path, tmp_path: Path) -> None:
    from torchvision.transforms._presets import ImageClassification

    theirs = their_pixels(pictures, ImageClassification(crop_size=28, resize_size=32))
    ours = pixels(pictures, tmp_path, {"resize": 32, "crop": [28, 28]})
    assert np.abs(normalized(ours, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) - theirs).max() < 1e-5


def test_turned_and_transparent_pictures_are_used_as_asked(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    turned = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "a.png", exif=exif)
    turned.save(folder / "b.tiff")
    hidden = Image.new("RGBA", (6, 4), (200, 10, 30, 0))
    hidden.save(folder / "c.png")
    kept = load(
        str(folder), preprocessing={"orientation": "stored", "transparency": "drop"}, cache=str(tmp_path / "cache")
    )
    assert (kept.x[0] == kept.x[1]).all()
    assert kept.x[2][:, 0, 0].tolist() == [200, 10, 30]
    upright = load(str(folder), preprocessing={"resize": 4, "mode": "exact"}, cache=str(tmp_path / "cache"))
    assert (upright.x[0] != upright.x[1]).any()
    assert (upright.x[2] == 255).all()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"resize": 256}, "without a crop"),
        ({"resize": [256, 200], "crop": [8, 8]}, "mode shorter"),
        ({"resise": 256}, "no setting"),
        ({"resize": 0, "crop": [8, 8]}, "cannot be 0"),
        ({"crop": [8, 8], "resampling": "cubic"}, "bicubic"),
        ({"format": 2}, "format"),
        ({"library": "torchvision", "resampling": "box"}, "no resampling"),
        (7, "cannot be 7"),
        ("nowhere.json", "no file"),
    ],
)
def test_impossible_settings_are_refused(pictures: Path, settings: Any, word: str) -> None:
    with pytest.raises(EffaceError, match=word):
        load(str(pictures), preprocessing=settings)


def test_size_and_preprocessing_are_not_both_believed(pictures: Path) -> None:
    with pytest.raises(EffaceError, match="both given"):
        load(str(pictures), preprocessing={"resize": 8, "mode": "exact"}, size=8)


def test_a_file_without_preprocessing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
    with pytest.raises(EffaceError, match="states no preprocessing"):
        read_file(str(tmp_path / "config.json"))


def test_a_very_long_picture_is_refused_before_it_is_made_larger() -> None:
    with pytest.raises(ValueError, match="would be resized"):
        Preprocessing(resize=4096, crop=(4096, 4096)).apply(Image.new("RGB", (30_000, 20)))
