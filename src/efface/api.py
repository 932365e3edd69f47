"""The Python interface: pretrain, unlearn, observe, audit. Plain functions; the command line only calls these."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from efface import auto, config
from efface.audits import AUDITS, Cost, Evidence, Finding
from efface.changes import Change, changes
from efface.checkpoint import CHOICES, Checkpoint
from efface.data import Data
from efface.drift import Requests, worst
from efface.environment import Environment
from efface.errors import EffaceError
from efface.evidence import checkpoint_facts, compose, write
from efface.giving import give, name_of, part_of, require_captions, require_labels
from efface.methods import METHODS, Method
from efface.objectives import Objective, objective_class
from efface.observations import Observations
from efface.plugins import bring, origin
from efface.record import Record
from efface.splits import Split, partition
from efface.splits import forget as select
from efface.stopping import Stop
from efface.train import Keep, Optim, Recipe, Rule, Run, fit, silent
from efface.types import Log
from efface.until import until
from efface.verdict import Criteria, Verdict, judge
from efface.views import Views
from efface.watch import Watch
from efface.watch import observe as look

bring(METHODS)


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
            f"The objective '{name_of(chosen)}' needs labels, and {data.name} has none.",
            remedy="Use a label-free objective: simclr, moco, byol.",
        )
    still = replace(Views.none(), jitter_prob=Views().jitter_prob)
    views, optim = Views(), Optim(lr=0.06, warmup=0.05)
    if chosen.labelled:
        views, optim = replace(still, flip=True, shift=max(1, height // 8)), Optim(lr=0.1, warmup=0.05)
    if chosen.captioned:
        require_captions(data, range(len(data)), f"The objective '{name_of(chosen)}'")
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


def bf16_pays(device: torch.device) -> bool:
    """Whether bfloat16 autocast is faster than float32: on GPUs, and on CPUs that can multiply bfloat16."""
    if device.type == "cpu":
        can = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return device.type == "cuda"


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
        require_labels(data, train, f"The objective '{name_of(recipe.objective)}'")
    if recipe.objective.captioned:
        require_captions(data, train, f"The objective '{name_of(recipe.objective)}'")
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
    stop: Stop | Mapping[str, Any] | None = None,
    budget: str | float | None = None,
    **settings: Any,
) -> Checkpoint:
    """Apply an unlearning method to a copy of ``start`` and purge what its state remembers of training images.

    ``method``: a name from ``METHODS`` (with ``settings`` as its fields), an instance, or ``auto``: choose one by
    unseen examples (:mod:`efface.auto`); what was tried is the result's ``search``. ``seed``: by default the
    original's; for ``retrain`` it is the seed of the fresh start. ``stop``: look at unseen examples on the way, end in
    time and give back the best state; what came of it is the result's ``stopped``. A method that itself reads
    ``valid`` is then given one half of it, and the looks the other. ``budget``: most optimizer steps, as ``"5%"`` of
    retraining's or a number; it implies ``stop``.
    """
    where = device_of(device)
    seed = start.seed if seed is None else seed
    run = Run(seed=seed, device=where, log=log, bf16=bf16, keep=keep)
    end = config.build(Stop, stop, path="stop.") if isinstance(stop, Mapping) else stop
    stopped, search = None, None
    if method == auto.AUTO:
        if settings:
            raise auto.settings_given(settings)
        found = auto.search(start, data, split, auto.steps_of(budget, start, split), end or Stop(), run)
        model, chosen, stopped, search = found.model, found.method, found.stopped, found.search
        run.tally.add(found.tally)
        end = end or Stop()
    else:
        chosen = method
        if isinstance(chosen, str):
            chosen = config.choose(METHODS, {"name": chosen, **settings}, "method", {Method: METHODS})
        if budget is not None:
            end = replace(end or Stop(), steps=auto.steps_of(budget, start, split))
        if end is None:
            model = copy.deepcopy(start.model).to(where)
            model = chosen.unlearn(model, give(chosen, start, data, split, where), run)
        else:
            model, stopped = until(end, chosen, start, data, split, run)
    purged: dict[str, str] = {}
    if not chosen.exact:
        retain = part_of(data, split.retain, start.recipe.views, "retain", where)
        purged = model.objective.purge(model, retain.batches(256, run.rng("purge")) if len(retain) else ())
    return Checkpoint(
        model,
        start.recipe,
        seed=seed,
        parent=start.model.digest(),
        method=config.dump(chosen, {Method: METHODS}) | ({"stop": config.dump(end)} if end else {}),
        origin=origin(type(chosen)),
        exact=chosen.exact,
        split=split.digest(data),
        tally=run.tally,
        purged=purged,
        trained=start.trained,
        stopped=stopped,
        search=search,
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


__all__ = ["METHODS", "Result", "audit", "observe", "pretrain", "unlearn"]
