"""Checks of where the models of an audit come from: what their descriptions say must agree with everything else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from efface import config
from efface.data.split import read_split
from efface.errors import EffaceError
from efface.files import REQUEST
from efface.runs.binding import forgotten_digest
from efface.runs.run import OpenedRun, StoredRun
from efface.training.augment import Views
from efface.training.checkpoint import META, Checkpoint
from efface.training.model import Model, frozen_statistics
from efface.unlearning.methods import METHODS

NEAREST = 0.5
"""Smallest distance of a claimed reference's weights from those of another model, relative to their norm. Two models
that were trained from different random weights are about √2 apart; after fine-tuning a copy is at a few hundredths."""
NEAREST_RUN = 0.01
"""The same for a run that was checked to be retrained: it may have started from the original's random weights."""
NEAREST_FEATURES = 0.3
"""Smallest distance of a reference's features from those of another model. Networks that start from different random
weights are at 0.46 to 1.1, also before training; those retrained from the original's own random weights at 0.58 and
0.66; copies that were unlearned by fine-tuning at 0.05 to 0.22, by ``gradient_constraint`` at 0.48."""
PROBES = 128
"""Number of pictures on which features are compared."""


class Loadable(Protocol):
    """A model of the audit."""

    @property
    def weights(self) -> Path:
        """Path of its weights."""
        ...

    @property
    def load(self) -> Any:
        """Loads its checkpoint."""
        ...


def run_folder_of(path: Path) -> Path:
    """Return the run folder that a path lies in, if it names a file of one: a run's weights are not foreign."""
    real = Path(path).resolve()
    return real.parent if real.is_file() and (real.parent / META).exists() else Path(path)


def require_same_views(subject: OpenedRun, *described: Mapping[str, Any]) -> Views:
    """Return the views of the audited models, which all must describe alike, as must their stored requests.

    Raises:
        EffaceError: The views differ: the membership signals would be those of other images.

    """
    first, *others = (meta["recipe"].get("views") for meta in described)
    stored = subject.request
    source = Path(str(stored.get("from", "")))
    if (source / REQUEST).exists() and (source / META).exists():
        others.append((subject.folders.read(source).request.get("recipe") or {}).get("views", first))
    if any(one != first for one in others):
        raise EffaceError(
            f"{subject.folder} and its original describe different views.",
            "Unlearning does not change how images are augmented, so one of the descriptions was edited.",
            f"Restore the {META} of both from a backup.",
        )
    return config.build(Views, first or {}, path="recipe.views.")


def require_pictures_of_request(subject: OpenedRun) -> None:
    """Raise unless the forgotten examples and the holdout are still the pictures that the request was about.

    What can no longer be compared, since some of the examples are erased, is left to the other checks.
    """
    fixed = (subject.meta.get("fixed") or {}).get("pictures")
    stored = read_split(subject.folder)["parts"]
    if not fixed or any(len(stored[part]) != len(getattr(subject.split, part)) for part in fixed):
        return
    now = forgotten_digest(subject.data, subject.split)
    changed = [part for part in fixed if fixed[part] != now.get(part)]
    if changed:
        raise EffaceError(
            f"The pictures, labels or captions of {' and '.join(changed)} are not the ones that {subject.folder} was "
            "made with.",
            "Files were changed under the same names, and an audit of other pictures says nothing about these.",
            "Restore the data as they were when the request was answered.",
        )


def require_honest(run: StoredRun) -> None:
    """Raise if a run says that it was made by an exact method, and its method or its request says otherwise."""
    method = (run.meta.get("method") or {}).get("name")
    asked = (run.request.get("method") or {}).get("name", method) if run.request.get("verb") == "unlearn" else method
    if run.meta["exact"] and (asked != method or not getattr(METHODS.get(str(method)), "exact", False)):
        raise EffaceError(
            f"{run.folder / META} says that its model was retrained, but it was made by {asked or 'training'}.",
            "The description was edited, or the package of its method is not installed.",
            "Restore the folder, or retrain: `efface unlearn ORIGINAL --forget IDS --method retrain`.",
        )


