"""Sources: names and paths to Data. The literal dict ``SOURCES`` is all there is to register."""

from __future__ import annotations

import gzip
import inspect
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from efface.data import Data, first, shuffled
from efface.errors import EffaceError, nearest

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
TABLES = (".csv", ".jsonl")


def load(source: str | os.PathLike[str], **options: Any) -> Data:
    """Data from a source's name or from a path: an image folder, a ``.csv`` or ``.jsonl`` manifest, an ``.npz``.

    ``options``: those of the source; ``efface data NAME`` lists them. A name wins over a file of that name.

    >>> load("fashion-mnist")
    >>> load("pictures/", size=32)
    """
    name = str(source)
    if name not in SOURCES:
        name, options = _from_path(name), {"root": str(source), **options}
    function = SOURCES[name]
    known = inspect.signature(function).parameters
    for option in options:
        if option not in known:
            raise EffaceError(
                f"The data source '{name}' has no option '{option}'.{nearest(option, known)}",
                f"Its options: {', '.join(known)}.",
            )
    missing = [
        key for key, one in known.items() if one.default is inspect.Parameter.empty and key not in options
    ]
    if missing:
        raise EffaceError(
            f"The data source '{name}' needs '{missing[0]}'.", remedy=f"Add --set data.{missing[0]}=PATH."
        )
    return function(**options)


