"""The verbs ``relearn`` and ``canaries guess``: they look at a run once more and keep findings for the next audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efface import config, stats
from efface.auditing.attacks import canary_guessing
from efface.auditing.observers.observe import ObservationSettings
from efface.data import canaries
from efface.data.dataset import Data, quote_first
from efface.data.selectors import read_keys
from efface.data.sources import load
from efface.errors import EffaceError
from efface.runs.artifacts import SavedFindings
from efface.runs.comparison import _save_findings, build_comparison
from efface.runs.run import Progress, refuse_unknown


def guess_canaries(
    run: Path,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    progress: Progress | None = None,
) -> SavedFindings:
    """Guess which canaries of a plan were included, open the coins, and keep the bound.

    ``settings``: watch, device, signal, level, delta, trust_pickle.
    """
    progress = progress or Progress()
    refuse_unknown(settings, {"watch", "device", "signal", "level", "delta", "trust_pickle"})
    watch = config.build(ObservationSettings, settings.get("watch") or {}, path="watch.")
    public = canaries.read_canary_plan(folder)
    device = str(settings.get("device", "auto"))
    trust = bool(settings.get("trust_pickle"))
    beside = build_comparison(run, watch, device, progress, original=original, oracles=oracles, trust=trust)
    _same_data(public, beside.subject.data, folder)
    found = canary_guessing.canary_findings(
        public, canaries.read_coins(folder, public), beside.observations["original"], beside.observations["subject"], beside.oracles,
        signal=settings.get("signal"), level=float(settings.get("level", 0.95)), delta=float(settings.get("delta", 0)),
    )  # fmt: skip
    return _save_findings(beside, "canaries", found)


def _same_data(public: canaries.CanaryPlan, data: Data, folder: Path) -> None:
    if public.data and public.data != data.digest():
        raise EffaceError(
            f"The plan in {folder} was made for other data.", remedy="Name the plan that this run was trained with."
        )


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
