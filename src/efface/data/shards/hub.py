"""Download the Parquet files of a data set of the Hugging Face Hub: ``hf://datasets/OWNER/NAME[@REVISION][/FOLDER]``."""

from __future__ import annotations

import re
from pathlib import Path

from efface.errors import EffaceError, optional_imports

_HUB = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./~-]+?))?(?:/((?!.*\.\.)[\w./-]+))?/?")
CONVERTED = "refs/convert/parquet"
"""The branch on which the Hub keeps every data set as Parquet."""
PREFIX = "hf://"


def is_hub_path(root: str) -> bool:
    """Whether a path names a data set of the Hub."""
    return root.startswith(PREFIX)


def download_dataset(root: str) -> Path:
    """Download a data set, or find what was downloaded before, and return the folder with its Parquet files.

    Args:
        root: Such as ``hf://datasets/ylecun/mnist``; by default the branch on which the Hub keeps it as Parquet.

    Raises:
        EffaceError: The name is not understood, huggingface_hub is not installed, or the Hub cannot be reached.

    """
    match = _HUB.fullmatch(root)
    if match is None:
        raise EffaceError(
            f"'{root}' is not the name of a data set.", remedy="Write hf://datasets/OWNER/NAME, or name a folder."
        )
    name, revision, folder = match.groups()
    with optional_imports("data sets of the Hub", "data"):
        from huggingface_hub import snapshot_download
    patterns = ["*.parquet"] if folder is None else [f"{folder}/*.parquet", f"{folder}/**/*.parquet"]
    try:
        found = Path(
            snapshot_download(name, repo_type="dataset", revision=revision or CONVERTED, allow_patterns=patterns)
        )
    except Exception as error:  # every kind of network and of this library raises its own
        raise EffaceError(
            f"{root} cannot be downloaded.",
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no answer'}",
            "Check the name and the connection, or download its Parquet files elsewhere and name their folder.",
        ) from error
    here = found if folder is None else found / folder
    if not here.is_dir() or not any(here.rglob("*.parquet")):
        raise EffaceError(f"{root} has no Parquet files.", remedy="Name another revision or folder of it.")
    return here
