"""Public data sets by name; keys of those with an official test set look like ``train/00012``."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.array_files import free_memory
from efface.data.dataset import Data, limit_examples
from efface.data.image_files import cache_home
from efface.errors import EffaceError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load_handwritten_digits(
    mirrored: bool = False, turned: bool = False, limit: int | None = None, limit_seed: int = 0
) -> Data:
    """Load 1 797 handwritten digits, 8 x 8 gray, 10 classes; part of scikit-learn, no official test set.

    Args:
        mirrored: Add the mirror image of each: 3 594 in all. Its key is that of the digit with ``-mirrored`` behind.
        turned: Add each of these upside down, twice as many again. Its key has ``-turned`` behind.
        limit: Keep a random subset of this size, stratified by class.
        limit_seed: Seed of the subset.

    """
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    x = (np.asarray(found["data"]).reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    copies = {"": x}
    if mirrored:
        copies |= {f"{end}-mirrored": images[..., ::-1] for end, images in copies.items()}
    if turned:
        copies |= {f"{end}-turned": images[..., ::-1, ::-1] for end, images in copies.items()}
    added = " and ".join(word for word, wanted in (("mirrored", mirrored), ("turned", turned)) if wanted)
    name = f"digits, {added} too" if added else "digits"
    plain = Data.from_arrays(x, found["target"], name=name)
    keys = [f"{key}{end}" for end in copies for key in plain.keys]
    every = Data.from_arrays(np.concatenate([*copies.values()]), np.tile(found["target"], len(copies)), keys, name=name)
    return limit_examples(every, limit, limit_seed)


def load_fashion_mnist(
    root: str | None = None, limit: int | None = None, limit_seed: int = 0, download: bool = False
) -> Data:
    """Load 70 000 pictures of clothes, 28 x 28 gray, 10 classes, of which 10 000 are the official test set.

    Args:
        root: Folder with the IDX files (gzipped or not), or a torchvision root; by default Debian's folder (package
            dataset-fashion-mnist), then the download folder.
        limit: Keep a random subset of this many official training images, stratified by class, and all test images.
        limit_seed: Seed of the subset.
        download: Download the data into root.

    """
    folder = _fashion_folder(root)
    if folder is None and download:
        target = Path(root) if root else get_download_root()
        _torchvision("FashionMNIST", target, True)
        folder = _fashion_folder(str(target))
    if folder is None:
        places = [root] if root else [str(DEBIAN), str(get_download_root())]
        raise EffaceError(
            f"Fashion-MNIST is not in {' or '.join(places)}.",
            "Its four files are named train-images-idx3-ubyte.gz and so on.",
            "Run `apt install dataset-fashion-mnist` (Debian, Ubuntu), or use --set data.root=FOLDER of a "
            "torchvision copy, or --set data.download=true.",
        )
    parts = {"train": "train", "test": "t10k"}
    return _combine_parts(
        "fashion-mnist",
        {part: _read_idx(folder, f"{stem}-images-idx3-ubyte", 3)[:, None] for part, stem in parts.items()},
        {part: _read_idx(folder, f"{stem}-labels-idx1-ubyte", 1) for part, stem in parts.items()},
        FASHION,
        limit,
        limit_seed,
    )


def load_cifar10(
    root: str | None = None, limit: int | None = None, limit_seed: int = 0, download: bool = False
) -> Data:
    """Load 60 000 color pictures, 32 x 32, 10 classes, of which 10 000 are the official test set.

    Args:
        root: A torchvision root (the folder that contains cifar-10-batches-py).
        limit: Keep a random subset of this many official training images, stratified by class, and all test images.
        limit_seed: Seed of the subset.
        download: Download the data into root.

    """
    return _cifar("CIFAR10", "cifar10", root, limit, limit_seed, download)


def load_cifar100(
    root: str | None = None, limit: int | None = None, limit_seed: int = 0, download: bool = False
) -> Data:
    """Load 60 000 color pictures, 32 x 32, 100 classes, of which 10 000 are the official test set.

    Args:
        root: A torchvision root (the folder that contains cifar-100-python).
        limit: Keep a random subset of this many official training images, stratified by class, and all test images.
        limit_seed: Seed of the subset.
        download: Download the data into root.

    """
    return _cifar("CIFAR100", "cifar100", root, limit, limit_seed, download)


def load_svhn(root: str | None = None, limit: int | None = None, limit_seed: int = 0, download: bool = False) -> Data:
    """Load 99 289 house numbers in color, 32 x 32, 10 classes, of which 26 032 are the official test set.

    Args:
        root: A torchvision root (the folder that contains train_32x32.mat and test_32x32.mat).
        limit: Keep a random subset of this many official training images, stratified by class, and all test images.
        limit_seed: Seed of the subset.
        download: Download the data into root.

    """
    folder = Path(root) if root else get_download_root()
    sets = {part: _torchvision("SVHN", folder, download, split=part) for part in ("train", "test")}
    x = {part: np.asarray(dataset.data) for part, dataset in sets.items()}
    y = {part: np.asarray(dataset.labels) for part, dataset in sets.items()}
    return _combine_parts("svhn", x, y, tuple("0123456789"), limit, limit_seed)


def _combine_parts(
    name: str,
    x: dict[str, np.ndarray],
    y: dict[str, np.ndarray],
    classes: tuple[str, ...],
    limit: int | None,
    limit_seed: int,
) -> Data:
    """Combine the arrays of the training and test parts into one data set with keys such as ``train/00012``."""
    keys = [f"{part}/{row:05d}" for part, images in x.items() for row in range(len(images))]
    parts = [part for part, images in x.items() for _ in range(len(images))]
    data = Data.from_arrays(
        np.concatenate(list(x.values())),
        np.concatenate(list(y.values())),
        keys,
        classes=classes,
        official=parts,
        name=name,
    )
    return limit_examples(data, limit, limit_seed)


def get_download_root() -> Path:
    """Return the torchvision root that is used by default."""
    return cache_home() / "downloads"


def _fashion_folder(root: str | None) -> Path | None:
    """Find the folder that contains the four files."""
    roots = [Path(root).expanduser()] if root else [DEBIAN, get_download_root()]
    folders = [folder for top in roots for folder in (top, top / "FashionMNIST" / "raw")]
    stem = "train-images-idx3-ubyte"
    return next((f for f in folders if (f / stem).is_file() or (f / f"{stem}.gz").is_file()), None)


def _read_idx(folder: Path, stem: str, dimensions: int) -> np.ndarray:
    """Read a file of bytes in IDX format, gzipped or not."""
    start = 4 + 4 * dimensions
    packed, plain = folder / f"{stem}.gz", folder / stem
    path = packed if packed.is_file() else plain
    try:
        with gzip.open(path) if path == packed else path.open("rb") as file:
            head = file.read(start)
            shape = tuple(int(size) for size in np.frombuffer(head[4:start], ">u4"))
            size = math.prod(shape) if len(head) == start else 0
            body = file.read(min(size, free_memory()) + 1)  # one more byte shows a file that is too long
    except FileNotFoundError:
        raise EffaceError(
            f"{plain} (or .gz) is missing.", "The data set has four files.", "Download it again."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise EffaceError(f"{path} is damaged.", str(error), "Download it again.") from error
    if head[:4] != bytes((0, 0, 8, dimensions)) or len(body) != size or not size:
        raise EffaceError(
            f"{path} is damaged.",
            f"It is not an IDX file of bytes with {dimensions} dimensions, or not as long as it says.",
            "Download it again.",
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def _cifar(kind: str, name: str, root: str | None, limit: int | None, limit_seed: int, download: bool) -> Data:
    folder = Path(root) if root else get_download_root()
    sets = {part: _torchvision(kind, folder, download, train=part == "train") for part in ("train", "test")}
    x = {part: np.asarray(dataset.data).transpose(0, 3, 1, 2) for part, dataset in sets.items()}
    y = {part: np.asarray(dataset.targets) for part, dataset in sets.items()}
    return _combine_parts(name, x, y, tuple(sets["train"].classes), limit, limit_seed)


def _torchvision(kind: str, root: Path, download: bool, **options: Any) -> Any:
    """Load a data set with torchvision, which checks its files against their known digests."""
    from torchvision import datasets

    root = root.expanduser()
    try:
        return getattr(datasets, kind)(str(root), download=download, **options)
    except RuntimeError as error:
        raise EffaceError(
            f"{kind} is not in {root}, or its files there are damaged.",
            str(error).split(". ")[0].rstrip(".") + ".",
            "Use --set data.root=FOLDER of a torchvision copy, or --set data.download=true.",
        ) from error
    except OSError as error:
        raise EffaceError(
            f"{kind} could not be downloaded into {root}.", str(error), "Try again, or copy the files there."
        ) from error
