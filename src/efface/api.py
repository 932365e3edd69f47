"""The Python interface: split, pretrain, unlearn, observe and audit as plain functions.

The command line calls the same functions through the verbs of :mod:`efface.runs`, which add run folders.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efface import config
from efface.auditing.audits import AUDITS
from efface.auditing.calibration import calibrate_evidence
from efface.auditing.criteria import Criteria
from efface.auditing.evidence import Cost, Evidence, Finding
from efface.auditing.observations import Observations
from efface.auditing.observers.observe import Observed, observe_model
from efface.auditing.observers.settings import ObservationSettings
from efface.auditing.observers.weight_changes import WeightChange, measure_changes
from efface.auditing.reference_bank import ReferenceBank
from efface.auditing.sequential import RequestSequence, worst_exit_code
from efface.auditing.verdict import Verdict, judge
from efface.data.dataset import Data, require_captions, require_labels
from efface.data.split import Split, partition, select_forget_set
from efface.errors import EffaceError
from efface.reporting.bundle import checkpoint_facts, compose_record, write_evidence
from efface.reporting.environment import Environment
from efface.reporting.record import Record
from efface.training.batch import Log, Subset
from efface.training.checkpoint import Checkpoint
from efface.training.defaults import default_recipe, get_objective_name
from efface.training.devices import resolve_device
from efface.training.loop import ResumeStore, Run, StageStore, compute_as, discard_record, fit
from efface.training.networks.weight_kinds import require_float32, require_trainable
from efface.training.objectives import CHOICES, Objective
from efface.training.random_start import require_random_start, uses_own_module
from efface.training.recipe import Recipe
from efface.training.stages import require_filled_shards
from efface.unlearning.early_stopping import StoppingRule, unlearn_with_early_stopping
from efface.unlearning.inputs import build_inputs
from efface.unlearning.methods import METHODS, Method
from efface.unlearning.plugins import AUTO, get_plugin_origin, load_plugins
from efface.unlearning.protocol import Needs
from efface.unlearning.search import BANK_CANDIDATE, auto_settings_error, resolve_budget, search_methods
from efface.unlearning.targets import MarginTargets

load_plugins(METHODS)


@dataclass(frozen=True, eq=False)
class AuditResult:
    """The result of an audit of one model: its findings and the verdict."""

    verdict: Verdict
    findings: list[Finding]
    evidence: Evidence
    changes: list[WeightChange] = field(default_factory=list)
    record: Record | None = None
    """The record before it is sealed; None if only observations were judged."""
    keys: tuple[str, ...] = ()
    """Keys of the examples to forget."""
    sequence: RequestSequence | None = None
    """All requests together, if this was not the first one."""

    @property
    def exit_code(self) -> int:
        """Exit code of the verdict, or of all requests together if that is worse: 0 (removed), 3 (residue) or 4."""
        return worst_exit_code(self.verdict.exit_code, *([self.sequence.exit_code] if self.sequence else []))

    def save(self, folder: str | Path, *, plain_ids: bool = False) -> Record:
        """Write findings, record and report into a folder.

        Args:
            folder: The folder; created if it does not exist.
            plain_ids: Write bare keys into the record instead of digests.

        Returns:
            The sealed record.

        """
        if self.record is None:
            raise EffaceError(
                "A record cannot be made from observations alone.",
                remedy="Use `efface.audit`, which is given the data too.",
            )
        Path(folder).mkdir(parents=True, exist_ok=True)
        evidence = self.evidence
        models = {"original": evidence.original, "subject": evidence.subject}
        models |= {f"oracle {i}": oracle for i, oracle in enumerate(evidence.oracles, 1)}
        return write_evidence(Path(folder), self.record, self.keys, models, plain_ids=plain_ids)


def split(
    data: Data,
    forget: str | None = None,
    *,
    seed: int = 0,
    allow_duplicates: bool = False,
    **sizes: float | str | None,
) -> Split:
    """Divide the data into parts, and choose the examples to forget.

    Args:
        data: The examples.
        forget: A selector such as ``@random:0.1`` or ``@class:5``, or a file of keys; None: nothing yet.
        seed: Seed of the division and of a random selector.
        allow_duplicates: Keep training on exact copies of listed examples, with a warning instead of an error.
        sizes: ``train``, ``valid``, ``holdout`` and ``test`` as fractions below 1 or as counts, and ``canaries``; see
            :func:`efface.data.split.partition`.

    Example:
        >>> divided = split(data, forget="@random:0.1", train=600)  # doctest: +SKIP

    """
    divided = partition(data, **sizes, seed=seed)  # pyright: ignore[reportArgumentType]
    if forget is None:
        return divided
    return select_forget_set(divided, data, forget, seed, allow_duplicates=allow_duplicates)


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
    stage_store: StageStore | None = None,
) -> Checkpoint:
    """Train an original checkpoint on the forget and retain examples together.

    Args:
        data: The examples.
        split: Which examples are trained on.
        objective: Name or instance of the objective; ignored if ``recipe`` is given.
        recipe: What to train and how; by default a recipe that fits the data and the objective.
        seed: Seed of everything random.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``, or a device.
        bf16: Use bfloat16 autocast.
        log: Called with a record after each optimizer step.
        resume_store: Saves the state after each epoch, so that an interrupted run resumes bit-identically.
        stage_store: Keeps the stages of a sharded training, for later requests.

    Returns:
        The trained checkpoint.

    Raises:
        EffaceError: There are fewer training examples than a batch holds, labels or captions are missing, or the
            network that the user's own function builds is frozen.

    Example:
        >>> original = pretrain(data, split, "simclr", seed=0)  # doctest: +SKIP

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
    if recipe.shards is not None:
        require_random_start(recipe)  # its networks are retrained from the beginning, one by one
        group = None if data.group is None else data.group[train]
        require_filled_shards(data.keys[train], group, recipe, seed)
    run = Run(seed=seed, device=where, log=log, bf16=bf16, resume_store=resume_store, stage_store=stage_store)
    part = Subset.of(data, train, recipe.views, "train", where)
    fresh = recipe.start(seed).to(where)
    require_trainable(fresh.backbone, recipe.backbone.name)
    model = fit(fresh, part, recipe, run)
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
    stage_store: StageStore | None = None,
    stop: StoppingRule | Mapping[str, Any] | None = None,
    budget: str | float | None = None,
    bank: ReferenceBank | None = None,
    **settings: Any,
) -> Checkpoint:
    """Apply an unlearning method to a copy of a checkpoint, and purge what else its state remembers of training images.

    Args:
        start: The original checkpoint; it is not changed.
        data: The examples.
        split: Which examples to forget, and which to retain.
        method: A name from ``METHODS``, a method, or ``auto``: with a bank the method that takes targets from it, else
            choose one by unseen examples, see :mod:`efface.unlearning.search`; the trials are then in the result's
            ``search``.
        seed: Seed of everything random; by default the original's. For ``retrain`` it is the seed of the new weights.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``, or a device.
        bf16: Use bfloat16 autocast.
        log: Called with a record after each optimizer step.
        resume_store: Saves the state after each epoch; used by ``retrain``.
        stage_store: Keeps the stages of a sharded training; ``shards`` reads from it what a request leaves clean.
        stop: Early stopping: observe unseen examples during the method, stop it in time and return the best state. The
            outcome is in the result's ``stopped``. A method that uses ``valid`` itself gets one half of it.
        budget: Largest number of optimizer steps, as ``"5%"`` of retraining's or as a number; implies ``stop``.
        bank: A reference bank of the original, for methods that take targets from it; they get one half of it.
        settings: Fields of the method, if it is given by name.

    Returns:
        The unlearned checkpoint.

    Raises:
        EffaceError: The method or a setting is unknown, the split lacks examples that the method needs, or the whole
            model is frozen.

    Example:
        >>> forgotten = unlearn(original, data, split, "scrub", alpha=0.5)  # doctest: +SKIP

    """
    require_float32(start.model, "The model")
    require_trainable(start.model, "The model")
    if uses_own_module(start.recipe):  # deployment code likes to return a frozen one, of which only the head would move
        require_trainable(start.model.backbone, start.recipe.backbone.name)
    where = resolve_device(device)
    seed = start.seed if seed is None else seed
    run = Run(seed=seed, device=where, log=log, bf16=bf16, resume_store=resume_store, stage_store=stage_store)
    end = config.build(StoppingRule, stop, path="stop.") if isinstance(stop, Mapping) else stop
    stopped, search = None, None
    if method == AUTO and bank is not None and end is None and budget is None:
        if settings:
            raise auto_settings_error(settings)
        method = BANK_CANDIDATE  # it knows how hard each example is, and needs no trials
    asked = METHODS.get(method) if isinstance(method, str) else method
    if (end is not None or budget is not None) and asked is not None and Needs.TARGETS in asked.needs:
        raise EffaceError(
            "A method that takes targets from a reference bank cannot be stopped early.",
            "Early stopping divides the unseen examples that its targets are measured from.",
            "Leave out --stop and --budget.",
        )
    if start.recipe.shards is not None and (method == AUTO or end is not None or budget is not None):
        raise EffaceError(
            "A checkpoint that was trained in shards is unlearned exactly, and cannot be searched or stopped early.",
            "Half of an exact training is another model.",
            "Use --method shards, without --stop and --budget.",
        )
    if method == AUTO:
        if settings:
            raise auto_settings_error(settings)
        found = search_methods(start, data, split, resolve_budget(budget, start, split), end or StoppingRule(), run)
        model, chosen, stopped, search = found.model, found.method, found.stopped, found.search
        run.training_cost.add(found.training_cost)
        end = end or StoppingRule()
    else:
        chosen = method
        if isinstance(chosen, str):
            chosen = config.parse_choice(METHODS, {"name": chosen, **settings}, "method", {Method: METHODS})
        if budget is not None:
            end = replace(end or StoppingRule(), steps=resolve_budget(budget, start, split))
        if end is None:
            model = copy.deepcopy(start.model).to(where)
            targets = None if bank is None else margin_targets(bank, chosen, data, split)
            inputs = build_inputs(chosen, start, data, split, where, targets)
            with compute_as(run, model):
                model = chosen.unlearn(model, inputs, run)
        else:
            model, stopped = unlearn_with_early_stopping(end, chosen, start, data, split, run)
    run.read_steps()
    used = bank.part_for("method").digest if bank is not None and Needs.TARGETS in chosen.needs else None
    purged: dict[str, str] = {}
    if not chosen.exact:
        retain = Subset.of(data, split.retain, start.recipe.views, "retain", where)
        with compute_as(run, model):
            purged = model.objective.purge(model, retain.batches(256, run.rng("purge")) if len(retain) else ())
    model.bf16, model.world = start.model.bf16, start.model.world  # also of a copy that a method made and returned
    return Checkpoint(
        model,
        start.recipe,
        seed=seed,
        parent=start.model.digest(),
        method=config.dump(chosen, {Method: METHODS})
        | ({"stop": config.dump(end)} if end else {})
        | ({} if used is None else {"bank": used}),
        origin=get_plugin_origin(type(chosen)),
        exact=chosen.exact,
        split=split.digest(data),
        training_cost=run.training_cost,
        purged=purged,
        trained=start.trained,
        stopped=stopped,
        search=search,
    )


