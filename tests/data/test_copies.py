"""Copies of the examples to forget: all of them are found, and different images are not."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from efface.data import duplicates, public_datasets
from efface.data.dataset import Data
from efface.data.duplicates import FINE, NEAR, ROWS_AT_ONCE, THUMBNAIL_SIDE, edges, find_copies
from efface.data.sources import load
from efface.data.split import Split, find_duplicates, partition, select_forget_set
from tests.pictures import raises
from tests.reference import copies as reference


def natural(n, side, seed=0) -> np.ndarray:
    """Create smooth random images with little color that differ from each other, [n, 3, side, side]."""
    rng = np.random.default_rng(seed)
    small = rng.integers(40, 216, (n, 1, 12, 12)) + rng.integers(-12, 13, (n, 3, 12, 12))
    grown = [
        [Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC) for plane in image]
        for image in small.astype(np.uint8)
    ]
    return np.array([[np.asarray(plane) for plane in image] for image in grown])


def as_jpeg(image: np.ndarray, quality=75) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(io.BytesIO(file.getvalue()))).transpose(2, 0, 1)


def planted(change, part="retain", n=60, side=48):
    """Create data whose example 50 is a changed copy of example 0, and a split with the copy in ``part``."""
    x = natural(n, side)
    x[50] = change(x[0])
    data = Data.from_arrays(x, np.arange(n) % 2, [f"k{i:02d}" for i in range(n)])
    parts: dict[str, Any] = {
        "retain": np.arange(20),
        "valid": np.arange(20, 30),
        "holdout": np.arange(30, 40),
        "test": np.arange(40, 50),
    }
    parts[part] = np.sort(np.append(parts[part], 50))
    return data, Split(**parts)


def test_an_exact_copy_that_stays_in_training_is_refused_where_keys_were_listed():
    data, split = planted(lambda image: image)
    raises(
        lambda: select_forget_set(split, data, "@keys:k00,k03"), "1 examples", "'k50'", "identical", "allow_duplicates"
    )
    after = select_forget_set(split, data, "@keys:k00,k03", allow_duplicates=True)
    assert any("1 example in retain is an exact copy" in one for one in after.provenance["warnings"])
    assert after.provenance["copies"] == [{"of": "k00", "key": "k50", "part": "retain", "exact": True, "likeness": 1.0}]
    both = select_forget_set(split, data, "@keys:k00,k50")
    assert both.provenance["copies"] == []
    drawn = select_forget_set(split, data, "@class:1")  # without k00 and k50, which are of class 0
    assert drawn.provenance["copies"] == []


@pytest.mark.parametrize("part", ["valid", "holdout", "test"])
def test_copies_among_never_trained_examples_are_a_warning(part):
    data, split = planted(lambda image: image, part)
    after = select_forget_set(split, data, "@keys:k00")
    (warning,) = (one for one in after.provenance["warnings"] if "copy" in one)
    assert part in warning and "exact" in warning and "k50" not in warning  # warnings contain no keys
    assert [(one.of, one.key, one.part) for one in find_duplicates(data, after)] == [("k00", "k50", part)]


@pytest.mark.parametrize(
    "change",
    [
        as_jpeg,
        lambda image: (image * 0.7).astype(np.uint8),
        lambda image: np.asarray(
            ImageEnhance.Contrast(Image.fromarray(image.transpose(1, 2, 0))).enhance(1.2)
        ).transpose(2, 0, 1),
        lambda image: np.repeat(image.mean(0, keepdims=True), 3, 0).astype(np.uint8),
        lambda image: np.clip(image + np.random.default_rng(1).normal(0, 4, image.shape), 0, 255).astype(np.uint8),
    ],
    ids=["jpeg", "darker", "contrast", "gray", "noise"],
)
def test_near_copies_are_found(change):
    data, split = planted(change)
    found = find_duplicates(data, select_forget_set(split, data, "@keys:k00,k03"))
    assert [(one.of, one.key, one.part, one.exact) for one in found] == [("k00", "k50", "retain", False)]
    assert NEAR < found[0].likeness <= 1.0001


def test_different_images_and_images_of_one_color_are_not_copies():
    data, split = planted(lambda image: natural(1, 48, seed=9)[0])
    assert find_duplicates(data, select_forget_set(split, data, "@random:10")) == []
    for size in ((8, 8), (37, 41)):
        flat = np.full((30, 3, *size), 7, np.uint8) + 5 * np.arange(30, dtype=np.uint8)[:, None, None, None]
        data = Data.from_arrays(flat)
        assert find_duplicates(data, select_forget_set(partition(data), data, "@random:5")) == []


def test_every_copy_is_listed_once_with_the_example_that_it_resembles_most():
    x = natural(40, 32)
    x[20], x[21] = as_jpeg(x[0]), x[0]
    x[1] = as_jpeg(x[0], 30)  # also to forget, and less similar to the copy
    data = Data.from_arrays(x)
    found = find_copies(data, np.array([1, 0]), {"a": np.arange(10, 30), "b": np.arange(30, 40)})
    assert [(one.of, one.key, one.exact) for one in found] == [
        ("00000", "00021", True),
        ("00000", "00020", False),
    ]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 20), (1, 5, 7), (3, 50, 37)])
@pytest.mark.parametrize("side", [8, 16])
def test_edges_against_the_reference_implementation(shape, side):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, *shape), dtype=np.uint8)
    b = (0.5 * a + 0.5 * b).astype(np.uint8)
    fast = (edges(a[None], side) @ edges(b[None], side).T).item()
    assert fast == pytest.approx(reference.likeness(a.tolist(), b.tolist(), side), abs=1e-5)


def test_one_pixel_has_no_edges():
    data = Data.from_arrays(np.arange(30, dtype=np.uint8).reshape(30, 1, 1, 1))
    assert find_duplicates(data, select_forget_set(partition(data), data, "@random:5")) == []


def test_digits_give_few_false_copies():
    data = load("digits")
    assert len(find_duplicates(data, select_forget_set(partition(data), data, "@random:0.3"))) <= 2
    assert len(np.unique(data.x.reshape(len(data), -1), axis=0)) == len(data)  # there are no exact copies


@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_copies_are_the_same_in_blocks_of_any_size(monkeypatch, at_once):
    x = natural(90, 32)
    for copy, of in ((50, 3), (51, 3), (60, 4), (70, 5)):
        x[copy] = as_jpeg(x[of], 60 + copy % 7)
    x[6], x[7] = as_jpeg(x[3], 40), as_jpeg(x[4], 95)  # also to forget, in other blocks
    data = Data.from_arrays(x)
    places = {"retain": np.arange(40, 65), "test": np.arange(65, 90)}
    found = find_copies(data, np.arange(30), places)
    assert len(found) == 4 and {one.of for one in found} <= set(data.keys[3:8])
    monkeypatch.setattr(duplicates, "ROWS_AT_ONCE", at_once)
    blocks = find_copies(data, np.arange(30), places)
    assert [(one.of, one.key, one.part) for one in blocks] == [(one.of, one.key, one.part) for one in found]
    assert np.allclose([one.likeness for one in blocks], [one.likeness for one in found], atol=1e-6)


@pytest.mark.skipif(
    not public_datasets.DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_gives_few_false_copies_and_few_fine_comparisons(monkeypatch):
    data = load("fashion-mnist")
    split = partition(data, train=500, valid=500, holdout=1000, test=2000)
    assert split.sizes() == {
        "forget": 0,
        "retain": 500,
        "valid": 500,
        "holdout": 1000,
        "spare": 0,
        "test": 2000,
    }
    split = partition(data)
    x = data.x.copy()
    x[split.retain[7]] = x[split.retain[3]]
    data = dataclasses.replace(data, x=x)
    images, largest = Counter[int](), 0

    def counted(x: np.ndarray, side: int) -> np.ndarray:
        nonlocal largest
        images[side] += len(x)
        largest = max(largest, len(x))
        return edges(x, side)

    forget = select_forget_set(split, data, "@random:1000").forget
    rest = {"retain": np.setdiff1d(split.retain, forget), "test": split.test}
    monkeypatch.setattr(duplicates, "edges", counted)
    near = [copy for copy in find_copies(data, forget, rest) if not copy.exact]
    assert len(near) <= 30  # about 10 similar images; raw pixels above 0.98 would give hundreds
    assert images[THUMBNAIL_SIDE] == len(forget) + sum(len(part) for part in rest.values())
    assert images[FINE] < images[THUMBNAIL_SIDE] / 10  # only the candidates
    assert largest <= ROWS_AT_ONCE  # the matrix of all pairs is never in memory
    exact = find_copies(data, split.retain[[3]], {"retain": split.retain[4:]})
    assert [one.key for one in exact if one.exact] == [data.keys[split.retain[7]]]
