"""The verb ``canaries plan``: data in, a folder of coins out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efface import stats
from efface.canaries import plan
from efface.data import first
from efface.errors import EffaceError
from efface.selectors import read_keys
from efface.sources import load


@dataclass(frozen=True)
class Made:
    """A plan that was written."""

    folder: str
    coins: int
    guesses: int
    included: int
    ceiling: float
    """The ε that perfect guesses would prove at 95 % confidence."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return vars(self)

    def lines(self) -> list[str]:
        """What was written, and what to do with it."""
        home = Path(self.folder)
        return [
            f"{self.coins} coins, {self.included} of them included; {self.guesses} will be guessed. "
            f"Perfect guesses would prove ε >= {stats.rounded_down(self.ceiling, 2):g}.",
            f"Everybody may see {home / plan.PUBLIC}. Whoever guesses must not see {plan.COINS}, {plan.INCLUDED}, "
            f"{plan.EXCLUDED}.",
            f"Train:  efface pretrain ... --set split.canaries={home}   (elsewhere: leave out {home / plan.EXCLUDED})",
            f"Forget: efface unlearn RUN --forget {home / plan.INCLUDED} ...",
            f"Guess:  efface canaries guess RUN --plan {home}",
        ]


def make(
    out: Path,
    settings: Mapping[str, Any],
    *,
    keys: str | None = None,
    count: int | None = None,
    guesses: int | None = None,
    seed: int | None = None,
) -> Made:
    """Draw coins for examples of a data source and write them. ``settings``: data. ``keys``: a file to draw from."""
    if set(settings) - {"data"} or not settings.get("data"):
        raise EffaceError("A plan of canaries needs the data and nothing else.", remedy="Add --data NAME or PATH.")
    options = dict(settings["data"])
    data = load(str(options.pop("source", options.pop("name", ""))), **options)
    pool = np.arange(len(data)) if data.official is None else np.flatnonzero(data.official != "test")
    names = data.keys[pool].tolist()
    if keys is not None:
        wanted, there = read_keys(keys, data), set(names)
        absent = [key for key in wanted if key not in there]
        if absent:
            raise EffaceError(
                f"{len(absent)} of the keys in {keys} are not in {data.name}.", f"Such as {first(absent)}."
            )
        names = wanted
    elif count is None:
        raise EffaceError(
            "Nothing was said about how many canaries there are to be.",
            f"{data.name} has {len(names)} examples to draw from; half of the canaries are left out of training.",
            "Add --count 300, or --keys FILE with the examples themselves.",
        )
    coins = plan.draw(names, count, seed)
    made = plan.write(out, coins, guesses, data.digest())
    return Made(str(out), len(made.keys), made.guesses, len(coins.sides()[0]), plan.highest(made))
