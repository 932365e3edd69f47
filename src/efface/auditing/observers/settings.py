"""How examples are observed."""

from __future__ import annotations

from dataclasses import dataclass

from efface.config import Settings
from efface.errors import EffaceError
from efface.schema import Count, PairCount, Positive


@dataclass(frozen=True, kw_only=True)
class ObservationSettings(Settings):
    """How examples are observed; must be the same for all models that are compared."""

    views: PairCount = 10
    """Random views per example."""
    temperature: Positive = 0.1
    """Temperature τ of the contrastive margin."""
    bank: Count = 1024
    """Number of valid examples in the bank to which the margin compares."""
    cap: Count = 2000
    """Largest number of retained, spare, valid and control examples (a random sample); forget, holdout: all."""
    test_cap: Count = 5000
    """Largest number of test examples."""
    prompt: str = "{}"
    """Template for class names, for the zero-shot accuracy of image-text models; {} is the name."""
    gradient: bool = True
    """Whether to measure gradient norms (a backward pass per example)."""
    valid: bool = False
    """Whether to compute margins of valid examples, each against the bank without itself; selection needs them."""
    batch_size: Count = 64
    """Examples per batch; affects the speed only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{}" not in self.prompt:
            raise EffaceError(f"The prompt '{self.prompt}' has no place for a name.", remedy="Write {} for the name.")
