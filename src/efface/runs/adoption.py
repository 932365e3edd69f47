"""Check what is assumed about another library's checkpoint on its own training data."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from efface import stats
from efface.data.class_order import number_classes
from efface.data.dataset import UNKNOWN_LABEL, Data, shuffle_by_key
from efface.data.preprocessing import Preprocessing, Transparency
from efface.data.preprocessing_files import read_preprocessing
from efface.data.split import Split
from efface.errors import EffaceError
from efface.interop.assumptions import (
    AssumptionCheck,
    Variant,
    VariantTrial,
    judge_assumption,
    normalization_variants,
    try_normalizations,
)
from efface.interop.checkpoint_file import ForeignCheckpoint
from efface.interop.fit_measures import Fit, measure_fit
from efface.interop.head_check import require_class_order
from efface.interop.load import LoadedCheckpoint, load_checkpoint
from efface.interop.structure_variants import describe_structure, structure_variants
from efface.interop.views_check import check_views
from efface.runs.data_at_hand import load_data
from efface.runs.preprocessing import reads_pictures
from efface.training.batch import Batch, Subset
from efface.training.defaults import merge_settings
from efface.training.loop import Run
from efface.training.model import Model

SAMPLE, LARGE_SAMPLE, LARGE_SIDE = 256, 96, 96
"""Images that every alternative is tried on, and how many if their sides are longer than ``LARGE_SIDE``."""
COMPARED_EXAMPLES = 256
"""Images of each kind for the comparison of training images with others."""
CHECKED_AT_ONCE = 64
SMALLEST_SIDE, LARGEST_SIDE = 8, 512
"""Sides of pictures that are tried."""
CERTAIN = 0.997
"""Level of the interval that decides whether training images fit worse than others."""
TIE = 0.01
"""How much more another order of the classes must explain than another network or preparation does."""
WORSE = 0.15
"""How much less than its features' neighbors a classifier may answer before that is said."""
EXPLAINS_ALL = 2.0
"""The gain of a check whose failure explains all others."""
IS_CLASSIFIER = 0.8
"""Share of right answers, relative to the neighbors', from which a head is a classifier."""
EXCHANGED = 0.3
"""Images of other people may be easier, so that they fit better than those trained on; but not in so many pairs."""


@dataclass(frozen=True, eq=False)
class Adoption:
    """Another library's checkpoint, with the data that it is checked on."""

    file: ForeignCheckpoint
    loaded: LoadedCheckpoint
    data: Data
    split: Split
    settings: Mapping[str, Any]
    """What the user and the files state: data, split, objective, recipe."""
    seed: int
    device: torch.device
    preparation: tuple[str, ...] = ()
    """How the pictures are prepared, in sentences that say where that comes from."""
    naming: str = ""
    """Where the order of the classes comes from, if a file beside the weights states it."""

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self.file.path

    def sample(self) -> np.ndarray:
        """Positions of the training images that alternatives are tried on."""
        count = LARGE_SAMPLE if max(self.data.shape[1:]) > LARGE_SIDE else SAMPLE
        return _choose(self.data, self.split.train, count)

    def measure(self, data: Data, rows: np.ndarray) -> Callable[[Model], Fit]:
        """A function that measures how well a model fits these images, with the same views for every model."""
        batches = _batches(self, rows, data)
        labels = None if data.y is None or (data.y[rows] == UNKNOWN_LABEL).any() else data.y[rows]
        return lambda model: measure_fit(model.to(self.device), batches, labels)

    def load_variant(self, variant: Variant) -> Model | None:
        """The checkpoint in another network; None if it does not fit in."""
        recipe = merge_settings(self.settings.get("recipe") or {}, variant.recipe)
        try:
            return load_checkpoint(
                self.file, self.data, objective=self.settings.get("objective") or self.loaded.objective, recipe=recipe,
                seed=self.seed, fresh_head=bool(self.settings.get("fresh_head")),
            ).model.eval()  # fmt: skip
        except EffaceError:
            return None  # these weights show that it is another one


