"""One person's few pictures: an emoji as three vendors draw it, forgotten and judged by a bank of whole identities.

    npm pack emoji-datasource-apple emoji-datasource-google emoji-datasource-facebook, unpacked side by side in FOLDER
    python -m research.people make FOLDER [--requests 40] [--only finetune]     research/results/people.json

Trained on are all pictures of 500 identities, 1 500; never-trained pictures are of other identities. The pictures are
PNGs with transparency of 64 pixels, read at 32, and a vendor's picture of an emoji is often nearly another's. The bank
has eight models, each trained without half of the identities for 30 % of the epochs. A request is one identity, and is
rehearsed by 40 or more other ones.

Resumable, as ``research.request_sizes``.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from benchmarks.machine import add_row
from research.paths import RESULTS, RUNS
from research.request_sizes import BANK, COMMON, METHODS, measure, prepare

HOME, RESULT = RUNS / "people", RESULTS / "people.json"
VENDORS = ("apple", "google", "facebook")
TRAINED = 500
VIEWS = {"crop": [0.6, 1.0], "flip": False, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.02}
RECIPE: dict[str, Any] = {
    "objective": {"name": "simclr", "temperature": 0.1, "dim": 64},
    "backbone": {"name": "resnet8", "width": 16, "stride": 2},
    "epochs": 120,
    "batch_size": 100,
    "views": VIEWS,
}
app = typer.Typer(add_completion=False)


@app.callback()
def main() -> None:
    """Forget one person's few pictures."""


@app.command()
def make(
    packages: Annotated[Path, typer.Argument(help="Folder of the three packages.")],
    only: Annotated[str, typer.Option(help="Methods, with commas; by default all.")] = "",
    requests: Annotated[int, typer.Option(help="Identities that are rehearsed.")] = 40,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Measure the rows that are missing."""
    torch.set_num_threads(1)
    names = write_pictures(packages, HOME / "pictures")
    data = {"source": "manifest", "root": str(HOME / "pictures" / "manifest.csv"), "size": 32}
    split = {"trained": str(HOME / "pictures" / "trained.txt"), "valid": 400, "holdout": 2000}
    prepare(HOME, {"data": data, "split": split, "recipe": RECIPE, "seed": 0, **COMMON}, BANK | {"unit": "group"}, jobs)
    for method in only.split(",") if only else METHODS:
        request = {"forget": f"@group:{names[0]}", "method": METHODS[method], "seed": int(method == "retrain")}
        about = {"method": method, "asked": requests}
        add_row(RESULT, about, partial(measure, HOME, method, request, requests, jobs))


def write_pictures(packages: Path, home: Path) -> list[str]:
    """Copy the pictures that all vendors have and write their table; returns the identities, the trained ones first."""
    found = dict[str, dict[str, Path]]()
    kinds = dict[str, str]()
    for vendor in VENDORS:
        package = packages / f"emoji-datasource-{vendor}"
        for entry in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
            picture = package / "img" / vendor / "64" / entry["image"]
            if picture.exists() and entry["category"] != "Component":
                found.setdefault(entry["short_name"], {})[vendor] = picture
                kinds[entry["short_name"]] = entry["category"]
    names = sorted(name for name, pictures in found.items() if len(pictures) == len(VENDORS))
    random.Random(0).shuffle(names)
    if (home / "manifest.csv").exists():
        return names
    rows = list[dict[str, str]]()
    for name in names:
        for vendor, picture in found[name].items():
            path = f"{vendor}/{picture.name}"
            (home / vendor).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, home / path)
            rows.append({"path": path, "label": kinds[name], "group": name})
    trained = set(names[:TRAINED])
    keys = [row["path"] for row in rows if row["group"] in trained]
    (home / "trained.txt").write_text("\n".join(keys) + "\n", encoding="utf-8")
    with open(home / "manifest.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return names


if __name__ == "__main__":
    app()
