"""The same pictures as a folder, as tars and as tables."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "cat", "dog")


@dataclass(frozen=True)
class Picture:
    """One encoded picture."""

    key: str
    label: str
    content: bytes


def jpeg(seed: int, width: int = 24, height: int = 20) -> bytes:
    """A random picture of its own, as a file of a few hundred bytes."""
    shades = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(shades).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def draw(count: int = 12, side: int = 20) -> list[Picture]:
    """Pictures of three classes and of several sizes, sorted by key."""
    made = [
        Picture(f"{CLASSES[one % 3]}/{one:04d}.jpg", CLASSES[one % 3], jpeg(one, side + one % 5, side + one % 3))
        for one in range(count)
    ]
    return sorted(made, key=lambda picture: picture.key)


def write_folder(home: Path, pictures: Iterable[Picture]) -> Path:
    """Write each picture into a file of its own."""
    for one in pictures:
        path = home / one.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(one.content)
    return home


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar of plain files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def members(pictures: Iterable[Picture]) -> list[tuple[str, bytes]]:
    """The members of a WebDataset: each picture, and its class."""
    return [
        member for one in pictures for member in ((one.key, one.content), (one.key[:-4] + ".cls", one.label.encode()))
    ]


def write_tars(home: Path, pictures: Sequence[Picture], shards: int = 3) -> Path:
    """Deal the pictures to tars, so that their order is another one than that of the keys."""
    for number in range(shards):
        write_tar(home / f"shard-{number:06d}.tar", members(pictures[number::shards]))
    return home


def write_tables(home: Path, pictures: Sequence[Picture], shards: int = 2, rows: int = 4) -> Path:
    """Deal the pictures to Parquet files with small row groups, as ``datasets`` writes them."""
    import pyarrow
    from pyarrow import parquet

    home.mkdir(parents=True, exist_ok=True)
    features = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    stated = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    for number in range(shards):
        dealt = pictures[number::shards]
        table = pyarrow.table(
            {
                "key": [one.key for one in dealt],
                "image": [{"bytes": one.content, "path": one.key.rpartition("/")[2]} for one in dealt],
                "label": [CLASSES.index(one.label) for one in dealt],
            }
        )
        table = table.replace_schema_metadata(stated)
        parquet.write_table(table, home / f"part-{number}.parquet", row_group_size=rows, compression="snappy")
    return home


def write_saved(home: Path, pictures: Sequence[Picture]) -> Path:
    """Write a folder as ``datasets`` does with ``save_to_disk``."""
    import pyarrow

    home.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(
        {
            "key": [one.key for one in pictures],
            "image": [{"bytes": one.content, "path": None} for one in pictures],
            "label": [one.label for one in pictures],
        }
    )
    with pyarrow.ipc.new_stream(str(home / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    (home / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (home / "dataset_info.json").write_text("{}")
    return home
