"""The Python interface: pretrain, unlearn, observe, audit. Plain functions; the command line only calls these."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from efface import config
from efface.auditing.audits import AUDITS
from efface.auditing.evidence import Cost, Evidence, Finding
from efface.auditing.observations import Observations
from efface.auditing.observers.observe import ObservationSettings
from efface.auditing.observers.observe import observe_model as look
from efface.auditing.observers.weight_changes import WeightChange, measure_changes
from efface.auditing.sequential import RequestSequence, worst_exit_code
from efface.auditing.verdict import Criteria, Verdict, judge
from efface.data.dataset import Data, require_captions, require_labels
from efface.data.split import Split, partition
from efface.data.split import select_forget_set as select
from efface.errors import EffaceError
from efface.reporting.bundle import checkpoint_facts, compose_record, write_evidence
from efface.reporting.environment import Environment
from efface.reporting.record import Record
from efface.training.batch import Log, Subset
from efface.training.checkpoint import Checkpoint
from efface.training.defaults import default_recipe, get_objective_name
from efface.training.loop import ResumeStore, Run, discard_record, fit, resolve_device
from efface.training.objectives import CHOICES, Objective
from efface.training.recipe import Recipe
from efface.unlearning import plugins
from efface.unlearning import search as unlearning_search
from efface.unlearning.early_stopping import StoppingRule, unlearn_with_early_stopping
from efface.unlearning.inputs import build_inputs
from efface.unlearning.methods import METHODS, Method
from efface.unlearning.plugins import get_plugin_origin, load_plugins

load_plugins(METHODS)


@dataclass(frozen=True, eq=False)
class AuditResult:
    """An audit: what was found of one model, and the verdict."""

    verdict: Verdict
    findings: list[Finding]
    evidence: Evidence
    changes: list[WeightChange] = field(default_factory=list)
    record: Record | None = None
    """The record before it is sealed; None where only observations were judged."""
    keys: tuple[str, ...] = ()
    """The examples to forget."""
    sequence: RequestSequence | None = None
    """Where this was not the first request: all of them together."""

    @property
    def exit_code(self) -> int:
        """The verdict's; where earlier requests were audited too, the worse of the two."""
        return worst_exit_code(self.verdict.exit_code, *([self.sequence.exit_code] if self.sequence else []))

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
        return write_evidence(Path(folder), self.record, self.keys, models, plain_ids=plain_ids)


def split(data: Data, forget: str | None = None, *, seed: int = 0, **sizes: float | str | None) -> Split:
    """Divide the data, and choose what to forget: a selector such as ``@random:0.1``, ``@class:5`` or a file of keys.

    ``sizes``: ``train``, ``valid``, ``holdout``, ``test``, as fractions below 1 or counts, and ``canaries``; see
    :func:`efface.data.split.partition`.
    """
    divided = partition(data, **sizes, seed=seed)  # pyright: ignore[reportArgumentType]
    return divided if forget is None else select(divided, data, forget, seed)


def pretrain(
    data: Data,
    split: Split,
    objective: str | Objective = "simclr",
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    bf16: bool = False,
    log: Log = discard_record,
    resume_store: ResumeStore | None = None,
) -> Checkpoint:
    """Train an original checkpoint on forget and retain together.

    ``bf16``: bfloat16 autocast. ``resume_store``: saves each epoch, so that a cut run goes on bit-identically.
    """
    recipe = recipe or default_recipe(data, objective)
    where, train = resolve_device(device), split.train
    if recipe.batch_size > len(train):
        raise EffaceError(
            f"A batch of {recipe.batch_size} is larger than the {len(train)} training examples.",
            remedy=f"Set recipe.batch_size to at most {len(train)}.",
        )
    if recipe.objective.needs_labels:
        require_labels(data, train, f"The objective '{get_objective_name(recipe.objective)}'")
    if recipe.objective.needs_captions:
        require_captions(data, train, f"The objective '{get_objective_name(recipe.objective)}'")
    run = Run(seed=seed, device=where, log=log, bf16=bf16, resume_store=resume_store)
    part = Subset.of(data, train, recipe.views, "train", where)
    model = fit(recipe.start(seed).to(where), part, recipe, run)
    return Checkpoint(model, recipe, seed=seed, split=split.digest(data), training_cost=run.training_cost)


