"""A plan of canaries: which examples, how many guesses, and the coins, drawn before anything is trained.

``canaries.json`` may be seen by everybody: the keys of all canaries, how many coins will be guessed, and a commitment
(SHA-256) to the coins. ``coins.json``, ``included.txt`` and ``excluded.txt`` are for whoever trains, and are not to be
seen by whoever guesses. Included canaries are trained on and are later part of the forget set; excluded ones are never
trained on: in a split they are part of the holdout.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efface.data.dataset import quote_first
from efface.errors import EffaceError
from efface.files import disk_errors, read_json, write_text

PUBLIC, COINS, INCLUDED, EXCLUDED = "canaries.json", "coins.json", "included.txt", "excluded.txt"


PLANNED = "Make it with `efface canaries plan`, before training."


RESTORE = "Restore it: a plan that is drawn after training proves nothing."


CANARY_PLAN_FORMAT = 1


MIN_COINS = 10
"""Coins below which no bound is worth the trouble: ten perfect guesses give ε = 1.05."""


@dataclass(frozen=True, eq=False)
class CanaryPlan:
    """Canaries without their coins: what a guesser may know."""

    keys: tuple[str, ...]
    """Every canary, sorted by key."""
    guesses: int
    """How many coins are guessed: half of them as included, half as excluded; fixed before looking."""
    commitment: str
    """SHA-256 of ``coins.json``."""
    data: str = ""
    """Digest of the data that the keys are of."""


@dataclass(frozen=True, eq=False)
class InclusionCoins:
    """The secret: which canaries were included."""

    included: dict[str, bool]

    def split_keys(self) -> tuple[list[str], list[str]]:
        """Keys of the included and of the excluded."""
        return [k for k, one in self.included.items() if one], [k for k, one in self.included.items() if not one]


def draw_coins(keys: Sequence[str], count: int | None = None, seed: int | None = None) -> InclusionCoins:
    """A fair coin for each of ``count`` random ``keys`` (of all, by default).

    ``seed``: for repetition alone. Without one the coins come from the operating system, and nobody can guess them.
    """
    names = sorted(set(keys))
    if len(names) < len(keys):
        raise EffaceError(f"{len(keys) - len(names)} canaries are named more than once.")
    count = len(names) if count is None else count
    if not MIN_COINS <= count <= len(names):
        raise EffaceError(
            f"{count} canaries cannot be drawn from {len(names)} examples.",
            f"There must be at least {MIN_COINS}: with so few coins even perfect guesses prove little.",
            "Ask for some hundreds: --count 300.",
        )
    rng = np.random.default_rng(secrets.randbits(128) if seed is None else seed)
    chosen = sorted(names[i] for i in rng.permutation(len(names))[:count])
    return InclusionCoins(dict(zip(chosen, (bool(coin) for coin in rng.integers(0, 2, count)), strict=True)))


def write_canary_plan(folder: Path, coins: InclusionCoins, guesses: int | None = None, data: str = "") -> CanaryPlan:
    """Write the four files into a new folder; the plan. ``guesses``: by default a third of the coins."""
    count = len(coins.included)
    guesses = 2 * max(1, round(count / 6)) if guesses is None else guesses
    if not 2 <= guesses <= count or guesses % 2:
        raise EffaceError(
            f"{guesses} guesses about {count} coins cannot be half included, half excluded.",
            remedy=f"Ask for an even number from 2 to {count}.",
        )
    folder = Path(folder)
    if folder.exists():
        raise EffaceError(
            f"{folder} exists already.", "Coins that were drawn are never drawn again.", "Choose another --out."
        )
    secret = (
        json.dumps({"format": CANARY_PLAN_FORMAT, "salt": secrets.token_hex(16), "included": coins.included}, indent=1)
        + "\n"
    )
    digest = hashlib.sha256(secret.encode()).hexdigest()
    public = {
        "format": CANARY_PLAN_FORMAT,
        "keys": list(coins.included),
        "guesses": guesses,
        "commitment": digest,
        "data": data,
    }
    inside, outside = coins.split_keys()
    with disk_errors(folder):
        folder.mkdir(parents=True)
    for name, text in {COINS: secret, INCLUDED: _lines(inside), EXCLUDED: _lines(outside)}.items():
        _private(folder / name, text)
    write_text(folder / PUBLIC, json.dumps(public, indent=1) + "\n")
    return CanaryPlan(tuple(coins.included), guesses, digest, data)


def read_canary_plan(folder: Path) -> CanaryPlan:
    """The public part of a plan."""
    content = read_json(Path(folder) / PUBLIC, "plan of canaries", missing=PLANNED, remedy=RESTORE)
    try:
        return CanaryPlan(tuple(content["keys"]), int(content["guesses"]), content["commitment"], content["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise EffaceError(
            f"{Path(folder) / PUBLIC} is no plan of canaries.", f"It lacks or garbles {error}."
        ) from error


def read_coins(folder: Path, plan: CanaryPlan | None = None) -> InclusionCoins:
    """The secret part; raises where it is not the one that the plan committed to."""
    path = Path(folder) / COINS
    plan = plan or read_canary_plan(folder)
    content = read_json(path, "set of coins", missing=PLANNED, remedy=RESTORE)
    found = content.get("included")
    whole = hashlib.sha256(path.read_bytes()).hexdigest()
    if whole != plan.commitment or not isinstance(found, dict) or tuple(found) != plan.keys:
        raise EffaceError(
            f"{path} does not hold the coins that {PUBLIC} speaks of.",
            f"SHA-256 expected: {plan.commitment[:16]}; found: {whole[:16]}. Coins changed later prove nothing.",
            "Restore the file that `efface canaries plan` wrote.",
        )
    return InclusionCoins(dict(found))


def locate_canaries(folder: Path, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in ``keys`` of the included and of the excluded canaries; raises where one is not there."""
    where = {key: i for i, key in enumerate(keys.tolist())}
    inside, outside = read_coins(folder).split_keys()
    absent = [key for key in (*inside, *outside) if key not in where]
    if absent:
        raise EffaceError(
            f"{len(absent)} canaries of {folder} are not in the data.",
            f"Such as {quote_first(absent)}.",
            "Load the data that the plan was made for: same source, same options.",
        )
    return tuple(np.array(sorted(where[key] for key in side), dtype=np.int64) for side in (inside, outside))  # pyright: ignore


def _lines(keys: Sequence[str]) -> str:
    return "".join(f"{key}\n" for key in keys)


def _private(path: Path, text: str) -> None:
    with (
        disk_errors(path),
        open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as f,
    ):
        f.write(text)
