"""Public data sets: read from small files in their own formats; never downloaded unless requested."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from efface.data import public_datasets
from efface.data.sources import load
from tests.pictures import fails


@pytest.fixture(scope="module")
def fashion():
    if not public_datasets.DEBIAN.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    return load("fashion-mnist")


def test_fashion_mnist(fashion):
    data = fashion
    assert data.shape == (1, 28, 28) and data.classes[9] == "Ankle boot"
    assert data.keys[[0, 59_999, 60_000, 69_999]].tolist() == [
        "train/00000",
        "train/59999",
        "test/00000",
        "test/09999",
    ]
    assert (np.bincount(data.y) == 7000).all() and (data.official == "test").sum() == 10_000
    assert data.y[:3].tolist() == [9, 0, 0]


def test_fashion_mnist_limit(fashion):
    small = load("fashion-mnist", limit=500)
    assert (len(small), (small.official == "test").sum()) == (10_500, 10_000)
    assert small.y is not None
    assert (np.bincount(small.y[small.official == "train"]) == 50).all()
    assert (small.x[:500] == fashion.x[fashion.positions(small.keys[:500])]).all()
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


@pytest.mark.parametrize(("inside", "packed"), [("FashionMNIST/raw", False), ("FashionMNIST/raw", True), ("", True)])
def test_fashion_mnist_from_a_torchvision_root(tmp_path, inside, packed):
    write_fashion(tmp_path / "root" / inside, packed)
    data = load("fashion-mnist", root=str(tmp_path / "root"))
    assert data.y is not None
    assert len(data) == 10 and data.keys[6] == "test/00000" and data.y[:6].tolist() == list(range(6))


def test_fashion_mnist_absent_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(public_datasets, "DEBIAN", tmp_path / "none")
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


def test_download_only_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(public_datasets, "DEBIAN", tmp_path / "none")
    calls = []

    def fetch(kind, root, download, **options):
        calls.append((kind, root, download))
        write_fashion(root / "FashionMNIST" / "raw")

    monkeypatch.setattr(public_datasets, "_torchvision", fetch)
    fails("fashion-mnist", "not in")
    assert not calls
    assert len(load("fashion-mnist", download=True)) == 10
    assert calls == [("FashionMNIST", public_datasets.get_download_root(), True)]


def digest(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def write_cifar(root: Path, monkeypatch, coarse=False):
    """Write small files in torchvision's layout, and replace the digests that torchvision checks by theirs."""
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
    assert data.y is not None and data.y.tolist() == [0, 1, 2, 9] * 2  # the files label the digit 0 as 10
    assert (data.x[6] == x[..., 2].transpose(2, 0, 1)).all() and data.keys[4] == "test/00000"


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_torchvision_sets_that_are_absent_or_damaged(name, tmp_path, own_cache):
    fails(name, tmp_path, "data.root", "data.download=true", root=str(tmp_path))
    fails(name, own_cache / "downloads")
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"damaged")
    (tmp_path / "train_32x32.mat").write_bytes(b"damaged")
    fails(name, "damaged", root=str(tmp_path))
