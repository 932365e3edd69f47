"""The verbs on run folders: what the command line calls. Each reads folders, writes one folder, prints nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from efface import api, config, foreign
from efface.adopt import adopt, described, hand_back, objective_of
from efface.architecture import Guess, guess
from efface.checkpoint import CHOICES, META, Checkpoint, EpochKeeper, read_meta
from efface.data import Data
from efface.errors import EffaceError, nearest
from efface.folder import EPOCH, LOG, REQUEST, SPLIT, JsonLines, write_text, writing
from efface.foreign import Foreign
from efface.layouts.container import weights_file
from efface.methods import METHODS, Method
from efface.objectives import OBJECTIVES
from efface.probe import probe, require_better
from efface.sources import load
from efface.splits import Split, forget, partition
from efface.train import Recipe, Run

FOREIGN = {"data", "split", "objective", "recipe", "trust_pickle", "check"}
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


@dataclass(frozen=True, kw_only=True)
class Common:
    """Settings that every verb shares."""

    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``mps``."""
    bf16: bool | None = None
    """bfloat16 autocast; by default only on a GPU."""

    def precision(self) -> bool:
        """Whether to run networks in bfloat16."""
        return self.bf16 if self.bf16 is not None else api.device_of(self.device).type == "cuda"


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


def recipe_of(data: Data, objective: str, changed: Mapping[str, Any]) -> Recipe:
    """The default recipe for the data and objective, with the user's changes."""
    values = {key: value for key, value in changed.items() if key != "objective"}
    named = changed.get("objective", objective)
    chosen = config.choose(OBJECTIVES, named, "objective", CHOICES, "recipe.objective.")
    base = config.dump(api.default_recipe(data, chosen), CHOICES)
    return config.build(Recipe, _merged(base, values), CHOICES, "recipe.")


