"""Membership signals: one score per example and model, from observations. Higher is more member-like, always.

==========================  =========================================================================
``<space>.alignment``       mean cosine over the pairs of augmented views (EncoderMI, Liu et al. 2021)
``<space>.margin``          that over tau, minus logsumexp of the cosines to a public bank
``<space>.norm``            mean norm of the embedding
``pair.similarity``         mean cosine of the views and the caption: image-text models
``pair.margin``             that over tau, minus logsumexp of the cosines to a bank of other captions
``gradient_norm``           minus the norm of the loss's gradient at the input: members lie flatter
``logits.confidence``       p_y
``logits.cross_entropy``    log p_y
``logits.margin``           log p_y/(1 - p_y)
``logits.modified_entropy``  minus Song and Mittal's (2021) modified entropy, of each example alone
==========================  =========================================================================

Of a classifier, examples with the label -1 have no score on ``logits.*`` and ``gradient_norm``. Everything
is computed from log-probabilities of that row alone, so no batch changes a score and no probability of
exactly 1 becomes an infinity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from efface.auditing.observations import Observations
from efface.errors import EffaceError, unknown_name_error


def log_probabilities(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(log p, log (1 - p))`` of every class ``[n, classes]``; exact where p is 1 to machine precision."""
    z = np.asarray(logits, dtype=np.float64)
    if z.shape[1] < 2:
        raise EffaceError(f"Logits of shape {z.shape} are no classifier's.", "At least two classes are needed.")
    rows, top = np.arange(len(z)), z.argmax(axis=1)
    z = z - z[rows, top][:, None]
    others = z.copy()
    others[rows, top] = -np.inf
    peak = others.max(axis=1, keepdims=True)
    rest = peak[:, 0] + np.log(np.exp(others - peak).sum(axis=1))  # log of the others' weight; the top's is 1
    log_p = z - np.log1p(np.exp(rest))[:, None]
    log_rest = np.log1p(-np.minimum(np.exp(log_p), 0.75))  # right for all but the top class
    log_rest[rows, top] = rest - np.log1p(np.exp(rest))
    return log_p, log_rest


