"""Membership signals: one score per example and model, from observations. Higher is always more member-like.

==========================  =========================================================================
``<space>.alignment``       mean cosine over the pairs of augmented views (EncoderMI, Liu et al. 2021)
``<space>.margin``          that over tau, minus logsumexp of the cosines to a public bank
``<space>.norm``            mean norm of the embedding
``pair.similarity``         mean cosine of the views and the caption: image-text models
``pair.margin``             that over tau, minus logsumexp of the cosines to a bank of other captions
``gradient_norm``           minus the norm of the loss's gradient at the input: it is smaller for members
``logits.confidence``       p_y
``logits.cross_entropy``    log p_y
``logits.margin``           log p_y/(1 - p_y)
``logits.modified_entropy``  minus the modified entropy of Song and Mittal (2021)
``learned``                 log odds of a classifier that was trained on a reference bank, from all others
==========================  =========================================================================

``learned`` is calibrated by the bank already; see :mod:`efface.auditing.attacks.learned`.

For classifiers, examples with the label -1 have no score on ``logits.*`` and ``gradient_norm``; where finished scores
are stored, theirs are NaN. Scores are computed from the log-probabilities of each row alone: they do not depend on the
batch, and a probability that rounds to 1 does not become infinite.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np

from efface.auditing.observations import READY, Observations
from efface.data.array_files import row_chunks
from efface.errors import EffaceError, unknown_name_error


def log_probabilities(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(log p, log(1 - p))`` of every class, ``[n, classes]``; accurate where p rounds to 1."""
    z = np.asarray(logits, dtype=np.float64)
    if z.shape[1] < 2:
        raise EffaceError(f"Logits of shape {z.shape} are not a classifier's.", "At least two classes are needed.")
    rows, top = np.arange(len(z)), z.argmax(axis=1)
    z = z - z[rows, top][:, None]
    others = z.copy()
    others[rows, top] = -np.inf
    peak = others.max(axis=1, keepdims=True)
    rest = peak[:, 0] + np.log(np.exp(others - peak).sum(axis=1))  # log of the sum over the other classes
    log_p = z - np.log1p(np.exp(rest))[:, None]
    log_rest = np.log1p(-np.minimum(np.exp(log_p), 0.75))  # correct except for the top class
    log_rest[rows, top] = rest - np.log1p(np.exp(rest))
    return log_p, log_rest