def margin_targets(bank: ReferenceBank, method: Method, data: Data, split: Split) -> MarginTargets | None:
    """Take the targets of a method from its half of a reference bank; None for a method that needs none.

    Args:
        bank: The whole bank.
        method: The method that is going to run.
        data: The examples.
        split: The split; the targets are those of ``forget``.

    Raises:
        EffaceError: The bank has too few pairs, no such margins, or was observed at another temperature.

    """
    if Needs.TARGETS not in method.needs:
        return None
    half, tau = bank.part_for("method"), float(getattr(method, "tau", 0.1))
    observed = float((bank.meta.get("watch") or {}).get("temperature", tau))
    if observed != tau:
        raise EffaceError(
            f"The reference bank was observed at temperature {observed:g}, and the method works at {tau:g}.",
            "Margins at different temperatures cannot be compared.",
            f"Set method.tau={observed:g}, or make the bank with --set watch.temperature={tau:g}.",
        )
    output = ("projector.margin", tau)
    for other in (("pair.margin", tau), ("logits.margin", 1.0)):
        output = other if other[0] in half.scores else output
    signals = {"backbone": ("backbone.margin", tau), "output": output}

    def take(positions: np.ndarray) -> dict[str, torch.Tensor]:
        keys = data.keys[positions]
        found = {space: half.targets(keys, signal) * unit for space, (signal, unit) in signals.items()}
        return {space: torch.from_numpy(values).float() for space, values in found.items()}

    held = split.valid[half.valid[half.positions(data.keys[split.valid])]]
    forget, valid = torch.from_numpy(split.forget), torch.from_numpy(held)
    return MarginTargets(forget, take(split.forget), half.digest, tau, valid, take(held))


