"""What unlearning cost the model on its own task: measured before and after, and said at once.

A classifier is measured by the accuracy of its head, an image-text model by how often a caption is among the ten most
similar ones of its image, another encoder by the accuracy of its features' nearest neighbors. What was never trained on
decides; the retained examples are named beside it. The holdout is left to the audit: who chose the run that is best on
it would make the examples that the forgotten ones are compared with look like training examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from efface.auditing.representations import knn_vote
from efface.auditing.task_change import (
    KNN_NEIGHBORS,
    RECALLED,
    RETAINED,
    UNSEEN,
    TaskChange,
    describe_undecided,
    describe_worse,
)
from efface.data.dataset import Data, shuffle_by_key
from efface.data.split import Split
from efface.training.model import Model

MEASURED = {RETAINED: 1000, UNSEEN: 2000}
"""At most so many examples of a part are measured: a sample that depends on their keys alone."""
BATCH = 64


@dataclass(frozen=True, eq=False)
class TaskUtility:
    """How often a model is right on its own task: one value for each example, by part."""

    task: str
    hits: dict[str, np.ndarray]

    def share(self, part: str) -> float:
        """Share of the examples of a part on which it is right."""
        return float(self.hits[part].mean())


def measure_task(model: Model, data: Data, split: Split, device: torch.device) -> TaskUtility | None:
    """Measure a model on its own task; None if there is none that can be measured.

    Args:
        model: The model; it is left as it was.
        data: The data.
        split: The split: retained examples, and what was never trained on, which is everything else in the data but
            the holdout, and the holdout where nothing else is there.
        device: Where the model runs.

    """
    unseen = select_unseen(data, split)
    unseen = unseen if len(unseen) > 1 else split.holdout
    rows = {RETAINED: _choose(data, split.retain, RETAINED), UNSEEN: _choose(data, unseen, UNSEEN)}
    rows = {name: found for name, found in rows.items() if len(found) > 1}
    if not rows:
        return None
    training = {module: module.training for module in model.modules()}
    before = next(model.parameters()).device
    model.to(device).eval()
    try:
        return _measure(model, data, rows)
    finally:
        model.to(before)
        for module, mode in training.items():
            module.training = mode


def compare_tasks(before: TaskUtility | None, after: TaskUtility | None, allowed: float) -> tuple[list[str], bool]:
    """Describe how a model's utility changed.

    Args:
        before: The original.
        after: The unlearned model.
        allowed: Largest acceptable loss, as a share.

    Returns:
        Sentences to say, and whether the utility counts as lost.

    """
    if before is None or after is None:
        return ["No labels and no captions: what unlearning cost the model's own task was not measured."], False
    shown = "; ".join(
        f"{part} {before.share(part):.3f}, now {after.share(part):.3f} ({len(hits)} examples)"
        for part, hits in before.hits.items()
    )
    said = [f"{before.task}: {shown}"]
    changes = [TaskChange.between(before.task, part, before.hits[part], after.hits[part]) for part in before.hits]
    lost = any(one.is_lost(allowed) for one in changes if one.part != RETAINED)
    if lost:
        said.append(
            f"WARNING: the model has lost utility on its own task (more than {allowed:g}). Do not deploy it: try "
            "another method, fewer steps, or --stop, which returns the best state."
        )
    elif worse := describe_worse(changes):
        said.append(
            f"WARNING: the model is worse at its own task than before: {worse}. If that is too much, use fewer "
            "steps, a smaller learning rate, or --stop, which returns the best state."
        )
    elif undecided := describe_undecided(changes):
        said.append(f"There are too few examples to tell whether it is worse by more than two points: {undecided}.")
    return said, lost


def _measure(model: Model, data: Data, rows: dict[str, np.ndarray]) -> TaskUtility | None:
    if model.objective.needs_labels and data.y is not None:
        hits = {name: _answers(model, data, found) == data.y[found] for name, found in rows.items()}
        return TaskUtility("Accuracy of its own head", hits)
    if model.text is not None and data.text is not None:
        hits = {name: _retrieved(model, data, found) for name, found in rows.items()}
        return TaskUtility(f"Captions among the {RECALLED} most similar ones", hits)
    if data.y is None:
        return None
    gallery = _features(model, data, rows[RETAINED])
    labels, hits = data.y[rows[RETAINED]], dict[str, np.ndarray]()
    for name, found in rows.items():
        own = np.arange(len(found)) if name == RETAINED else None
        query = gallery if name == RETAINED else _features(model, data, found)
        hits[name] = (
            knn_vote(gallery, labels, query, (min(KNN_NEIGHBORS, len(labels) - 1),), own=own)[0] == data.y[found]
        )
    return TaskUtility("Accuracy of its features' nearest neighbors", hits)


def select_unseen(data: Data, split: Split) -> np.ndarray:
    """Everything that was never trained on but the holdout, of the classes that are still trained on.

    Without what was asked to be forgotten, or was forgotten before the model came here, and is in no part.
    """
    trained = np.concatenate([split.retain, split.forget, split.earlier, split.holdout, split.spare])
    found = np.setdiff1d(np.arange(len(data)), trained)
    gone = [key for keys in split.absent.values() for key in keys]  # another picture may have taken the name
    gone += [str(key) for key in split.provenance.get("skipped", ())]
    found = found[~np.isin(data.keys[found], gone)] if gone else found
    return found if data.y is None else found[np.isin(data.y[found], data.y[split.retain])]


def _choose(data: Data, positions: np.ndarray, part: str) -> np.ndarray:
    known = positions if data.y is None else positions[data.y[positions] >= 0]
    labels = None if data.y is None else data.y[known]
    return np.sort(known[shuffle_by_key(data.keys[known], labels, 0, "utility")[: MEASURED[part]]])


@torch.inference_mode()
def _embed(model: Model, data: Data, rows: np.ndarray) -> Iterator[torch.Tensor]:
    for start in range(0, len(rows), BATCH):
        x = torch.from_numpy(np.ascontiguousarray(data.x[rows[start : start + BATCH]]))
        yield model.features(x.to(model.mean.device).float().div_(255))


@torch.inference_mode()
def _answers(model: Model, data: Data, rows: np.ndarray) -> np.ndarray:
    return torch.cat([model.project(z).argmax(-1).cpu() for z in _embed(model, data, rows)]).numpy()


def _features(model: Model, data: Data, rows: np.ndarray) -> np.ndarray:
    return F.normalize(torch.cat([*_embed(model, data, rows)]), dim=-1).cpu().numpy()


@torch.inference_mode()
def _retrieved(model: Model, data: Data, rows: np.ndarray) -> np.ndarray:
    assert data.text is not None
    images = F.normalize(torch.cat([model.project(z) for z in _embed(model, data, rows)]), dim=-1)
    words = [data.text[row] for row in rows]
    texts = torch.cat([model.encode_text(words[at : at + BATCH]) for at in range(0, len(words), BATCH)])
    similar = images @ F.normalize(texts, dim=-1).T
    better = (similar > similar.diagonal()[:, None]).sum(1)
    return (better < RECALLED).cpu().numpy()
