"""The small world of many experiments: SimCLR that overfits 600 of scikit-learn's digits."""

from __future__ import annotations

from typing import Any

from efface.runs.demo import REGIMES

DIGITS: dict[str, Any] = {
    "data": {"source": "digits"},
    "split": {"train": 600, "valid": 300, "holdout": 750, "test": 147},
    "recipe": {**REGIMES["digits"]["recipe"], "epochs": 160},
}
"""Data, split and recipe of the original."""
