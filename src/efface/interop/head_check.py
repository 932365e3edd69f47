"""Check that the outputs of an imported classifier mean the classes of the data, in the same order.

A classifier knows positions, not names. If the folders are sorted another way than where it was trained, its accuracy
falls to that of chance without an error anywhere, while its features still separate the classes. So the head is tried
on its own training images, under the orders of the usual libraries, and under the order that fits its answers best:

    π* = argmax_π Σ_i [ŷ_i = π(y_i)]        (Hungarian method on the confusion matrix)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from efface.auditing.representations import knn_vote
from efface.data.class_order import CLASS_ORDERS, number_classes
from efface.data.dataset import UNKNOWN_LABEL, Data, quote_first, shuffle_by_key
from efface.errors import EffaceError
from efface.files import parse_json
from efface.interop.sanity_check import CHECK_NEIGHBORS
from efface.training.model import Model

HEAD_IMAGES = 1024
SIGNIFICANT = 3.0
"""Standard errors by which another order must be better than the one in use."""
SEPARATED = 0.2
"""The nearest neighbors' accuracy above the share of the largest class from which features separate the classes."""
LISTED_CLASSES = 20


def name_classes(path: Path, data: Data, settings: Any) -> tuple[Data, str]:
    """Number the classes as the configuration beside the weights does (``id2label``, ``label_names``).

    Args:
        path: The file or folder of weights.
        data: The data.
        settings: The settings of the data; stated ``classes`` are left as they are.

    Returns:
        The data, and a sentence for the user; unchanged and empty if there is no such list, or its names are others.

    """
    stated = isinstance(settings, dict) and settings.get("classes") is not None
    names = [] if stated or data.y is None else _read_label_names(Path(path))
    if not names:
        return data, ""
    used = [data.classes[label] for label in np.unique(data.y) if label != UNKNOWN_LABEL] if data.y is not None else []
    spelled = {name.lower(): name for name in used}
    ordered = [spelled.get(name.lower(), name) for name in names]
    if len(spelled) < len(used) or not set(used) <= set(ordered) or len(set(ordered)) < len(ordered):
        return data, ""
    if tuple(ordered) == data.classes:
        return data, ""
    return number_classes(data, ordered), f"the classes are numbered as in its config.json: {quote_first(ordered)}"


def require_class_order(path: Path, model: Model, data: Data, trained: np.ndarray, device: torch.device) -> None:
    """Raise an error if the head of a classifier answers for other positions than those of the data's classes.

    Args:
        path: The checkpoint, for messages.
        model: The imported model; other models than classifiers are not checked.
        data: The data.
        trained: Positions of what it was trained on; a sample of them is used.
        device: Where the model runs.

    """
    if not model.objective.needs_labels or data.y is None:
        return
    known = trained[data.y[trained] != UNKNOWN_LABEL]
    rows = np.sort(known[shuffle_by_key(data.keys[known], data.y[known], 0, "head")[:HEAD_IMAGES]])
    if len(np.unique(data.y[rows])) < 2:
        return
    features, answers = _run(model, data, rows, device)
    y, classes = data.y[rows], data.classes
    right = answers == y
    orders = {name: order(classes) for name, order in CLASS_ORDERS.items()}
    hits = {name: answers == _positions(classes, order)[y] for name, order in orders.items()}
    best = max(hits, key=lambda name: hits[name].mean())
    gain = hits[best].astype(float) - right
    if gain.mean() > SIGNIFICANT * max(float(gain.std()) / np.sqrt(len(rows)), 1 / len(rows)):
        raise EffaceError(
            f"The classifier in {path} answers {right.mean():.3f} of {len(rows)} training images right, and "
            f"{hits[best].mean():.3f} if the classes are in the order '{best}'.",
            f"Here they are numbered {quote_first(classes)}; in that order {quote_first(orders[best])}.",
            f"Add --set data.classes={best}.",
        )
    _require_sensible_head(path, features, answers, y, classes)


