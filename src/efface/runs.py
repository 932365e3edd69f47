"""The verbs on run folders: what the command line calls. Each reads folders, writes one folder, prints nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from efface import api, auto, config, foreign
from efface.adopt import adopt, hand_back
from efface.checkpoint import CHOICES, META, Checkpoint, EpochKeeper, read_meta
from efface.data import Data
from efface.errors import EffaceError, nearest
from efface.folder import EPOCH, LOG, JsonLines, read_request, writing
from efface.foreign import Foreign
from efface.giving import part_of
from efface.layouts.container import weights_file
from efface.methods import METHODS, Method
from efface.model import Model
from efface.probe import probe, require_better
from efface.shape import recipe_of, shape_of
from efface.sources import load
from efface.splits import Split, around, forget, partition
from efface.stopping import Stop
from efface.train import Recipe, Run

FOREIGN = {"data", "split", "objective", "recipe", "trust_pickle", "check", "fresh_head"}
"""Settings of unlearning that only a foreign checkpoint needs: a run folder knows."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the split, as fractions (below 1) or counts; fixed at pretraining and stored."""

    train: float | int | None = None
    """Training examples; by default all that the others leave."""
    valid: float | int = 0.1
    """Never trained on; methods may see them."""
    holdout: float | int = 0.1
    """Never trained on; only audits see them: the non-members."""
    test: float | int = 0.1
    """Never trained on; utility is measured here."""
    canaries: str | None = None
    """Folder that `efface canaries plan` wrote: included ones are trained on, excluded ones are in the holdout."""
    trained: str | None = None
    """Of a foreign checkpoint: what it was trained on, as a file of keys or a selector such as ``@group:train``. The
    other parts are drawn from the rest."""

    def divide(self, data: Data, seed: int) -> Split:
        """The data divided by these sizes."""
        drawn = {"valid": self.valid, "holdout": self.holdout, "test": self.test}
        if self.trained is None:
            return partition(data, train=self.train, **drawn, canaries=self.canaries, seed=seed)
        if self.canaries is not None:
            raise EffaceError(
                "split.canaries and split.trained were both given.",
                "Canaries are planted before training, and the foreign checkpoint was trained already.",
                "Give one of the two.",
            )
        return around(data, self.trained, **drawn, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Common:
    """Settings that every verb shares."""

    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``mps``."""
    bf16: bool | None = None
    """bfloat16 autocast; by default where it is faster: on a GPU, and on a CPU that can multiply bfloat16."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A run folder with the data and split it was made with."""

    folder: Path
    request: dict[str, Any]
    data: Data
    split: Split

    def checkpoint(self) -> Checkpoint:
        """The run's checkpoint."""
        return Checkpoint.load(self.folder)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a verb reports: optimizer steps as they happen, and sentences worth saying."""

    steps: Callable[[dict[str, Any], int], None] = lambda record, total: None
    say: Callable[[str], None] = lambda sentence: None
    status: Callable[[str], None] = lambda sentence: None
    """What is going on at the moment; the next one takes its place."""


def pretrain(
    out: Path, settings: Mapping[str, Any], *, force: bool = False, progress: Progress | None = None
) -> Checkpoint:
    """Train an original into ``out``. ``settings``: data, split, objective, recipe, seed, device, bf16."""
    progress = progress or Progress()
    known = {"data", "split", "objective", "recipe", *_COMMON}
    refuse_unknown(settings, known)
    common = _common(settings)
    data = load_data(settings)
    split = config.build(Sizes, settings.get("split") or {}, path="split.").divide(data, common.seed)
    recipe = recipe_of(data, str(settings.get("objective", "simclr")), settings.get("recipe") or {})
    request = {
        "verb": "pretrain",
        "data": settings.get("data"),
        "split": settings.get("split") or {},
        "recipe": config.dump(recipe, CHOICES),
        **vars(common),
    }
    with writing(out, _text(request), force=force) as folder:
        split.save(folder, data)
        total = recipe.epochs * -(-len(split.train) // recipe.batch_size)
        with logging(folder, progress, total) as log:
            keep = EpochKeeper(folder / EPOCH)
            checkpoint = api.pretrain(
                data, split, recipe=recipe, seed=common.seed, device=common.device, bf16=bool(common.bf16),
                log=log, keep=keep,
            )  # fmt: skip
        checkpoint.save(folder)
    return checkpoint


def unlearn(
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
    split = forget(base, data, str(settings["forget"]), draw)
    request = {
        "verb": "unlearn",
        "from": str(Path(start).resolve()),
        "parent": checkpoint.model.digest(),
        "forget": str(settings["forget"]),
        "forget_seed": draw,
        "method": {"name": auto.AUTO} if method is None else config.dump(method, {Method: METHODS}),
        **{key: config.dump(value) if isinstance(value, Stop) else value for key, value in ending.items()},
        **inherited,
        **vars(common),
    }
    for warning in split.provenance.get("warnings", []):
        progress.say(str(warning))
    with writing(out, _text(request), force=force) as folder:
        split.save(folder, data)
        exact = method is not None and method.exact
        keep = EpochKeeper(folder / EPOCH) if exact else None
        total = auto.retraining(checkpoint, split) if exact else 0
        with logging(folder, progress, total) as log:
            result = api.unlearn(
                checkpoint, data, split, method or auto.AUTO, seed=common.seed, device=common.device,
                bf16=bool(common.bf16), log=log, keep=keep, **ending,
            )  # fmt: skip
        if theirs:
            result = _hand_back(Path(start), settings, result, data, split, common, folder)
        result.save(folder)
    return result


def _method(settings: Mapping[str, Any]) -> Method | None:
    """The method asked for, None for ``auto``; an error if it, or what to forget, was left out."""
    asked = settings.get("method") or ""
    named = dict(asked) if isinstance(asked, Mapping) else {"name": asked}
    if named == {"name": auto.AUTO}:
        method = None
    elif named.get("name") == auto.AUTO:
        raise auto.settings_given(named.keys() - {"name"})
    else:
        method = config.choose(METHODS, asked, "method", {Method: METHODS}, "method.")
    if not settings.get("forget"):
        raise EffaceError(
            "Nothing was said about which examples to forget.", remedy="Add --forget IDS, as in --forget @random:0.1."
        )
    return method


def _ending(settings: Mapping[str, Any]) -> dict[str, Any]:
    """When to stop, where something was said of it: ``stop`` and ``budget`` as :func:`efface.api.unlearn` has them."""
    found: dict[str, Any] = {}
    if settings.get("stop") is not None:
        found["stop"] = config.build(Stop, settings["stop"], path="stop.")
    if settings.get("budget") is not None:
        found["budget"] = settings["budget"]
    return found


def opened(folder: Path) -> Opened:
    """A finished run folder, its data loaded and its split checked against them."""
    meta = read_meta(folder)
    request = read_request(folder)
    data = load_data(request)
    split = Split.load(folder, data)
    if split.digest(data) != meta["split"]:
        raise EffaceError(
            f"The split stored in {folder} is not the one its checkpoint was made with.",
            remedy="Restore the folder from where it came, or make it again.",
        )
    return Opened(Path(folder), request, data, split)


@contextmanager
def logging(folder: Path, progress: Progress, total: int):
    """A log that writes ``log.jsonl`` in the folder and shows progress."""
    lines = JsonLines(folder / LOG)

    def log(record: dict[str, Any]) -> None:
        lines(record)
        progress.steps(record, total)

    try:
        yield log
    finally:
        lines.close()


_COMMON = tuple(Common.__dataclass_fields__)


def _common(settings: Mapping[str, Any]) -> Common:
    """With the precision that was chosen, so that the run says which it was."""
    asked = config.build(Common, {key: settings[key] for key in _COMMON if key in settings})
    return asked if asked.bf16 is not None else replace(asked, bf16=api.bf16_pays(api.device_of(asked.device)))


def refuse_unknown(settings: Mapping[str, Any], known: set[str]) -> None:
    """An error that names a setting which this verb does not have, and the nearest that it has."""
    for key in settings:
        if key not in known:
            raise EffaceError(
                f"There is no setting '{key}' here.{nearest(key, known)}", f"Known: {', '.join(sorted(known))}."
            )


def load_data(settings: Mapping[str, Any]) -> Data:
    """The data that ``settings["data"]`` names: a source, a path, or a mapping with ``source`` and options."""
    value = settings.get("data")
    if not value:
        raise EffaceError(
            "Nothing was said about the data.", remedy="Add --data NAME or --data PATH; `efface data` lists the names."
        )
    options = {"source": value} if isinstance(value, str) else dict(value)
    return load(str(options.pop("source", options.pop("name", ""))), **options)


def _opened(start: Path) -> tuple[Data, Split, Checkpoint, dict[str, Any]]:
    run = opened(start)
    inherited = {"data": run.request["data"]}
    return run.data, run.split, run.checkpoint(), inherited


def foreign_start(path: Path, settings: Mapping[str, Any], seed: int) -> tuple[Data, Split, Checkpoint, dict[str, Any]]:
    """A foreign checkpoint as it was when a run was made from it; ``settings``: that run's request."""
    return _foreign(path, settings, seed, lambda sentence: None)


def _foreign(
    path: Path, settings: Mapping[str, Any], seed: int, say: Callable[[str], None]
) -> tuple[Data, Split, Checkpoint, dict[str, Any]]:
    """A foreign checkpoint adopted; the file's own tensors are let go again, and read anew to be handed back."""
    return _adopted(_read(path, settings), settings, seed, say)


def _read(path: Path, settings: Mapping[str, Any]) -> Foreign:
    return foreign.read(path, trust_pickle=bool(settings.get("trust_pickle")))


def is_foreign(start: Path) -> bool:
    """Whether a path is a file of weights or another library's folder, and not a run folder."""
    return not (start / META).exists() and weights_file(start) is not None


def _adopted(
    file: Foreign, settings: Mapping[str, Any], seed: int, say: Callable[[str], None]
) -> tuple[Data, Split, Checkpoint, dict[str, Any]]:
    """Foreign weights in a model of our own: its shape from the file, changed by the settings."""
    data = load_data(settings)
    shape = shape_of(file, data, settings)
    recipe, seen, changed = shape.recipe, shape.seen, dict(settings.get("recipe") or {})
    adopted = adopt(file, recipe.start(seed), shape.objective, fresh_head=bool(settings.get("fresh_head")))
    if shape.guessed:
        say(
            f"{file.path.name}: nothing says what it was trained with; taken to be {shape.objective} "
            "(else: --objective)"
        )
    settled = {"mean", "std"} & changed.keys(), changed.get("backbone")
    guessed = [note for note in seen.notes if not settled[0 if note.startswith("normalization") else 1]]
    for note in (*file.layout.notes, *guessed, *adopted.notes):
        say(f"{file.path.name}: {note}")
    checkpoint = Checkpoint(adopted.model, recipe, seed=seed, trained=False)
    sizes = config.build(Sizes, settings.get("split") or {}, path="split.")
    split = sizes.divide(data, seed)
    if sizes.trained is None:
        say(
            f"{file.path.name}: nothing says what it was trained on; taken to be {len(split.train)} of {len(data)} "
            "images, and the rest as never seen (else: --set split.trained=FILE of keys)"
        )
    inherited = {"data": settings["data"], "split": settings.get("split") or {}, "recipe": config.dump(recipe, CHOICES)}
    inherited |= {key: True for key in ("trust_pickle", "fresh_head") if settings.get(key)}
    return data, split, checkpoint, inherited


def _random(recipe: Recipe, seed: int, device: torch.device) -> Model:
    return recipe.start(seed).to(device)


def _probe(path: Path, start: Checkpoint, data: Data, split: Split, common: Common) -> None:
    """Refuse an encoder that sees no more than the same network with random weights."""
    device, run = api.device_of(common.device), Run(seed=common.seed)
    seeds = [run.rng("random", n).initial_seed() % 2**31 for n in range(3)]
    others = [partial(_random, start.recipe, seed, device) for seed in seeds]
    part = part_of(data, split.train, start.recipe.views, "probe", device)
    require_better(probe(start.model.to(device), others, part, run.rng("probe")), path, start.recipe)


def _hand_back(
    path: Path,
    settings: Mapping[str, Any],
    result: Checkpoint,
    data: Data,
    split: Split,
    common: Common,
    folder: Path,
) -> Checkpoint:
    """Write the result in the foreign layout too, and note what was done with each part of it."""
    out, run = folder / "foreign", Run(seed=common.seed)
    if out.exists():
        shutil.rmtree(out)  # of an attempt that was cut
    out.mkdir()
    retain = part_of(data, split.retain, result.recipe.views, "retain", api.device_of(common.device))
    batches = retain.batches(256, run.rng("purge")) if len(retain) else ()
    notes = hand_back(_read(path, settings), result.model, batches, run.rng("foreign"), out)
    return replace(result, purged=result.purged | notes)


def _text(request: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(request), sort_keys=False, allow_unicode=True)
