"""Try what is assumed about a network on its own training images, and name what fits better.

No weight shows a normalization, the order of the colors, the stride of a stem or the number of attention heads. Another
one loads without an error and computes another function. Each alternative is tried on the same images; the one in use
has failed if another is better by more than chance:

    head or votes     mean gain >= 0.02 and > 3 standard errors, paired over images
    drift             that of the alternative is below a fifth, and the one in use above 0.1

Neighbors alone do not overrule a classifier that answers at least as many right as they do: by its own task, what is
in use fits, and unlearning changes neighbors more than answers. Nor do they overrule a first layer that fits, or that
the alternative does not fit better (an encoder that was trained on crops may see more in a squashed picture than in the
centered square that its library shows it): that is said, and not refused. What differs by less is not told apart here,
and then makes little difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from efface.data.preprocessing_files import IMAGENET, OPENAI
from efface.errors import EffaceError
from efface.interop.fit_measures import Fit
from efface.training.model import Model

CheckWord = Literal["passed", "failed", "undecided"]
LEAST_GAIN, SIGNIFICANT_ERRORS = 0.02, 3.0
DRIFTED, DRIFT_RATIO = 0.1, 5.0
"""Smallest drift that counts as one, and how many times smaller that of a better alternative is."""
NORMALIZATIONS: dict[str, tuple[Any, Any]] = {
    "ImageNet": IMAGENET,
    "1/2": (0.5, 0.5),
    "none": (0.0, 1.0),
    "CLIP": OPENAI,
    "CIFAR": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "pixels from 0 to 255": (0.0, 1 / 255),
    "efface's default": (0.5, 0.25),
}
"""The usual normalizations: mean and standard deviation for pixels in [0, 1]."""
CAFFE = ((103.939 / 255, 116.779 / 255, 123.68 / 255), 1 / 255)
"""Caffe's: blue, green, red from 0 to 255, without their means."""
CHECK_REMEDY = "If it is right as it is, --set check=false goes on."


@dataclass(frozen=True)
class Variant:
    """Another way in which a network may have been trained."""

    name: str
    """In words."""
    settings: tuple[str, ...]
    """The assignments that state it, as after ``--set``."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the recipe that are different."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the data that are different."""

    @property
    def line(self) -> str:
        """The options that state it on the command line."""
        return " ".join(f"--set {_quote(one)}" for one in self.settings)


@dataclass(frozen=True)
class VariantTrial:
    """A variant and how well it fits."""

    name: str
    line: str
    fit: Fit


@dataclass(frozen=True)
class AssumptionCheck:
    """The result of trying one assumption against its alternatives."""

    topic: str
    """What was tried: ``normalization``, ``colors``, ``stem`` ..."""
    word: CheckWord
    note: str
    """The measured numbers, in words."""
    remedy: str = ""
    """What to add on the command line; empty if it passed."""
    trials: tuple[VariantTrial, ...] = ()
    """Everything that was tried, what is in use first."""
    gain: float = 0.0
    """How much more the alternative gets right, as a share; of several that fail, the largest one is named."""

    def describe(self) -> str:
        """One line to print."""
        return f"{self.topic}: {self.word}. {self.note}"


def normalization_variants(model: Model, sample: np.ndarray) -> list[Variant]:
    """The usual normalizations, the data's own, and all of them with the colors reversed; without the one in use.

    Args:
        model: The network as it is used.
        sample: Training images, uint8 [N, C, H, W], whose own mean and standard deviation are tried too.

    """
    channels = sample.shape[1]
    x = sample.astype(np.float64).transpose(1, 0, 2, 3).reshape(channels, -1) / 255
    own = (tuple(x.mean(1).round(4).tolist()), tuple(np.maximum(x.std(1), 1e-3).round(4).tolist()))
    known = NORMALIZATIONS | {"the data's own": own}
    found: list[Variant] = []
    for reversed_ in (False, True) if channels == 3 else (False,):
        choices = known | ({"Caffe": CAFFE} if reversed_ else {})
        for name, (mean, std) in choices.items():
            values = [v if isinstance(v, tuple) else (v,) * channels for v in (mean, std)]
            if any(len(v) != channels for v in values):
                continue
            settings = [f"recipe.{key}={_write(value)}" for key, value in (("mean", mean), ("std", std))]
            recipe: dict[str, Any] = {"mean": values[0], "std": values[1], "order": "bgr" if reversed_ else "rgb"}
            settings += ["recipe.order=bgr"] if reversed_ else []
            found.append(Variant(name + (", blue first" if reversed_ else ""), tuple(settings), recipe))
    used = model.mean.flatten().tolist(), model.std.flatten().tolist(), model.reversed_colors
    return [one for one in found if not _same_normalization(one.recipe, used)]


