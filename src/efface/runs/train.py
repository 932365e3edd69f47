"""The verbs ``pretrain`` and ``unlearn``: train a model into a new run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from efface import api, config
from efface.data.dataset import Data
from efface.data.split import Split, select_forget_set
from efface.errors import EffaceError
from efface.files import EPOCH
from efface.runs.folder import create_run_folder
from efface.runs.foreign import export_result, is_foreign, require_trained_encoder, start_from_foreign
from efface.runs.lineage import walk_back
from efface.runs.ownership import input_paths
from efface.runs.requests import ForeignOptions, PretrainRequest, UnlearnRequest, refuse_unknown
from efface.runs.run import Progress, load_data, logging, open_run
from efface.training.checkpoint import Checkpoint, EpochStore
from efface.training.defaults import build_recipe
from efface.training.objectives import CHOICES
from efface.unlearning import plugins
from efface.unlearning.methods import METHODS, Method
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
    common = request.resolve()
    data = load_data({"data": request.data})
    split = request.sizes.divide(data, common.seed)
    recipe = build_recipe(data, request.objective, request.recipe)
    stored = {
        "verb": "pretrain",
        "data": request.data,
        "split": request.split,
        "recipe": config.dump(recipe, CHOICES),
        **vars(common),
    }
    inputs = input_paths(request.data, request.split)
    with create_run_folder(out, _as_yaml(stored), force=force, inputs=inputs) as folder:
        split.save(folder, data)
        total = recipe.epochs * -(-len(split.train) // recipe.batch_size)
        with logging(folder, progress, total) as log:
            checkpoint = api.pretrain(
                data, split, recipe=recipe, seed=common.seed, device=common.device, bf16=bool(common.bf16),
                log=log, resume_store=EpochStore(folder / EPOCH, progress.say),
            )  # fmt: skip
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
        request: An :class:`UnlearnRequest`, or a mapping with its fields: forget, forget_seed, method, stop, budget,
            seed, device, bf16; for a foreign checkpoint also those of :class:`ForeignOptions`.
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
    common, method = request.resolve(), request.method
    if foreign is None:
        data, base, checkpoint, inherited = _start_from_run(start)
    else:
        data, base, checkpoint, inherited = start_from_foreign(start, foreign.as_settings(), common.seed, progress.say)
        if foreign.check:
            require_trained_encoder(start, checkpoint, data, base, common)
    forget_seed = checkpoint.seed if request.forget_seed is None else request.forget_seed
    split = select_forget_set(base, data, request.forget, forget_seed)
    stored = {
        "verb": "unlearn",
        "from": str(start.resolve()),
        "parent": checkpoint.model.digest(),
        "forget": request.forget,
        "forget_seed": forget_seed,
        "method": {"name": plugins.AUTO} if method is None else config.dump(method, {Method: METHODS}),
        **({} if request.stop is None else {"stop": config.dump(request.stop)}),
        **({} if request.budget is None else {"budget": request.budget}),
        **inherited,
        **vars(common),
    }
    for warning in split.provenance.get("warnings", []):
        progress.say(str(warning))
    inputs = [start, *input_paths(stored["data"], stored.get("split"), request.forget)]
    with create_run_folder(out, _as_yaml(stored), force=force, inputs=inputs) as folder:
        split.save(folder, data)
        exact = method is not None and method.exact
        store = EpochStore(folder / EPOCH, progress.say) if exact else None
        total = count_retraining_steps(checkpoint, split) if exact else 0
        with logging(folder, progress, total) as log:
            result = api.unlearn(
                checkpoint, data, split, method or plugins.AUTO, seed=common.seed, device=common.device,
                bf16=bool(common.bf16), log=log, resume_store=store, stop=request.stop, budget=request.budget,
            )  # fmt: skip
        if foreign is not None:
            result = export_result(start, foreign.as_settings(), result, data, split, common, folder)
        result.save(folder)
    return result


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


def _start_from_run(start: Path) -> tuple[Data, Split, Checkpoint, dict[str, Any]]:
    """Data, split and checkpoint of a run folder, and the settings that a run made from it inherits."""
    run = open_run(start)
    list(walk_back(run.stored, run.folders))  # a circle raises
    return run.data, run.split, run.checkpoint(), {"data": run.request["data"]}


def _as_yaml(stored: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(stored), sort_keys=False, allow_unicode=True)
