"""Targets from a reference bank: how familiar each forgotten example is to models that never saw it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from efface.errors import EffaceError


@dataclass(frozen=True, eq=False)
class MarginTargets:
    """Margins of the forgotten examples in models that never saw them, less the mean of unseen ones there.

    Made from the method's half of a bank; the audit of the result uses the other half.
    """

    ids: Tensor
    """Positions of the examples in the data, sorted, int64 [n]."""
    margins: dict[str, Tensor]
    """Space (``backbone``, ``output``) to targets, float [n], in the units of :mod:`efface.unlearning.margins`."""
    bank: str
    """Digest of the part of the bank that they come from."""
    tau: float
    """Temperature of the margins."""
    valid_ids: Tensor
    """Positions of the unseen examples V in the data, sorted, int64 [v]."""
    valid: dict[str, Tensor]
    """Space to what the same models say of V, float [v], in the same units: as many models for each example."""

    def __post_init__(self) -> None:
        """Refuse positions that are not sorted, where examples would get the targets of others, and missing targets."""
        for ids, targets in ((self.ids, self.margins), (self.valid_ids, self.valid)):
            if not bool((ids.diff() > 0).all()):
                raise EffaceError("The positions of margin targets are not sorted.", remedy="Sort them, each once.")
            for space, values in targets.items():
                lost = int((~values.isfinite()).sum())
                if lost:
                    raise EffaceError(
                        f"The reference bank has no target of {lost} of {len(ids)} examples in {space}.",
                        "A classifier's margin is that of the label, and these have none.",
                        "Make the bank with their labels, or leave them out of the request.",
                    )

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of some examples, given by their positions in the data.

        Raises:
            EffaceError: There is no target of one of them.

        """
        return _find_rows(self.ids, ids, "forgotten")

    def slope(self, space: str, ids: Tensor, margins: Tensor) -> float:
        """How much of a difference between targets shows between margins: least squares over unseen examples.

        A target is the mean of few models, and of few views that are the same in each of them: it is noisy.

        Args:
            space: ``backbone`` or ``output``.
            ids: Positions of unseen examples in the data, int64 [n].
            margins: Their margins under the model, [n].

        Returns:
            The slope of margins on targets, between 0 (targets say nothing) and 1; 0 if all targets are alike.

        Raises:
            EffaceError: There is no target of one of the examples.

        """
        rows = _find_rows(self.valid_ids, ids, "unseen")
        known, shown = self.valid[space][rows].double(), margins.detach().cpu().double()
        known = known - known.mean()
        power = float(known.square().sum())
        return min(max(float((known * (shown - shown.mean())).sum()) / power, 0.0), 1.0) if power else 0.0

    def expect(self, space: str, slope: float) -> Tensor:
        """The margin that each forgotten example would have, had it not been seen, less the mean of V, float [n].

        Of a difference between two targets the model shows a part, b. So it is with the difference between F and V, if
        F is drawn as V was: all that differs is luck. What differs by more than luck, as a class or a person with odd
        pictures does, counts whole: 1 - 2 var(t) (1/n + 1/v) / (mean t)², after James and Stein, with the 2 of Akaike.

        Args:
            space: ``backbone`` or ``output``.
            slope: b, of margins on targets.

        """
        own, unseen = self.margins[space].double(), self.valid[space].double()
        mean = own.mean()
        luck = 2 * float(unseen.var(correction=0)) * (1 / len(own) + 1 / len(unseen))
        beyond = max(0.0, 1 - luck / max(float(mean**2), 1e-12))
        return (slope * own + beyond * (1 - slope) * mean).float()


def _find_rows(known: Tensor, ids: Tensor, kind: str) -> Tensor:
    """Rows of examples among those that have a target, of which the positions are sorted; raise if one has none."""
    wanted = ids.cpu()
    rows = torch.searchsorted(known, wanted)
    absent = wanted[known[rows.clamp(max=len(known) - 1)] != wanted] if len(known) else wanted
    if len(absent):
        raise EffaceError(
            f"The reference bank has no target of {len(absent)} of {len(wanted)} {kind} examples.",
            f"Such as the example at position {int(absent[0])} of the data.",
            "Give the method the request and the unseen examples that its targets were made for.",
        )
    return rows
