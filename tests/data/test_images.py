"""Image files: all kinds of images, one rule for sizes, and a cache that is never stale or incomplete."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from efface.data import image_files
from efface.data.sources import load
from efface.errors import EffaceError
from tests.pictures import fails, make_zoo, picture

RED, HALF = (255, 0, 0, 255), (0, 0, 255, 128)


@pytest.fixture
def zoo(tmp_path):
    return make_zoo(tmp_path / "zoo")


def one(tmp_path, image: Image.Image, suffix="png", channels=None, size=None, **save) -> np.ndarray:
    """Save an image, load it as a folder, and return its pixels [C, H, W]."""
    folder = tmp_path / f"one{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    image.save(folder / f"a.{suffix}", **save)
    return load(str(folder), channels=channels, size=size).x[0]


def test_gray_and_color(tmp_path):
    gray = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    assert (one(tmp_path, gray) == np.arange(48).reshape(1, 6, 8)).all()
    assert (one(tmp_path, gray, channels=3) == np.arange(48).reshape(1, 6, 8)).all()
    color = Image.new("RGB", (2, 2), (255, 0, 0))
    assert one(tmp_path, color, channels=1)[0, 0, 0] == 76  # the luminance of red
    bits = Image.new("1", (2, 2), 1)
    assert one(tmp_path, bits).tolist() == [[[255, 255], [255, 255]]]


def test_gray_beside_color_becomes_color(tmp_path):
    picture(tmp_path / "a.png", mode="L")
    picture(tmp_path / "b.png", mode="RGB")
    data = load(str(tmp_path))
    assert data.shape[0] == 3 and (data.x[0] == data.x[0][:1]).all()
    assert load(str(tmp_path), channels=1).shape[0] == 1


def test_transparency_of_every_kind_is_put_on_white(tmp_path):
    image = Image.new("RGBA", (3, 1), RED)
    image.putpixel((1, 0), HALF)
    image.putpixel((2, 0), (9, 9, 9, 0))
    wanted = [[255, 127, 255], [0, 127, 255], [0, 255, 255]]
    seen = one(tmp_path, image)[:, 0]
    assert np.abs(seen.astype(int) - wanted).max() <= 1
    assert np.abs(one(tmp_path, image, "webp", lossless=True)[:, 0].astype(int) - wanted).max() <= 1

    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert one(tmp_path, palette)[:, 0].tolist() == [[255, 0], [0, 0], [0, 255]]
    assert one(tmp_path, palette, transparency=1)[:, 0].tolist() == [[255, 255], [0, 255], [0, 255]]
    assert one(tmp_path, palette, "gif", transparency=1)[:, 0].tolist() == [[255, 255], [0, 255], [0, 255]]
    several = one(tmp_path, palette, transparency=bytes((255, 0)))
    assert several[:, 0].tolist() == [[255, 255], [0, 255], [0, 255]]

    gray = Image.new("LA", (2, 1), (10, 255))
    gray.putpixel((1, 0), (10, 0))
    assert one(tmp_path, gray).tolist() == [[[10, 255]]]
    keyed = Image.new("RGB", (2, 1), (1, 2, 3))
    keyed.putpixel((1, 0), (7, 7, 7))
    assert one(tmp_path, keyed, transparency=(1, 2, 3))[:, 0].tolist() == [[255, 7], [255, 7], [255, 7]]


def test_deep_gray_is_scaled_and_floats_are_refused(tmp_path):
    deep = np.array([[0, 257, 65535, 32768, 400]], np.uint16)
    assert one(tmp_path, Image.fromarray(deep)).tolist() == [[[0, 1, 255, 128, 2]]]
    assert one(tmp_path, Image.fromarray(deep), "tiff").tolist() == [[[0, 1, 255, 128, 2]]]
    with pytest.raises(EffaceError, match=r"floating-point"):
        one(tmp_path, Image.fromarray(np.zeros((2, 2), np.float32)), "tiff")
    with pytest.raises(EffaceError, match=r"0 to 70000"):
        one(tmp_path, Image.fromarray(np.array([[0, 70000]], np.int32)), "tiff")


def test_print_colors_animations_and_rotation(tmp_path):
    assert np.abs(one(tmp_path, Image.new("CMYK", (2, 2), (0, 0, 0, 255)), "tiff")).max() <= 2
    frames = [Image.new("L", (2, 2), value) for value in (40, 200)]
    assert one(tmp_path, frames[0], "gif", save_all=True, append_images=frames[1:])[0, 0, 0] == 40
    wide = Image.new("RGB", (4, 2), "black")
    wide.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees, clockwise
    turned = one(tmp_path, wide, exif=exif)
    assert turned.shape == (3, 4, 2) and turned[0, 0].tolist() == [0, 255]


def test_text_in_a_picture_changes_nothing(tmp_path):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "x" * 1000)
    assert (one(tmp_path, Image.new("L", (2, 2), 9), pnginfo=notes) == 9).all()


def test_mixed_sizes_need_a_size(tmp_path):
    picture(tmp_path / "a.png", size=(8, 6))
    picture(tmp_path / "b.png", size=(5, 9))
    picture(tmp_path / "c.png", size=(8, 6))
    fails(tmp_path, "2 sizes", "8 x 6 (2), 5 x 9 (1)", "data.size=N", "5 to 6")
    assert load(str(tmp_path), size=4).shape == (3, 4, 4)
    for size in (0, -3, 2.5, True, "32"):
        fails(tmp_path, "'size' cannot be", size=size)
    fails(tmp_path, "'channels' cannot be 2", channels=2)


@pytest.mark.parametrize("size", [(96, 48), (48, 96), (200, 50), (16, 16), (8, 24)])
def test_resizing_is_shorter_side_then_center_crop(size):
    width, height = size
    grid = np.mgrid[0:height, 0:width]
    smooth = 128 + 60 * np.sin(grid[0] / 9) + 60 * np.cos(grid[1] / 13)
    image = Image.fromarray(smooth.round().astype(np.uint8))
    scale = 16 / min(size)
    shrunk = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    left, top = (shrunk.width - 16) // 2, (shrunk.height - 16) // 2
    wanted = np.asarray(shrunk.crop((left, top, left + 16, top + 16))).astype(int)
    seen = image_files.to_array(image, 16, 1)[0].astype(int)
    assert np.abs(seen - wanted).mean() < 0.5 and np.abs(seen - wanted)[1:-1, 1:-1].max() <= 1


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    seen = image_files.to_array(Image.fromarray(stripes), 8, 1)
    assert np.abs(seen.astype(int) - 127).max() < 12  # without antialiasing: 0 or 255


def test_a_single_pixel_is_refused_and_very_long_images_are_scaled(tmp_path):
    with pytest.raises(EffaceError, match="one pixel"):
        one(tmp_path, Image.new("L", (1, 1), 77), size=4)
    long = Image.new("L", (20_000, 2), 50)
    assert (one(tmp_path, long, size=16) == 50).all()


def test_a_broken_image_stops_the_run_with_its_key_and_path(zoo):
    (zoo / "cat" / "a.png").write_bytes(b"not a picture")
    fails(zoo, "1 of 6", "'cat/a.png'", zoo / "cat" / "a.png", "skip_broken")
    data = load(str(zoo), skip_broken=True)
    assert len(data) == 5 and "cat/a.png" not in data.keys and data.y is not None
    assert data.y.tolist() == [0, 0, 0, 1, 1] and len(data.skipped) == 1
    assert {"key", "path", "error"} == set(data.skipped[0]) and data.skipped[0]["key"] == "cat/a.png"
    fails(zoo, "1 of 6")  # a cached list of skipped files must not hide them without skip_broken


def test_truncated_pixels_are_broken_too(zoo):
    picture(zoo / "ant" / "e.png", 9, size=(200, 200))
    whole = (zoo / "ant" / "e.png").read_bytes()
    (zoo / "ant" / "e.png").write_bytes(whole[: len(whole) // 2])  # the header is complete
    fails(zoo, "'ant/e.png'", "skip_broken", size=8)
    data = load(str(zoo), skip_broken=True, size=8)
    with Image.open(zoo / "cat" / "f.png") as image:
        assert (data.x[-1] == image_files.to_array(image, 8, 3)).all()  # later rows have moved up
    assert data.keys.tolist()[:2] == ["ant/d.bmp", "ant/x/c.png"]


def test_headers_are_read_without_decoding(zoo, monkeypatch):
    picture(zoo / "cat" / "large.png", size=(9, 9))
    loaded = []
    for kind in (PngImagePlugin.PngImageFile, Image.Image):
        monkeypatch.setattr(kind, "load", lambda image: loaded.append(image), raising=False)
    fails(zoo, "2 sizes")
    assert not loaded


def test_rotation_stored_behind_the_pixels_is_an_error_not_another_shape(tmp_path):
    picture(tmp_path / "a.png", size=(4, 2))
    whole = (tmp_path / "a.png").read_bytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes()[6:]
    note = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    (tmp_path / "a.png").write_bytes(whole[:-12] + note + whole[-12:])
    fails(tmp_path, "'a.png'", "2 x 4", "header says otherwise")
    assert load(str(tmp_path), size=2).shape == (3, 2, 2)


def test_nothing_but_broken_images(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"")
    fails(tmp_path, "2 of 2", skip_broken=True)


def test_a_picture_that_memory_cannot_hold_is_broken(zoo, monkeypatch):
    monkeypatch.setattr(image_files, "ALONE", 40)
    monkeypatch.setattr(image_files, "free_memory", lambda: 800)
    fails(zoo, "6 of 6", "8 x 6 pixels", "GB of memory", "are free")


def test_a_picture_over_89_megapixels_is_read(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    for name, value in (("a", 1), ("b", 0)):
        Image.new("1", (12_000, 8_000), value).save(tmp_path / f"{name}.png")
    assert load(str(tmp_path), size=4).x.mean((1, 2, 3)).tolist() == [255, 0]
    assert limit == Image.MAX_IMAGE_PIXELS  # what other code in the process is protected by


def count_decoded(monkeypatch) -> list[int]:
    seen, real = [], image_files.to_array
    monkeypatch.setattr(image_files, "to_array", lambda image, *rest: seen.append(1) or real(image, *rest))
    return seen


def test_images_are_decoded_once(zoo, own_cache, monkeypatch):
    seen = count_decoded(monkeypatch)
    first = load(str(zoo))
    again = load(str(zoo))
    assert len(seen) == 6 and isinstance(again.x, np.memmap)
    assert first.digest() == again.digest() and (own_cache / "pixels").is_dir()
    load(str(zoo), channels=1)
    assert len(seen) == 12


def test_the_cache_notices_a_changed_file(zoo, monkeypatch):
    before, seen = load(str(zoo)), count_decoded(monkeypatch)
    picture(zoo / "cat" / "a.png", 99)
    os.utime(zoo / "cat" / "a.png", (1, 1))
    after = load(str(zoo))
    assert len(seen) == 6 and (after.x[3] != before.x[3]).any()


def test_writing_to_the_pixels_does_not_change_the_cache(zoo):
    data = load(str(zoo))
    before = data.x.copy()
    data.x[:] = 0
    assert (load(str(zoo)).x == before).all()


def test_an_interrupted_decode_is_never_read(zoo, tmp_path, monkeypatch):
    calls, real = [], image_files.to_array

    def cut(image, *rest):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(image, *rest)

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "to_array", cut)
        with pytest.raises(KeyboardInterrupt):
            load(str(zoo), cache=str(cache))
    assert not list(cache.iterdir())
    assert len(load(str(zoo), cache=str(cache))) == 6


def test_a_damaged_cache_is_rebuilt(zoo, tmp_path):
    cache = tmp_path / "cache"
    wanted = load(str(zoo), cache=str(cache)).x.copy()
    (place,) = cache.iterdir()
    for damage in (
        lambda: (place / "pixels.npy").write_bytes((place / "pixels.npy").read_bytes()[:-7]),
        lambda: (place / "index.json").write_text("{"),
        lambda: (place / "index.json").unlink(),
        lambda: (place / "pixels.npy").unlink(),
        lambda: np.save(place / "pixels.npy", np.zeros((6, 3, 6, 7), np.uint8)),
    ):
        damage()
        assert (load(str(zoo), cache=str(cache)).x == wanted).all()
    killed = cache / f"{place.name}.1.partial"
    killed.mkdir()
    os.utime(killed, (1, 1))
    load(str(zoo), cache=str(cache), channels=1)
    assert not killed.exists()  # left behind by a killed process a day ago


def test_a_cache_that_cannot_be_written(zoo, tmp_path):
    (tmp_path / "file").write_text("")
    fails(zoo, "cannot be created", cache=str(tmp_path / "file" / "cache"))