def modified_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return -(1 - p_y) log p_y - sum_{i != y} p_i log(1 - p_i) of each example ``[n]``; lower for members."""
    log_p, log_rest = log_probabilities(logits)
    rows = np.arange(len(labels))
    terms = np.exp(log_p) * log_rest
    terms[rows, labels] = np.exp(log_rest[rows, labels]) * log_p[rows, labels]
    return -terms.sum(axis=1)


def _label_score(which: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
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
    "confidence": _label_score("confidence"),
    "cross_entropy": _label_score("cross_entropy"),
    "margin": _label_score("margin"),
    "modified_entropy": lambda logits, labels: -modified_entropy(logits, labels),
}
"""Scores ``[n]`` of a classifier, from logits ``[n, classes]`` and labels ``[n]``."""
PAIR = ("pair.similarity", "pair.margin")
"""Signals of an image and its caption."""
LEARNED = "learned"
"""The signal of a learned attack: it needs a reference bank, and its scores are calibrated already."""
SCORED_BYTES = 2**22
"""Bytes of stored arrays that are scored at once."""
KEPT_BYTES = 2**22
"""Bytes of keys up to which their random order is kept."""
STORED_AS = {"alignment": "pairs", "margin": "margin", "norm": "norm"}
"""Kind of signal to the name of the array from which it is read."""


def labels(observed: Observations, part: str) -> np.ndarray:
    """Return the labels ``[n]`` of ``part``, -1 where unknown; all -1 where the data has none."""
    if observed.has(part, "labels"):
        return np.asarray(observed.of(part, "labels"), dtype=np.int64)
    return np.full(observed.count(part), -1, dtype=np.int64)


def random_order_by_key(keys: np.ndarray) -> np.ndarray:
    """Return positions ``[n]`` in a random order that depends on the keys only; a prefix is a uniform sample.

    A prefix of the rows themselves would hold only two of ten classes where the data is sorted by class. The result
    cannot be written to: it is kept, because the audits of one model ask for the same order hundreds of times.
    """
    named = np.ascontiguousarray(keys, dtype=str)
    order = _order_of_keys if named.nbytes <= KEPT_BYTES else _order_of_keys.__wrapped__
    return order(named.tobytes(), named.dtype.str)


@lru_cache(maxsize=32)
def _order_of_keys(content: bytes, kind: str) -> np.ndarray:
    keys = np.frombuffer(content, kind) if content else np.zeros(0, kind)
    # A checksum such as CRC is linear: consecutive keys would come out in patterns.
    hashes = [hashlib.blake2b(str(key).encode(), digest_size=8).digest() for key in keys]
    order = np.lexsort((keys, np.array([int.from_bytes(digest) for digest in hashes], dtype=np.uint64)))
    order.flags.writeable = False
    return order


def scored_rows(observed: Observations, part: str, signal: str) -> np.ndarray:
    """Return the positions ``[n]`` of the examples of ``part`` that have a score: all, or those with a label.

    Finished scores are NaN where there is none; older releases stored 0, which counts only where there is a label.
    """
    if observed.has(part, READY + signal):
        values = observed.of(part, READY + signal)
        known = np.isfinite(values)
        if observed.has(part, "labels") and signal.startswith("logits."):
            known &= labels(observed, part) >= 0
        if observed.has(part, "labels") and signal == "gradient_norm" and observed.meta.get("classifier"):
            known &= (labels(observed, part) >= 0) | (values != 0)
        return np.flatnonzero(known)
    if signal.startswith("logits.") or (signal == "gradient_norm" and observed.has(part, "logits")):
        return np.flatnonzero(labels(observed, part) >= 0)
    return np.arange(observed.count(part))


def scores(observed: Observations, part: str, signal: str) -> np.ndarray:
    """Compute ``signal`` for the examples of ``part`` at :func:`scored_rows`.

    Args:
        observed: Observations of one model.
        part: Part of the split.
        signal: One of :func:`signal_names`.

    Returns:
        Scores, float64 ``[n]``; higher is more member-like.

    Raises:
        EffaceError: If the signal is unknown or was not observed.

    """
    if observed.has(part, READY + signal):
        return np.asarray(observed.of(part, READY + signal), dtype=np.float64)[scored_rows(observed, part, signal)]
    space, _, kind = signal.rpartition(".")
    if space == "logits" and kind in FROM_LOGITS:
        seen = scored_rows(observed, part, signal)
        return _score_logits(observed, part, kind)[seen]
    if signal == "gradient_norm":
        return -np.asarray(observed.of(part, signal), dtype=np.float64)[scored_rows(observed, part, signal)]
    if signal in PAIR or signal == LEARNED:
        return np.asarray(observed.of(part, signal), dtype=np.float64)
    if space in observed.spaces and kind in STORED_AS:
        stored = observed.of(part, f"{space}.{STORED_AS[kind]}")
        if kind == "alignment":
            return score_rows(stored, lambda pairs, _: np.asarray(pairs, dtype=np.float64).mean(axis=1))
        return np.asarray(stored, dtype=np.float64)
    raise unknown_name_error("signal", signal, signal_names(observed.spaces))


_SCORED: WeakKeyDictionary[Observations, dict[tuple[str, str], np.ndarray]] = WeakKeyDictionary()
"""Scores from logits that are mapped from a file: every audit asks for them, and those cannot change."""


def _score_logits(observed: Observations, part: str, kind: str) -> np.ndarray:
    """Score every example of ``part`` by its logits; of those without a label, the score means nothing."""
    logits, known = observed.of(part, "logits"), np.maximum(labels(observed, part), 0)
    kept = _SCORED.setdefault(observed, {}) if isinstance(logits, np.memmap) and not logits.flags.writeable else {}
    if (part, kind) not in kept:
        kept[part, kind] = score_rows(logits, lambda z, rows: FROM_LOGITS[kind](z, known[rows]))
    return kept[part, kind]


def score_rows(x: np.ndarray, score: Callable[[np.ndarray, slice], np.ndarray]) -> np.ndarray:
    """Score the rows of an array a part at a time: what is computed in float64 takes several times their memory.

    Args:
        x: The array ``[n, ...]``; it may be mapped from a file.
        score: Returns a number for each of some rows, from these rows and from which they are.

    Returns:
        The numbers, float64 ``[n]``.

    """
    return np.concatenate([np.zeros(0), *(score(x[rows], rows) for rows in row_chunks(x, SCORED_BYTES))])


def signal_names(spaces: Sequence[str]) -> tuple[str, ...]:
    """Return the names of all signals of a model with these embedding spaces."""
    embedded = tuple(f"{space}.{kind}" for space in spaces for kind in STORED_AS)
    return (*embedded, *PAIR, "gradient_norm", *(f"logits.{kind}" for kind in FROM_LOGITS), LEARNED)


def has_signal(observed: Observations, part: str, signal: str) -> bool:
    """Whether ``signal`` can be computed for at least one example of ``part``."""
    if observed.has(part, READY + signal):
        return len(scored_rows(observed, part, signal)) > 0
    space, _, kind = signal.rpartition(".")
    stored = "logits" if space == "logits" else f"{space}.{STORED_AS[kind]}" if kind in STORED_AS else signal
    return observed.has(part, stored) and len(scored_rows(observed, part, signal)) > 0


def available_signals(observed: Observations, part: str = "forget") -> tuple[str, ...]:
    """Return the signals that can be computed for ``part`` and for its non-members."""
    both = (part, nonmember_part(observed, part))
    return tuple(name for name in signal_names(observed.spaces) if all(has_signal(observed, p, name) for p in both))


def prespecified_signals(observed: Observations) -> tuple[str, ...]:
    """Return the signals that decide a verdict by default, fixed before any score is seen.

    The margins of backbone, projector and classifier; for an image-text model those of the backbone and of the
    image-caption pair, on which it was trained. With a reference bank the learned attack as well.
    """
    available = available_signals(observed)
    wanted = ("backbone.margin", "projector.margin", "logits.margin", LEARNED)
    if "pair.margin" in available:
        wanted = ("backbone.margin", "pair.margin", LEARNED)
    return tuple(signal for signal in wanted if signal in available)


def nonmember_part(observed: Observations, part: str) -> str:
    """Return the never-trained part with which ``part`` is compared: ``holdout``, or ``spare`` for ``retain``.

    The holdout has the class distribution of the forget set. Where the retained examples are distributed otherwise,
    ``spare`` has theirs. Retained examples never serve as non-members.
    """
    return "spare" if part == "retain" and observed.count("spare") > 0 else "holdout"


def score_pair(observed: Observations, part: str, signal: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the scores of ``part`` and of its non-members; None where the model has no such signal."""
    other = nonmember_part(observed, part)
    if not (has_signal(observed, part, signal) and has_signal(observed, other, signal)):
        return None
    return scores(observed, part, signal), scores(observed, other, signal)


