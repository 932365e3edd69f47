"""The verbs on run folders: what the command line calls. Each reads folders, writes one folder, prints nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from efface import api, config
from efface.data.split import select_forget_set
from efface.errors import EffaceError
from efface.files import EPOCH
from efface.runs.folder import create_run_folder
from efface.runs.foreign import FOREIGN, _foreign, _hand_back, _probe, is_foreign
from efface.runs.run import _COMMON, Progress, Sizes, _common, _opened, load_data, logging, refuse_unknown
from efface.training.checkpoint import Checkpoint, EpochStore
from efface.training.defaults import build_recipe
from efface.training.objectives import CHOICES
from efface.unlearning import plugins, search
from efface.unlearning.early_stopping import StoppingRule
from efface.unlearning.methods import METHODS, Method


def pretrain_run(
    out: Path, settings: Mapping[str, Any], *, force: bool = False, progress: Progress | None = None
) -> Checkpoint:
    """Train an original into ``out``. ``settings``: data, split, objective, recipe, seed, device, bf16."""
    progress = progress or Progress()
    known = {"data", "split", "objective", "recipe", *_COMMON}
    refuse_unknown(settings, known)
    common = _common(settings)
    data = load_data(settings)
    split = config.build(Sizes, settings.get("split") or {}, path="split.").divide(data, common.seed)
    recipe = build_recipe(data, str(settings.get("objective", "simclr")), settings.get("recipe") or {})
    request = {
        "verb": "pretrain",
        "data": settings.get("data"),
        "split": settings.get("split") or {},
        "recipe": config.dump(recipe, CHOICES),
        **vars(common),
    }
    with create_run_folder(out, _text(request), force=force) as folder:
        split.save(folder, data)
        total = recipe.epochs * -(-len(split.train) // recipe.batch_size)
        with logging(folder, progress, total) as log:
            keep = EpochStore(folder / EPOCH)
            checkpoint = api.pretrain(
                data, split, recipe=recipe, seed=common.seed, device=common.device, bf16=bool(common.bf16),
                log=log, resume_store=keep,
            )  # fmt: skip
        checkpoint.save(folder)
    return checkpoint


def unlearn_run(
    start: Path, out: Path, settings: Mapping[str, Any], *, force: bool = False, progress: Progress | None = None
) -> Checkpoint:
    """Unlearn into ``out``. ``settings``: forget, forget_seed, method, stop, budget, seed, device, bf16.

    For a foreign checkpoint also data, split, objective, recipe, trust_pickle, check, fresh_head; what came of it is
    written beside ours, in ``foreign/``, in its own layout.
    """
    progress = progress or Progress()
    if not Path(start).exists():
        raise EffaceError(f"There is no checkpoint at {start}.", remedy="Check the path, or run `efface pretrain`.")
    theirs = is_foreign(Path(start))
    known = {"forget", "forget_seed", "method", "stop", "budget", *_COMMON} | (FOREIGN if theirs else set())
    refuse_unknown(settings, known)
    common, method, ending = _common(settings), _method(settings), _ending(settings)
    origin = _foreign(Path(start), settings, common.seed, progress.say) if theirs else _opened(Path(start))
    data, base, checkpoint, inherited = origin
    if theirs and settings.get("check", True):
        _probe(Path(start), checkpoint, data, base, common)
    # By default the original's seed: another --seed retrains another oracle, without the same examples.
    draw = int(settings.get("forget_seed", checkpoint.seed))
    split = select_forget_set(base, data, str(settings["forget"]), draw)
    request = {
        "verb": "unlearn",
        "from": str(Path(start).resolve()),
        "parent": checkpoint.model.digest(),
        "forget": str(settings["forget"]),
        "forget_seed": draw,
        "method": {"name": plugins.AUTO} if method is None else config.dump(method, {Method: METHODS}),
        **{key: config.dump(value) if isinstance(value, StoppingRule) else value for key, value in ending.items()},
        **inherited,
        **vars(common),
    }
    for warning in split.provenance.get("warnings", []):
        progress.say(str(warning))
    with create_run_folder(out, _text(request), force=force) as folder:
        split.save(folder, data)
        exact = method is not None and method.exact
        keep = EpochStore(folder / EPOCH) if exact else None
        total = search.count_retraining_steps(checkpoint, split) if exact else 0
        with logging(folder, progress, total) as log:
            result = api.unlearn(
                checkpoint, data, split, method or plugins.AUTO, seed=common.seed, device=common.device,
                bf16=bool(common.bf16), log=log, resume_store=keep, **ending,
            )  # fmt: skip
        if theirs:
            result = _hand_back(Path(start), settings, result, data, split, common, folder)
        result.save(folder)
    return result


def _method(settings: Mapping[str, Any]) -> Method | None:
    """The method asked for, None for ``auto``; an error if it, or what to forget, was left out."""
    asked = settings.get("method") or ""
    named = dict(asked) if isinstance(asked, Mapping) else {"name": asked}
    if named == {"name": plugins.AUTO}:
        method = None
    elif named.get("name") == plugins.AUTO:
        raise search.auto_settings_error(named.keys() - {"name"})
    else:
        method = config.parse_choice(METHODS, asked, "method", {Method: METHODS}, "method.")
    if not settings.get("forget"):
        raise EffaceError(
            "Nothing was said about which examples to forget.", remedy="Add --forget IDS, as in --forget @random:0.1."
        )
    return method


def _ending(settings: Mapping[str, Any]) -> dict[str, Any]:
    """When to stop, where something was said of it: ``stop`` and ``budget`` as :func:`efface.api.unlearn` has them."""
    found: dict[str, Any] = {}
    if settings.get("stop") is not None:
        found["stop"] = config.build(StoppingRule, settings["stop"], path="stop.")
    if settings.get("budget") is not None:
        found["budget"] = settings["budget"]
    return found


def _text(request: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(request), sort_keys=False, allow_unicode=True)