def check_adoption(one: Adoption) -> list[AssumptionCheck]:
    """Try everything that is assumed about a checkpoint on its training data.

    Returns:
        The checks, in the order in which what they find should be mended.

    """
    rows, model = one.sample(), one.loaded.model.to(one.device).eval()
    if len(rows) < 2:
        return []
    measure = one.measure(one.data, rows)
    fit = measure(model)
    used = _describe_normalization(model)
    checks = [_check_objective(one, fit)] if one.data.y is not None else []
    trials = try_normalizations(model, normalization_variants(model, one.data.x[rows]), measure)
    checks.append(judge_assumption("normalization", used, fit, trials))
    for topic, variants in structure_variants(one.loaded.recipe, one.settings.get("recipe") or {}).items():
        built = [(variant, one.load_variant(variant)) for variant in variants]
        tried = [VariantTrial(v.name, v.line, measure(other)) for v, other in built if other is not None]
        checks.append(judge_assumption(topic, describe_structure(one.loaded.recipe, topic), fit, tried))
    checks += _check_pictures(one, rows, model, fit)
    checks += _check_classes(one, model, fit)
    return [*checks, *_check_views(one, rows, model), *_check_trained(one, model)]


def _check_views(one: Adoption, rows: np.ndarray, model: Model) -> list[AssumptionCheck]:
    """Whether a classifier knows its training images through the augmentations that are assumed."""
    stated = "views" in (one.settings.get("recipe") or {})
    labels = None if one.data.y is None else one.data.y[rows]
    if stated or labels is None or not model.objective.needs_labels or (labels == UNKNOWN_LABEL).any():
        return []
    x = torch.from_numpy(np.ascontiguousarray(one.data.x[rows])).to(one.device).float().div_(255)
    return [check_views(model, x, labels, one.loaded.recipe.views)]


def _check_objective(one: Adoption, fit: Fit) -> AssumptionCheck:
    """Whether a head that is taken for a projector answers for the classes of the data."""
    name, classes = one.loaded.objective, len(one.data.classes)
    used = f"{name}{' (assumed)' if one.loaded.guessed_objective else ''}"
    width = one.loaded.model.project(torch.zeros(1, _width(one.loaded.model), device=one.device)).shape[1]
    if fit.outputs is None or fit.neighbors is None:
        return AssumptionCheck("objective", "passed", f"{used}, {width} outputs")
    if one.loaded.model.objective.needs_labels and fit.outputs < fit.neighbors - WORSE:
        note = f"{used}: the head answers {fit.outputs:.3f} of training images, and neighbors of the features know "
        remedy = "If it was trained without labels, add --objective simclr, or what it was trained with."
        return AssumptionCheck("objective", "undecided", f"{note}{fit.neighbors:.3f}", remedy)
    if one.loaded.model.objective.needs_labels or width != classes:
        return AssumptionCheck("objective", "passed", f"{used}, {width} outputs")
    chance = (
        float(np.bincount(one.data.y[one.sample()].clip(0)).max() / len(one.sample())) if one.data.y is not None else 1
    )
    if fit.outputs < max(IS_CLASSIFIER * fit.neighbors, chance + 0.2):
        return AssumptionCheck("objective", "passed", f"{used}, {width} outputs, which do not answer for classes")
    return AssumptionCheck(
        "objective", "failed",
        f"it is taken for {used}, but its {width} outputs answer {fit.outputs:.3f} of the labels of training images",
        "Add --objective cross_entropy.", gain=EXPLAINS_ALL,
    )  # fmt: skip


def _check_classes(one: Adoption, model: Model, fit: Fit) -> list[AssumptionCheck]:
    if not model.objective.needs_labels or one.settings.get("fresh_head"):
        return []
    try:
        require_class_order(one.path, model, one.data, one.split.train, one.device)
    except EffaceError as error:
        note = f"{error.what} {error.why}".rstrip(".")
        gain = (fit.accuracy or 0.0) - (0.0 if fit.straight is None else float(fit.straight.mean())) - TIE
        return [AssumptionCheck("classes", "failed", note, error.remedy, gain=gain)]
    return [AssumptionCheck("classes", "passed", f"in this order: {', '.join(one.data.classes[:8])}")]


