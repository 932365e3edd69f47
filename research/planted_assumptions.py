"""Wrong assumptions about a checkpoint, planted one at a time: what efface says about each, and whether that mends it.

    python -m research.planted_assumptions

The plants are those of ``tests/runs/test_adoption.py``: tiny networks trained in one way and taken in another, on the
data that they were trained on. Results: research/results/planted_assumptions.json.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, write_json
from research.paths import RESULTS
from tests.runs import test_adoption as plants

from efface.errors import EffaceError
from efface.training.recipe import ColorOrder

FILE = RESULTS / "planted_assumptions.json"
IMAGENET = plants.IMAGENET
PLANTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "normalization (1/2 for ImageNet)": (
        "mean and std 0.5, taken for ImageNet's",
        lambda home: plants.test_normalization_and_order_of_colors(
            {"mean": 0.5, "std": 0.5}, "recipe.mean=0.5 --set recipe.std=0.5", home
        ),
    ),
    "pixels from 0 to 255": (
        "no scaling to [0, 1], taken for ImageNet's",
        lambda home: plants.test_normalization_and_order_of_colors(
            {"mean": 0.0, "std": 1 / 255}, "recipe.std=0.00392157", home
        ),
    ),
    "blue, green, red": (
        "colors reversed, taken for red, green, blue",
        lambda home: plants.test_normalization_and_order_of_colors(
            {**IMAGENET, "order": ColorOrder.BGR}, "recipe.order=bgr", home
        ),
    ),
    "normalization of an encoder": (
        "the same, without labels and without a classifier",
        plants.test_normalization_of_an_encoder_without_labels,
    ),
    "order of the classes": ("names sorted as text, taken as numbers", plants.test_order_of_the_classes),
    "crop": ("pictures squashed, taken as a center crop", plants.test_squashed_pictures),
    "size": ("16 pixels, taken for 32", plants.test_size_of_the_pictures),
    "transparency": ("dropped, taken as laid on white", plants.test_transparency_that_was_dropped),
    "orientation": ("rotation of the camera ignored, taken as turned", plants.test_rotation_that_was_ignored),
    "attention heads": ("12 heads, taken for 3", plants.test_attention_heads),
    "stem": ("stride 2, taken for 1", plants.test_stride_of_the_stem),
    "objective": (
        "a classifier, taken for an encoder with projector",
        lambda home: plants.test_a_classifier_that_is_taken_for_an_encoder(None, home),
    ),
    "objective, with an MLP head": (
        "a classifier with a hidden layer, taken for an encoder",
        lambda home: plants.test_a_classifier_that_is_taken_for_an_encoder(12, home),
    ),
    "test data as training data": (
        "the two lists exchanged",
        plants.test_test_data_that_are_taken_for_training_data,
    ),
    "width of the head": (
        "three classes, and data of five",
        plants.test_a_head_for_other_classes_than_those_of_the_data,
    ),
    "head of an encoder": (
        "a projector of three outputs, taken for a classifier",
        plants.test_an_encoder_that_is_taken_for_a_classifier,
    ),
}
"""What is planted, in words, and the test that plants it."""


def plant(check: Callable[[Path], None]) -> dict[str, Any]:
    """Run one test: what the refusal says, and whether the model goes in once the remedy is followed."""
    said: list[EffaceError] = []
    mended: list[bool] = []
    refused, unlearn, start = plants.refused, plants.unlearn, plants.start_from_foreign

    def keep(*words: Any, **changed: Any) -> EffaceError:
        said.append(refused(*words, **changed))
        return said[-1]

    def follow(*words: Any, **changed: Any) -> None:
        unlearn(*words, **changed)
        mended.append(bool(said))

    def begin(*words: Any, **changed: Any) -> Any:
        try:
            found = start(*words, **changed)
        except EffaceError as error:
            said.append(error)
            raise
        mended.append(bool(said))
        return found

    plants.refused, plants.unlearn, plants.start_from_foreign = keep, follow, begin
    try:
        with tempfile.TemporaryDirectory() as home:
            check(Path(home))
    finally:
        plants.refused, plants.unlearn, plants.start_from_foreign = refused, unlearn, start
    error = said[0]
    return {"what": error.what, "why": error.why, "do": error.remedy, "mended": any(mended)}


def main() -> None:
    """Plant each, and write down what is said."""
    rows: dict[str, Any] = {}
    for name, (how, check) in PLANTS.items():
        found = plant(check)
        found = {key: _without_folders(value) if isinstance(value, str) else value for key, value in found.items()}
        rows[name] = {"planted": how} | found
        print(f"{name}: {found['what']} {found['do']}", flush=True)
    write_json(FILE, {"rows": rows, "machine": machine()})


def _without_folders(text: str) -> str:
    return " ".join(Path(word).name if word.startswith("/") else word for word in text.split(" "))


if __name__ == "__main__":
    main()