def unlearn(
    start: Checkpoint,
    data: Data,
    split: Split,
    method: str | Method,
    *,
    seed: int | None = None,
    device: str | torch.device = "auto",
    bf16: bool = False,
    log: Log = discard_record,
    resume_store: ResumeStore | None = None,
    stop: StoppingRule | Mapping[str, Any] | None = None,
    budget: str | float | None = None,
    **settings: Any,
) -> Checkpoint:
    """Apply an unlearning method to a copy of ``start`` and purge what its state remembers of training images.

    ``method``: a name from ``METHODS`` (with ``settings`` as its fields), an instance, or ``auto``: choose one by
    unseen examples (:mod:`efface.unlearning.search`); what was tried is the result's ``search``. ``seed``: by default the
    original's; for ``retrain`` it is the seed of the fresh start. ``stop``: look at unseen examples on the way, end in
    time and give back the best state; what came of it is the result's ``stopped``. A method that itself reads
    ``valid`` is then given one half of it, and the looks the other. ``budget``: most optimizer steps, as ``"5%"`` of
    retraining's or a number; it implies ``stop``.
    """
    where = resolve_device(device)
    seed = start.seed if seed is None else seed
    run = Run(seed=seed, device=where, log=log, bf16=bf16, resume_store=resume_store)
    end = config.build(StoppingRule, stop, path="stop.") if isinstance(stop, Mapping) else stop
    stopped, search = None, None
    if method == plugins.AUTO:
        if settings:
            raise unlearning_search.auto_settings_error(settings)
        found = unlearning_search.search_methods(
            start, data, split, unlearning_search.resolve_budget(budget, start, split), end or StoppingRule(), run
        )
        model, chosen, stopped, search = found.model, found.method, found.stopped, found.search
        run.training_cost.add(found.training_cost)
        end = end or StoppingRule()
    else:
        chosen = method
        if isinstance(chosen, str):
            chosen = config.parse_choice(METHODS, {"name": chosen, **settings}, "method", {Method: METHODS})
        if budget is not None:
            end = replace(end or StoppingRule(), steps=unlearning_search.resolve_budget(budget, start, split))
        if end is None:
            model = copy.deepcopy(start.model).to(where)
            model = chosen.unlearn(model, build_inputs(chosen, start, data, split, where), run)
        else:
            model, stopped = unlearn_with_early_stopping(end, chosen, start, data, split, run)
    purged: dict[str, str] = {}
    if not chosen.exact:
        retain = Subset.of(data, split.retain, start.recipe.views, "retain", where)
        purged = model.objective.purge(model, retain.batches(256, run.rng("purge")) if len(retain) else ())
    return Checkpoint(
        model,
        start.recipe,
        seed=seed,
        parent=start.model.digest(),
        method=config.dump(chosen, {Method: METHODS}) | ({"stop": config.dump(end)} if end else {}),
        origin=get_plugin_origin(type(chosen)),
        exact=chosen.exact,
        split=split.digest(data),
        training_cost=run.training_cost,
        purged=purged,
        trained=start.trained,
        stopped=stopped,
        search=search,
    )


def observe(
    checkpoint: Checkpoint,
    data: Data,
    split: Split,
    watch: ObservationSettings | None = None,
    *,
    device: str | torch.device = "auto",
    scratch: Path | None = None,
) -> Observations:
    """What a checkpoint shows of the split, as arrays; see :mod:`efface.auditing.observations`."""
    model = checkpoint.model.to(resolve_device(device))
    return look(model, data, split, checkpoint.recipe.views, watch or ObservationSettings(), scratch=scratch)


def judge_observations(
    original: Observations,
    subject: Observations,
    oracles: Sequence[Observations] = (),
    *,
    criteria: Criteria | None = None,
    costs: Mapping[str, Cost] | None = None,
    unlearned: Sequence[Observations] = (),
) -> AuditResult:
    """Every audit's findings and the verdict, from arrays alone: milliseconds to seconds, no weights needed.

    Oracles with the subject's own digest are left out: a score minus itself says nothing. ``unlearned``: originals
    with other seeds, unlearned as the subject was; with as many oracles they are pairs (level A2).
    """
    others = tuple(oracle for oracle in oracles if oracle.model != subject.model)
    evidence = Evidence(original, subject, others, dict(costs or {}), unlearned=tuple(unlearned))
    findings = [finding for audit in AUDITS.values() for finding in audit().findings(evidence)]
    return AuditResult(judge(evidence, criteria or Criteria()), findings, evidence)


def audit(
    data: Data,
    split: Split,
    *,
    original: Checkpoint,
    unlearned: Checkpoint,
    oracles: Sequence[Checkpoint] = (),
    criteria: Criteria | None = None,
    watch: ObservationSettings | None = None,
    device: str | torch.device = "auto",
) -> AuditResult:
    """Observe and judge one unlearned checkpoint against its original and, where there are any, oracles."""
    seen = [observe(checkpoint, data, split, watch, device=device) for checkpoint in (original, unlearned, *oracles)]
    costs = {"subject": get_training_cost(unlearned), "original": get_training_cost(original)}
    if oracles:
        costs["oracle"] = get_training_cost(oracles[0])
    result = judge_observations(seen[0], seen[1], seen[2:], criteria=criteria, costs=costs)
    moved = measure_changes(original.model, unlearned.model, unlearned.purged)
    models = {"original": original, "subject": unlearned}
    models |= {f"oracle {i + 1}": oracle for i, oracle in enumerate(oracles)}
    record = compose_record(
        data,
        split,
        {name: checkpoint_facts(model.meta()) for name, model in models.items()},
        result.verdict,
        result.findings,
        Environment.current(torch.__version__, torch.get_num_threads(), str(resolve_device(device))),
        criteria=criteria or Criteria(),
        changes=moved,
        costs=costs,
        config={"recipe": config.dump(original.recipe, CHOICES), "watch": config.dump(watch or ObservationSettings())},
    )
    keys = tuple(str(key) for key in data.keys[split.forget])
    return replace(result, changes=moved, record=record, keys=keys)


def get_training_cost(checkpoint: Checkpoint) -> Cost:
    """The cost of making a checkpoint."""
    tally = checkpoint.training_cost
    return Cost(tally.steps, tally.examples, tally.seconds)


__all__ = ["METHODS", "AuditResult", "audit", "observe", "pretrain", "unlearn"]
