"""What a fuzzed case is, and what every kind of input has."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MARK = "CODE-WAS-RUN"
"""The file, in the folder of a case, that code in it would create."""


class WrongIdentity(AssertionError):
    """Other examples, pixels or weights came out than the file says."""


@dataclass(frozen=True)
class FuzzCase:
    """One changed input: what it was made from, its content, and the check to run."""

    seed: str
    content: bytes
    check: Callable[[], None]


class Target(Protocol):
    """A kind of input."""

    def __init__(self, home: Path) -> None:
        """Make the seeds in ``home``."""
        ...

    def make(self, rng: random.Random, folder: Path) -> FuzzCase:
        """Write one case into the empty ``folder``."""
        ...
