"""List the pictures below a folder with their classes, and count what is not read. NumPy only."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efface.data.image_files import ImageFile, image_suffixes
from efface.data.names import quote_first
from efface.errors import EffaceError

TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
"""Sub-folders next to ``train`` that are read as the official test set, in any case."""
SYSTEM_FOLDERS = frozenset(
    ("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__macosx", "$recycle.bin",
     "system volume information", "lost+found")
)  # fmt: skip
"""Folders in which a NAS or an operating system keeps thumbnails, deleted files and metadata, in lower case."""
SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
PERIOD = re.compile(r"(19|20)\d\d([-_. ]?\d\d){0,2}|\d{3}[A-Z_]{5}")
"""A year, a month, a day, or a folder of a camera (100APPLE)."""
KINDS_SHOWN, FOLDERS_SHOWN = 6, 3


@dataclass
class FolderListing:
    """The pictures below a folder, and what else is there."""

    images: list[ImageFile] = field(default_factory=list)
    unread: list[dict[str, Any]] = field(default_factory=list)
    """Files that are not read: ``folder``, ``kind`` (a suffix or a reason) and ``count``."""
    notes: list[str] = field(default_factory=list)
    """What was not read, and how the sub-folders were understood."""


def list_images(top: Path) -> FolderListing:
    """List the images below ``top``, sorted by key, with the class and official part given by their folders.

    Hidden files and folders, and those in which systems keep thumbnails, are not read. Links are followed, and each
    folder is read once.

    Raises:
        EffaceError: There are no images, or their folders are neither classes nor official parts.

    """
    names, unread = walk_files(top)
    suffixes = image_suffixes()
    images = [name.split("/") for name in names if Path(name).suffix.lower() in suffixes]
    for name in names:
        if Path(name).suffix.lower() not in suffixes and Path(name).name.lower() not in SYSTEM_FILES:
            unread[_folder_of(name), Path(name).suffix.lower() or "files without a suffix"] += 1
    listing = FolderListing(unread=list_unread(unread), notes=describe_unread(unread, top.name or str(top)))
    if not images:
        kinds = sorted({kind for _, kind in unread})
        raise EffaceError(
            f"There are no images in {top}.",
            f"It contains {sum(unread.values())} other files: {quote_first(kinds)}." if unread else "It is empty.",
            f"Image files end in {', '.join(sorted(suffixes))}.{_describe_heic(unread)}",
        )
    loose = [parts[0] for parts in images if len(parts) == 1]
    if loose and len(loose) < len(images):
        raise EffaceError(
            f"{top} has {len(loose)} images besides its sub-folders: {quote_first(loose)}.",
            "Either all images are in the folders of their classes, or none is.",
            "Move them, or write a manifest.",
        )
    heads = {parts[0] for parts in images}
    train = [head for head in heads if head.lower() in TRAIN_FOLDERS]
    tested = sorted(head for head in heads if head.lower() in TEST_FOLDERS)
    if train and tested:
        listing.images = [_official_image(top, parts, heads, [*train, *tested]) for parts in images]
        if len(tested) > 1:
            listing.notes.append(f"The folders {' and '.join(tested)} are both read as the official test set.")
        return listing
    listing.images = [ImageFile("/".join(p), top.joinpath(*p), label=p[0] if len(p) > 1 else "") for p in images]
    listing.notes += _describe_classes(heads, images)
    return listing


def describe_unread(unread: Mapping[tuple[str, str], int], name: str) -> list[str]:
    """Describe the files that were not read in one sentence, by kind and by folder."""
    if not unread:
        return []
    kinds: Counter[str] = Counter()
    for (_, kind), count in unread.items():
        kinds[kind] += count
    shown: list[str] = []
    for kind, count in kinds.most_common(KINDS_SHOWN):
        places = Counter({folder: n for (folder, one), n in unread.items() if one == kind})
        where = ", ".join(f"{folder or '.'} {n}" for folder, n in places.most_common(FOLDERS_SHOWN))
        more = ", ..." if len(places) > FOLDERS_SHOWN else ""
        shown.append(f"{count} {kind} (in {where}{more})")
    total = sum(kinds.values())
    files = "1 file" if total == 1 else f"{total} files"
    return [
        f"{files} in {name} {'was' if total == 1 else 'were'} not read: {'; '.join(shown)}"
        f"{'; ...' if len(kinds) > KINDS_SHOWN else ''}.{_describe_heic(unread)}"
    ]


def _describe_heic(unread: Mapping[tuple[str, str], int]) -> str:
    found = {kind for _, kind in unread} & {".heic", ".heif", ".hif"}
    return f" To read {', '.join(sorted(found))}: pip install pillow-heif." if found else ""


def list_unread(unread: Mapping[tuple[str, str], int]) -> list[dict[str, Any]]:
    """List the files that were not read, as in :attr:`efface.data.dataset.Data.unread`."""
    return [{"folder": folder, "kind": kind, "count": count} for (folder, kind), count in sorted(unread.items())]


def _describe_classes(heads: set[str], images: Sequence[list[str]]) -> list[str]:
    """Say that sub-folders became classes, where these are likely something else."""
    if max(len(parts) for parts in images) == 1:
        return []
    remedy = "If they are not classes: --set data.labels=false, or write a manifest."
    if all(PERIOD.fullmatch(head) for head in heads):
        return [f"The sub-folders {quote_first(sorted(heads))} are read as classes, and they look like dates. {remedy}"]
    if len(heads) == 1 and max(len(parts) for parts in images) > 2:
        (only,) = heads
        return [
            f"All images have the class '{only}', the only sub-folder. If its sub-folders are the classes, load "
            f"{only} itself."
        ]
    return []


def _official_image(top: Path, parts: list[str], heads: set[str], official: Sequence[str]) -> ImageFile:
    """Describe an image below train/ or test/; ``parts`` is its path, ``heads`` are all sub-folders of ``top``."""
    if heads - set(official) or sum(head.lower() in TRAIN_FOLDERS for head in heads) > 1:
        raise EffaceError(
            f"{top} has the sub-folders {', '.join(sorted(heads))}.",
            "Folders train and test (or val) are official parts, and no other folder may be next to them.",
            "Load one of the sub-folders, or write a manifest.",
        )
    part = "train" if parts[0].lower() in TRAIN_FOLDERS else "test"
    label = parts[1] if len(parts) > 2 else ""
    return ImageFile("/".join(parts), top.joinpath(*parts), label=label, official=part)


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def walk_files(top: Path) -> tuple[list[str], Counter[tuple[str, str]]]:
    """Return the paths of all files below ``top``, sorted, and count the files that are left out with their folder."""
    seen: set[str] = set()
    names: list[str] = []
    unread: Counter[tuple[str, str]] = Counter()
    for here, folders, files in os.walk(top, followlinks=True):
        real, place = os.path.realpath(here), Path(here).relative_to(top).as_posix().removeprefix(".")
        if real in seen:
            folders.clear()
            if files:
                unread[place, "files in a folder that is linked twice"] += len(files)
            continue
        seen.add(real)
        for folder in folders:
            if folder.lower() in SYSTEM_FOLDERS:
                count = sum(len(inside) for _, _, inside in os.walk(Path(here, folder)))
                unread[place, f"files in {folder}"] += max(1, count)
            elif folder.startswith("."):
                unread[place, f"hidden folder {folder}"] += 1
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name.lower() not in SYSTEM_FOLDERS)
        hidden = [name for name in files if name.startswith(".") and Path(name).suffix.lower() in image_suffixes()]
        if hidden:
            unread[place, "hidden files"] += len(hidden)
        names += [Path(here, name).relative_to(top).as_posix() for name in files if not name.startswith(".")]
    return sorted(names), unread
