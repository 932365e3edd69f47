"""The small world of many experiments: SimCLR that overfits 600 of scikit-learn's digits."""

from __future__ import annotations

from typing import Any

DIGITS: dict[str, Any] = {
    "data": {"source": "digits"},
    "split": {"train": 600, "valid": 300, "holdout": 750, "test": 147},
    "recipe": {
        "objective": {"name": "simclr", "temperature": 0.1, "dim": 64},
        "backbone": {"name": "resnet8", "width": 16, "stride": 1},
        "epochs": 160,
        "batch_size": 64,
        "optim": {"lr": 0.1, "warmup": 0.05},
        "views": {"crop": [0.6, 1.0], "flip": False, "brightness": 0.4, "contrast": 0.4, "saturation": 0, "hue": 0},
    },
}
"""Data, split and recipe of the original."""
