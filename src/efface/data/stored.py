"""What ``split.json``, ``canaries.json`` and ``coins.json`` must hold to be read back."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from pydantic import Field, model_validator

from efface.data.dataset import quote_first
from efface.schema import Count, FirstFormat, HexDigest, SeedNumber, StoredModel, Tally, first_problem

MIN_COINS = 10
"""Smallest number of coins. With fewer no bound is informative: ten perfect guesses give ε = 1.05."""


class StoredParts(StoredModel):
    """The keys of each part in a ``split.json``."""

    forget: tuple[str, ...]
    retain: tuple[str, ...]
    valid: tuple[str, ...]
    holdout: tuple[str, ...]
    spare: tuple[str, ...]
    test: tuple[str, ...]
    earlier: tuple[str, ...] = ()

    @model_validator(mode="after")
    def names_each_once(self) -> StoredParts:
        """Refuse a key that is in two parts, or twice in one."""
        counted = Counter(key for part in StoredParts.model_fields for key in getattr(self, part))
        twice = [key for key, count in counted.items() if count > 1]
        first_problem([(bool(twice), f"parts without a key twice, as {quote_first(twice) if twice else ''} is")])
        return self


class StoredProvenance(StoredModel):
    """How a split was made, as far as it is read back."""

    selector: str | None = None
    seed: SeedNumber | None = None
    random: bool | None = None
    matched: Literal["class", "group"] | None = None
    by_group: bool = False
    sizes: dict[str, Tally] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    copies: tuple[dict[str, Any], ...] = ()
    earlier: tuple[dict[str, Any], ...] = ()


class StoredSplit(StoredModel):
    """The content of a ``split.json``."""

    parts: StoredParts
    provenance: StoredProvenance = Field(default_factory=StoredProvenance)

    @model_validator(mode="after")
    def has_its_sizes(self) -> StoredSplit:
        """Refuse sizes that are not those of the parts."""
        counts = {part: len(getattr(self.parts, part)) for part in StoredParts.model_fields}
        wrong = {part: size for part, size in self.provenance.sizes.items() if counts.get(part, size) != size}
        first_problem([(bool(wrong), f"a split with its own sizes, which are {counts}")])
        return self


class StoredCanaries(StoredModel):
    """The content of a ``canaries.json``."""

    format: FirstFormat
    keys: tuple[str, ...]
    guesses: Count
    commitment: HexDigest
    data: HexDigest | Literal[""] = ""

    @model_validator(mode="after")
    def fits_its_keys(self) -> StoredCanaries:
        """Refuse keys that are not sorted, and guesses that do not fit them."""
        first_problem(
            [
                (list(self.keys) != sorted(set(self.keys)), "a plan with sorted keys, each once"),
                (len(self.keys) < MIN_COINS, f"a plan of at least {MIN_COINS} canaries"),
                (self.guesses > len(self.keys) or self.guesses % 2 == 1, "a plan with an even number of guesses"),
            ]
        )
        return self


class StoredCoins(StoredModel):
    """The content of a ``coins.json``."""

    format: FirstFormat
    included: dict[str, bool]
