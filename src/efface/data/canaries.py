"""Canary plans: which examples are canaries and which of them are trained on, drawn at random before training.

A fair coin decides for each canary whether it is included in training. ``canaries.json`` is public: it holds the keys
of all canaries, the number of coins that will be guessed, and a commitment (SHA-256) to the coins. ``coins.json``,
``included.txt`` and ``excluded.txt`` are secret: the person who trains needs them, and the auditor who guesses the
coins must not see them. Included canaries are trained on and are later part of the forget set. Excluded canaries are
never trained on and are part of the holdout of a split.
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
from efface.data.stored import MIN_COINS, StoredCanaries, StoredCoins
from efface.errors import EffaceError
from efface.files import disk_errors, hold_lock, make_folder, read_json, write_text
from efface.schema import parse_record

PUBLIC, COINS, INCLUDED, EXCLUDED = "canaries.json", "coins.json", "included.txt", "excluded.txt"
PLANNED = "Make it with `efface canaries plan`, before training."
RESTORE = "Restore it: a plan that is drawn after training proves nothing."
CANARY_PLAN_FORMAT = 1


@dataclass(frozen=True, eq=False)
class CanaryPlan:
    """The public part of a plan: the canaries without their coins."""

    keys: tuple[str, ...]
    """Keys of all canaries, sorted."""
    guesses: int
    """Number of coins to guess, half as included and half as excluded; fixed before the audit."""
    commitment: str
    """SHA-256 of ``coins.json``."""
    data: str = ""
    """Digest of the data that the keys belong to."""


@dataclass(frozen=True, eq=False)
class InclusionCoins:
    """The secret part of a plan: which canaries are included in training."""

    included: dict[str, bool]

    def split_keys(self) -> tuple[list[str], list[str]]:
        """Return the keys of the included and of the excluded canaries."""
        included = [key for key, coin in self.included.items() if coin]
        return included, [key for key, coin in self.included.items() if not coin]


def draw_coins(keys: Sequence[str], count: int | None = None, seed: int | None = None) -> InclusionCoins:
    """Draw canaries at random, and a fair coin for each.

    Args:
        keys: Keys of the examples that may become canaries.
        count: Number of canaries; by default all ``keys``.
        seed: Only for reproducibility. By default the coins come from the operating system and cannot be predicted.

    Raises:
        EffaceError: A key is repeated, or the count is below ``MIN_COINS`` or above the number of keys.

    """
    names = sorted(set(keys))
    if len(names) < len(keys):
        raise EffaceError(f"{len(keys) - len(names)} canaries are listed more than once.")
    count = len(names) if count is None else count
    if not MIN_COINS <= count <= len(names):
        raise EffaceError(
            f"{count} canaries cannot be drawn from {len(names)} examples.",
            f"There must be at least {MIN_COINS}: with so few coins even perfect guesses prove little.",
            "Use a few hundred: --count 300.",
        )
    if seed is not None and seed < 0:
        raise EffaceError(f"The seed cannot be {seed}.", "It is a whole number, at least 0.", "Leave it out.")
    rng = np.random.default_rng(secrets.randbits(128) if seed is None else seed)
    chosen = sorted(names[i] for i in rng.permutation(len(names))[:count])
    return InclusionCoins(dict(zip(chosen, (bool(coin) for coin in rng.integers(0, 2, count)), strict=True)))


def write_canary_plan(folder: Path, coins: InclusionCoins, guesses: int | None = None, data: str = "") -> CanaryPlan:
    """Write the four files of a plan into a new folder.

    Args:
        folder: The folder; it must not exist.
        coins: The coins from :func:`draw_coins`.
        guesses: Number of coins to guess, an even number; by default a third of them.
        data: Digest of the data.

    Raises:
        EffaceError: The folder exists, or the number of guesses does not fit the coins.

    """
    count = len(coins.included)
    guesses = 2 * max(1, round(count / 6)) if guesses is None else guesses
    if not 2 <= guesses <= count or guesses % 2:
        raise EffaceError(
            f"{guesses} guesses about {count} coins cannot be half included, half excluded.",
            remedy=f"Use an even number from 2 to {count}.",
        )
    folder = Path(folder)
    if folder.exists():
        raise EffaceError(
            f"{folder} exists already.", "Once drawn, coins are never drawn again.", "Choose another --out."
        )
    content = {"format": CANARY_PLAN_FORMAT, "salt": secrets.token_hex(16), "included": coins.included}
    secret = json.dumps(content, indent=1) + "\n"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    public = {
        "format": CANARY_PLAN_FORMAT,
        "keys": list(coins.included),
        "guesses": guesses,
        "commitment": digest,
        "data": data,
    }
    included, excluded = coins.split_keys()
    make_folder(folder.parent)
    half = folder.with_name(f"{folder.name}.partial")
    busy = EffaceError(f"{folder} is being written by another process.", remedy="Wait, or choose another --out.")
    with disk_errors(folder), hold_lock(folder, busy):
        _clear(half)
        half.mkdir()
        for name, text in {COINS: secret, INCLUDED: _join_lines(included), EXCLUDED: _join_lines(excluded)}.items():
            _write_private(half / name, text)
        write_text(half / PUBLIC, json.dumps(public, indent=1) + "\n")
        half.rename(folder)
    return CanaryPlan(tuple(coins.included), guesses, digest, data)


def _clear(half: Path) -> None:
    """Remove the folder of a plan that was cut: nobody has used its coins. Anything else in its place raises."""
    if not half.exists():
        return
    ours = (PUBLIC, COINS, INCLUDED, EXCLUDED)
    others = [item.name for item in half.iterdir() if item.name not in ours and not item.name.startswith(f"{PUBLIC}.")]
    if others or half.is_symlink():
        raise EffaceError(f"{half} is in the way.", "It is not an unfinished plan.", "Choose another --out.")
    for item in half.iterdir():
        item.unlink()
    half.rmdir()


def read_canary_plan(folder: Path) -> CanaryPlan:
    """Read the public part of a plan."""
    path, what = Path(folder) / PUBLIC, "plan of canaries"
    content = read_json(path, what, missing=PLANNED, remedy=RESTORE)
    stored = parse_record(StoredCanaries, content, path, what, RESTORE)
    return CanaryPlan(stored.keys, stored.guesses, stored.commitment, stored.data)


def read_coins(folder: Path, plan: CanaryPlan | None = None) -> InclusionCoins:
    """Read the secret part of a plan; raise if it is not the one that the plan is committed to."""
    path = Path(folder) / COINS
    plan = plan or read_canary_plan(folder)
    content = read_json(path, "set of coins", missing=PLANNED, remedy=RESTORE)
    included = parse_record(StoredCoins, content, path, "set of coins", RESTORE).included
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != plan.commitment or tuple(included) != plan.keys:
        raise EffaceError(
            f"{path} does not hold the coins that {PUBLIC} is committed to.",
            f"SHA-256 expected: {plan.commitment[:16]}; found: {digest[:16]}. Coins changed later prove nothing.",
            "Restore the file that `efface canaries plan` wrote.",
        )
    return InclusionCoins(dict(included))


def locate_canaries(folder: Path, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the sorted positions in ``keys`` of the included and of the excluded canaries; raise if one is missing."""
    positions = {key: i for i, key in enumerate(keys.tolist())}
    included, excluded = read_coins(folder).split_keys()
    absent = [key for key in (*included, *excluded) if key not in positions]
    if absent:
        raise EffaceError(
            f"{len(absent)} canaries of {folder} are not in the data.",
            f"They are {quote_first(absent)}.",
            "Load the data that the plan was made for, with the same source and the same options.",
        )
    first, second = (np.array(sorted(positions[key] for key in side), dtype=np.int64) for side in (included, excluded))
    return first, second


def _join_lines(keys: Sequence[str]) -> str:
    return "".join(f"{key}\n" for key in keys)


def _write_private(path: Path, text: str) -> None:
    """Write a new file that only its owner can read."""
    with (
        disk_errors(path),
        open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as f,
    ):
        f.write(text)