def apply_normalization(model: Model, recipe: Mapping[str, Any]) -> None:
    """Let a model normalize as a variant says, in place."""
    model.mean.copy_(torch.tensor(recipe["mean"], dtype=model.mean.dtype).view_as(model.mean))
    model.std.copy_(torch.tensor(recipe["std"], dtype=model.std.dtype).view_as(model.std))
    model.reversed_colors = recipe["order"] == "bgr"


def try_normalizations(
    model: Model, variants: Iterable[Variant], measure: Callable[[Model], Fit]
) -> list[VariantTrial]:
    """Measure a model under several normalizations; it is left as it was."""
    mean, std, order = model.mean.clone(), model.std.clone(), model.reversed_colors
    found: list[VariantTrial] = []
    for one in variants:
        apply_normalization(model, one.recipe)
        found.append(VariantTrial(one.name, one.line, measure(model)))
    model.mean.copy_(mean)
    model.std.copy_(std)
    model.reversed_colors = order
    return found


def judge_assumption(topic: str, used: str, fit: Fit, trials: Sequence[VariantTrial]) -> AssumptionCheck:
    """Judge what is in use against its alternatives.

    Args:
        topic: What was tried.
        used: What is in use, in words.
        fit: How well it fits.
        trials: The alternatives.

    """
    everything = (VariantTrial(used, "", fit), *trials)
    measures = (("head", _gain_of("right")), ("head", _gain_of("straight")), ("kNN", _gain_of("votes")))
    undecided: AssumptionCheck | None = None
    for name, better in (*measures, ("drift", _less_drift)):
        if name == "kNN" and fit.head_answers:
            continue
        found = [(gain, one) for one in trials if (gain := better(fit, one.fit)) is not None]
        if not found:
            continue
        gain, best = max(found, key=lambda pair: (pair[0], -(pair[1].fit.drift or 0.0)))
        why = {"head": "the head answers more right", "kNN": "neighbors agree more", "drift": "its first layer fits"}
        note = f"{used}: {fit.describe()}; {best.name}: {best.fit.describe()} ({why[name]})"
        if name == "kNN" and fit.drift is not None and _less_drift(fit, best.fit) is None:  # the first layer disagrees
            undecided = AssumptionCheck(topic, "undecided", note, f"Add {best.line}.", everything, gain)
            continue
        return AssumptionCheck(topic, "failed", note, f"Add {best.line}.", everything, 0.0 if name == "drift" else gain)
    if undecided is not None:
        return undecided
    if fit.drift is not None and fit.drift > DRIFTED:
        note = f"{used}: {fit.describe()}; what reaches the first layer is not what reached it in training"
        return AssumptionCheck(topic, "undecided", note, "State how it was trained.", everything)
    return AssumptionCheck(topic, "passed", f"{used}: {fit.describe()}", trials=everything)


def require_passed(path: object, checks: Iterable[AssumptionCheck]) -> list[str]:
    """Raise an error for the assumption that has failed worst; return a sentence for each that is undecided."""
    checks = list(checks)
    failed = [one for one in checks if one.word == "failed"]
    if failed:
        worst = max(failed, key=lambda one: one.gain)
        raise EffaceError(
            f"What is assumed about {path} does not fit its training images: {worst.topic}.",
            f"{worst.note}.",
            with_check_remedy(worst.remedy),
        )
    return [f"{one.topic}: {one.note}. {one.remedy}" for one in checks if one.word == "undecided"]


def with_check_remedy(remedy: str) -> str:
    """A remedy, with how to go on without one, which is said once."""
    return remedy if CHECK_REMEDY in remedy else f"{remedy} {CHECK_REMEDY}"


def _gain_of(name: str) -> Callable[[Fit, Fit], float | None]:
    def gain(before: Fit, after: Fit) -> float | None:
        old, new = getattr(before, name), getattr(after, name)
        if old is None or new is None:
            return None
        difference = new.astype(np.float64) - old
        error = max(float(difference.std()) / np.sqrt(len(difference)), 1 / len(difference) ** 1.5)
        mean = float(difference.mean())
        return mean if mean >= LEAST_GAIN and mean > SIGNIFICANT_ERRORS * error else None

    return gain


def _less_drift(before: Fit, after: Fit) -> float | None:
    if before.drift is None or after.drift is None or before.drift <= DRIFTED:
        return None
    return before.drift / max(after.drift, 1e-12) if after.drift * DRIFT_RATIO < before.drift else None


def _same_normalization(recipe: Mapping[str, Any], used: tuple[Any, Any, bool]) -> bool:
    mean, std, reversed_ = used
    return (
        np.allclose(recipe["mean"], mean, rtol=0.02, atol=0.002)
        and np.allclose(recipe["std"], std, rtol=0.02)
        and (recipe["order"] == "bgr") == reversed_
    )


def _write(value: Any) -> str:
    numbers = value if isinstance(value, tuple) else (value,)
    shown = [f"{number:.6g}" for number in numbers]
    return f"[{','.join(shown)}]" if isinstance(value, tuple) else shown[0]


def _quote(setting: str) -> str:
    return f"'{setting}'" if " " in setting or "[" in setting else setting
