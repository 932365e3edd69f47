"""Sources: every kind of picture file, every way a folder or table can be wrong, a cache that never lies."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from efface import images, official
from efface.errors import EffaceError
from efface.sources import SOURCES, load
from efface.split import partition

EMOJI = Path(os.environ.get("EFFACE_TEST_EMOJI", "tests/data/emoji"))
RED, HALF = (255, 0, 0, 255), (0, 0, 255, 128)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "efface"


def fails(source, *words, **options):
    with pytest.raises(EffaceError) as caught:
        load(str(source), **options)
    for word in words:
        assert str(word) in str(caught.value), str(caught.value)


def picture(path: Path, seed=0, size=(8, 6), mode="RGB", **save):
    """A random image file, and the image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    image = Image.fromarray(pixels, mode)
    image.save(path, **save)
    return image


@pytest.fixture
def zoo(tmp_path):
    """Two classes of three images each."""
    for number, name in enumerate(
        ("cat/b.png", "cat/a.png", "ant/x/c.png", "ant/d.bmp", "ant/e.png", "cat/f.png")
    ):
        picture(tmp_path / "zoo" / name, number)
    return tmp_path / "zoo"


# names, paths, options


def test_unknown_names_and_options_say_what_is_known(tmp_path, zoo):
    fails("fashion-mnits", "'fashion-mnist'", "A path works too", "folder", "svhn")
    fails("nowhere/at/all", "no file or folder", "A path works too")
    fails("digits", "no option 'sizes'", "limit", sizes=3)
    fails(zoo, "'folder' has no option 'chanels'", "'channels'", chanels=1)
    fails("folder", "needs 'root'", "data.root")
    (tmp_path / "a.tar").write_text("")
    fails(tmp_path / "a.tar", ".jsonl", ".npz")


def test_every_source_documents_every_option():
    import inspect

    for name, source in SOURCES.items():
        text = inspect.getdoc(source) or ""
        for option in inspect.signature(source).parameters:
            assert f"{option}:" in text, (name, option)


def test_nothing_heavy_is_imported():
    code = (
        "import sys; import efface.sources, efface.split\n"
        "efface.sources.load('digits')\n"
        "assert not {'torch', 'torchvision', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# digits and the official sets


def test_digits():
    data = load("digits")
    assert (data.shape, len(data), data.classes, data.official) == (
        (1, 8, 8),
        1797,
        tuple("0123456789"),
        None,
    )
    assert data.x.max() == 255 and data.x.min() == 0
    assert len(load("digits", limit=100)) == 100
    fails("digits", "from 1 to 1797", limit=2000)


@pytest.fixture(scope="module")
def fashion():
    if not official.DEBIAN.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    start = time.perf_counter()
    data = load("fashion-mnist")
    return data, time.perf_counter() - start


def test_fashion_mnist(fashion):
    data, seconds = fashion
    assert data.shape == (1, 28, 28) and data.classes[9] == "Ankle boot"
    assert data.keys[[0, 59_999, 60_000, 69_999]].tolist() == [
        "train/00000",
        "train/59999",
        "test/00000",
        "test/09999",
    ]
    assert (np.bincount(data.y) == 7000).all() and (data.official == "test").sum() == 10_000
    assert data.y[:3].tolist() == [9, 0, 0]
    assert seconds < 3  # 0.4 s alone on the reference machine


def test_fashion_mnist_limit(fashion):
    small = load("fashion-mnist", limit=500)
    assert (len(small), (small.official == "test").sum()) == (10_500, 10_000)
    assert small.y is not None
    assert (np.bincount(small.y[small.official == "train"]) == 50).all()
    whole = fashion[0]
    assert (small.x[:500] == whole.x[whole.positions(small.keys[:500])]).all()
    assert set(load("fashion-mnist", limit=500, limit_seed=1).keys) != set(small.keys)


def idx(array) -> bytes:
    array = np.asarray(array, np.uint8)
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_fashion(folder: Path, packed=False):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem, n in (("train", 6), ("t10k", 4)):
        for kind, array in (
            ("images-idx3", rng.integers(0, 256, (n, 28, 28))),
            ("labels-idx1", np.arange(n)),
        ):
            content = idx(array)
            name = f"{stem}-{kind}-ubyte" + (".gz" if packed else "")
            (folder / name).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize(
    ("inside", "packed"), [("FashionMNIST/raw", False), ("FashionMNIST/raw", True), ("", True)]
)
def test_fashion_mnist_from_a_torchvision_root(tmp_path, inside, packed):
    write_fashion(tmp_path / "root" / inside, packed)
    data = load("fashion-mnist", root=str(tmp_path / "root"))
    assert data.y is not None
    assert len(data) == 10 and data.keys[6] == "test/00000" and data.y[:6].tolist() == list(range(6))


def test_fashion_mnist_absent_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(official, "DEBIAN", tmp_path / "none")
    fails(
        "fashion-mnist",
        "apt install dataset-fashion-mnist",
        "data.root",
        "data.download=true",
        tmp_path / "none",
    )
    fails("fashion-mnist", f"not in {tmp_path}", root=str(tmp_path))
    write_fashion(tmp_path / "a")
    images_file = tmp_path / "a" / "train-images-idx3-ubyte"
    images_file.write_bytes(images_file.read_bytes()[:-1])
    fails("fashion-mnist", "train-images", "damaged", root=str(tmp_path / "a"))
    (tmp_path / "a" / "train-labels-idx1-ubyte").unlink()
    write_fashion(tmp_path / "b", packed=True)
    labels = tmp_path / "b" / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-6])
    fails("fashion-mnist", "t10k-labels", "damaged", root=str(tmp_path / "b"))
    labels.unlink()
    fails("fashion-mnist", "t10k-labels", "missing", root=str(tmp_path / "b"))


