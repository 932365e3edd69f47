"""The verb ``canaries plan``: decide by coin flips which examples are trained on, and write the coins to a folder."""

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
from efface.data.selectors import find_keys, read_keys
from efface.data.sources import load
from efface.errors import EffaceError


@dataclass(frozen=True)
class CanaryPlanSummary:
    """Summary of a plan that was written."""

    folder: str
    coins: int
    """Number of canaries."""
    guesses: int
    """Number of coins that will be guessed."""
    included: int
    """Number of canaries that are trained on."""
    ceiling: float
    """The largest ε that can be shown: by guesses that are all correct, at 95 % confidence."""

    def as_dict(self) -> dict[str, Any]:
        """The summary as a JSON object."""
        return vars(self)

    def lines(self) -> list[str]:
        """The summary as lines to print, with the commands to use next."""
        home = Path(self.folder)
        return [
            f"{self.coins} coins, {self.included} of them included; {self.guesses} will be guessed. "
            f"Perfect guesses would show ε >= {stats.rounded_down(self.ceiling, 2):g}.",
            f"{home / canaries.PUBLIC} may be public. Whoever guesses must not see {canaries.COINS}, "
            f"{canaries.INCLUDED}, {canaries.EXCLUDED}.",
            f"Train:  efface pretrain ... --set split.canaries={home}   "
            f"(elsewhere: leave out {home / canaries.EXCLUDED})",
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
    """Flip a coin for each of some examples of a data source and write the plan.

    Args:
        out: Folder to write.
        settings: A mapping with ``data`` only.
        keys: File of keys to draw from; by default all examples outside the official test split.
        count: Number of canaries; needed without ``keys``.
        guesses: Number of coins to guess later; by default a third.
        seed: Makes the coins repeatable; without it they are secret.

    Raises:
        EffaceError: There are settings besides the data, a key is unknown, or the number of canaries is missing.

    """
    if set(settings) - {"data"} or not settings.get("data"):
        raise EffaceError("A plan of canaries needs the data and no other settings.", remedy="Add --data NAME or PATH.")
    options = dict(settings["data"])
    data = load(str(options.pop("source", options.pop("name", ""))), **options)
    pool = np.arange(len(data)) if data.official is None else np.flatnonzero(data.official != "test")
    names = data.keys[pool].tolist()
    if keys is not None:
        wanted = data.keys[find_keys(data, read_keys(keys, data).ids, keys)[0]].tolist()
        available = set(names)
        absent = [key for key in wanted if key not in available]
        if absent:
            raise EffaceError(
                f"{len(absent)} of the keys in {keys} are in the official test set.", f"Such as {quote_first(absent)}."
            )
        names = wanted
    elif count is None:
        raise EffaceError(
            "It was not said how many canaries to draw.",
            f"{data.name} has {len(names)} examples to draw from; half of the canaries are left out of training.",
            "Add --count 300, or --keys FILE with the examples themselves.",
        )
    coins = canaries.draw_coins(names, count, seed)
    made = canaries.write_canary_plan(out, coins, guesses, data.digest())
    return CanaryPlanSummary(
        str(out), len(made.keys), made.guesses, len(coins.split_keys()[0]), canary_guessing.compute_max_epsilon(made)
    )