def digits(limit: int | None = None, limit_seed: int = 0) -> Data:
    """1 797 handwritten digits, 8 x 8 gray, 10 classes; comes with scikit-learn, no official test part.

    limit: keep a random subset of so many, stratified by class. limit_seed: seed of that subset.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    x = (np.asarray(found["data"]).reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    return limited(Data.from_arrays(x, found["target"], name="digits"), limit, limit_seed)


def fashion_mnist(
    root: str | None = None, limit: int | None = None, limit_seed: int = 0, download: bool = False
) -> Data:
    """70 000 pictures of clothes, 28 x 28 gray, 10 classes, of which 10 000 are the official test part.

    root: folder with the IDX files (gzipped or not), or a torchvision root; by default Debian's folder (package
    dataset-fashion-mnist), then the download folder. limit: keep a random subset of so many official training
    images, stratified by class, beside all test images. limit_seed: its seed. download: fetch into root.
    """
    folder = _fashion_folder(root)
    if folder is None and download:
        where = Path(root) if root else downloads()
        _torchvision("FashionMNIST", where, True)
        folder = _fashion_folder(str(where))
    if folder is None:
        places = [root] if root else [str(DEBIAN), str(downloads())]
        raise EffaceError(
            f"Fashion-MNIST is not in {' or '.join(places)}.",
            "Its four files are named train-images-idx3-ubyte.gz and so on.",
            "Either `apt install dataset-fashion-mnist` (Debian, Ubuntu), or give --set data.root=FOLDER of a "
            "torchvision copy, or --set data.download=true.",
        )
    parts = {"train": "train", "test": "t10k"}
    return official(
        "fashion-mnist",
        {part: _idx(folder, f"{stem}-images-idx3-ubyte", 3)[:, None] for part, stem in parts.items()},
        {part: _idx(folder, f"{stem}-labels-idx1-ubyte", 1) for part, stem in parts.items()},
        FASHION,
        limit,
        limit_seed,
    )


def cifar10(
    root: str | None = None, limit: int | None = None, limit_seed: int = 0, download: bool = False
) -> Data:
    """60 000 color pictures, 32 x 32, 10 classes, of which 10 000 are the official test part.

    root: a torchvision root (the folder that holds cifar-10-batches-py). limit: keep a random subset of so many
    official training images, stratified by class, beside all test images. limit_seed: its seed. download: fetch
    into root.
    """
    return _cifar("CIFAR10", "cifar10", root, limit, limit_seed, download)


def cifar100(
    root: str | None = None, limit: int | None = None, limit_seed: int = 0, download: bool = False
) -> Data:
    """60 000 color pictures, 32 x 32, 100 classes, of which 10 000 are the official test part.

    root: a torchvision root (the folder that holds cifar-100-python). limit: keep a random subset of so many
    official training images, stratified by class, beside all test images. limit_seed: its seed. download: fetch
    into root.
    """
    return _cifar("CIFAR100", "cifar100", root, limit, limit_seed, download)


def svhn(
    root: str | None = None, limit: int | None = None, limit_seed: int = 0, download: bool = False
) -> Data:
    """99 289 house numbers in color, 32 x 32, 10 classes, of which 26 032 are the official test part.

    root: a torchvision root (the folder that holds train_32x32.mat and test_32x32.mat). limit: keep a random
    subset of so many official training images, stratified by class, beside all test images. limit_seed: its
    seed. download: fetch into root.
    """
    where = Path(root) if root else downloads()
    found = {part: _torchvision("SVHN", where, download, split=part) for part in ("train", "test")}
    x = {part: np.asarray(one.data) for part, one in found.items()}
    y = {part: np.asarray(one.labels) for part, one in found.items()}
    return official("svhn", x, y, tuple("0123456789"), limit, limit_seed)


def npz(root: str, limit: int | None = None, limit_seed: int = 0) -> Data:
    """Arrays in an .npz file: x, and where there are any y, keys, classes, group, text, official.

    root: the file. x: integers 0..255 of shape [N, H, W], [N, C, H, W] or [N, H, W, C]. y: integers or names.
    limit: keep a random subset of so many (official training) images, stratified by class. limit_seed: its seed.
    """
    known = ("x", "y", "keys", "classes", "group", "text", "official")
    try:
        with np.load(root, allow_pickle=False) as file:
            arrays = {name: file[name] for name in known if name in file.files}
            there = list(file.files)
    except FileNotFoundError:
        raise EffaceError(f"There is no file {root}.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise EffaceError(
            f"{root} cannot be read as an .npz of plain arrays.",
            f"It is damaged, or holds Python objects, which are not loaded: {error}",
            "Write it with numpy.savez(path, x=..., y=..., keys=...).",
        ) from error
    if "x" not in arrays:
        raise EffaceError(
            f"{root} holds no images.",
            f"They are looked for under the name 'x'; it holds: {', '.join(there) or 'nothing'}.",
            "Write it with numpy.savez(path, x=..., y=..., keys=...).",
        )
    return limited(Data.from_arrays(**arrays, name=Path(root).name), limit, limit_seed)


def limited(data: Data, limit: int | None, seed: int) -> Data:
    """The data with only ``limit`` of its official training examples (of all, where there is no official part).

    They are a random subset, stratified by class where there are labels; official test examples are kept. The
    draw depends on the keys and ``seed`` only, and a smaller limit is a subset of a larger one.
    """
    if limit is None:
        return data
    pool = np.arange(len(data)) if data.official is None else np.flatnonzero(data.official == "train")
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 < limit <= len(pool):
        raise EffaceError(
            f"A limit of {limit} does not fit {data.name}.", f"Whole numbers from 1 to {len(pool)} do."
        )
    strata = None if data.y is None else data.y[pool]
    kept = pool[shuffled(data.keys[pool], strata, seed, "limit")[:limit]]
    rest = np.setdiff1d(np.arange(len(data)), pool)
    return data.take(np.sort(np.concatenate([kept, rest])))


def official(
    name: str,
    x: dict[str, np.ndarray],
    y: dict[str, np.ndarray],
    classes: tuple[str, ...],
    limit: int | None,
    limit_seed: int,
) -> Data:
    """Data of a set with official parts: arrays by part to keys such as ``train/00012``."""
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
    return limited(data, limit, limit_seed)


def cache_home() -> Path:
    """Where efface keeps what it can make again: ``$XDG_CACHE_HOME/efface``, else ``~/.cache/efface``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "efface"