def knows_labels(model: Model, data: Data, trained: np.ndarray, device: torch.device) -> bool:
    """Whether a classifier answers significantly more training images right than by naming the largest class."""
    if not model.objective.needs_labels or data.y is None:
        return False
    known = trained[data.y[trained] != UNKNOWN_LABEL]
    rows = np.sort(known[shuffle_by_key(data.keys[known], data.y[known], 0, "head")[:HEAD_IMAGES]])
    if len(np.unique(data.y[rows])) < 2:
        return False
    right = _run(model, data, rows, device)[1] == data.y[rows]
    largest = float(np.bincount(data.y[rows]).max() / len(rows))
    return float(right.mean()) - largest > SIGNIFICANT * np.sqrt(largest * (1 - largest) / len(rows))


def _require_sensible_head(
    path: Path, features: np.ndarray, answers: np.ndarray, y: np.ndarray, classes: tuple[str, ...]
) -> None:
    """Raise if the answers are far worse than what the features know, and name the order that fits, if one does."""
    right = float((answers == y).mean())
    largest = float(np.bincount(y).max() / len(y))
    votes = knn_vote(features, y, features, (CHECK_NEIGHBORS,), own=np.arange(len(y)))[0]
    reached = float((votes == y).mean())
    if reached < largest + SEPARATED or right >= reached / 2:
        return
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (y, answers.clip(max=len(classes) - 1)), 1)
    names, positions = linear_sum_assignment(confusion, maximize=True)
    fitting = float(confusion[names, positions].sum() / len(y))
    what = (
        f"The classifier in {path} answers {right:.3f} of {len(y)} training images right, although the nearest "
        f"neighbors of its features answer {reached:.3f}."
    )
    if fitting < 0.8 * reached:
        raise EffaceError(
            what,
            f"No order of the classes explains it: the best one reaches {fitting:.3f}.",
            "Likely: the head was trained with other labels, or it is a projector (--objective simclr), or the images "
            "are prepared otherwise (recipe.mean, recipe.std, data.size). If it is right as it is, --set "
            "check=false goes on.",
        )
    order = [classes[name] for name in names[np.argsort(positions)]]
    line = (
        f"Add --set 'data.classes=[{', '.join(order)}]'."
        if len(order) <= LISTED_CLASSES
        else (
            f"Write the names in the order of its outputs into a file, one on each line ({quote_first(order)}), "
            "and add --set data.classes=FILE."
        )
    )
    raise EffaceError(what, f"In another order of the classes it answers {fitting:.3f}: {quote_first(order)}.", line)


def _positions(classes: tuple[str, ...], order: tuple[str, ...]) -> np.ndarray:
    """The position in ``order`` of each class."""
    place = {name: position for position, name in enumerate(order)}
    return np.array([place[name] for name in classes])


@torch.no_grad()
def _run(model: Model, data: Data, rows: np.ndarray, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Features and predicted positions of some images, without augmentation."""
    training = {module: module.training for module in model.modules()}
    model.to(device).eval()
    features, answers = [], []
    for start in range(0, len(rows), 64):
        x = torch.from_numpy(np.ascontiguousarray(data.x[rows[start : start + 64]])).to(device).float().div_(255)
        h = model.features(x)
        features.append(h.float().cpu().numpy())
        answers.append(model.project(h).argmax(-1).cpu().numpy())
    for module, mode in training.items():
        module.training = mode
    return np.concatenate(features), np.concatenate(answers)


def _read_label_names(path: Path) -> list[str]:
    """The class names in the ``config.json`` beside the weights, by position; empty if it has none of its own."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        names = content.get("id2label") or content.get("label_names") or {}
        if isinstance(names, dict):
            names = {int(position): name for position, name in names.items()}
            names = [names[position] for position in range(len(names))]
        names = [str(name) for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [] if all(name == f"LABEL_{position}" for position, name in enumerate(names)) else names
