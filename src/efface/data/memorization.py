"""How much each example is memorized, and the file that a request for the most memorized ones reads. NumPy only.

    memorization(x) = mean_{k: x in} s_k(x) - mean_{k: x out} s_k(x)        s_k: score of x under model k

Models that were trained on x score it higher than models that were not, by as much as it was learned by heart. The most
memorized examples are the hardest to forget, and tell methods apart that look alike on a random draw.

Source      Feldman and Zhang, What Neural Networks Memorize and Why, 2020, arXiv 2008.03703, of accuracies. As a forget
            set: RULI, Naderloui et al., Rectifying Privacy and Efficacy Measurements in Machine Unlearning, USENIX
            Security 2025, whose code takes the examples with the highest likelihood ratios of LiRA.
Departures  any score instead of accuracies or likelihood ratios: a margin, for models without labels.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from efface.data.text_files import read_table
from efface.errors import EffaceError
from efface.files import write_text

COLUMNS = ("key", "memorization")
"""Columns of the file."""


def memorization_scores(scores: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Compute each example's memorization ``[n]``.

    Args:
        scores: Score of each example under each model, ``[models, n]``.
        inside: Which model was trained on which example, bool ``[models, n]``.

    Returns:
        Memorization, float64 ``[n]``; NaN for an example that all models saw, or none.

    Raises:
        EffaceError: The shapes differ, or a score is not finite.

    """
    values, inside = np.asarray(scores, dtype=np.float64), np.asarray(inside, dtype=bool)
    if values.ndim != 2 or values.shape != inside.shape:
        raise EffaceError(
            f"Scores of shape {values.shape} and membership of shape {inside.shape} do not go together.",
            "Both must be [models, examples].",
        )
    if not np.isfinite(values).all():
        raise EffaceError(f"{np.count_nonzero(~np.isfinite(values))} scores are not finite numbers.")
    counts = inside.sum(axis=0), (~inside).sum(axis=0)
    sums = np.where(inside, values, 0.0).sum(axis=0), np.where(inside, 0.0, values).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[0] / counts[0] - sums[1] / counts[1]


def write_memorization(path: Path | str, keys: Sequence[str] | np.ndarray, memorization: np.ndarray) -> None:
    """Write the memorization of examples as a .csv; only the owner may read it, since it lists keys.

    Examples without a number (NaN) are left out.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for key, value in zip(keys, memorization, strict=True):
        if np.isfinite(value):
            writer.writerow((str(key), repr(float(value))))
    write_text(Path(path), text.getvalue(), private=True)


def read_memorization(path: Path) -> dict[str, float]:
    """Read the memorization of examples, by key.

    Args:
        path: A .csv, .tsv or .jsonl with the columns ``key`` and ``memorization``.

    Raises:
        EffaceError: The file is missing, is no such table, lists a key twice, or holds something that is no number.

    """
    fix = f"Write a .csv with the columns {' and '.join(COLUMNS)}."
    try:
        table = read_table(path.expanduser(), COLUMNS[0])
    except FileNotFoundError:
        raise EffaceError(
            f"There is no file {path}.", "It should say how much each example is memorized.", fix
        ) from None
    except (OSError, ValueError) as error:
        raise EffaceError(f"{path} cannot be read as a table.", str(error), fix) from error
    absent = [name for name in COLUMNS if name not in table.columns]
    if absent:
        raise EffaceError(f"{path} has no column '{absent[0]}'.", f"It has: {', '.join(table.columns) or 'none'}.", fix)
    found: dict[str, float] = {}
    for number, row in enumerate(table.rows, 2):
        key = str(row[COLUMNS[0]])
        try:
            value = float(row[COLUMNS[1]])
        except (TypeError, ValueError):
            value = float("nan")
        if not np.isfinite(value):
            shown = row[COLUMNS[1]]
            raise EffaceError(
                f"{path} says '{shown}' of '{key}', in line {number}.", "That is not a finite number.", fix
            )
        if key in found:
            raise EffaceError(f"{path} lists '{key}' twice.", "Which of the two numbers counts is unclear.", fix)
        found[key] = value
    return found
