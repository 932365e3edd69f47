"""The folder and the data of a plan of references: what is trained on must be there, and be the run's own pictures."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from efface.data.dataset import quote_first
from efface.data.identity import IDENTITY, DataIdentity
from efface.data.split import SPLIT_PARTS, Split, read_split
from efface.errors import EffaceError
from efface.files import SPLIT
from efface.runs.data_at_hand import (
    OTHER_PICTURES,
    DataAtHand,
    DataSettings,
    describe_decoders,
    load_recorded,
    locate_data,
    read_identity,
)
from efface.training.checkpoint import read_meta


def require_plan_folder(home: Path, named: Collection[str]) -> None:
    """Raise an error if a folder without a plan holds anything but the start of one that was cut.

    Args:
        home: The folder.
        named: Names of the files that a plan has besides the split of its run and the record of the pictures.

    """
    ours = (*named, SPLIT, IDENTITY)
    items = sorted(home.iterdir()) if home.exists() else []
    others = [item.name for item in items if item.name not in ours and item.suffix != ".tmp"]
    others = [name for name in others if not (name.startswith(".") and name.endswith(".lock"))]
    if others:
        raise EffaceError(
            f"{home} holds no plan of references, and is not empty.",
            f"Such as {others[0]}. The split of the run would be written beside it.",
            "Choose another --out.",
        )


def copy_identity(run: Path, folder: Path) -> None:
    """Copy what a run was made with into another folder; nothing if it was not recorded."""
    identity = read_identity(run, read_meta(run))
    if identity is not None:
        identity.save(folder)


def open_planned_data(home: Path, settings: DataSettings, digest: str, needs: Collection[str]) -> DataAtHand:
    """Load the data of a plan of references, and check that what the references are trained on is there and the same.

    Args:
        home: The folder of the plan, with its split and what the run was made with.
        settings: The settings of the data.
        digest: Digest of the plan's split.
        needs: The parts that are trained on; of others, examples may be absent.

    Raises:
        EffaceError: Examples of these parts are absent, or are other pictures.

    """
    identity = DataIdentity.load(home) if (home / IDENTITY).exists() else None
    keys = [key for part in read_split(home)["parts"].values() for key in part]
    data = load_recorded(locate_data({"data": settings}), identity, keys)
    split = Split.load(home, data, may_lack=[part for part in SPLIT_PARTS if part not in needs])
    if split.digest(data) != digest:
        raise EffaceError(
            f"The split in {home} is not the one of its plan.",
            "The data differ from those of the plan, or the file was changed.",
            "Load the same data, or plan again.",
        )
    difference = None if identity is None else identity.compare(data)
    trained = np.concatenate([getattr(split, part) for part in needs])
    changed = [] if difference is None else data.keys[trained[difference.changed[trained]]].tolist()
    if changed:
        raise EffaceError(
            f"{len(changed)} of {len(trained)} training examples are not the pictures that the run was made with: "
            f"{quote_first(changed)}.",
            f"{OTHER_PICTURES}{describe_decoders(identity)}: references trained on them would not be comparable.",
            "Restore the pictures.",
        )
    return DataAtHand(data, split, identity, difference)
