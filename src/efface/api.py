"""The Python interface: pretrain, unlearn, observe, audit. Plain functions; the command line only calls these."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efface import config
from efface.attention import reader
from efface.audits import AUDITS, Cost, Evidence, Finding
from efface.changes import Change, changes
from efface.checkpoint import CHOICES, Checkpoint
from efface.data import Data
from efface.drift import Requests, worst
from efface.environment import Environment
from efface.errors import EffaceError
from efface.evidence import checkpoint_facts, compose, write
from efface.methods import METHODS, Method, method_class
from efface.model import Model
from efface.objectives import OBJECTIVES, Objective, objective_class
from efface.observations import Observations
from efface.record import Record
from efface.splits import Split, partition, unseen_like_forgotten
from efface.splits import forget as select
from efface.stopping import Enough, Lookout, Stop
from efface.train import Keep, Optim, Recipe, Rule, Run, fit, silent
from efface.types import Given, Log, Needs, Part
from efface.verdict import Criteria, Verdict, judge
from efface.views import Views
from efface.watch import Watch
from efface.watch import observe as look

MAY_SEE = ("forget", "retain", "valid")
"""The parts that a method can ever be given: never the audit's holdout, spare or test."""


@dataclass(frozen=True, eq=False)
class Result:
    """An audit: what was found of one model, and the verdict."""

    verdict: Verdict
    findings: list[Finding]
    evidence: Evidence
    changes: list[Change] = field(default_factory=list)
    record: Record | None = None
    """The record before it is sealed; None where only observations were judged."""
    keys: tuple[str, ...] = ()
    """The examples to forget."""
    sequence: Requests | None = None
    """Where this was not the first request: all of them together."""

    @property
    def exit_code(self) -> int:
        """The verdict's; where earlier requests were audited too, the worse of the two."""
        return worst(self.verdict.exit_code, *([self.sequence.exit_code] if self.sequence else []))

    def save(self, folder: str | Path, *, plain_ids: bool = False) -> Record:
        """Write findings, sealed record, its key and the report into a folder; the sealed record."""
        if self.record is None:
            raise EffaceError(
                "Observations alone make no record.", remedy="Use `efface.audit`, which has the data too."
            )
        Path(folder).mkdir(parents=True, exist_ok=True)
        seen = self.evidence
        models = {"original": seen.original, "subject": seen.subject}
        models |= {f"oracle {i}": oracle for i, oracle in enumerate(seen.oracles, 1)}
        return write(Path(folder), self.record, self.keys, models, plain_ids=plain_ids)


def split(data: Data, forget: str | None = None, *, seed: int = 0, **sizes: float | str | None) -> Split:
    """Divide the data, and choose what to forget: a selector such as ``@random:0.1``, ``@class:5`` or a file of keys.

    ``sizes``: ``train``, ``valid``, ``holdout``, ``test``, as fractions below 1 or counts, and ``canaries``; see
    :func:`efface.splits.partition`.
    """
    divided = partition(data, **sizes, seed=seed)  # pyright: ignore[reportArgumentType]
    return divided if forget is None else select(divided, data, forget, seed)


