"""Arrays that claim too much, of which the layout is unclear, or whose pixels are on another scale."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efface.auditing.embeddings.arrays import read_embeddings
from efface.data import array_files, public_datasets
from efface.data.array_files import free_memory, read_npy, read_npz
from efface.data.dataset import Data
from efface.data.sources import load
from tests.pictures import fails, picture, raises


def header(shape: str, descr="|u1", *, version=1, length: int | None = None) -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes((version, 0)) + size.to_bytes(2 if version == 1 else 4, "little") + text


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


HOSTILE = {
    "claims 900000000000 bytes": header("(900_000_000_000, 1, 1)".replace("_", "")),
    "are stored": header("(4, 1, 1)") + b"123",
    "the shape": header("(-4, 1, 1)") + b"1234",
    "a type that is unknown": header("(4,)", "<q99z"),
    "Python objects": header("(1,)", "|O") + b"12345678",
    "have no bytes": header("(1000000000000000000,)", "<U0"),
    "claims 4294967295 bytes": header("(4,)", version=2, length=2**32 - 1),
    "is damaged": header("(4,"),
    "is not an array": b"not an array at all",
}


@pytest.mark.parametrize("words", HOSTILE)
def test_headers_are_checked_before_memory_is_taken(tmp_path, words, monkeypatch):
    monkeypatch.setattr(np.lib.format, "read_array", lambda *a, **k: pytest.fail("the array was read"))
    zipped(tmp_path / "a.npz", x=HOSTILE[words])
    fails(tmp_path / "a.npz", "cannot be read as plain arrays", words)
    (tmp_path / "a.npy").write_bytes(HOSTILE[words])
    with pytest.raises(ValueError, match=words):
        read_npy(tmp_path / "a.npy")


UNKNOWN_TYPES = (",", ",u1", "(1,u1", "2)u1", "i4,(", "9" * 5000 + "u1", "(9999999999999999999,)u1", "é", "")


@pytest.mark.parametrize("descr", UNKNOWN_TYPES, ids=lambda value: value[:12])
def test_types_that_numpy_cannot_make_are_damage(tmp_path, descr):
    """NumPy reads some of them as Python, and raises what Python raises."""
    zipped(tmp_path / "a.npz", x=header("(4,)", descr) + b"1234")
    fails(tmp_path / "a.npz", "cannot be read as plain arrays")


NO_CHARACTER = (0x110000, 0x7FFFFFFF, 0xFFFFFFFF)


@pytest.mark.parametrize("code", NO_CHARACTER, ids=hex)
@pytest.mark.parametrize("order", ["<", ">"])
def test_texts_with_numbers_that_are_no_characters_are_damage(tmp_path, code, order):
    """NumPy keeps any 32 bits, and fails when it makes a text of them."""
    codes = np.array([97, code, 98], f"{order}u4")
    labels, fields = codes.view(f"{order}U1"), codes.view([("name", f"{order}U1")])
    pixels = np.zeros((3, 2, 2), np.uint8)
    np.savez(tmp_path / "a.npz", x=pixels, y=labels)
    fails(tmp_path / "a.npz", "a character that does not exist")
    for number, array in enumerate((labels, fields, np.array([labels, labels]).T)):
        np.save(tmp_path / f"{number}.npy", array)
        for mapped in (False, True):
            with pytest.raises(ValueError, match="does not exist"):
                read_npy(tmp_path / f"{number}.npy", mapped=mapped)
    np.save(tmp_path / "last.npy", np.array([97, 0x10FFFF, 0], f"{order}u4").view(f"{order}U1"))
    assert read_npy(tmp_path / "last.npy").tolist() == ["a", "\U0010ffff", ""]


def test_an_array_larger_than_the_memory_is_refused(tmp_path, monkeypatch):
    zipped(tmp_path / "bomb.npz", x=header("(4000, 1000, 1)") + bytes(4_000_000))
    assert (tmp_path / "bomb.npz").stat().st_size < 20_000
    monkeypatch.setattr(array_files, "free_memory", lambda: 2**21)
    fails(tmp_path / "bomb.npz", "GB of memory", "are free")
    with pytest.raises(Exception, match="GB of memory"):
        read_embeddings(zipped(tmp_path / "e.npz", forget=header("(4000, 1000)") + bytes(4_000_000)))
    both = zipped(tmp_path / "both.npz", x=header("(1000, 1000)") + bytes(10**6), y=header("(1000000,)") + bytes(10**6))
    with pytest.raises(ValueError, match="GB of memory"):
        read_npz(both)  # together
    assert len(read_npz(both, ["y"])[0]["y"]) == 10**6
    assert free_memory() > 2**20


def test_what_numpy_writes_is_read(tmp_path):
    arrays = {
        "u": np.arange(6, dtype=np.uint16).reshape(2, 3).T,
        "s": np.array(["é", "bb"]),
        "b": np.array([b"x"]),
        "f": np.float64(3),
        "e": np.zeros((0, 3)),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found, names = read_npz(tmp_path / "a.npz")
        assert names == list(arrays)
        assert all((found[name] == value).all() and found[name].dtype == value.dtype for name, value in arrays.items())
    np.save(tmp_path / "a.npy", arrays["u"])
    assert (read_npy(tmp_path / "a.npy") == arrays["u"]).all()


def test_a_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    import gzip

    root = tmp_path / "raw"
    root.mkdir()
    monkeypatch.setattr(public_datasets, "DEBIAN", tmp_path / "none")
    head = bytes((0, 0, 8, 3)) + np.array([1, 28, 28], ">u4").tobytes()
    (root / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + bytes(50_000_000)))
    fails("fashion-mnist", "train-images", "damaged", "not as long as it says", root=str(root))


def test_labels_that_would_make_a_billion_classes():
    x = np.zeros((4, 1, 2, 2), np.uint8)
    raises(lambda: Data.from_arrays(x, [0, 1, 2, 10**9]), "1000000001 classes", "y.astype(str)")
    raises(lambda: Data.from_arrays(x, np.array([0, 1, 2, 2**64 - 1], np.uint64)), "18446744073709551616 classes")
    named = Data.from_arrays(x, ["7", "1" * 5000, "10", "7"])
    assert named.classes == ("7", "10", "1" * 5000)  # as numbers, however long
    assert len(Data.from_arrays(x, [0, 1, 2, 999]).classes) == 1000
    raises(lambda: Data.from_arrays(x, [0, 1, 0, 1], classes=["a", "a"]), "same name")


def test_four_channels_are_not_trained_on_as_colors():
    four = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 5), dtype=np.uint8)
    raises(lambda: Data.from_arrays(four), "4 channels", "transpose(0, 2, 3, 1)", "data.channels=4")
    assert (Data.from_arrays(four, channels=4).x == four).all()
    assert Data.from_arrays(four.transpose(0, 2, 3, 1)).shape == (3, 6, 5)  # RGBA, put on white
    assert (Data.from_arrays(four.transpose(0, 2, 3, 1), channels=4).x == four).all()


def test_an_unclear_axis_is_asked_for(tmp_path):
    two = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 2), dtype=np.uint8)
    raises(lambda: Data.from_arrays(two), "6 or 2 channels", "data.channels=2")
    assert (Data.from_arrays(two, channels=2).x == two.transpose(0, 3, 1, 2)).all()
    raises(lambda: Data.from_arrays(two, channels=7), "not 7 channels")
    np.savez(tmp_path / "a.npz", x=two)
    fails(tmp_path / "a.npz", "data.channels=2")
    assert load(str(tmp_path / "a.npz"), channels=2).shape == (2, 6, 5)


def test_arrays_on_another_scale():
    raises(lambda: Data.from_arrays(np.full((2, 3, 3), 4000)), "4095")
    raises(lambda: Data.from_arrays(np.ones((2, 3, 3), bool)), "bool", "255")
    assert "brighter than 16" in Data.from_arrays(np.full((2, 3, 3), 16, np.uint8)).notes[0]
    assert Data.from_arrays(np.full((2, 3, 3), 200, np.uint8)).notes == ()


def deep(folder: Path, peak: int, suffix="png") -> Path:
    """Three pictures with 16 bits; only one of them reaches the peak."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        values = rng.integers(0, peak // 4, (6, 8)).astype(np.uint16)
        values[0, 0] = peak if number == 1 else 0
        Image.fromarray(values).save(folder / f"{number}.{suffix}")
    return folder


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize(("peak", "white"), [(255, 255), (1000, 1023), (4095, 4095), (16_000, 16383), (32_767, 32767)])
def test_the_depth_of_the_whole_set_is_asked_for(tmp_path, peak, white, suffix):
    folder = deep(tmp_path / "p", peak, suffix)
    fails(folder, "3 pictures have 16 bits", f"above {peak}", f"data.white={white}", "data.white=65535")
    bright = load(str(folder), white=white)
    assert bright.x[1, 0, 0, 0] == round(peak * 255 / white) and len(np.unique(bright.x)) > 17
    dark = load(str(folder), white=65535)
    assert dark.x.max() == (peak + 128) // 257
    fails(folder, f"up to {peak}", f"data.white={peak // 2}", white=peak // 2)
    fails(folder, "'white' cannot be", white=0)


def test_full_range_pictures_are_scaled_as_before_and_8_bits_beside_them_are_left_alone(tmp_path):
    folder = deep(tmp_path / "p", 65535)
    picture(folder / "z.png", mode="L")
    data = load(str(folder))
    with Image.open(folder / "1.png") as image:
        assert (data.x[1, 0] == (np.asarray(image).astype(int) + 128) // 257).all()
    with Image.open(folder / "z.png") as image:
        assert (data.x[3, 0] == np.asarray(image)).all()


def color_png(path: Path, values: np.ndarray) -> None:
    """Write a color PNG with 16 bits, which Pillow cannot write."""
    import struct
    import zlib

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def test_color_pictures_with_16_bits_are_judged_too(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (6, 8, 3))
    (tmp_path / "p").mkdir()
    color_png(tmp_path / "p" / "a.png", values)
    fails(tmp_path / "p", "16 bits", "upper 8", "data.white=65535")
    fails(tmp_path / "p", "cannot be used", "in color", white=4095)
    assert load(str(tmp_path / "p"), white=65535).x.max() <= 16
    color_png(tmp_path / "p" / "a.png", values * 16)
    assert (load(str(tmp_path / "p")).x[0] == (values * 16 >> 8).transpose(2, 0, 1)).all()