def require_same_examples(
    observed: Observations, references: Sequence[Observations], part: str, signal: str | None = None
) -> None:
    """Check that all models were observed on the same examples of ``part`` in the same order.

    Args:
        observed: Observations of one model.
        references: Those of others.
        part: Part of the split.
        signal: A signal of which the same examples must have a score; None: of none.

    Raises:
        EffaceError: If they were not.

    """
    rows = np.zeros(0) if signal is None else scored_rows(observed, part, signal)
    for reference in references:
        if not np.array_equal(observed.of(part, "keys"), reference.of(part, "keys")):
            raise EffaceError(
                f"The examples of '{part}' differ between two models' observations.",
                "A score can be compared with that of a reference only for the same example in the same order.",
                "Observe all models on the same split.",
            )
        if signal is not None and not np.array_equal(rows, scored_rows(reference, part, signal)):
            raise EffaceError(
                f"Other examples of '{part}' have a score of {signal} in one model's observations than in another's.",
                "A score of a labelled example is missing where its label was not known.",
                "Observe all models, and make the reference bank, with the same labels.",
            )


def calibrated_scores(observed: Observations, references: Sequence[Observations], part: str, signal: str) -> np.ndarray:
    """Return the scores ``[n]`` of ``part`` minus the references' mean score of the same examples.

    Calibration removes what makes an example easy or hard for every model. The learned attack has it in its scores.
    """
    if signal == LEARNED:
        return scores(observed, part, signal)
    require_same_examples(observed, references, part, signal)
    return scores(observed, part, signal) - np.mean([scores(r, part, signal) for r in references], axis=0)


def membership_scores(observed: Observations, references: Sequence[Observations], part: str, signal: str) -> np.ndarray:
    """Return :func:`calibrated_scores` where there are references, and raw :func:`scores` where there are none."""
    return calibrated_scores(observed, references, part, signal) if references else scores(observed, part, signal)
