"""The verbs ``pretrain`` and ``unlearn``: train a model into a new run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from efface import api, config
from efface.data.dataset import Data
from efface.data.identity import IDENTITY, DataIdentity
from efface.data.pixel_caches import list_residual_caches, purge_caches
from efface.data.selection import describe_selection
from efface.data.split import EARLIER, Split, select_forget_set
from efface.errors import EffaceError
from efface.files import EPOCH, REQUEST
from efface.runs.binding import fix_criteria, forgotten_digest
from efface.runs.comparison import lineage
from efface.runs.data_at_hand import DataAtHand, locate_data, require_same_pictures, stored_data
from efface.runs.exact_runs import write_exact_record
from efface.runs.folder import create_run_folder
from efface.runs.foreign import consent_of, is_foreign, require_trained_encoder, start_from_foreign
from efface.runs.handover import Pattern, find_pattern, hand_back
from efface.runs.kept import bind_stages, open_kept_stages, with_own_seed
from efface.runs.lineage import walk_back
from efface.runs.method_bank import describe_unused_bank, open_method_bank
from efface.runs.ownership import input_paths
from efface.runs.requests import ForeignOptions, PretrainRequest, UnlearnRequest, refuse_unknown
from efface.runs.run import Progress, load_data, logging, open_run
from efface.runs.task_utility import compare_tasks, measure_task
from efface.training.checkpoint import Checkpoint, EpochStore
from efface.training.defaults import build_recipe
from efface.training.devices import resolve_device
from efface.training.micro_batches import uses_batch_statistics
from efface.training.model import Model
from efface.training.objectives import CHOICES
from efface.training.processes import current_world, join_processes
from efface.training.random_start import describe_start
from efface.training.stages import estimate_steps
from efface.unlearning import plugins
from efface.unlearning.methods import METHODS, Method, RetrainShards
from efface.unlearning.search import count_retraining_steps


def pretrain_run(
    out: Path,
    request: PretrainRequest | Mapping[str, Any],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Checkpoint:
    """Train an original checkpoint into the folder ``out``; if interrupted, the same call resumes it.

    Args:
        out: The run folder to write.
        request: A :class:`PretrainRequest`, or a mapping with its fields: data, split, objective, recipe, seed, device,
            bf16.
        force: Replace ``out`` if it exists.
        progress: Receives steps and messages.

    Raises:
        EffaceError: A setting is unknown or out of range, or ``out`` exists.

    Example:
        >>> original = pretrain_run(Path("runs/original"), {"data": "digits"})  # doctest: +SKIP

    """
    progress, request = progress or Progress(), PretrainRequest.of(request)
    join_processes(request.device)
    common = request.resolve()
    data = load_data({"data": request.data})
    for note in data.notes:
        progress.say(note)
    split = request.sizes.divide(data, common.seed)
    recipe = build_recipe(data, request.objective, request.recipe)
    stored = {
        "verb": "pretrain",
        **stored_data(request.data),
        "split": request.split,
        "recipe": config.dump(recipe, CHOICES),
        **({} if request.criteria is None else {"criteria": config.dump(request.criteria)}),
        **vars(common),
    }
    inputs = input_paths(request.data, request.split)
    with create_run_folder(out, _as_yaml(stored), force=force, inputs=inputs) as folder:
        identity = record_identity(folder, data, split, stored["data"])
        split.save(folder, data)
        total, kept = estimate_steps(recipe, len(split.train)), open_kept_stages(folder, recipe)
        for sentence in describe_start(recipe):
            progress.say(sentence)
        if recipe.micro_batch is not None:
            say_about_parts(recipe.start(common.seed), progress)
        with logging(folder, progress, total) as log:
            checkpoint = api.pretrain(
                data, split, recipe=recipe, seed=common.seed, device=common.device, bf16=bool(common.bf16),
                log=log, resume_store=EpochStore(folder / EPOCH, progress.say), stage_store=kept,
            )  # fmt: skip
        fixed = fix_criteria(request.criteria, {}) | bind_stages(kept)
        checkpoint = replace(checkpoint, identity=identity, fixed=fixed)
        checkpoint.save(folder)
    return checkpoint


def unlearn_run(
    start: Path,
    out: Path,
    request: UnlearnRequest | Mapping[str, Any],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Checkpoint:
    """Unlearn from a checkpoint into the folder ``out``; the checkpoint itself stays as it is.

    Args:
        start: A run folder, or another library's checkpoint. The result of a foreign checkpoint is also written in its
            own layout, into ``out/foreign``.
        out: The run folder to write.
        request: An :class:`UnlearnRequest`, or a mapping with its fields: forget, forget_seed, allow_duplicates,
            method, stop, budget, skip_never_trained, purge_cache, data, allow_changed, allow_absent, seed, device,
            bf16; for a foreign checkpoint also those of :class:`ForeignOptions`.
        force: Replace ``out`` if it exists.
        progress: Receives steps and messages.

    Raises:
        EffaceError: A setting is unknown or out of range, ``start`` is no checkpoint, or ``out`` exists.

    Example:
        >>> settings = {"forget": "@random:0.1", "method": "finetune"}
        >>> unlearn_run(Path("runs/original"), Path("runs/forgotten"), settings)  # doctest: +SKIP

    """
    progress, start = progress or Progress(), Path(start)
    if not start.exists():
        raise EffaceError(f"There is no checkpoint at {start}.", remedy="Check the path, or run `efface pretrain`.")
    request, foreign = _unlearn_request(request, foreign=is_foreign(start))
    join_processes(request.device)
    common, method = request.resolve(), request.method
    if foreign is None:
        here, checkpoint, inherited, ancestors = _start_from_run(start, request)
        data, base, pattern = here.data, here.split, find_pattern(start, request.consent)
    else:
        ancestors: tuple[str, ...] = ()
        data, base, checkpoint, inherited = start_from_foreign(
            start,
            foreign.as_settings(),
            common.seed,
            progress.say,
            check=foreign.check and not foreign.checked,
            device=common.device,
        )
        if foreign.check:
            require_trained_encoder(start, checkpoint, data, base, common)
        here = DataAtHand(data, base, DataIdentity.of(data, inherited["data"]))
        settings = foreign.as_settings()
        trust = consent_of(settings).covers(start, named=True)
        pattern = Pattern(start, str(settings.get("averaged") or "copy"), trust)
    bank = None if request.bank is None else open_method_bank(Path(request.bank), checkpoint, data, base, ancestors)
    common = with_own_seed(common, method, checkpoint)
    forget_seed = checkpoint.seed if request.forget_seed is None else request.forget_seed
    split = select_forget_set(
        base, data, request.forget, forget_seed,
        allow_duplicates=request.allow_duplicates, skip_never_trained=request.skip_never_trained,
    )  # fmt: skip
    notes = [*here.notes, *here.require_trained_pictures(split.forget, request.allow_changed)]
    split.provenance["warnings"] = [*split.provenance.get("warnings", []), *notes]
    stored = {
        "verb": "unlearn",
        "from": str(start.resolve()),
        "parent": checkpoint.model.digest(),
        "forget": request.forget,
        "forget_seed": forget_seed,
        **({"allow_duplicates": True} if request.allow_duplicates else {}),
        "method": {"name": plugins.AUTO} if method is None else config.dump(method, {Method: METHODS}),
        **({} if request.stop is None else {"stop": config.dump(request.stop)}),
        **({} if request.bank is None else {"bank": str(Path(request.bank).resolve())}),
        **({} if request.budget is None else {"budget": request.budget}),
        **({} if request.criteria is None else {"criteria": config.dump(request.criteria)}),
        **inherited,
        **vars(common),
    }
    for note in (*data.notes, *describe_selection(split.provenance["resolved"])):
        progress.say(note)
    if bank is not None:
        limited = request.stop is not None or request.budget is not None
        for note in describe_unused_bank(stored["method"]["name"], method, limited=limited):
            progress.say(note)
    for warning in split.provenance.get("warnings", []):
        progress.say(str(warning))
    say_about_parts(checkpoint.model, progress)
    inputs = [start, *input_paths(stored["data"], stored.get("split"), request.forget)]
    with create_run_folder(out, _as_yaml(stored), force=force, inputs=inputs) as folder:
        exact = method is not None and method.exact
        identity = record_identity(folder, data, split, stored["data"], here, split.retain if exact else None)
        split.save(folder, data)
        store = EpochStore(folder / EPOCH, progress.say) if exact else None
        clean = start if isinstance(method, RetrainShards) else None
        kept = open_kept_stages(folder, checkpoint.recipe, clean, checkpoint) if exact else None
        total = count_retraining_steps(checkpoint, split) if exact else 0
        with logging(folder, progress, total) as log:
            result = api.unlearn(
                checkpoint, data, split, method or plugins.AUTO, seed=common.seed, device=common.device,
                bf16=bool(common.bf16), log=log, resume_store=store, stage_store=kept, stop=request.stop,
                budget=request.budget, bank=bank,
            )  # fmt: skip
        say_what_it_cost(checkpoint, result, data, split, common.device, progress)
        if pattern is not None:
            result = hand_back(pattern, result, data, split, common, folder)
        forgotten = [key for part in ("forget", EARLIER) for key in split.keys(data, part)]
        look = purge_caches if request.purge_cache else list_residual_caches
        caches = current_world().lead(lambda: look(data, forgotten, here.former_roots))
        for cache, done in caches.items():
            progress.say(f"{cache}: {done}")
        fixed = fix_criteria(request.criteria, checkpoint.fixed) | {"pictures": forgotten_digest(data, split)}
        fixed |= bind_stages(kept)
        result = replace(result, identity=identity, purged=result.purged | caches, fixed=fixed)
        result.save(folder)
        if isinstance(method, RetrainShards):
            write_exact_record(folder, start, checkpoint, result, data, split)
        (folder / REQUEST).chmod(0o600)  # it may list the keys of the forgotten examples
    return result


def say_what_it_cost(
    before: Checkpoint, after: Checkpoint, data: Data, split: Split, device: str, progress: Progress
) -> None:
    """Say what unlearning cost the model on its own task, and warn if that is too much."""
    where, allowed = resolve_device(device), float(fix_criteria(None, before.fixed)["criteria"]["max_utility_drop"])
    old, new = (measure_task(one.model, data, split, where) for one in (before, after))
    for sentence in compare_tasks(old, new, allowed)[0]:
        progress.say(sentence)


def say_about_parts(model: Model, progress: Progress) -> None:
    """Say so if a batch that goes through the network in parts is not computed as the whole one."""
    if model.micro_batch is not None and uses_batch_statistics(model):
        progress.say(
            f"recipe.micro_batch: BatchNorm normalizes over {model.micro_batch} images at once, not over the whole "
            "batch; everything else is computed as for the whole batch"
        )


def record_identity(
    folder: Path,
    data: Data,
    split: Split,
    source: Any,
    here: DataAtHand | None = None,
    trained: np.ndarray | None = None,
) -> str:
    """Write the record of the pictures that a run is made with into its folder.

    Args:
        folder: The unfinished run folder; a training that is resumed there must have the same pictures.
        data: The data.
        split: The split of the run.
        source: The settings of the data, for a new record.
        here: The data of the run that this one starts from, whose record is continued; None for an original.
        trained: Positions of all examples that a new model is trained on; None if it starts from the old weights.

    Returns:
        The digest of the record; empty if the run that this one starts from has none.

    """
    if here is not None and here.identity is None:
        return ""
    if here is None or here.identity is None:
        made = DataIdentity.of(data, source)
    else:
        made = here.identity if trained is None else here.identity.renewed(data, trained)
    if (folder / EPOCH).exists() and (folder / IDENTITY).exists():
        require_same_pictures(DataIdentity.load(folder), data, split, folder)
    return made.save(folder)


def _unlearn_request(
    given: UnlearnRequest | Mapping[str, Any], *, foreign: bool
) -> tuple[UnlearnRequest, ForeignOptions | None]:
    """The request, and its options for a foreign checkpoint; None for a run folder, which knows its own."""
    if not isinstance(given, UnlearnRequest):
        given = UnlearnRequest.from_settings(given, foreign=foreign)
    if foreign:
        return given, given.foreign or ForeignOptions()
    if given.foreign is not None:
        refuse_unknown(given.foreign.as_settings(), ())
    return given, None


def _start_from_run(
    start: Path, request: UnlearnRequest
) -> tuple[DataAtHand, Checkpoint, dict[str, Any], tuple[str, ...]]:
    """Data and checkpoint of a run folder, the settings that a run from it inherits, and its ancestors' digests."""
    run = open_run(start, request, judged=False)
    list(walk_back(run.stored, run.folders))  # a circle raises
    checkpoint = run.checkpoint().in_parts(request.micro_batch)
    kept = {key: run.request[key] for key in ("data", "data_given") if key in run.request}
    inherited = stored_data(locate_data(run.request, request.data)) if request.data else kept
    return run.at_hand, checkpoint, inherited, lineage(run)


def _as_yaml(stored: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(stored), sort_keys=False, allow_unicode=True)
