"""The verb ``init``: describe another library's model in a ``model.yaml``, and check the description on its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efface import config
from efface.errors import EffaceError
from efface.files import disk_errors, make_folder
from efface.interop.assumptions import AssumptionCheck
from efface.interop.layouts import Role
from efface.interop.model_file import (
    YAML_SUFFIXES,
    ModelFile,
    Source,
    Value,
    digest_values,
    digest_weights,
    is_model_file,
    read_model_file,
    require_same_weights,
    require_sound,
    store_checks,
    write_model_file,
)
from efface.runs.adoption import Adoption, check_adoption
from efface.runs.data_at_hand import absolute_data
from efface.runs.foreign import adopt_foreign, is_foreign
from efface.runs.library_comparison import compare_with_library
from efface.runs.lineage import find_source, walk_back
from efface.runs.ownership import require_apart
from efface.runs.preprocessing import reads_pictures
from efface.runs.requests import ForeignOptions, VerbRequest
from efface.runs.run import Common, Progress, RunFolders
from efface.training.checkpoint import META
from efface.training.defaults import merge_settings
from efface.training.networks.own_module import LIBRARY, allow_own_module
from efface.training.objectives import CHOICES

DOUBTFUL = 3
"""Exit code of ``init`` where something that is assumed does not fit."""
NO_NOTE = ""
DESCRIBED = ("backbone", "objective", "mean", "std", "order", "views")
"""Settings of the recipe that have a value of their own in a ``model.yaml``; all others are kept together."""


MEASURES = (
    "head, kNN: share of training images that the classifier, or their neighbors, name right. margin: how well two "
    "views agree. drift: how far the statistics of the first BatchNorm are from those in training; 0 is not at all."
)
MEND_FIRST = "Mend {} first, and try again with --force: what is said below it may come from that."


@dataclass(frozen=True, kw_only=True)
class InitRequest(Common, ForeignOptions, VerbRequest):
    """What ``efface init`` is asked to do."""

    split: Mapping[str, Any] = field(default_factory=dict)
    """Sizes of the split, and ``trained``: what the model was trained on."""


@dataclass(frozen=True, eq=False)
class ModelDescription:
    """A described model."""

    path: Path
    """The ``model.yaml``."""
    content: ModelFile
    checks: tuple[AssumptionCheck, ...]

    @property
    def exit_code(self) -> int:
        """0, or 3 if something that is assumed does not fit."""
        return DOUBTFUL if any(one.word == "failed" for one in self.checks) else 0

    def as_dict(self) -> dict[str, Any]:
        """What can be written as JSON."""
        return {"path": str(self.path), **self.content.model_dump(mode="json")}

    def lines(self) -> list[str]:
        """The lines to print."""
        shown = [f"{self.content.checkpoint}: {self.content.layout}"]
        for name, one in self.content.values.items():
            note = f"  ({one.note})" if one.note else ""
            shown.append(f"  {name:<14} {one.source:<9} {_shorten(one.value)}{note}")
        for check in self.content.checks:
            shown.append(f"{check.topic}: {check.word}. {check.note}")
            shown += [f"    {name:<48} {fit}" for name, fit in check.tried.items()] if len(check.tried) > 1 else []
            shown += [f"    {check.remedy}"] if check.remedy else []
        shown += [MEASURES] if any(len(check.tried) > 1 for check in self.content.checks) else []
        failed = [check.topic for check in self.content.checks if check.word == "failed"]
        shown += [MEND_FIRST.format(failed[0])] if len(failed) > 1 else []
        return [*shown, f"Written: {self.path}"]


def describe_model(
    checkpoint: Path,
    out: Path,
    request: InitRequest | Mapping[str, Any],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> ModelDescription:
    """Describe another library's checkpoint in a ``model.yaml``, and check the description on real data.

    Args:
        checkpoint: A file of weights, or a model folder.
        out: The ``model.yaml`` to write.
        request: An :class:`InitRequest`, or a mapping with its fields.
        force: Replace ``out``, if it is a ``model.yaml``.
        progress: Receives progress messages.

    Raises:
        EffaceError: The checkpoint is none of another library, or cannot be loaded; ``out`` exists.

    """
    progress, checkpoint, out = progress or Progress(), Path(checkpoint), Path(out)
    request = InitRequest.of(request)
    if not checkpoint.exists():
        raise EffaceError(f"There is no checkpoint at {checkpoint}.", remedy="Check the path.")
    if not is_foreign(checkpoint):
        raise EffaceError(
            f"{checkpoint} is not another library's checkpoint.",
            "A run folder of efface describes its own model." if checkpoint.is_dir() else "",
            "Name a file of weights or a model folder.",
        )
    _require_free(out, checkpoint, force)
    progress.say(f"Reading {checkpoint}")
    one = adopt_foreign(checkpoint, request.as_settings(), request.seed, request.device)
    progress.say(f"Trying what is assumed on {len(one.sample())} training images")
    checks = (*check_adoption(one), *compare_with_library(one)) if request.check else ()
    values = describe_values(one)
    content = ModelFile(
        format=1,
        checkpoint=str(checkpoint.resolve()),
        sha256=digest_weights(checkpoint),
        layout=one.file.layout.name,
        values=values,
        data=_plain(absolute_data(one.settings.get("data"))),
        checked=digest_values(values) if checks else None,
        checks=store_checks(checks),
    )
    make_folder(out.parent)
    with disk_errors(out):
        write_model_file(out, content)
    return ModelDescription(out, content, checks)


def describe_values(one: Adoption) -> dict[str, Value]:
    """What is known or assumed about a model, and where each value comes from."""
    loaded, settings = one.loaded, one.settings
    recipe, stated = config.dump(loaded.recipe, CHOICES), settings.get("recipe") or {}
    values = {"architecture": Value(value=loaded.architecture.name, source=Source.SNIFFED)}
    named, heads = stated.get("backbone"), [n for n in loaded.architecture.notes if not n.startswith("normalization")]
    source = Source.STATED if named else Source.SNIFFED
    if not named and one.file.layout.name.startswith(("transformers", "open_clip")) and one.file.meta:
        source = Source.CONFIG
    values["backbone"] = Value(value=recipe["backbone"], source=source, note="; ".join(heads))
    values["parts"] = Value(value=_count_parts(one), source=Source.FILE)
    objective = settings.get("objective") or stated.get("objective")
    source = Source.STATED if objective else Source.ASSUMED if loaded.guessed_objective else Source.FILE
    layers = [note for note in loaded.notes if note.startswith("head assumed")]
    values["objective"] = Value(value=recipe["objective"], source=source, note="; ".join(layers))
    if one.data.y is not None:
        values["classes"] = _describe_classes(one)
    values |= _describe_preprocessing(one, recipe)
    trained = (settings.get("split") or {}).get("trained")
    values["trained"] = Value(
        value=str(Path(trained).resolve()) if trained and Path(str(trained)).is_file() else trained,
        source=Source.STATED if trained else Source.ASSUMED,
        note=NO_NOTE if trained else "no file says it: a random part of the data is taken for it",
    )
    views = Source.STATED if "views" in stated else Source.ASSUMED
    note = NO_NOTE if "views" in stated else "no file says it: usual augmentations of the objective (recipe.views)"
    values["views"] = Value(value=recipe["views"], source=views, note=note)
    others = {name: value for name, value in stated.items() if name not in DESCRIBED}
    if others:
        values["recipe"] = Value(value=others, source=Source.STATED)
    if settings.get("fresh_head"):
        values["fresh_head"] = Value(value=True, source=Source.STATED)
    return values


def use_model_file(
    settings: Mapping[str, Any], model: Path | None, start: Path
) -> tuple[Path, dict[str, Any], list[str]]:
    """Let the settings of a verb follow a ``model.yaml``; what the user states otherwise wins.

    Args:
        settings: The settings of the verb.
        model: The ``model.yaml`` of ``--model``; None if there is none.
        start: The checkpoint of the verb, which may be the ``model.yaml`` itself.

    Returns:
        The checkpoint, the settings, and sentences to say.

    Raises:
        EffaceError: The file describes other weights, or a value in it does not fit the training images.

    """
    if model is not None and is_function_name(model):
        settings, model = _use_own_module(settings, str(model), start), None
    if model is None and not is_model_file(start):
        return start, dict(settings), []
    file = model or start
    content = read_model_file(file)
    start = Path(content.checkpoint) if model is None else start
    if not is_foreign(start):
        return start, dict(settings), use_model_of_run(file, start)
    require_same_weights(content, start, file)
    notes = require_sound(content, file) if settings.get("check", True) else []
    ours = content.settings()
    given = settings.get("data")
    options = {"source": given} if isinstance(given, str) else dict(given or {})
    if not options:
        ours["data"] = content.data | ours["data"]
    source = options or ours["data"]
    if options.get("size") is not None or not reads_pictures(source):
        ours["data"].pop("preprocessing", None)
    if options.get("preprocessing") is not None or not reads_pictures(source):
        ours["data"].pop("size", None)
    merged = merge_settings(ours, {**settings, "data": options} if options else settings)
    changed = (
        options or settings.get("recipe") or settings.get("objective") or "trained" in (settings.get("split") or {})
    )
    if content.is_checked and not changed:
        merged["checked"] = True
    if isinstance(settings.get("objective"), str) and settings["objective"] != ours.get("objective"):
        merged["recipe"] = {k: v for k, v in merged.get("recipe", {}).items() if k != "objective"}
    return start, merged, notes


def describe_stored_model(model: Path | None, start: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The checkpoint that a ``model.yaml`` describes, what it says, and that as lines to print.

    Args:
        model: The ``model.yaml``; None if ``start`` may be one itself.
        start: The checkpoint, or the ``model.yaml``.

    Raises:
        EffaceError: The file describes other weights.

    """
    file = model if model is not None else start if is_model_file(start) else None
    if file is None:
        return start, {}, []
    content = read_model_file(file)
    start = Path(content.checkpoint) if model is None else start
    require_same_weights(content, start, file)
    lines = ModelDescription(file, content, ()).lines()[1:-1]
    return start, content.model_dump(mode="json"), [f"described in {file}", *lines]


