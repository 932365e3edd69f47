"""Find exact and near duplicates of the examples to forget. NumPy only.

A copy that stays in training undoes the deletion. A copy among the never-trained examples makes a member look like a
non-member.

Exact copies have the same pixels. Near copies (re-encoded, brightened, rescaled, converted to gray) are found by the
correlation of their edges: differences of neighboring pixels of the gray image, scaled to at most 16 x 16, centered
and normalized to unit length. Raw pixels are not specific enough: among the pairs of 1 000 images of Fashion-MNIST
with all 70 000, the pixels of 337 pairs correlate above 0.98, but the edges of only 3 pairs above 0.99. After JPEG
compression at quality 75 the edges of photographs correlate at 0.992 (32 x 32) and 0.998 (64 x 64); these are medians
over 60 images (``benchmarks/near_copies.py``). Candidates are found at 8 x 8 by one matrix product, then verified at
16 x 16. Shifted, cropped and mirrored copies are not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from efface.data.dataset import Data, quote_first
from efface.data.lazy_pixels import LazyPixels
from efface.errors import EffaceError

THUMBNAIL_SIDE, FINE = 8, 16
"""Side of the images in pixels, for the search and for the verification."""
CANDIDATE, NEAR = 0.98, 0.99
"""Correlation above which a pair is verified, and above which it is a near copy."""
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Duplicate:
    """An example that is a copy of one to forget."""

    of: str
    """Key of the example to forget."""
    key: str
    """Key of its copy."""
    part: str
    """The part of the split that contains the copy."""
    exact: bool
    """Whether all pixels are equal."""
    likeness: float
    """Correlation of the edges, at most 1; 1 if exact."""


def find_copies(data: Data, chosen: np.ndarray, elsewhere: Mapping[str, np.ndarray]) -> list[Duplicate]:
    """Find copies of some examples among the others.

    Args:
        data: The data set.
        chosen: Positions of the examples to forget.
        elsewhere: Name of a part to the positions in which to look for copies.

    Returns:
        The exact copies, then the near ones by decreasing likeness. Every copy is listed once, with the example that
        it resembles most.

    """
    exact = _find_exact(data, chosen, elsewhere)
    known = {copy.key for copy in exact}
    near = [copy for copy in _find_near(data, chosen, elsewhere) if copy.key not in known]
    return exact + sorted(near, key=lambda copy: (-copy.likeness, copy.key))


def refuse_copies(found: list[Duplicate]) -> None:
    """Raise if exact copies of the examples to forget would stay in training."""
    exact = [copy for copy in found if copy.exact and copy.part == "retain"]
    if exact:
        raise EffaceError(
            f"{len(exact)} examples that would stay in training are identical to examples to be forgotten.",
            f"A model that keeps training on a copy has not forgotten: {quote_first([copy.key for copy in exact])}.",
            "Add these keys to the list, or keep the copies with --set allow_duplicates=true "
            "(in Python: allow_duplicates=True).",
        )


def describe_copies(found: list[Duplicate]) -> list[str]:
    """Describe the copies in one sentence for each kind and part, without keys: the text may be published."""
    sentences: list[str] = []
    for exact in (True, False):
        for part in dict.fromkeys(copy.part for copy in found):
            count = sum(copy.exact == exact and copy.part == part for copy in found)
            if count:
                kind, single = "exact" if exact else "near", count == 1
                copies = f"is {'an' if exact else 'a'} {kind} copy" if single else f"are {kind} copies"
                harm = "be trained on" if part == "retain" else "count as never trained on"
                sentences.append(
                    f"{count} {'example' if single else 'examples'} in {part} {copies} of what is to be "
                    f"forgotten, and would still {harm}."
                )
    return sentences


def _find_exact(data: Data, chosen: np.ndarray, elsewhere: Mapping[str, np.ndarray]) -> list[Duplicate]:
    originals: dict[bytes, str] = {}
    for row in chosen:
        originals.setdefault(hash_pixels(data, row), str(data.keys[row]))
    return [
        Duplicate(originals[content], str(data.keys[row]), part, True, 1.0)
        for part, rows in elsewhere.items()
        for row in rows
        if (content := hash_pixels(data, row)) in originals
    ]


def hash_pixels(data: Data, row: np.intp) -> bytes:
    """Hash the pixels of one example."""
    if isinstance(data.x, LazyPixels):
        return data.x.pixels_digest(int(row))
    return blake2b(np.ascontiguousarray(data.x[row]).data, digest_size=16).digest()


def _find_near(data: Data, chosen: np.ndarray, elsewhere: Mapping[str, np.ndarray]) -> Iterator[Duplicate]:
    if not len(chosen):
        return
    coarse = np.concatenate([edges(data.x[rows], THUMBNAIL_SIDE) for rows in _chunks(chosen)])
    for part, others in elsewhere.items():
        for rows in _chunks(others):
            seen = edges(data.x[rows], THUMBNAIL_SIDE)
            best, of = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.intp)
            for block in _chunks(np.arange(len(chosen))):  # a matrix of all pairs may not fit into memory
                place, original = np.nonzero(seen @ coarse[block].T > CANDIDATE)
                if not len(place):
                    continue
                likeness = _compare(data, rows[place], chosen[block[original]])
                order = np.lexsort((-likeness, place))
                top = order[np.unique(place[order], return_index=True)[1]]
                top = top[likeness[top] > best[place[top]]]
                best[place[top]], of[place[top]] = likeness[top], block[original[top]]
            for row in np.flatnonzero(best > NEAR):
                yield Duplicate(
                    str(data.keys[chosen[of[row]]]), str(data.keys[rows[row]]), part, False, float(best[row])
                )


def _compare(data: Data, rows: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """The likeness of pairs at the fine scale, [number of pairs]."""
    sides: list[tuple[np.ndarray, np.ndarray]] = []
    for positions in (rows, originals):
        single, index = np.unique(positions, return_inverse=True)
        sides.append((edges(data.x[single], FINE), index))
    (left, left_index), (right, right_index) = sides
    likeness = np.zeros(len(rows), np.float32)
    for pairs in _chunks(np.arange(len(rows))):
        likeness[pairs] = np.einsum("nd,nd->n", left[left_index[pairs]], right[right_index[pairs]])
    return likeness


def edges(x: np.ndarray, side: int) -> np.ndarray:
    """Compute the edges of images as unit vectors.

    Args:
        x: Images, uint8 [n, C, H, W].
        side: The images are first shrunk to at most ``side`` x ``side``.

    Returns:
        Vectors, float32 [n, d]; the dot product of two is their correlation. Zero for an image of one color.

    """
    gray = x.mean(1, dtype=np.float32)
    gray = _area_weights(gray.shape[1], side) @ gray @ _area_weights(gray.shape[2], side).T
    differences = np.concatenate([np.diff(gray, axis=axis).reshape(len(x), -1) for axis in (1, 2)], axis=1)
    differences -= differences.mean(1, keepdims=True) if differences.shape[1] else 0
    length = np.linalg.norm(differences, axis=1, keepdims=True)
    return differences / np.where(length > 1e-3, length, np.inf)


def _area_weights(size: int, side: int) -> np.ndarray:
    """Build the matrix [min(size, side), size] that averages areas, with a row for each pixel of the smaller image."""
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