def default_recipe(data: Data, objective: str | Objective, **changed: Any) -> Recipe:
    """A recipe that fits the data: its channels, size and classes; augmentation by kind of objective.

    Classifiers see shifted and flipped images, encoders crops, flips and color jitter, image-text models crops alone:
    a caption may speak of colors and sides. ``changed``: recipe fields.
    """
    chosen = objective_class(objective)() if isinstance(objective, str) else objective
    channels, height, width = data.shape
    if chosen.labelled and data.y is None:
        raise EffaceError(
            f"The objective '{_name(chosen)}' needs labels, and {data.name} has none.",
            remedy="Use a label-free objective: simclr, moco, byol.",
        )
    still = replace(Views.none(), jitter_prob=Views().jitter_prob)
    views, optim = Views(), Optim(lr=0.06, warmup=0.05)
    if chosen.labelled:
        views, optim = replace(still, flip=True, shift=max(1, height // 8)), Optim(lr=0.1, warmup=0.05)
    if chosen.captioned:
        require_captions(data, range(len(data)), f"The objective '{_name(chosen)}'")
        views, optim = replace(still, crop=(0.8, 1.0)), Optim(rule=Rule.ADAMW, lr=1e-3, warmup=0.05)
    given = {
        "objective": chosen,
        "channels": channels,
        "size": (height, width),
        "classes": len(data.classes),
        "views": views,
        "optim": optim,
    }
    return Recipe(**(given | changed))


def device_of(name: str | torch.device = "auto") -> torch.device:
    """``auto``: the GPU where there is one, else the CPU."""
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EffaceError(
            f"The device '{name}' cannot be used.", str(error).split("\n")[0], "Try --device cpu."
        ) from error
    return device


def part_of(data: Data, positions: Any, views: Views, name: str, device: torch.device) -> Part:
    """The examples at ``positions``, ready to be served in batches."""
    return Part(
        x=torch.from_numpy(data.x),
        ids=torch.as_tensor(positions, dtype=torch.int64),
        augment=views,
        y=None if data.y is None else torch.from_numpy(data.y),
        text=data.text,
        name=name,
        device=device,
    )


def pretrain(
    data: Data,
    split: Split,
    objective: str | Objective = "simclr",
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    bf16: bool = False,
    log: Log = silent,
    keep: Keep | None = None,
) -> Checkpoint:
    """Train an original checkpoint on forget and retain together.

    ``bf16``: bfloat16 autocast. ``keep``: saves each epoch, so that a cut run goes on bit-identically.
    """
    recipe = recipe or default_recipe(data, objective)
    where, train = device_of(device), split.train
    if recipe.batch_size > len(train):
        raise EffaceError(
            f"A batch of {recipe.batch_size} is larger than the {len(train)} training examples.",
            remedy=f"Set recipe.batch_size to at most {len(train)}.",
        )
    if recipe.objective.labelled:
        require_labels(data, train, f"The objective '{_name(recipe.objective)}'")
    if recipe.objective.captioned:
        require_captions(data, train, f"The objective '{_name(recipe.objective)}'")
    run = Run(seed=seed, device=where, log=log, bf16=bf16, keep=keep)
    part = part_of(data, train, recipe.views, "train", where)
    model = fit(recipe.start(seed).to(where), part, recipe, run)
    return Checkpoint(model, recipe, seed=seed, split=split.digest(data), tally=run.tally)


def unlearn(
    start: Checkpoint,
    data: Data,
    split: Split,
    method: str | Method,
    *,
    seed: int | None = None,
    device: str | torch.device = "auto",
    bf16: bool = False,
    log: Log = silent,
    keep: Keep | None = None,
    stop: Stop | None = None,
    **settings: Any,
) -> Checkpoint:
    """Apply an unlearning method to a copy of ``start`` and purge what its state remembers of training images.

    ``method``: a name from ``METHODS`` (with ``settings`` as its fields) or an instance. ``seed``: by default the
    original's; for ``retrain`` it is the seed of the fresh start. ``stop``: look at unseen examples on the way, end in
    time and give back the best state; what came of it is the result's ``stopped``. A method that itself reads
    ``valid`` is then given one half of it, and the looks the other.
    """
    chosen = method
    if isinstance(chosen, str):
        chosen = config.choose(METHODS, {"name": chosen, **settings}, "method", {Method: METHODS})
    where = device_of(device)
    seed = start.seed if seed is None else seed
    run = Run(seed=seed, device=where, log=log, bf16=bf16, keep=keep)
    model, stopped = copy.deepcopy(start.model).to(where), None
    if stop is None:
        model = chosen.unlearn(model, give(chosen, start, data, split, where), run)
    else:
        model, stopped = _until(stop, chosen, model, start, data, split, run)
    purged: dict[str, str] = {}
    if not chosen.exact:
        retain = part_of(data, split.retain, start.recipe.views, "retain", where)
        purged = model.objective.purge(model, retain.batches(256, run.rng("purge")) if len(retain) else ())
    return Checkpoint(
        model,
        start.recipe,
        seed=seed,
        parent=start.model.digest(),
        method=config.dump(chosen, {Method: METHODS}),
        exact=chosen.exact,
        split=split.digest(data),
        tally=run.tally,
        purged=purged,
        trained=start.trained,
        stopped=stopped,
    )


def _until(
    stop: Stop, method: Method, model: Model, start: Checkpoint, data: Data, split: Split, run: Run
) -> tuple[Model, dict[str, Any]]:
    """Unlearn with looks at unseen examples; the best state, and how it came to that."""
    if method.exact:
        raise EffaceError(
            "Retraining starts from nothing: there is no point at which to stop it early.",
            remedy="Leave --stop out, or choose a method that starts from the checkpoint.",
        )
    unseen = unseen_like_forgotten(split, data)
    if Needs.VALID in method.needs:
        order = torch.randperm(len(split.valid), generator=run.rng("halves")).numpy()
        own = np.sort(split.valid[order[: len(order) // 2]])
        split, unseen = replace(split, valid=own), np.setdiff1d(unseen, own)
    shown = {"forget": split.forget, "retain": split.retain, "valid": unseen}
    parts = {name: part_of(data, rows, start.recipe.views, name, run.device) for name, rows in shown.items()}
    lookout = Lookout(stop, model, parts, run)
    run.watchers.append(lookout)
    given = give(method, start, data, split, run.device)
    with contextlib.suppress(Enough):
        model = method.unlearn(model, given, run)
    model, stopped = lookout.conclude(model)
    return model, stopped.as_dict()


def give(method: Method, start: Checkpoint, data: Data, split: Split, device: torch.device) -> Given:
    """Only the parts that the method declares, each with something in it."""
    name = next(key for key, cls in METHODS.items() if cls is type(method))
    require_fit(name, method.needs, start)
    parts: dict[str, Part] = {}
    for part in MAY_SEE:
        if Needs[part.upper()] not in method.needs:
            continue
        positions = getattr(split, part)
        if not len(positions):
            free = [key for key, cls in METHODS.items() if Needs[part.upper()] not in cls.needs]
            raise EffaceError(
                f"{name} needs the {part} examples, but this request has none ({part}: 0 of {len(data)}).",
                f"Methods that work without: {', '.join(free) or 'none'}.",
            )
        if start.recipe.objective.labelled or Needs.LABELS in method.needs:
            require_labels(data, positions, f"{name} on a '{_name(start.recipe.objective)}' checkpoint")
        if start.recipe.objective.captioned:
            require_captions(data, positions, f"{name} on a '{_name(start.recipe.objective)}' checkpoint")
        parts[part] = part_of(data, positions, start.recipe.views, part, device)
    return Given(method.needs, parts, start.recipe if start.trained else None)


def require_fit(name: str, needs: Needs, start: Checkpoint) -> None:
    """An error unless the checkpoint is of the kind that the method works on."""
    objective = start.recipe.objective
    paired = ", ".join(key for key, cls in OBJECTIVES.items() if cls.paired)
    wrong = {
        "classifiers": Needs.LABELS in needs and not objective.labelled,
        f"encoders that were trained by comparing pairs ({paired})": Needs.PAIRS in needs and not objective.paired,
    }
    for kind in (kind for kind, unfit in wrong.items() if unfit):
        fit = [key for key, cls in METHODS.items() if not (Needs.LABELS | Needs.PAIRS | Needs.ATTENTION) & cls.needs]
        raise EffaceError(
            f"{name} works on {kind}, and this checkpoint was trained with '{_name(objective)}'.",
            f"Methods that work on any checkpoint: {', '.join(fit)}.",
        )
    if Needs.ATTENTION in needs:
        reader(start.model.backbone, name)


def require_labels(data: Data, positions: Any, who: str) -> None:
    """An error unless every example at ``positions`` has a label."""
    if data.y is None or (data.y[positions] < 0).any():
        raise EffaceError(
            f"{who} needs labels, and {'the data has none' if data.y is None else 'some examples have none'}.",
            remedy="Give labels, or use a label-free objective: simclr, moco, byol.",
        )


def require_captions(data: Data, positions: Iterable[int], who: str) -> None:
    """An error unless every example at ``positions`` has a caption."""
    if data.text is None:
        raise EffaceError(
            f"{who} needs captions, and the data has none.",
            f"{data.name} has no column 'caption'; a manifest's captions are read from there and nowhere else.",
            "Give the column of the captions that name, or use a label-free objective: simclr, moco, byol.",
        )
    absent = [row for row in positions if not data.text[row].strip()]
    if absent:
        raise EffaceError(
            f"{who} needs captions, and {len(absent)} have none.",
            f"Such as '{data.keys[absent[0]]}'.",
            "Write a caption for each, or leave them out of the manifest.",
        )


def observe(
    checkpoint: Checkpoint,
    data: Data,
    split: Split,
    watch: Watch | None = None,
    *,
    device: str | torch.device = "auto",
    scratch: Path | None = None,
) -> Observations:
    """What a checkpoint shows of the split, as arrays; see :mod:`efface.observations`."""
    model = checkpoint.model.to(device_of(device))
    return look(model, data, split, checkpoint.recipe.views, watch or Watch(), scratch=scratch)


def judge_observations(
    original: Observations,
    subject: Observations,
    oracles: Sequence[Observations] = (),
    *,
    criteria: Criteria | None = None,
    costs: Mapping[str, Cost] | None = None,
    unlearned: Sequence[Observations] = (),
) -> Result:
    """Every audit's findings and the verdict, from arrays alone: milliseconds to seconds, no weights needed.

    Oracles with the subject's own digest are left out: a score minus itself says nothing. ``unlearned``: originals
    with other seeds, unlearned as the subject was; with as many oracles they are pairs (level A2).
    """
    others = tuple(oracle for oracle in oracles if oracle.model != subject.model)
    evidence = Evidence(original, subject, others, dict(costs or {}), unlearned=tuple(unlearned))
    findings = [finding for audit in AUDITS.values() for finding in audit().findings(evidence)]
    return Result(judge(evidence, criteria or Criteria()), findings, evidence)


def audit(
    data: Data,
    split: Split,
    *,
    original: Checkpoint,
    unlearned: Checkpoint,
    oracles: Sequence[Checkpoint] = (),
    criteria: Criteria | None = None,
    watch: Watch | None = None,
    device: str | torch.device = "auto",
) -> Result:
    """Observe and judge one unlearned checkpoint against its original and, where there are any, oracles."""
    seen = [observe(checkpoint, data, split, watch, device=device) for checkpoint in (original, unlearned, *oracles)]
    costs = {"subject": cost_of(unlearned), "original": cost_of(original)}
    if oracles:
        costs["oracle"] = cost_of(oracles[0])
    result = judge_observations(seen[0], seen[1], seen[2:], criteria=criteria, costs=costs)
    moved = changes(original.model, unlearned.model, unlearned.purged)
    models = {"original": original, "subject": unlearned}
    models |= {f"oracle {i + 1}": oracle for i, oracle in enumerate(oracles)}
    record = compose(
        data,
        split,
        {name: checkpoint_facts(model.meta()) for name, model in models.items()},
        result.verdict,
        result.findings,
        Environment.here(torch.__version__, torch.get_num_threads(), str(device_of(device))),
        criteria=criteria or Criteria(),
        changes=moved,
        costs=costs,
        config={"recipe": config.dump(original.recipe, CHOICES), "watch": config.dump(watch or Watch())},
    )
    keys = tuple(str(key) for key in data.keys[split.forget])
    return replace(result, changes=moved, record=record, keys=keys)


def cost_of(checkpoint: Checkpoint) -> Cost:
    """The cost of making a checkpoint."""
    tally = checkpoint.tally
    return Cost(tally.steps, tally.examples, tally.seconds)


def _name(objective: Objective) -> str:
    return str(config.dump(objective, CHOICES)["name"])


__all__ = ["METHODS", "Result", "audit", "method_class", "observe", "pretrain", "unlearn"]