def modified_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-(1 - p_y) log p_y - sum_{i != y} p_i log(1 - p_i), per example ``[n]``; lower for members."""
    log_p, log_rest = log_probabilities(logits)
    rows = np.arange(len(labels))
    terms = np.exp(log_p) * log_rest
    terms[rows, labels] = np.exp(log_rest[rows, labels]) * log_p[rows, labels]
    return -terms.sum(axis=1)


def _of_label(which: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def score(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        log_p, log_rest = log_probabilities(logits)
        rows = np.arange(len(labels))
        log_y = log_p[rows, labels]
        return {
            "confidence": np.exp(log_y),
            "cross_entropy": log_y,
            "margin": log_y - log_rest[rows, labels],
        }[which]

    return score


FROM_LOGITS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "confidence": _of_label("confidence"),
    "cross_entropy": _of_label("cross_entropy"),
    "margin": _of_label("margin"),
    "modified_entropy": lambda logits, labels: -modified_entropy(logits, labels),
}
PAIR = ("pair.similarity", "pair.margin")
"""Signals of an image with its caption."""
STORED_AS = {"alignment": "pairs", "margin": "margin", "norm": "norm"}


def labels(observed: Observations, part: str) -> np.ndarray:
    """Labels ``[n]`` of ``part``, -1 where unknown; all -1 where the data has none."""
    if observed.has(part, "labels"):
        return np.asarray(observed.of(part, "labels"), dtype=np.int64)
    return np.full(observed.count(part), -1, dtype=np.int64)


def random_order_by_key(keys: np.ndarray) -> np.ndarray:
    """Positions ``[n]`` in a random order that only the keys decide: its start is a fair sample of any part.

    (A prefix of the rows would hold two classes of ten where they are sorted, and another two if reordered.)
    """
    # A checksum would not do: it is linear, and keys that count up would come out in patterns.
    hashes = [hashlib.blake2b(str(key).encode(), digest_size=8).digest() for key in keys]
    return np.lexsort((keys, np.array([int.from_bytes(digest) for digest in hashes], dtype=np.uint64)))


def scored_rows(observed: Observations, part: str, signal: str) -> np.ndarray:
    """Positions ``[n]`` of the examples of ``part`` that have a score: all, or those with a label."""
    if signal.startswith("logits.") or (signal == "gradient_norm" and observed.has(part, "logits")):
        return np.flatnonzero(labels(observed, part) >= 0)
    return np.arange(observed.count(part))


def scores(observed: Observations, part: str, signal: str) -> np.ndarray:
    """``signal`` of the examples of ``part`` at :func:`rows`, float64 ``[n]``."""
    space, _, kind = signal.rpartition(".")
    if space == "logits" and kind in FROM_LOGITS:
        seen = scored_rows(observed, part, signal)
        return FROM_LOGITS[kind](observed.of(part, "logits")[seen], labels(observed, part)[seen])
    if signal == "gradient_norm":
        return -np.asarray(observed.of(part, signal), dtype=np.float64)[scored_rows(observed, part, signal)]
    if signal in PAIR:
        return np.asarray(observed.of(part, signal), dtype=np.float64)
    if space in observed.spaces and kind in STORED_AS:
        stored = np.asarray(observed.of(part, f"{space}.{STORED_AS[kind]}"), dtype=np.float64)
        return stored.mean(axis=1) if kind == "alignment" else stored
    raise unknown_name_error("signal", signal, signal_names(observed.spaces))


def signal_names(spaces: Sequence[str]) -> tuple[str, ...]:
    """The names of all signals of a model with these embedding spaces."""
    embedded = tuple(f"{space}.{kind}" for space in spaces for kind in STORED_AS)
    return (*embedded, *PAIR, "gradient_norm", *(f"logits.{kind}" for kind in FROM_LOGITS))


def has_signal(observed: Observations, part: str, signal: str) -> bool:
    """Whether ``signal`` can be computed for at least one example of ``part``."""
    space, _, kind = signal.rpartition(".")
    stored = "logits" if space == "logits" else f"{space}.{STORED_AS[kind]}" if kind in STORED_AS else signal
    return observed.has(part, stored) and len(scored_rows(observed, part, signal)) > 0


def available_signals(observed: Observations, part: str = "forget") -> tuple[str, ...]:
    """The signals that ``part`` and its non-members both have."""
    other = nonmember_part(observed, part)
    return tuple(
        s for s in signal_names(observed.spaces) if has_signal(observed, part, s) and has_signal(observed, other, s)
    )


def prespecified_signals(observed: Observations) -> tuple[str, ...]:
    """The signals a verdict is decided on, fixed before looking: the margins of backbone, projector and classifier;
    of an image-text model those of the backbone and of the pair, which is what it was trained on.
    """
    there = available_signals(observed)
    wanted = ("backbone.margin", "projector.margin", "logits.margin")
    if "pair.margin" in there:
        wanted = ("backbone.margin", "pair.margin")
    return tuple(signal for signal in wanted if signal in there)


def nonmember_part(observed: Observations, part: str) -> str:
    """The never-trained part that ``part`` is compared with: ``holdout`` has the class mix of the forget set;
    where that differs from the retained examples' mix, ``spare`` has theirs. Retained examples are never
    non-members.
    """
    return "spare" if part == "retain" and observed.count("spare") > 0 else "holdout"


def score_pair(observed: Observations, part: str, signal: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Scores of ``part`` and of its non-members; None where this model has no such signal."""
    other = nonmember_part(observed, part)
    if not (has_signal(observed, part, signal) and has_signal(observed, other, signal)):
        return None
    return scores(observed, part, signal), scores(observed, other, signal)


def require_same_examples(observed: Observations, references: Sequence[Observations], part: str) -> None:
    """An error unless all models were shown the same examples of ``part`` in the same order."""
    for reference in references:
        if not np.array_equal(observed.of(part, "keys"), reference.of(part, "keys")):
            raise EffaceError(
                f"The examples of '{part}' differ between two models' observations.",
                "A score can be compared with a reference's only for the same example in the same order.",
                "Observe all models on the same split.",
            )


def calibrated_scores(observed: Observations, references: Sequence[Observations], part: str, signal: str) -> np.ndarray:
    """Score minus the references' mean score: what is left of an example that is easy for everybody."""
    require_same_examples(observed, references, part)
    return scores(observed, part, signal) - np.mean([scores(r, part, signal) for r in references], axis=0)