def downloads() -> Path:
    """The torchvision root used where none is named."""
    return cache_home() / "downloads"


def _from_path(name: str) -> str:
    """Which source reads the path ``name``."""
    path = Path(name).expanduser()
    if path.is_dir():
        return "folder"
    if path.is_file() and path.suffix.lower() in TABLES:
        return "manifest"
    if path.is_file() and path.suffix.lower() == ".npz":
        return "npz"
    known = ", ".join(sorted(SOURCES))
    if path.is_file():
        raise EffaceError(
            f"{name} is not a kind of file that can be read as data.",
            f"Files are {', '.join(TABLES)} (manifests) and .npz (arrays); folders hold images.",
            f"Name such a file, a folder, or a data source: {known}.",
        )
    raise EffaceError(
        f"There is no data source called '{name}', and no file or folder either.{nearest(name, SOURCES)}",
        f"Known sources: {known}.",
        "A path works too: an image folder, a .csv or .jsonl manifest, an .npz of arrays.",
    )


def _fashion_folder(root: str | None) -> Path | None:
    """The folder that holds the four files."""
    roots = [Path(root).expanduser()] if root else [DEBIAN, downloads()]
    inside = [place for one in roots for place in (one, one / "FashionMNIST" / "raw")]
    stem = "train-images-idx3-ubyte"
    return next(
        (place for place in inside if (place / stem).is_file() or (place / f"{stem}.gz").is_file()), None
    )


def _idx(folder: Path, stem: str, dimensions: int) -> np.ndarray:
    """A file of bytes in IDX form, gzipped or not."""
    packed, plain = folder / f"{stem}.gz", folder / stem
    path = packed if packed.is_file() else plain
    try:
        content = gzip.decompress(path.read_bytes()) if path == packed else path.read_bytes()
    except FileNotFoundError:
        raise EffaceError(
            f"{plain} (or .gz) is missing.", "The set has four files.", "Fetch it again."
        ) from None
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise EffaceError(f"{path} is damaged.", str(error), "Fetch it again.") from error
    start = 4 + 4 * dimensions
    shape = tuple(int(one) for one in np.frombuffer(content[4:start], ">u4"))
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) != start + int(np.prod(shape)):
        raise EffaceError(
            f"{path} is damaged.",
            f"Its {len(content)} bytes are not an IDX file of bytes with {dimensions} dimensions.",
            "Fetch it again.",
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _cifar(
    kind: str, name: str, root: str | None, limit: int | None, limit_seed: int, download: bool
) -> Data:
    where = Path(root) if root else downloads()
    found = {part: _torchvision(kind, where, download, train=part == "train") for part in ("train", "test")}
    x = {part: np.asarray(one.data).transpose(0, 3, 1, 2) for part, one in found.items()}
    y = {part: np.asarray(one.targets) for part, one in found.items()}
    return official(name, x, y, tuple(found["train"].classes), limit, limit_seed)


def _torchvision(kind: str, root: Path, download: bool, **options: Any) -> Any:
    """One of torchvision's data sets; torchvision checks its files against their known digests."""
    from torchvision import datasets

    root = root.expanduser()
    try:
        return getattr(datasets, kind)(str(root), download=download, **options)
    except RuntimeError as error:
        raise EffaceError(
            f"{kind} is not in {root}, or its files there are damaged.",
            str(error).split(". ")[0].rstrip(".") + ".",
            "Give --set data.root=FOLDER of a torchvision copy, or --set data.download=true.",
        ) from error
    except OSError as error:
        raise EffaceError(
            f"{kind} could not be fetched into {root}.", str(error), "Try again, or copy it."
        ) from error


SOURCES: dict[str, Callable[..., Data]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "npz": npz,
    "svhn": svhn,
}

__all__ = ["SOURCES", "first", "limited", "load", "official"]