def pretrain(
    out: Path, settings: Mapping[str, Any], *, force: bool = False, progress: Progress | None = None
) -> Checkpoint:
    """Train an original into ``out``. ``settings``: data, split, objective, recipe, seed, device, bf16."""
    progress = progress or Progress()
    known = {"data", "split", "objective", "recipe", *_COMMON}
    refuse_unknown(settings, known)
    common = _common(settings)
    data = load_data(settings)
    split = partition(data, **vars(config.build(Sizes, settings.get("split") or {}, path="split.")), seed=common.seed)
    recipe = recipe_of(data, str(settings.get("objective", "simclr")), settings.get("recipe") or {})
    request = {
        "verb": "pretrain",
        "data": settings.get("data"),
        "split": settings.get("split") or {},
        "recipe": config.dump(recipe, CHOICES),
        **vars(common),
    }
    with writing(out, _text(request), force=force) as folder:
        _store_split(folder, data, split)
        total = recipe.epochs * -(-len(split.train) // recipe.batch_size)
        with logging(folder, progress, total) as log:
            keep = EpochKeeper(folder / EPOCH)
            checkpoint = api.pretrain(
                data, split, recipe=recipe, seed=common.seed, device=common.device, bf16=common.precision(),
                log=log, keep=keep,
            )  # fmt: skip
        checkpoint.save(folder)
    return checkpoint


def unlearn(
    start: Path, out: Path, settings: Mapping[str, Any], *, force: bool = False, progress: Progress | None = None
) -> Checkpoint:
    """Unlearn into ``out``. ``settings``: forget, forget_seed, method, seed, device, bf16.

    For a foreign checkpoint also data, split, objective, recipe, trust_pickle, check; what came of it is written
    beside ours, in ``foreign/``, in its own layout.
    """
    progress = progress or Progress()
    if not Path(start).exists():
        raise EffaceError(f"There is no checkpoint at {start}.", remedy="Check the path, or run `efface pretrain`.")
    theirs = is_foreign(Path(start))
    known = {"forget", "forget_seed", "method", *_COMMON} | (FOREIGN if theirs else set())
    refuse_unknown(settings, known)
    common, method = _common(settings), _method(settings)
    file = foreign.read(Path(start), trust_pickle=bool(settings.get("trust_pickle"))) if theirs else None
    origin = _opened(Path(start)) if file is None else _adopted(file, settings, common.seed, progress.say)
    data, base, checkpoint, inherited = origin
    if file is not None and settings.get("check", True):
        _probe(file, checkpoint, data, base, common)
    # By default the original's seed: another --seed retrains another oracle, without the same examples.
    draw = int(settings.get("forget_seed", checkpoint.seed))
    split = forget(base, data, str(settings["forget"]), draw)
    request = {
        "verb": "unlearn",
        "from": str(Path(start).resolve()),
        "parent": checkpoint.model.digest(),
        "forget": str(settings["forget"]),
        "forget_seed": draw,
        "method": config.dump(method, {Method: METHODS}),
        **inherited,
        **vars(common),
    }
    for warning in split.provenance.get("warnings", []):
        progress.say(str(warning))
    with writing(out, _text(request), force=force) as folder:
        _store_split(folder, data, split)
        keep = EpochKeeper(folder / EPOCH) if method.exact else None
        recipe = checkpoint.recipe
        total = recipe.epochs * -(-len(split.retain) // recipe.batch_size) if method.exact else 0
        with logging(folder, progress, total) as log:
            result = api.unlearn(
                checkpoint, data, split, method, seed=common.seed, device=common.device, bf16=common.precision(),
                log=log, keep=keep,
            )  # fmt: skip
        if file is not None:
            result = _hand_back(file, result, data, split, common, folder)
        result.save(folder)
    return result


def _method(settings: Mapping[str, Any]) -> Method:
    """The method asked for; an error if it, or what to forget, was left out."""
    method = config.choose(METHODS, settings.get("method") or "", "method", {Method: METHODS}, "method.")
    if not settings.get("forget"):
        raise EffaceError(
            "Nothing was said about which examples to forget.", remedy="Add --forget IDS, as in --forget @random:0.1."
        )
    return method


def opened(folder: Path) -> Opened:
    """A finished run folder, its data loaded and its split checked against them."""
    meta = read_meta(folder)
    request = config.read(Path(folder) / REQUEST)
    data = load_data(request)
    split = Split.from_dict(data, json.loads((Path(folder) / SPLIT).read_text(encoding="utf-8")))
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
    return config.build(Common, {key: settings[key] for key in _COMMON if key in settings})


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
    file = foreign.read(path, trust_pickle=bool(settings.get("trust_pickle")))
    return _adopted(file, settings, seed, lambda sentence: None)


def is_foreign(start: Path) -> bool:
    """Whether a path is a file of weights or another library's folder, and not a run folder."""
    return not (start / META).exists() and weights_file(start) is not None


def _adopted(
    file: Foreign, settings: Mapping[str, Any], seed: int, say: Callable[[str], None]
) -> tuple[Data, Split, Checkpoint, dict[str, Any]]:
    """Foreign weights in a model of our own: its shape from the file, changed by the settings."""
    data, seen = load_data(settings), guess(file)
    _suits(file, seen, data)
    changed = dict(settings.get("recipe") or {})
    stated = settings.get("objective") or changed.get("objective")
    objective = objective_of(file, stated.get("name") if isinstance(stated, Mapping) else stated)
    told = described(file, seen, objective)
    own = changed.pop("objective", None)
    own = {"name": own} if isinstance(own, str) else dict(own or {})
    if (changed.get("backbone") or {}).get("name"):
        told.pop("backbone", None)  # the user's network, with nothing of the guessed one
    elif seen.backbone is None:
        raise EffaceError(
            f"The network in {file.path} is none that can be guessed: {seen.name}.",
            f"Its layout is {file.layout.name}; of its names no backbone is known here.",
            "Set recipe.backbone.name, such as timm:NAME, if it is one of theirs under the same names.",
        )
    recipe = recipe_of(data, objective, _merged(told, {**changed, "objective": own}))
    adopted = adopt(file, recipe.start(seed), objective)
    if not stated and not file.layout.objective:
        say(f"{file.path.name}: nothing says what it was trained with; taken to be {objective} (else: --objective)")
    settled = {"mean", "std"} & changed.keys(), changed.get("backbone")
    guessed = [note for note in seen.notes if not settled[0 if note.startswith("normalization") else 1]]
    for note in (*file.layout.notes, *guessed, *adopted.notes):
        say(f"{file.path.name}: {note}")
    checkpoint = Checkpoint(adopted.model, recipe, seed=seed, trained=False)
    split = partition(data, **vars(config.build(Sizes, settings.get("split") or {}, path="split.")), seed=seed)
    inherited = {"data": settings["data"], "split": settings.get("split") or {}, "recipe": config.dump(recipe, CHOICES)}
    if settings.get("trust_pickle"):
        inherited["trust_pickle"] = True
    return data, split, checkpoint, inherited


def _suits(file: Foreign, seen: Guess, data: Data) -> None:
    """An error unless the images are what the network was made for, as far as its weights show it."""
    channels, *size = data.shape
    if seen.channels != channels:
        raise EffaceError(
            f"The network in {file.path} looks at {seen.channels} channels, and these images have {channels}.",
            remedy=f"Set data.channels={seen.channels}, where the data has that option.",
        )
    if seen.size is not None and seen.size != tuple(size):
        raise EffaceError(
            f"The network in {file.path} looks at {seen.size[0]}x{seen.size[1]} images, and these are "
            f"{size[0]}x{size[1]}.",
            "A transformer has one embedding for each place of an image.",
            f"Set data.size={seen.size[0]}, where the data has that option.",
        )


def _probe(file: Foreign, start: Checkpoint, data: Data, split: Split, common: Common) -> None:
    """Refuse an encoder that sees no more than the same network with random weights."""
    device, run = api.device_of(common.device), Run(seed=common.seed)
    others = [start.recipe.start(run.rng("random", n).initial_seed() % 2**31).to(device) for n in range(3)]
    part = api.part_of(data, split.train, start.recipe.views, "probe", device)
    require_better(probe(start.model.to(device), others, part, run.rng("probe")), file.path, start.recipe)


def _hand_back(file: Foreign, result: Checkpoint, data: Data, split: Split, common: Common, folder: Path) -> Checkpoint:
    """Write the result in the foreign layout too, and note what was done with each part of it."""
    out, run = folder / "foreign", Run(seed=common.seed)
    if out.exists():
        shutil.rmtree(out)  # of an attempt that was cut
    out.mkdir()
    retain = api.part_of(data, split.retain, result.recipe.views, "retain", api.device_of(common.device))
    batches = retain.batches(256, run.rng("purge")) if len(retain) else ()
    notes = hand_back(file, result.model, batches, run.rng("foreign"), out)
    return replace(result, purged=result.purged | notes)


def _store_split(folder: Path, data: Data, split: Split) -> None:
    write_text(folder / SPLIT, json.dumps(split.to_dict(data)))


def _text(request: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(request), sort_keys=False, allow_unicode=True)


def _merged(base: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changed.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result
