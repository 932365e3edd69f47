"""Pictures that are decoded when they are needed: the same pixels, weights and digests as from one array."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading

import numpy as np
import pytest
import torch

from efface.data import decoded_pixels, image_files, lazy_pixels
from efface.data.duplicates import hash_pixels
from efface.data.identity import DataIdentity
from efface.data.lazy_pixels import LazyPixels
from efface.data.pixel_caches import find_caches
from efface.data.sources import load
from efface.training.augment import Views
from efface.training.batch import Subset
from tests import shards
from tests.pictures import fails, raises


@pytest.fixture
def home(tmp_path):
    return shards.write_folder(tmp_path / "pictures", shards.draw(20, side=80))


@pytest.fixture
def pair(home):
    """The same pictures in one array, and decoded when they are needed."""
    return load(home, size=72, decode="memory"), load(home, size=72, decode="lazy")


def test_rows_are_taken_as_from_an_array(pair):
    array, lazy = (data.x for data in pair)
    assert isinstance(lazy, LazyPixels)
    assert (lazy.shape, lazy.dtype, lazy.ndim, len(lazy)) == (array.shape, array.dtype, array.ndim, len(array))
    for rows in (3, -1, np.int64(2), [3, 1, 3], np.array([19, 0]), slice(2, 5), slice(None), slice(None, None, -7),
                 np.arange(20) % 3 == 0, [], [-1, -20]):  # fmt: skip
        assert (lazy[rows] == array[rows]).all(), rows
        assert lazy[rows].shape == array[rows].shape
    for rows in (20, -21, [20], [[1]], [0.5], (0, 1, 2, 3)):
        with pytest.raises(IndexError):
            lazy[rows] if not isinstance(rows, tuple) else lazy[np.zeros((2, 2))]
    with pytest.raises(TypeError, match="take some rows"):
        np.asarray(lazy)


def test_the_data_are_the_same(pair):
    array, lazy = pair
    assert lazy.digest() == array.digest()
    assert lazy.take([4, 2]).digest() == array.take([4, 2]).digest()
    assert isinstance(lazy.take([4, 2]).x, LazyPixels)
    assert [hash_pixels(lazy, row) for row in range(20)] == [hash_pixels(array, row) for row in range(20)]
    assert DataIdentity.of(lazy, "x").digest() == DataIdentity.of(array, "x").digest()
    assert not DataIdentity.of(array).compare(lazy).changed.any()


@pytest.mark.parametrize(
    "rules",
    [
        {"preprocessing": {"resize": 70, "crop": [66, 68], "resampling": "bicubic"}},
        {"preprocessing": {"resize": [70, 90], "mode": "exact"}, "channels": 1},
        {"preprocessing": {"resize": 70, "crop": [66, 68], "library": "torchvision"}},
    ],
)
def test_the_users_own_preparation(home, rules):
    assert (load(home, decode="lazy", **rules).x[:] == load(home, decode="memory", **rules).x).all()


def test_captions_are_part_of_the_digests(tmp_path, home):
    names = sorted(path.relative_to(tmp_path).as_posix() for path in home.rglob("*.jpg"))
    table = tmp_path / "table.csv"
    for round_ in range(2):  # other captions of the same files
        table.write_text("path,caption\n" + "".join(f"{name},{round_} {name}\n" for name in names))
        array, lazy = (load(table, size=72, decode=way) for way in ("memory", "lazy"))
        assert DataIdentity.of(lazy).digest() == DataIdentity.of(array).digest()


def test_batches_and_views_are_the_same(pair):
    served = []
    for data in pair:
        subset = Subset.of(data, [5, 1, 7, 8, 12, 3], Views(), "retain", torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        served.append([(b.ids, b.clean, b.view(0), b.view(1)) for b in subset.batches(4, generator)])
    for one, other in zip(*served, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_next_batch_is_decoded_while_this_one_is_used(pair, monkeypatch):
    lazy = pair[1]
    subset = Subset.of(lazy, range(8), Views(), "retain", torch.device("cpu"))
    batches = subset.batches(4, torch.Generator().manual_seed(0))
    next(batches)
    for future in list(lazy.x._awaited.values()):
        future.result()
    monkeypatch.setattr(lazy.x.decoder, "decode", lambda item: pytest.fail("it was decoded before"))
    next(batches)
    assert not lazy.x._awaited


def test_only_what_does_not_fit_is_decoded_lazily(home, monkeypatch):
    free = 20 * 3 * 72 * 72 * 4
    monkeypatch.setattr(decoded_pixels, "free_memory", lambda: free)
    assert isinstance(load(home, size=72).x, np.memmap)  # a quarter of it, to the byte
    monkeypatch.setattr(decoded_pixels, "free_memory", lambda: free - 4)
    small, named = load(home, size=64), load(home, size=73, cache=str(home.parent / "named"))
    assert isinstance(small.x, np.memmap)
    assert isinstance(named.x, np.memmap)
    assert isinstance(load(home, size=72).x, np.memmap)  # it was decoded before
    data = load(home, size=73)
    assert isinstance(data.x, LazyPixels)
    assert "decoded each time when they are needed" in " ".join(data.notes)
    assert "data.decode=memory" in " ".join(data.notes)
    fails(home, "cannot be 'lasy'", "Did you mean 'lazy'", decode="lasy")


def test_nothing_decoded_is_kept(home, own_cache):
    data = load(home, size=72, decode="lazy")
    size = sum(path.stat().st_size for path in own_cache.rglob("*") if path.is_file())
    assert size < 20 * 32 + 1000  # digests
    assert find_caches(data, data.keys.tolist()) == {}
    load(home, size=72, decode="memory")
    assert sum(find_caches(data, data.keys.tolist()[:3]).values()) == 3  # of another run


def test_pictures_are_checked_once(home, monkeypatch):
    load(home, size=72, decode="lazy")
    monkeypatch.setattr(image_files, "to_array", lambda *_: pytest.fail("it was decoded again"))
    data = load(home, size=72, decode="lazy")
    DataIdentity.of(data)


def test_a_broken_picture_is_found_when_the_data_are_loaded(home):
    path = next(home.rglob("*.jpg"))
    path.write_bytes(path.read_bytes()[:-300])
    fails(home, "1 of 20 images cannot be read", path.name, size=72, decode="lazy")
    assert len(load(home, size=72, decode="lazy", skip_broken=True)) == 19


def test_a_picture_that_changes_meanwhile_is_noticed(home):
    data = load(home, size=72, decode="lazy")
    first, second = (home / key for key in data.keys[:2])
    first.write_bytes(second.read_bytes())
    second.unlink()
    raises(lambda: data.x[[3, 0]], "changed while it was in use", data.keys[0])
    raises(lambda: data.x[1], "cannot be read any more", data.keys[1], "no such file")
    assert data.x[[3, 4]].shape == (2, 3, 72, 72)


def test_more_than_8_bits_are_judged_as_in_an_array(tmp_path):
    from PIL import Image

    for number in range(2):
        x = np.full((70, 70), 1000 + number, np.uint16)
        (tmp_path / "deep").mkdir(exist_ok=True)
        Image.fromarray(x).save(tmp_path / "deep" / f"{number}.png")
    fails(tmp_path / "deep", "16 bits", "data.white", decode="lazy")
    one, other = (load(tmp_path / "deep", decode=way, white=4095) for way in ("memory", "lazy"))
    assert (other.x[:] == one.x).all()


def test_it_goes_to_other_processes_and_threads(pair):
    array, lazy = pair
    for made in (pickle.loads(pickle.dumps(lazy)), copy.deepcopy(lazy)):
        assert (made.x[[1, 2]] == array.x[[1, 2]]).all()
    lazy.x[[0]]  # its threads run, and a forked process has none of them
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert (pool.apply(_take, (lazy, [4, 2])) == array.x[[4, 2]]).all()
    wrong = []

    def take(seed):
        rows = np.random.default_rng(seed).integers(0, 20, 12)
        lazy.x.expect(rows[::-1])
        if not (lazy.x[rows] == array.x[rows]).all():
            wrong.append(seed)

    threads = [threading.Thread(target=take, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _take(data, rows):
    return data.x[rows]


def test_pillows_own_limit_holds_again_afterwards(pair):
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    pair[1].x[:]
    assert limit is not None
    assert limit == Image.MAX_IMAGE_PIXELS
    assert lazy_pixels.MOST_THREADS >= 1
