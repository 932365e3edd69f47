"""What audits that compare whole models read: the models, their shared signals as tables, random halves of a part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from efface.auditing import signals
from efface.auditing.evidence import Evidence
from efface.auditing.observations import Observations

FEWEST_COMPARED = 20
"""Examples of a group below which nothing is estimated."""


def compared_models(evidence: Evidence) -> Iterator[tuple[Observations, tuple[Observations, ...]]]:
    """Yield ``(model, retrained models other than it)`` of the subject, the original and each oracle.

    Unlike :meth:`Evidence.models` it never yields other references than retrained models.
    """
    for _, observed, _ in evidence.models():
        yield observed, tuple(o for o in evidence.oracles if o.model != observed.model)


def halves_by_key(observed: Observations, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Divide the positions of a part into two random halves that depend on the keys only."""
    order = signals.random_order_by_key(observed.of(part, "keys"))
    return order[::2], order[1::2]


def shared_signals(models: Sequence[Observations], parts: Sequence[str]) -> tuple[str, ...]:
    """Return the signals that every model has for every example of every part."""

    def whole(name: str) -> bool:
        return all(
            signals.has_signal(o, part, name) and len(signals.scored_rows(o, part, name)) == o.count(part)
            for o in models
            for part in parts
        )

    return tuple(name for name in signals.signal_names(models[0].spaces) if whole(name))


def signal_table(observed: Observations, part: str, names: Sequence[str]) -> np.ndarray:
    """Stack signals of a part as columns, float64 ``[n, signals]``."""
    return np.stack([signals.scores(observed, part, name) for name in names], axis=1)