def use_model_of_run(model: Path | None, run: Path | None) -> list[str]:
    """Let a verb that reads a run folder follow ``--model``: consent to the user's function, or a check.

    Args:
        model: The function of the user's that builds the network, or the ``model.yaml`` of what the run was made from.
        run: The run folder; None if only the consent is of use.

    Returns:
        Sentences to say.

    Raises:
        EffaceError: The ``model.yaml`` describes other weights than those that the run was made from.

    """
    if model is None:
        return []
    if is_function_name(model):
        allow_own_module(str(model))
        return []
    content = read_model_file(model)
    if run is None:
        return []
    folders = RunFolders()
    oldest = list(walk_back(folders.read(run), folders))[-1]
    source = find_source(oldest)
    if source is None or (source / META).exists():
        raise EffaceError(
            f"{run} goes back to a model that was trained here, so {model} cannot describe it.",
            "A run folder of efface describes its own model.",
            "Leave out --model.",
        )
    if not source.exists():
        return [f"{model}: not compared with what {run} was made from, since {source} is not there any more"]
    require_same_weights(content, source, model)
    return []


def is_function_name(model: Path) -> bool:
    """Whether the value of ``--model`` names a function and not a file."""
    return ":" in str(model) and not model.exists()


def _use_own_module(settings: Mapping[str, Any], name: str, start: Path) -> dict[str, Any]:
    """Let the user's own function build the network; a run folder names it already, and this is the consent."""
    allow_own_module(name)
    if is_model_file(start) or not is_foreign(start):
        return dict(settings)
    return merge_settings({"recipe": {"backbone": {"name": f"{LIBRARY}:{name}"}}}, settings)