def require_no_copy(
    path: Path, checkpoint: Checkpoint, others: Mapping[str, Loadable], nearest: float = NEAREST
) -> None:
    """Raise if a reference's weights, or its features, are near those of the original or of the audited model.

    Models that were trained independently are far apart; a copy with noise, or a copy trained further, is not, and
    whatever it is compared with looks as if nothing were left. Equal weights are recognized by their digest. A copy
    whose hidden units are in another order, rotated or scaled has other weights, but the same features but for that.
    """
    for role, other in others.items():
        compared = other.load()
        distance = weight_distance(checkpoint.model, compared.model)
        if distance is not None and 0 < distance < nearest:
            raise EffaceError(
                f"{path} cannot be used as a retrained reference: its weights are within {100 * distance:.2g} % of "
                f"those of the {role}.",
                f"Models trained from different random weights are about 140 % apart (at least {100 * nearest:.0f} % "
                "is required), so this one was made from the same weights.",
                "Retrain from new random weights: another --seed.",
            )

        if distance == 0:
            continue
        apart = feature_distance(checkpoint, compared)
        if apart is not None and apart < NEAREST_FEATURES:
            raise EffaceError(
                f"{path} cannot be used as a retrained reference: its features are those of the {role} within "
                f"{100 * apart:.2g} %, but for a rotation.",
                "Models that were trained independently are 45 % apart or more (at least "
                f"{100 * NEAREST_FEATURES:.0f} % is required), so this one was made from the same weights, with "
                "its hidden units in another order, rotated or scaled; or both were hardly trained.",
                "Retrain from new random weights: another --seed.",
            )


def weight_distance(model: Model, other: Model) -> float | None:
    """L2 distance of the backbones' weights with two or more dimensions, relative to the norm of the other's.

    Biases and normalizations are left out: all models start with the same ones. None if the shapes differ.
    """
    first, second = (
        {name: value.detach().double().cpu() for name, value in one.backbone.state_dict().items() if value.ndim > 1}
        for one in (model, other)
    )
    if not first or any(name not in second or second[name].shape != value.shape for name, value in first.items()):
        return None
    size = torch.cat([second[name].flatten() for name in first]).norm()
    moved = torch.cat([(first[name] - second[name]).flatten() for name in first]).norm()
    return float(moved / size) if float(size) else None


def feature_distance(checkpoint: Checkpoint, other: Checkpoint) -> float | None:
    """Distance of two models' features on made-up pictures, from 0 (equal but for a rotation and a scale) to √2.

    Procrustes distance of the centered features at norm 1, as they are or with each unit at variance 1, whichever is
    smaller. The order of the hidden units, a rotation of the features, their scale and the scale of each unit make no
    difference; any other linear map does. None if the models take pictures of different shapes, or if the features of
    one of them do not vary.
    """
    shapes = [(one.recipe.channels, *one.recipe.size) for one in (checkpoint, other)]
    if shapes[0] != shapes[1]:
        return None
    pictures = draw_probes(*shapes[0])
    first, second = (_compute_features(one.model, pictures) for one in (checkpoint, other))
    scaled = [features[:, features.std(axis=0) > 1e-6 * features.std(axis=0).max()] for features in (first, second)]
    if not all(features.size and np.isfinite(features).all() for features in scaled):
        return None
    unit = [features / features.std(axis=0) for features in scaled]
    return min(_procrustes_distance(first, second), _procrustes_distance(*unit))


def draw_probes(channels: int, height: int, width: int) -> torch.Tensor:
    """Draw smooth random pictures in [0, 1] with some noise, the same at every call, ``[PROBES, C, H, W]``."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(PROBES, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


@torch.no_grad()
def _compute_features(model: Model, pictures: torch.Tensor) -> np.ndarray:
    """Centered features of pictures in evaluation mode, float64 ``[n, dim]``."""
    with frozen_statistics(model):
        found = torch.cat([model.features(few.to(model.mean.device)) for few in pictures.split(32)])
    features = found.double().cpu().numpy()
    return features - features.mean(axis=0)


def _procrustes_distance(first: np.ndarray, second: np.ndarray) -> float:
    """min over rotations Q of |A Q - B|, for centered features A and B scaled to norm 1."""
    a, b = (features / np.linalg.norm(features) for features in (first, second))
    return math.sqrt(max(0.0, 2 - 2 * float(np.linalg.svd(a.T @ b, compute_uv=False).sum())))
