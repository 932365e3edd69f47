"""Pictures are decoded to the pixel: rotations, print colours, palettes, transparency, animations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efface.data.sources import load

pytestmark = pytest.mark.usefixtures("own_cache")
ROTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: x.swapaxes(0, 1)[::-1],
}
"""EXIF orientation to what makes the stored rows [H, W, ...] upright, by the table of the standard."""


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def loaded(folder: Path, image: Image.Image, suffix: str, **save) -> np.ndarray:
    """Save an image, load it as a folder of one, and return its pixels [C, H, W]."""
    folder /= "pictures"
    folder.mkdir()
    image.save(folder / f"a.{suffix}", **save)
    return load(str(folder)).x[0]


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", ROTATIONS)
def test_every_exif_rotation(tmp_path, orientation, suffix):
    stored = drawn(5, 7, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    save = {"lossless": True} if suffix == "webp" else {}
    found = loaded(tmp_path, Image.fromarray(stored), suffix, exif=exif, **save)
    assert np.array_equal(found, ROTATIONS[orientation](stored).transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", ROTATIONS)
def test_every_exif_rotation_of_a_jpeg(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(drawn(8, 16, 3))
    plain = tmp_path / "plain.jpg"
    image.save(plain, quality=95)
    stored = np.asarray(Image.open(plain))
    found = loaded(tmp_path, image, "jpg", quality=95, exif=exif)
    assert np.array_equal(found, ROTATIONS[orientation](stored).transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["tiff", "jpg"])
def test_print_colors(tmp_path, suffix):
    stored = drawn(4, 6, 4) if suffix == "tiff" else np.full((8, 8, 4), (40, 90, 160, 30), np.uint8)
    found = loaded(
        tmp_path, Image.fromarray(stored, mode="CMYK"), suffix, **({"quality": 100} if suffix == "jpg" else {})
    )
    ink, key = stored[..., :3].astype(float), stored[..., 3:].astype(float)
    exact = (255 - ink) * (255 - key) / 255  # light that passes the ink times light that passes the black
    assert np.abs(found.transpose(1, 2, 0) - exact).max() <= (1 if suffix == "tiff" else 4)


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("colors", [2, 16, 256])
def test_palettes(tmp_path, colors, suffix):
    palette, rows = drawn(colors, 3, seed=1), drawn(9, 9).astype(int) % colors
    image = Image.fromarray(rows.astype(np.uint8), mode="P")
    image.putpalette(palette.tobytes())
    assert np.array_equal(loaded(tmp_path, image, suffix).transpose(1, 2, 0), palette[rows])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_transparency_is_put_on_white(tmp_path, mode, suffix):
    if (mode, suffix) == ("LA", "webp"):
        pytest.skip("the format has no gray")
    stored = drawn(6, 6, len(mode))
    stored[:2, ..., -1], stored[2:4, ..., -1] = 0, 255
    save = {"lossless": True, "exact": True} if suffix == "webp" else {}
    found = loaded(tmp_path, Image.fromarray(stored, mode=mode), suffix, **save).transpose(1, 2, 0)
    color, alpha = stored[..., :-1].astype(float), stored[..., -1:].astype(float) / 255
    exact = color * alpha + 255 * (1 - alpha)
    assert (found[:2] == 255).all()
    assert np.array_equal(found[2:4], stored[2:4, ..., :-1])
    assert np.abs(found - exact).max() <= 1


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_of_an_animation_the_first_frame_counts(tmp_path, suffix):
    frames = [Image.fromarray(np.full((4, 5), value, np.uint8)) for value in (40, 200, 90)]
    if suffix == "webp":
        frames = [frame.convert("RGB") for frame in frames]
    save = {"lossless": True} if suffix == "webp" else {}
    found = loaded(tmp_path, frames[0], suffix, save_all=True, append_images=frames[1:], **save)
    assert found.shape[1:] == (4, 5) and (found == 40).all()