def test_download_only_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(official, "DEBIAN", tmp_path / "none")
    asked = []

    def fetch(kind, root, download, **options):
        asked.append((kind, root, download))
        write_fashion(root / "FashionMNIST" / "raw")

    monkeypatch.setattr(official, "_torchvision", fetch)
    fails("fashion-mnist", "not in")
    assert not asked
    assert len(load("fashion-mnist", download=True)) == 10
    assert asked == [("FashionMNIST", official.downloads(), True)]


def digest(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def write_cifar(root: Path, monkeypatch, coarse=False):
    """Torchvision's own layout; the digests that it checks are replaced by those of the small files."""
    from torchvision import datasets

    kind = datasets.CIFAR100 if coarse else datasets.CIFAR10
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    rng, sizes = np.random.default_rng(0), {"train_list": 3, "test_list": 2}
    for which, n in sizes.items():
        entries = []
        for name, _ in getattr(kind, which):
            labels = "fine_labels" if coarse else "labels"
            content = {
                "data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
                labels: rng.integers(0, 10, n).tolist(),
            }
            (folder / name).write_bytes(pickle.dumps(content))
            entries.append([name, digest(folder / name)])
        monkeypatch.setattr(kind, which, entries)
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: [f"class{i}" for i in range(100 if coarse else 10)]}))
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": digest(meta)})
    return folder


def test_cifar(tmp_path, monkeypatch):
    folder = write_cifar(tmp_path, monkeypatch)
    data = load("cifar10", root=str(tmp_path))
    assert (data.shape, len(data), data.keys[15], data.classes[3]) == (
        (3, 32, 32),
        17,
        "test/00000",
        "class3",
    )
    raw = pickle.loads((folder / "data_batch_1").read_bytes())
    assert data.y is not None
    assert (data.x[1] == raw["data"][1].reshape(3, 32, 32)).all() and data.y[1] == raw["labels"][1]
    assert len(load("cifar10", root=str(tmp_path), limit=4)) == 6
    write_cifar(tmp_path, monkeypatch, coarse=True)
    assert len(load("cifar100", root=str(tmp_path)).classes) == 100