def use_model_to_embed(
    settings: Mapping[str, Any], model: Path | None, start: Path
) -> tuple[Path, dict[str, Any], list[str]]:
    """As :func:`use_model_file`, for verbs that embed: they have neither a split nor a head to train."""
    start, merged, notes = use_model_file(settings, model, start)
    left_out = {"split", "fresh_head", "checked"} - settings.keys()
    return start, {key: value for key, value in merged.items() if key not in left_out}, notes


def _describe_classes(one: Adoption) -> Value:
    stated = (one.settings.get("data") or {}) if isinstance(one.settings.get("data"), Mapping) else {}
    source = Source.STATED if stated.get("classes") is not None else Source.CONFIG if one.naming else Source.ASSUMED
    return Value(value=list(one.data.classes), source=source, note=one.naming)


def _describe_preprocessing(one: Adoption, recipe: Mapping[str, Any]) -> dict[str, Value]:
    stated, options = one.settings.get("recipe") or {}, one.settings.get("data")
    options = options if isinstance(options, Mapping) else {}
    words = " ".join(one.preparation)
    if options.get("preprocessing") is not None:
        source = Source.STATED if "as you state" in words else Source.CONFIG
        found = {"preprocessing": Value(value=options["preprocessing"], source=source, note="; ".join(one.preparation))}
    else:
        source = Source.STATED if options.get("size") is not None else Source.ASSUMED
        found = {"size": Value(value=options.get("size"), source=source, note="; ".join(one.preparation))}
    note = next((note for note in one.loaded.architecture.notes if note.startswith("normalization")), NO_NOTE)
    origin = Source.CONFIG if " as " in note and "own layer" not in note else Source.ASSUMED
    origin = Source.FILE if "own layer" in note else origin
    for name in ("mean", "std", "order"):
        value = recipe[name]
        mine = Source.STATED if name in stated else origin
        if name == "order" and name not in stated:
            mine = Source.CONFIG if one.loaded.architecture.reversed_colors else Source.ASSUMED
        shown = note if mine is not Source.STATED and name != "order" else NO_NOTE
        found[name] = Value(value=list(value) if isinstance(value, (list, tuple)) else value, source=mine, note=shown)
    return found


def _count_parts(one: Adoption) -> dict[str, int]:
    """Numbers in each part of the file."""
    counts = {str(role): sum(value.numel() for value in one.file.part(role).values()) for role in Role}
    return {role: count for role, count in counts.items() if count}


def _require_free(out: Path, checkpoint: Path, force: bool) -> None:
    if out.suffix.lower() not in YAML_SUFFIXES:
        raise EffaceError(f"The description cannot be written to {out}.", "It is YAML.", "Name a .yaml file.")
    require_apart(out, [checkpoint])
    if not out.exists():
        return
    if not force:
        raise EffaceError(f"{out} exists already.", "", "Choose another --out, or add --force.")
    try:
        read_model_file(out)
    except EffaceError as error:
        raise EffaceError(
            f"--force does not replace {out}: it is no description of a model.", error.what, "Choose another --out."
        ) from error


def _plain(value: Any) -> dict[str, Any]:
    return {"source": value} if isinstance(value, str) else dict(value or {})


def _shorten(value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return str(value["name"])
    text = str(value)
    return text if len(text) <= 90 else f"{text[:87]}..."
