"""Loss terms that stay on the device until several steps of them are read at once.

Reading a number from a GPU waits until it has computed everything before it. So a step keeps its terms where they are,
and :class:`StepReadings` copies those of some steps together, checks that they are finite, and logs them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.errors import DivergenceError

if TYPE_CHECKING:
    from efface.training.batch import Log

READ_EVERY = 20
"""Steps between two readings on an accelerator; a loss that is not finite is noticed up to as many steps later."""


class StepReadings:
    """The terms of the steps that were not logged yet."""

    def __init__(self, every: int | None = None) -> None:
        """Start without steps.

        Args:
            every: Number of steps whose terms are read together; 1: each at once. By default 1 on a CPU, which has
                nothing to wait for, and READ_EVERY elsewhere.

        """
        self.every = every
        self.pending: list[tuple[dict[str, Any], list[str], Tensor]] = []
        self.read: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any], terms: Mapping[str, Tensor]) -> None:
        """Keep the terms of a step; those of some steps are read together.

        Args:
            record: What is logged of the step beside its terms; ``step`` is its number, from 1.
            terms: Name to scalar, on their device.

        Raises:
            DivergenceError: A sum of terms that was read is not finite.

        """
        each = [term.detach().float().reshape(()) for term in terms.values()]
        values = torch.stack([*each, torch.stack(each).sum()])
        self.pending.append((record, list(terms), values))
        if len(self.pending) >= (self.every or (1 if values.device.type == "cpu" else READ_EVERY)):
            self.read_pending()

    def read_pending(self) -> None:
        """Read the terms of all steps so far.

        Raises:
            DivergenceError: A sum of terms is not finite; it names the first such step. Those before it can be logged.

        """
        pending, self.pending = self.pending, []
        if not pending:
            return
        numbers = torch.cat([values for _, _, values in pending]).tolist()
        for record, names, _ in pending:
            values, total, numbers = (
                dict(zip(names, numbers, strict=False)),
                numbers[len(names)],
                numbers[len(names) + 1 :],
            )
            if not math.isfinite(total):
                raise DivergenceError(values, record["step"] - 1)
            self.read.append(record | {"terms": values, "total": sum(values.values())})

    def log(self, log: Log) -> None:
        """Log the steps that were read, in their order."""
        read, self.read = self.read, []
        for record in read:
            log(record)
