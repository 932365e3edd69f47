"""The verb ``canaries plan``: data in, a folder of coins out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efface import stats
from efface.auditing.attacks import canary_guessing
from efface.data import canaries
from efface.data.dataset import quote_first
from efface.data.selectors import read_keys
from efface.data.sources import load
from efface.errors import EffaceError


@dataclass(frozen=True)
class CanaryPlanSummary:
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
            f"Everybody may see {home / canaries.PUBLIC}. Whoever guesses must not see {canaries.COINS}, {canaries.INCLUDED}, "
            f"{canaries.EXCLUDED}.",
            f"Train:  efface pretrain ... --set split.canaries={home}   (elsewhere: leave out {home / canaries.EXCLUDED})",
            f"Forget: efface unlearn RUN --forget {home / canaries.INCLUDED} ...",
            f"Guess:  efface canaries guess RUN --plan {home}",
        ]


def plan_canaries(
    out: Path,
    settings: Mapping[str, Any],
    *,
    keys: str | None = None,
    count: int | None = None,
    guesses: int | None = None,
    seed: int | None = None,
) -> CanaryPlanSummary:
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
                f"{len(absent)} of the keys in {keys} are not in {data.name}.", f"Such as {quote_first(absent)}."
            )
        names = wanted
    elif count is None:
        raise EffaceError(
            "Nothing was said about how many canaries there are to be.",
            f"{data.name} has {len(names)} examples to draw from; half of the canaries are left out of training.",
            "Add --count 300, or --keys FILE with the examples themselves.",
        )
    coins = canaries.draw_coins(names, count, seed)
    made = canaries.write_canary_plan(out, coins, guesses, data.digest())
    return CanaryPlanSummary(
        str(out), len(made.keys), made.guesses, len(coins.split_keys()[0]), canary_guessing.compute_max_epsilon(made)
    )
