"""Copies: examples that are the same picture as one to be forgotten, or nearly so. numpy only.

A copy that stays in training undoes the deletion; a copy among the never-trained makes a member pass for
none.

Exact copies have the same pixels. Near ones (encoded again, brightened, rescaled, made gray) are found by the
correlation of their edges: differences of neighboring pixels of the gray image, scaled to at most 16 x 16,
less their mean and of unit length. Plain pixels would not do: where 1 000 images of Fashion-MNIST meet its 70
000, the pixels of 337 pairs correlate above 0.98, their edges above 0.99 in 3. JPEG of quality 75 leaves
photographs of 32 x 32 at 0.992 and of 64 x 64 at 0.998 (medians of 60; ``benchmarks/near_copies.py``).
Candidates are found at 8 x 8, by one matrix product. Shifted, cropped and mirrored copies are not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from efface.data.dataset import Data, quote_first
from efface.errors import EffaceError

THUMBNAIL_SIDE, FINE = 8, 16
CANDIDATE, NEAR = 0.98, 0.99
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Duplicate:
    """One example that is a copy of one to be forgotten."""

    of: str
    """Key of the example to be forgotten."""
    key: str
    """Key of its copy."""
    part: str
    """The part of the split that holds the copy."""
    exact: bool
    """Whether every pixel is the same."""
    likeness: float
    """Correlation of edges, up to 1; 1 where exact."""


def find_copies(data: Data, chosen: np.ndarray, elsewhere: Mapping[str, np.ndarray]) -> list[Duplicate]:
    """Copies of the examples at ``chosen`` among those of each part in ``elsewhere``: exact first, then by
    likeness.

    Every copy is listed once, with the example that it is most like.
    """
    exact = _exact(data, chosen, elsewhere)
    known = {one.key for one in exact}
    near = [one for one in _near(data, chosen, elsewhere) if one.key not in known]
    return exact + sorted(near, key=lambda one: (-one.likeness, one.key))


def refuse_copies(found: list[Duplicate]) -> None:
    """An error if exact copies of what is to be forgotten would stay in training."""
    exact = [one for one in found if one.exact and one.part == "retain"]
    if exact:
        raise EffaceError(
            f"{len(exact)} examples that would stay in training are identical to ones to be forgotten.",
            f"A model that keeps training on a copy has not forgotten: {quote_first([one.key for one in exact])}.",
            "Add these keys to the list, or let the copies stay: allow_duplicates=true.",
        )


def describe_copies(found: list[Duplicate]) -> list[str]:
    """A sentence for each kind of copy and part; without keys, as others than the owner may read it."""
    sentences: list[str] = []
    for exact in (True, False):
        for part in dict.fromkeys(one.part for one in found):
            count = sum(one.exact == exact and one.part == part for one in found)
            if count:
                what, one = "exact" if exact else "near", count == 1
                copy = f"is {'an' if exact else 'a'} {what} copy" if one else f"are {what} copies"
                harm = "be trained on" if part == "retain" else "count as never trained on"
                sentences.append(
                    f"{count} {'example' if one else 'examples'} in {part} {copy} of what is to be "
                    f"forgotten, and would still {harm}."
                )
    return sentences


def _exact(data: Data, chosen: np.ndarray, elsewhere: Mapping[str, np.ndarray]) -> list[Duplicate]:
    originals: dict[bytes, str] = {}
    for row in chosen:
        originals.setdefault(_pixels(data, row), str(data.keys[row]))
    return [
        Duplicate(originals[content], str(data.keys[row]), part, True, 1.0)
        for part, rows in elsewhere.items()
        for row in rows
        if (content := _pixels(data, row)) in originals
    ]


def _pixels(data: Data, row: np.intp) -> bytes:
    return blake2b(np.ascontiguousarray(data.x[row]).data, digest_size=16).digest()


def _near(data: Data, chosen: np.ndarray, elsewhere: Mapping[str, np.ndarray]) -> Iterator[Duplicate]:
    if not len(chosen):
        return
    coarse = np.concatenate([edges(data.x[rows], THUMBNAIL_SIDE) for rows in _chunks(chosen)])
    for part, others in elsewhere.items():
        for rows in _chunks(others):
            alike = edges(data.x[rows], THUMBNAIL_SIDE) @ coarse.T
            place, original = np.nonzero(alike > CANDIDATE)
            if len(place):
                yield from _verified(data, chosen, original, rows, place, part)


def _verified(
    data: Data, chosen: np.ndarray, original: np.ndarray, rows: np.ndarray, place: np.ndarray, part: str
) -> Iterator[Duplicate]:
    """The pairs (``chosen[original]``, ``rows[place]``) that hold at fine scale, the best one of each row."""
    some, where = np.unique(place, return_inverse=True)
    copy = edges(data.x[rows[some]], FINE)
    source, whose = np.unique(original, return_inverse=True)
    likeness = np.zeros(len(place), np.float32)
    fine = np.concatenate([edges(data.x[chosen[one]], FINE) for one in _chunks(source)])
    for pairs in _chunks(np.arange(len(place))):
        likeness[pairs] = np.einsum("nd,nd->n", copy[where[pairs]], fine[whose[pairs]])
    order = np.lexsort((-likeness, place))
    best = order[np.unique(place[order], return_index=True)[1]]
    for pair in best[likeness[best] > NEAR]:
        keys = data.keys[chosen[original[pair]]], data.keys[rows[place[pair]]]
        yield Duplicate(str(keys[0]), str(keys[1]), part, False, float(likeness[pair]))


def edges(x: np.ndarray, side: int) -> np.ndarray:
    """Edges of images uint8 [n, C, H, W] as unit vectors, float32 [n, d]; zero for an image of one color."""
    gray = x.mean(1, dtype=np.float32)
    gray = _weights(gray.shape[1], side) @ gray @ _weights(gray.shape[2], side).T
    flat = [np.diff(gray, axis=axis).reshape(len(x), -1) for axis in (1, 2)]
    found = np.concatenate(flat, axis=1)
    found -= found.mean(1, keepdims=True) if found.shape[1] else 0
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.where(length > 1e-3, length, np.inf)


def _weights(size: int, side: int) -> np.ndarray:
    """The matrix [min(size, side), size] that averages areas: a row for each pixel of the smaller image."""
    if size <= side:
        return np.eye(size, dtype=np.float32)
    bounds = np.linspace(0, size, side + 1)
    low, high = bounds[:-1, None], bounds[1:, None]
    pixel = np.arange(size)[None]
    overlap = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
    return (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[start : start + ROWS_AT_ONCE]
