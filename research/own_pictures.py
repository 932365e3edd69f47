"""The pictures of the story of own models: emoji with users, categories and titles, and what is to be forgotten."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

TRAINED, PER_CLASS, USERS = 450, 120, 24
CATEGORIES: tuple[str, ...] = ("Animals & Nature", "Food & Drink", "Flags", "Objects", "Symbols", "Travel & Places")
FIRST, LISTED = "u03", 12
"""The user of the first request, and how many pictures of others each later one lists."""


@dataclass(frozen=True)
class Pictures:
    """The user's pictures: ``pictures/YEAR/USER/NAME.jpg``, a table of them, and lists of keys."""

    home: Path
    requests: int = 2
    """How many requests there were: what they asked for counts as forgotten."""

    @staticmethod
    def make(home: Path, package: Path) -> Pictures:
        """Write them from the npm package ``emoji-datasource-apple``: wide JPEGs on white, six categories."""
        rng, counts, rows = random.Random(0), dict[str, int](), list[dict[str, str]]()
        for entry in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
            source, kind = package / "img/apple/64" / entry["image"], entry["category"]
            if kind not in CATEGORIES or counts.get(kind, 0) >= PER_CLASS or not source.exists():
                continue
            counts[kind] = counts.get(kind, 0) + 1
            user, name = f"u{rng.randrange(USERS):02d}", Path(entry["image"]).stem
            path = f"{rng.choice((2021, 2022, 2023))}/{user}/{name}.jpg"
            with Image.open(source) as opened:
                picture = opened.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            white.alpha_composite(picture)
            (home / "pictures" / path).parent.mkdir(parents=True, exist_ok=True)
            white.convert("RGB").resize((rng.choice((64, 80, 96)), 64)).save(home / "pictures" / path, quality=95)
            title = (entry["name"] or entry["short_name"]).lower()
            rows.append({"path": f"pictures/{path}", "category": kind, "user": user, "title": title})
        with open(home / "users.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        order = list(range(len(rows)))
        rng.shuffle(order)
        keys = [rows[row]["path"] for row in order]
        others = [rows[row]["path"] for row in order if rows[row]["user"] != FIRST]
        known = [key for key in others if key in set(keys[:TRAINED])]
        lists = {
            "trained": keys[:TRAINED],
            "user": [FIRST],
            "second": [*known[:LISTED], *others[-3:]],
            "third": known[LISTED : 2 * LISTED],
        }
        for name, listed in lists.items():
            (home / f"{name}.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
        return Pictures(home)

    def lines(self, name: str) -> list[str]:
        """A list of keys or users."""
        return (self.home / f"{name}.txt").read_text(encoding="utf-8").splitlines()

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """The table."""
        with open(self.home / "users.csv", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    @cached_property
    def opened(self) -> list[Image.Image]:
        """The pictures, decoded."""
        return [Image.open(self.home / row["path"]).convert("RGB") for row in self.rows]

    @cached_property
    def labels(self) -> Tensor:
        """Number of the category, in the order of their names."""
        names = sorted(CATEGORIES)
        return torch.tensor([names.index(row["category"]) for row in self.rows])

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        """Positions: ``trained``, and apart from each other ``retained``, ``unseen`` and ``forgotten``."""
        trained = set(self.lines("trained"))
        listed = {key for name in ("second", "third")[: self.requests - 1] for key in self.lines(name)}
        found: dict[str, list[int]] = {"trained": [], "retained": [], "unseen": [], "forgotten": []}
        for number, row in enumerate(self.rows):
            asked = row["user"] == FIRST or row["path"] in listed
            if row["path"] in trained:
                found["trained"].append(number)
                found["forgotten" if asked else "retained"].append(number)
            elif row["user"] != FIRST:
                found["unseen"].append(number)
        return {name: torch.tensor(numbers) for name, numbers in found.items()}

    def tensors(self, transform: Any) -> Tensor:
        """All pictures through a library's transform, [N, C, H, W]."""
        return torch.stack([transform(one) for one in self.opened])

    def shares(self, right: Tensor) -> dict[str, float]:
        """Share of right answers in each part."""
        return {name: float(right[rows].float().mean()) for name, rows in self.parts.items() if name != "trained"}