def test_svhn(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision import datasets

    rng, digests = np.random.default_rng(0), {}
    x = rng.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    for part in ("train", "test"):
        path = tmp_path / f"{part}_32x32.mat"
        savemat(path, {"X": x, "y": np.array([[10], [1], [2], [9]], np.uint8)})
        digests[part] = ["", path.name, digest(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", digests)
    data = load("svhn", root=str(tmp_path))
    assert data.y is not None and data.y.tolist() == [0, 1, 2, 9] * 2  # the files call the digit 0 "10"
    assert (data.x[6] == x[..., 2].transpose(2, 0, 1)).all() and data.keys[4] == "test/00000"


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_torchvision_sets_that_are_absent_or_damaged(name, tmp_path, home):
    fails(name, tmp_path, "data.root", "data.download=true", root=str(tmp_path))
    fails(name, home / "downloads")
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"damaged")
    (tmp_path / "train_32x32.mat").write_bytes(b"damaged")
    fails(name, "damaged", root=str(tmp_path))


# folders


def test_folder_keys_are_relative_paths_and_classes_sub_folders(zoo):
    data = load(str(zoo))
    assert data.keys.tolist() == [
        "ant/d.bmp",
        "ant/e.png",
        "ant/x/c.png",
        "cat/a.png",
        "cat/b.png",
        "cat/f.png",
    ]
    assert (data.classes, data.name, data.shape) == (("ant", "cat"), "zoo", (3, 6, 8))
    assert data.y is not None and data.y.tolist() == [0, 0, 0, 1, 1, 1]
    with Image.open(zoo / "cat/a.png") as image:
        assert (data.x[3] == np.asarray(image).transpose(2, 0, 1)).all()


def test_a_flat_folder_is_unlabelled(tmp_path):
    for name in ("b.png", "a.PNG", ".hidden.png"):
        picture(tmp_path / "flat" / name)
    (tmp_path / "flat" / "notes.txt").write_text("not an image")
    data = load(str(tmp_path / "flat"))
    assert (data.keys.tolist(), data.y, data.classes) == (["a.PNG", "b.png"], None, ())


@pytest.mark.parametrize("tested", ["test", "val"])
def test_train_and_test_folders_are_official_parts(tmp_path, tested):
    for number, name in enumerate(("train/cat/a.png", "train/ant/a.png", f"{tested}/cat/a.png")):
        picture(tmp_path / name, number)
    data = load(str(tmp_path))
    assert data.classes == ("ant", "cat") and data.official is not None
    assert data.keys[data.official == "test"].tolist() == [f"{tested}/cat/a.png"]
    picture(tmp_path / "extra/cat/a.png", 4)
    fails(tmp_path, "extra", "official parts")


def test_folders_that_cannot_be_read(tmp_path, zoo):
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "no images", "It is empty")
    (tmp_path / "empty" / "a.txt").write_text("")
    fails(tmp_path / "empty", "no images", "'.txt'", ".png")
    fails("folder", "no folder", root=str(tmp_path / "none"))
    picture(zoo / "loose.png")
    fails(zoo, "1 images beside its sub-folders", "loose.png")


def test_a_folder_linked_into_itself_is_read_once(zoo):
    (zoo / "cat" / "again").symlink_to(zoo, target_is_directory=True)
    assert len(load(str(zoo))) == 6


def test_names_that_are_not_utf8_are_refused(zoo):
    os.close(os.open(os.fsencode(zoo / "cat") + b"/\xff.png", os.O_CREAT))
    (zoo / "cat" / os.fsdecode(b"\xff.png")).write_bytes((zoo / "cat" / "a.png").read_bytes())
    fails(zoo, "cannot be written as text", "UTF-8")


def test_limit_decodes_only_what_it_keeps(zoo, monkeypatch):
    seen, real = [], images.to_array
    monkeypatch.setattr(images, "to_array", lambda image, *rest: seen.append(1) or real(image, *rest))
    data = load(str(zoo), limit=2)
    assert len(seen) == 2 and data.y is not None and data.y.tolist() == [0, 1]
    assert data.keys.tolist() != load(str(zoo), limit=2, limit_seed=2).keys.tolist()


# kinds of picture


def one(tmp_path, image: Image.Image, suffix="png", channels=None, size=None, **save) -> np.ndarray:
    """The pixels of one image through a folder, [C, H, W]."""
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
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    turned = one(tmp_path, wide, exif=exif)
    assert turned.shape == (3, 4, 2) and turned[0, 0].tolist() == [0, 255]


def test_text_in_a_picture_changes_nothing(tmp_path):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "x" * 1000)
    assert (one(tmp_path, Image.new("L", (2, 2), 9), pnginfo=notes) == 9).all()


# sizes


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
    seen = images.to_array(image, 16, 1)[0].astype(int)
    assert np.abs(seen - wanted).mean() < 0.5 and np.abs(seen - wanted)[1:-1, 1:-1].max() <= 1


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    seen = images.to_array(Image.fromarray(stripes), 8, 1)
    assert np.abs(seen.astype(int) - 127).max() < 12  # without it: 0 or 255


def test_one_pixel_and_very_long_images_follow_the_rule(tmp_path):
    assert one(tmp_path, Image.new("L", (1, 1), 77)).tolist() == [[[77]]]
    assert (one(tmp_path, Image.new("L", (1, 1), 77), size=4) == 77).all()
    long = Image.new("L", (20_000, 2), 50)
    assert (one(tmp_path, long, size=16) == 50).all()