def size_variants(side: int) -> list[Variant]:
    """Other sizes of square pictures: half and double."""
    sides = [one for one in (side // 2, 2 * side) if SMALLEST_SIDE <= one <= LARGEST_SIDE]
    return [Variant(f"scaled to {one}", (f"data.size={one}",), data={"size": one}) for one in sides]


def picture_variants(size: tuple[int, int], used: Preprocessing | None) -> list[Variant]:
    """Other usual preparations of pictures with the same result size; without the one in use."""
    height, width = size
    choices: dict[str, dict[str, Any]] = {
        "squashed": {"resize": [height, width], "mode": "exact"},
        "transparency dropped": {"transparency": Transparency.DROP.value},
        "not turned upright": {"orientation": "stored"},
    }
    if height == width:
        choices |= {
            "shorter side, center": {"resize": height, "crop": [height, width]},
            "shorter side, center (bicubic)": {"resize": height, "crop": [height, width], "resampling": "bicubic"},
            "shorter side x 8/7, center": {"resize": int(height * 8 / 7), "crop": [height, width]},
        }
    base = (used or Preprocessing(resize=height if height == width else None, crop=(height, width))).as_settings()
    found: list[Variant] = []
    for name, changed in choices.items():
        kept = base if "resize" not in changed else {k: base[k] for k in ("orientation", "transparency", "library")}
        settings = tuple(f"data.preprocessing.{key}={_written(value)}" for key, value in changed.items())
        if used is None and "resize" not in changed:
            settings += tuple(f"data.preprocessing.{key}={_written(base[key])}" for key in ("resize", "crop"))
        made = {**kept, **changed}
        if made != base:
            found.append(Variant(name, settings, data={"preprocessing": made}))
    return found


def _check_pictures(one: Adoption, rows: np.ndarray, model: Model, fit: Fit) -> list[AssumptionCheck]:
    """Try other preparations of the pictures on the same images."""
    value = one.settings.get("data")
    options: dict[str, Any] = {"source": value} if isinstance(value, str) else dict(value or {})
    if not reads_pictures(options):
        return []
    stated = options.get("preprocessing")
    used = None if stated is None else Preprocessing(**_as_arguments(stated))
    trials: list[VariantTrial] = []
    variants = picture_variants(one.data.shape[1:], used)
    if options.get("size") is not None:
        variants = [replace(variant, settings=("data.size=null", *variant.settings)) for variant in variants]
    if used is None and options.get("size") is not None and one.loaded.architecture.size is None:
        variants += size_variants(one.data.shape[1])
    for variant in variants:
        with _prepared(one, options, variant, rows) as other:
            if other.shape != one.data.shape or (other.x[:] != one.data.x[rows]).any():
                trials.append(VariantTrial(variant.name, variant.line, one.measure(other, np.arange(len(rows)))(model)))
    words = used.describe() if used is not None else f"largest centered square, scaled to {one.data.shape[1]}"
    words = words if options.get("size") is not None or used is not None else "their own size"
    return [judge_assumption("pictures", words, fit, trials)]


def _as_arguments(stated: Any) -> dict[str, Any]:

    made = read_preprocessing(stated)
    assert made is not None
    return vars(made).copy()


@contextmanager
def _prepared(one: Adoption, options: Mapping[str, Any], variant: Variant, rows: np.ndarray):
    """The images at ``rows``, prepared as a variant says, in a cache that is removed."""
    keys = one.data.keys[rows].tolist()
    with tempfile.TemporaryDirectory(prefix="efface-check-") as cache:
        changed = {key: value for key, value in options.items() if key != "size"} | dict(variant.data)
        changed |= {"cache": cache, "limit": frozenset(keys), "channels": one.data.shape[0]}
        loaded = load_data({"data": changed})
        loaded = number_classes(loaded, one.data.classes) if one.data.classes else loaded
        yield loaded.take(loaded.positions(keys))


def _check_trained(one: Adoption, model: Model) -> list[AssumptionCheck]:
    """Whether the images that it was stated to be trained on fit at least as well as others."""
    others = np.concatenate([one.split.valid, one.split.holdout, one.split.test])
    paired = model.text is not None and one.data.text is not None
    if (
        not (one.settings.get("split") or {}).get("trained")
        or len(others) < 2
        or (model.text is not None and not paired)
    ):
        return []
    chosen = [_choose(one.data, part, COMPARED_EXAMPLES) for part in (one.split.train, others)]
    scores = [_pair_fits(one, model, rows) if paired else _fits(one, model, rows) for rows in chosen]
    value, low, high = stats.interval(*stats.placements(*scores), level=CERTAIN)
    what = "images and their captions" if paired else "images"
    note = (
        f"training {what} fit better than others in {value:.3f} of pairs (0.5: no difference; {low:.3f} to {high:.3f})"
    )
    if high < EXCHANGED:
        remedy = "Name what it was trained on: --set split.trained=FILE. The two lists may have been exchanged."
        return [AssumptionCheck("trained on", "failed", note, remedy, gain=-2.0)]
    word = "passed" if low > 0.5 else "undecided"
    remedy = "" if low > 0.5 else "If the others were trained on too, an audit has nothing to compare with."
    if high < 0.5:
        remedy = "The others may be easier pictures, or the lists exchanged: look at --set split.trained=FILE again."
    return [AssumptionCheck("trained on", word, note, remedy)]


@torch.no_grad()
def _fits(one: Adoption, model: Model, rows: np.ndarray) -> np.ndarray:
    """How well each image fits: log-probability of its label, or else the margin of its own second view."""
    if model.objective.needs_labels and one.data.y is not None and (one.data.y[rows] >= 0).all():
        chances = [-F.cross_entropy(model(b.clean), b.labels(), reduction="none").cpu() for b in _batches(one, rows)]
        return torch.cat(chances).double().numpy()
    return one.measure(one.data, rows)(model).margin


@torch.no_grad()
def _pair_fits(one: Adoption, model: Model, rows: np.ndarray) -> np.ndarray:
    """How much more similar each image is to its own caption than, on average, to the others here.

    That is what an image-text model is trained for; two views of an image mean nothing to it.
    """
    assert one.data.text is not None
    words = [one.data.text[row] for row in rows]
    images = torch.cat([model.project(model.features(batch.clean)) for batch in _batches(one, rows)])
    texts = torch.cat(
        [model.encode_text(words[at : at + CHECKED_AT_ONCE]) for at in range(0, len(words), CHECKED_AT_ONCE)]
    )
    similar = (F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T).double().cpu().numpy()
    own = similar.diagonal()
    return own - (similar.sum(axis=1) - own) / (len(rows) - 1)


def _batches(one: Adoption, rows: np.ndarray, data: Data | None = None) -> list[Batch]:
    """The images at these positions, in their order and with the same views at every call."""
    part = Subset.of(one.data if data is None else data, rows, one.loaded.recipe.views, "check", one.device)
    generator = Run(seed=one.seed).rng("check")
    return [part.batch(ids, generator) for ids in part.ids.split(CHECKED_AT_ONCE)]


def _choose(data: Data, positions: np.ndarray, count: int) -> np.ndarray:
    """A sample of positions that depends on the keys alone, stratified by class."""
    labels = None if data.y is None else data.y[positions]
    return np.sort(positions[shuffle_by_key(data.keys[positions], labels, 0, "check")[:count]])


def _width(model: Model) -> int:
    return int(getattr(model.backbone, "dim"))  # noqa: B009  (every backbone has it)


def _describe_normalization(model: Model) -> str:
    mean, std = (", ".join(f"{v:.3g}" for v in value.flatten().tolist()) for value in (model.mean, model.std))
    return f"mean {mean}, std {std}" + (", blue first" if model.reversed_colors else "")


def _written(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, (list, tuple)) else str(value)