def observe(
    checkpoint: Checkpoint,
    data: Data,
    split: Split,
    watch: ObservationSettings | None = None,
    *,
    device: str | torch.device = "auto",
    scratch: Path | None = None,
    withheld: Data | None = None,
    on_observed: Observed = lambda done, total: None,
) -> Observations:
    """Observe a checkpoint on the examples of a split: embeddings, losses and scores as arrays.

    Args:
        checkpoint: The model to observe.
        data: The examples.
        split: The parts to observe.
        watch: How to observe them; the same settings for all models that are compared.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``, or a device.
        scratch: Folder for temporary files.
        withheld: Pictures of the auditor's own, of which nobody else could know; see ``efface audit --withheld``.
        on_observed: Called with how many examples are done, and of how many, after each batch.

    Returns:
        Arrays by part and name; see :mod:`efface.auditing.observations`.

    """
    model = checkpoint.model.to(resolve_device(device))
    return observe_model(
        model, data, split, checkpoint.recipe.views, watch or ObservationSettings(),
        scratch=scratch, withheld=withheld, on_observed=on_observed,
    )  # fmt: skip


def judge_observations(
    original: Observations,
    subject: Observations,
    oracles: Sequence[Observations] = (),
    *,
    criteria: Criteria | None = None,
    costs: Mapping[str, Cost] | None = None,
    unlearned: Sequence[Observations] = (),
    fixed: Criteria | None = None,
    claimed: Collection[str] = (),
    bank: ReferenceBank | None = None,
) -> AuditResult:
    """Run all audits on observations and judge them; needs no weights and takes milliseconds to seconds.

    Args:
        original: Observations of the original.
        subject: Observations of the unlearned model.
        oracles: Observations of retrained references. Those with the subject's own weights are left out: the
            difference of a score to itself is no evidence.
        criteria: Criteria of the verdict.
        costs: Training costs by role: ``original``, ``subject``, ``oracle``.
        unlearned: Observations of originals with other seeds that were unlearned as the subject was; together with as
            many retrained references they form pairs (level A2).
        fixed: The criteria that were fixed before unlearning, if ``criteria`` are others.
        claimed: Digests of oracles that are only stated never to have seen the forget set: they can speak against
            ``removed``, never for it.
        bank: A reference bank of the original: it calibrates the scores, and the learned attack decides as well.

    """
    others = tuple(oracle for oracle in oracles if oracle.model != subject.model)
    known = frozenset(claimed) & {oracle.model for oracle in others}
    evidence = Evidence(original, subject, others, dict(costs or {}), unlearned=tuple(unlearned), claimed=known)
    evidence = calibrate_evidence(evidence, bank)
    findings = [finding for audit in AUDITS.values() for finding in audit().findings(evidence)]
    return AuditResult(judge(evidence, criteria or Criteria(), fixed=fixed), findings, evidence)


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
    """Judge an unlearned checkpoint against its original and retrained references.

    Args:
        data: The examples.
        split: The split that it was unlearned with.
        original: The checkpoint before unlearning.
        unlearned: The checkpoint after unlearning.
        oracles: Checkpoints retrained without the examples to forget; with them the verdict can reach level A1. Those
            that were not made on this split by an exact method count as claims: they cannot carry ``removed``.
        criteria: Criteria of the verdict.
        watch: How to observe the models.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``, or a device.

    Returns:
        Findings, verdict and record; ``save`` writes them into a folder.

    Example:
        >>> result = audit(data, split, original=original, unlearned=forgotten, oracles=[retrained])  # doctest: +SKIP
        >>> result.verdict.word  # doctest: +SKIP

    """
    observed = [
        observe(checkpoint, data, split, watch, device=device) for checkpoint in (original, unlearned, *oracles)
    ]
    costs = {"subject": get_training_cost(unlearned), "original": get_training_cost(original)}
    if oracles:
        costs["oracle"] = get_training_cost(oracles[0])
    shown = split.digest(data)
    claimed = [
        seen.model for seen, one in zip(observed[2:], oracles, strict=True) if not (one.exact and one.split == shown)
    ]
    result = judge_observations(observed[0], observed[1], observed[2:], criteria=criteria, costs=costs, claimed=claimed)
    changes = measure_changes(original.model, unlearned.model, unlearned.purged)
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
        changes=changes,
        costs=costs,
        config={"recipe": config.dump(original.recipe, CHOICES), "watch": config.dump(watch or ObservationSettings())},
    )
    keys = tuple(str(key) for key in data.keys[split.forget])
    return replace(result, changes=changes, record=record, keys=keys)


def get_training_cost(checkpoint: Checkpoint) -> Cost:
    """The cost of making a checkpoint, in steps, examples and seconds."""
    cost = checkpoint.training_cost
    return Cost(cost.steps, cost.examples, cost.seconds)


__all__ = ["METHODS", "AuditResult", "audit", "observe", "pretrain", "unlearn"]