# broken files and the cache


def test_a_broken_image_stops_the_run_with_its_key_and_path(zoo):
    (zoo / "cat" / "a.png").write_bytes(b"not a picture")
    fails(zoo, "1 of 6", "'cat/a.png'", zoo / "cat" / "a.png", "skip_broken")
    data = load(str(zoo), skip_broken=True)
    assert len(data) == 5 and "cat/a.png" not in data.keys and data.y is not None
    assert data.y.tolist() == [0, 0, 0, 1, 1] and len(data.skipped) == 1
    assert {"key", "path", "error"} == set(data.skipped[0]) and data.skipped[0]["key"] == "cat/a.png"
    fails(zoo, "1 of 6")  # what was left out on purpose is not left out by the cache


def test_pixels_that_break_off_are_broken_too(zoo):
    picture(zoo / "ant" / "e.png", 9, size=(200, 200))
    whole = (zoo / "ant" / "e.png").read_bytes()
    (zoo / "ant" / "e.png").write_bytes(whole[: len(whole) // 2])  # the header is whole
    fails(zoo, "'ant/e.png'", "skip_broken", size=8)
    data = load(str(zoo), skip_broken=True, size=8)
    with Image.open(zoo / "cat" / "f.png") as image:
        assert (data.x[-1] == images.to_array(image, 8, 3)).all()  # later rows have moved up
    assert data.keys.tolist()[:2] == ["ant/d.bmp", "ant/x/c.png"]


def test_headers_are_read_without_decoding(zoo, monkeypatch):
    picture(zoo / "cat" / "large.png", size=(9, 9))
    loaded = []
    for kind in (PngImagePlugin.PngImageFile, Image.Image):
        monkeypatch.setattr(kind, "load", lambda image: loaded.append(image), raising=False)
    fails(zoo, "2 sizes")
    assert not loaded


def test_rotation_noted_behind_the_pixels_is_not_taken_for_another_shape(tmp_path):
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


def test_a_picture_too_large_to_be_safe_is_broken(zoo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    fails(zoo, "6 of 6", "decompression bomb")


def count_decoded(monkeypatch) -> list[int]:
    seen, real = [], images.to_array
    monkeypatch.setattr(images, "to_array", lambda image, *rest: seen.append(1) or real(image, *rest))
    return seen


def test_images_are_decoded_once(zoo, home, monkeypatch):
    seen = count_decoded(monkeypatch)
    first = load(str(zoo))
    again = load(str(zoo))
    assert len(seen) == 6 and isinstance(again.x, np.memmap)
    assert first.digest() == again.digest() and (home / "pixels").is_dir()
    load(str(zoo), channels=1)
    assert len(seen) == 12


def test_the_cache_notices_a_changed_file(zoo, monkeypatch):
    before, seen = load(str(zoo)), count_decoded(monkeypatch)
    picture(zoo / "cat" / "a.png", 99)
    os.utime(zoo / "cat" / "a.png", (1, 1))
    after = load(str(zoo))
    assert len(seen) == 6 and (after.x[3] != before.x[3]).any()


def test_writing_to_the_pixels_reaches_no_file(zoo):
    data = load(str(zoo))
    before = data.x.copy()
    data.x[:] = 0
    assert (load(str(zoo)).x == before).all()


def test_an_interrupted_decode_is_never_read(zoo, tmp_path, monkeypatch):
    calls, real = [], images.to_array

    def cut(image, *rest):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(image, *rest)

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(images, "to_array", cut)
        with pytest.raises(KeyboardInterrupt):
            load(str(zoo), cache=str(cache))
    assert not list(cache.iterdir())
    assert len(load(str(zoo), cache=str(cache))) == 6


def test_a_cut_or_emptied_cache_is_made_again(zoo, tmp_path):
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
    assert not killed.exists()  # what a killed process left a day ago


def test_a_cache_that_cannot_be_written(zoo, tmp_path):
    (tmp_path / "file").write_text("")
    fails(zoo, "cannot be written", cache=str(tmp_path / "file" / "cache"))


# manifests


def write_csv(path: Path, rows, columns):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([columns, *rows])
    return path


def test_manifest_csv(zoo, tmp_path):
    rows = [
        ("one", "zoo/cat/a.png", "cat", "a cat, sitting", "p1"),
        ("two", str(zoo / "ant/d.bmp"), "", "", "p2"),
    ]
    data = load(str(write_csv(tmp_path / "m.csv", rows, ("key", "path", "label", "caption", "group"))))
    assert data.keys.tolist() == ["one", "two"] and data.classes == ("cat",)
    assert data.y is not None and data.y.tolist() == [0, -1]
    assert (
        data.text == ("a cat, sitting", "") and data.group is not None and data.group.tolist() == ["p1", "p2"]
    )
    assert (data.name, data.official) == ("m.csv", None)


def test_manifest_jsonl_without_keys_or_labels(zoo, tmp_path):
    lines = [
        {"path": "zoo/cat/b.png", "caption": None, "width": 3},
        {"path": "zoo/cat/a.png", "caption": "é"},
    ]
    (tmp_path / "m.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    data = load(str(tmp_path / "m.jsonl"))
    assert data.keys.tolist() == ["zoo/cat/b.png", "zoo/cat/a.png"]  # the table's order, the paths as written
    assert (data.y, data.group, data.text) == (None, None, ("", "é"))


def test_manifest_skips_what_is_missing_only_when_asked(zoo, tmp_path):
    rows = [("a", "zoo/cat/a.png", "x"), ("b", "zoo/none.png", "y"), ("c", "zoo/cat/b.png", "z")]
    table = write_csv(tmp_path / "m.csv", rows, ("key", "path", "label"))
    fails(table, "'b'", "none.png", "no such file")
    data = load(str(table), skip_broken=True)
    assert data.keys.tolist() == ["a", "c"] and data.y is not None and data.y.tolist() == [0, 2]


def test_bad_manifests(zoo, tmp_path):
    def table(text, suffix="csv"):
        path = tmp_path / f"bad.{suffix}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    fails("manifest", "no manifest", root=str(tmp_path / "none.csv"))
    fails(table(""), "lists no images")
    fails(table("key,path\n"), "lists no images")
    fails(table("key,file\na,b.png\n"), "no column 'path'", "file, key")
    fails(table("path,lable\nzoo/cat/a.png,x\n"), "'lable'", "'label'")
    fails(table("key,path\na,zoo/cat/a.png,3\n"), "Row 2")
    fails(table("key,path\na\n"), "Row 2")
    fails(table("key,path\n,zoo/cat/a.png\n"), "Item 1", "no key")
    fails(table("key,path\na,\n"), "Item 1", "no path")
    fails(table("key,path\na,zoo/cat/a.png\na,zoo/cat/b.png\n"), "more than once", "'a'")
    fails(table(b"\xff\xfe\x00"), "cannot be read as a manifest")
    fails(table('key,path\n"a,b\n'), "cannot be read as a manifest")
    fails(table('{"path": "a"}\n{"path": ', "jsonl"), "Line 2")
    fails(table('["a"]', "jsonl"), "Line 1", "list")
    fails(table('{"path": ["a"]}', "jsonl"), "Item 1", "text")


# arrays


def test_npz(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    np.savez(
        tmp_path / "a.npz",
        x=x,
        y=np.arange(5) % 2,
        keys=np.array(list("vwxyz")),
        classes=np.array(["no", "yes"]),
    )
    data = load(str(tmp_path / "a.npz"))
    assert data.keys.tolist() == list("vwxyz") and data.classes == ("no", "yes") and (data.x[:, 0] == x).all()
    np.savez(tmp_path / "b.npz", x=x)
    assert load(str(tmp_path / "b.npz"), limit=3).y is None
    np.savez(tmp_path / "c.npz", images=x, labels=x)
    fails(tmp_path / "c.npz", "'x'", "images, labels")
    np.savez(tmp_path / "d.npz", x=x, keys=np.array([{}] * 5))
    fails(tmp_path / "d.npz", "Python objects")
    (tmp_path / "e.npz").write_bytes(b"PK\x03\x04 broken")
    fails(tmp_path / "e.npz", "cannot be read")
    (tmp_path / "f.npz").write_bytes(b"")
    fails(tmp_path / "f.npz", "cannot be read")
    fails("npz", "no file", root=str(tmp_path / "none.npz"))


def test_emoji():
    table = EMOJI / "manifest.csv"
    if not table.is_file():
        pytest.skip(f"the emoji pictures are not in {EMOJI} (set EFFACE_TEST_EMOJI)")
    data = load(str(table), limit=300)
    assert data.shape == (3, 64, 64) and data.text is not None and data.group is not None
    assert len(set(data.group)) > 20 and partition(data).sizes()["test"] == 30
