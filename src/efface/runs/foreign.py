"""Start a run from another library's checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from efface import config
from efface.data.dataset import Data
from efface.data.split import Split
from efface.interop.assumptions import require_passed
from efface.interop.averages import AveragedWeights
from efface.interop.checkpoint_file import ForeignCheckpoint, read_foreign
from efface.interop.consent import Consent, pickle_digests
from efface.interop.containers import weights_file
from efface.interop.export_weights import plan_export
from efface.interop.head_check import knows_labels, name_classes
from efface.interop.load import LoadedCheckpoint, load_checkpoint
from efface.interop.preprocessing import read_stated
from efface.interop.safe_load import UntrustedPickleError
from efface.interop.sanity_check import compare_with_random, require_better_than_random
from efface.interop.unlearned_marker import read_marker
from efface.runs.adoption import Adoption, check_adoption
from efface.runs.data_at_hand import load_data, stored_data
from efface.runs.handover import forgotten_before, leave_out
from efface.runs.preprocessing import prepare_as_stated
from efface.runs.run import Common, Sizes
from efface.training.batch import Subset
from efface.training.checkpoint import META, Checkpoint
from efface.training.devices import resolve_device
from efface.training.loop import Run
from efface.training.model import Model
from efface.training.objectives import CHOICES
from efface.training.recipe import Recipe


def is_foreign(start: Path) -> bool:
    """Whether a path is a file of weights or another library's folder, and not a run folder."""
    return not (start / META).exists() and weights_file(start) is not None


def load_foreign(
    path: Path,
    data: Data,
    settings: Mapping[str, Any],
    seed: int,
    consent: Consent | None = None,
    *,
    named_by: str = "",
) -> Checkpoint:
    """Load a foreign checkpoint as the original of a run.

    Args:
        path: The file or folder.
        data: The data of the run.
        settings: The run's request; ``objective``, ``recipe``, ``fresh_head`` and ``averaged`` are used.
        seed: The run's seed: the parts that the file does not have are drawn with it.
        consent: What may be unpickled; by default nothing. What the request says about that is never believed.
        named_by: What named the path, if the user did not; consent must then be given for its digest.

    """
    consent = consent or Consent()
    try:
        loaded = _load(path, data, settings, seed, trust=consent.covers(path, named=not named_by))
    except UntrustedPickleError as error:
        if named_by:
            raise consent.explain(error, path, named_by) from error
        raise
    return _as_checkpoint(loaded, seed)


def adopt_foreign(path: Path, settings: Mapping[str, Any], seed: int, device: str = "auto") -> Adoption:
    """Load a foreign checkpoint with its data and its split; nothing about it is checked yet.

    Args:
        path: The file or folder.
        settings: ``data``, ``split``, ``objective``, ``recipe``, ``fresh_head``, ``averaged``, and consent.
        seed: Seed of the split, and of the parts that the file does not have.
        device: Where it is tried.

    """
    file = read_foreign(path, trust_pickle=consent_of(settings).covers(path, named=True))
    prepared, preparation = prepare_as_stated(settings.get("data"), read_stated(file))
    settings = {**settings, "data": prepared}
    data, naming = name_classes(path, load_data(settings), prepared)
    loaded = _load(file, data, settings, seed)
    sizes = dict(settings.get("split") or {})
    before = forgotten_before(path, data, read_marker(path, file.meta), sizes.pop("forgotten", None))
    split = leave_out(config.build(Sizes, sizes, path="split.").divide(data, seed), data, before)
    where = resolve_device(device)
    if len(before):
        preparation.append(f"{len(before)} examples that it was made to forget before stay out of training")
    return Adoption(file, loaded, data, split, settings, seed, where, tuple(preparation), naming)


def start_from_foreign(
    path: Path,
    settings: Mapping[str, Any],
    seed: int,
    say: Callable[[str], None],
    *,
    check: bool = False,
    device: str = "auto",
) -> tuple[Data, Split, Checkpoint, dict[str, Any]]:
    """Load a foreign checkpoint, its data and its split, to unlearn from it.

    The tensors of the file are released, to save memory; :func:`efface.runs.handover.hand_back` reads them again.

    Args:
        path: The file or folder.
        settings: The request to unlearn.
        seed: Seed of the split, and of the parts that the file does not have.
        say: Receives one sentence for everything that was assumed.
        check: Whether what is assumed is tried on the training data.
        device: Where it is tried.

    Returns:
        Data, split, checkpoint, and the settings that the run stores because the file does not hold them.

    """
    one = adopt_foreign(path, settings, seed, device)
    settings, data, split, loaded = one.settings, one.data, one.split, one.loaded
    file_name = loaded.file.path.name
    averaged = settings.get("averaged") or AveragedWeights.COPY
    notes = [*loaded.notes, *one.preparation, *([one.naming] if one.naming else [])]
    for note in (*notes, *plan_export(loaded.file, loaded.model, averaged)):
        say(f"{file_name}: {note}")
    if not (settings.get("split") or {}).get("trained"):
        say(
            f"{file_name}: nothing says what it was trained on; taken to be {len(split.train)} of {len(data)} "
            "images, and the rest as never seen (else: --set split.trained=FILE of keys)"
        )
    if check:
        for doubt in require_passed(path, check_adoption(one)):
            say(f"{file_name}: {doubt}")
    inherited = {
        **stored_data(settings["data"]),
        "split": settings.get("split") or {},
        "recipe": config.dump(loaded.recipe, CHOICES),
    }
    if settings.get("fresh_head"):
        inherited["fresh_head"] = True
    inherited |= {"averaged": str(averaged)} if settings.get("averaged") else {}
    if consent_of(settings).covers(path, named=True):
        inherited["unpickled"] = pickle_digests(path)  # only a fact: no later command takes it for consent
    return data, split, _as_checkpoint(loaded, seed), inherited


def require_trained_encoder(path: Path, start: Checkpoint, data: Data, split: Split, common: Common) -> None:
    """Raise an error unless the encoder is better than the same network with random weights.

    A classifier whose head answers far more training images right than chance would is known to be trained.
    """
    device, run = resolve_device(common.device), Run(seed=common.seed)
    if knows_labels(start.model, data, split.train, device):
        return
    seeds = [run.rng("random", n).initial_seed() % 2**31 for n in range(3)]
    random_models = [partial(_random_model, start.recipe, seed, device) for seed in seeds]
    images = Subset.of(data, split.train, start.recipe.views, "probe", device)
    results = compare_with_random(start.model.to(device), random_models, images, run.rng("probe"))
    require_better_than_random(results, path, start.recipe)


def consent_of(settings: Mapping[str, Any]) -> Consent:
    """The consent in the settings of a call; settings that were read from a run folder are no consent."""
    return Consent.of(settings.get("trust_pickle"), settings.get("trusted"))


def _load(
    path: Path | ForeignCheckpoint, data: Data, settings: Mapping[str, Any], seed: int, *, trust: bool = False
) -> LoadedCheckpoint:
    return load_checkpoint(
        path,
        data,
        objective=settings.get("objective"),
        recipe=settings.get("recipe"),
        seed=seed,
        fresh_head=bool(settings.get("fresh_head")),
        trust_pickle=trust,
        averaged=settings.get("averaged") or AveragedWeights.COPY,
    )


def _as_checkpoint(loaded: LoadedCheckpoint, seed: int) -> Checkpoint:
    return Checkpoint(loaded.model, loaded.recipe, seed=seed, trained=False)


def _random_model(recipe: Recipe, seed: int, device: torch.device) -> Model:
    return recipe.start(seed).to(device)
