"""Typed requests: what each verb was asked to do, built once from its settings and checked on the way in.

Settings come from a YAML file, from ``--set`` or from a Python mapping. ``VerbRequest.of`` turns them into a frozen
dataclass whose fields are the settings, so that later code never handles a settings mapping.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

from efface import config
from efface.auditing.compatibility import CompatibilityCriteria
from efface.auditing.criteria import Criteria
from efface.auditing.observers.relearn import RelearnSettings
from efface.auditing.observers.settings import ObservationSettings
from efface.config import Settings
from efface.errors import EffaceError, suggest_name
from efface.interop.averages import AveragedWeights
from efface.interop.consent import Consent
from efface.runs.data_at_hand import DataChecks, DataSettings
from efface.runs.run import Common, Sizes
from efface.schema import Count, Decay, OpenShare, SeedNumber
from efface.training.sharded_model import Combination
from efface.unlearning import plugins
from efface.unlearning.early_stopping import StoppingRule
from efface.unlearning.methods import METHODS, Method
from efface.unlearning.search import auto_settings_error

TEXT = ("forget", "goal", "objective")
"""Settings that are text, even where YAML reads a number."""


def setting_names(cls: type) -> set[str]:
    """The settings of a request: the names of its fields."""
    return {one.name for one in fields(cls)}


def refuse_unknown(settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise an error for a setting that is not in ``known``, with the most similar name that is."""
    for key in settings:
        if key not in known:
            raise EffaceError(
                f"There is no setting '{key}' here.{suggest_name(key, known)}", f"Known: {', '.join(sorted(known))}."
            )


def select_settings(settings: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """The settings that are fields of ``cls``; null stands for the default and is left out."""
    found = {one.name: settings[one.name] for one in fields(cls) if settings.get(one.name) is not None}
    texts = {key: str(value) for key, value in found.items() if key in TEXT and isinstance(value, int | float)}
    return found | texts


class VerbRequest(Settings):
    """Base of the requests: dataclasses whose fields are the settings of a verb."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Build the request from the settings of its verb.

        Raises:
            EffaceError: A setting is unknown, or its value has the wrong type or range.

        """
        refuse_unknown(settings, setting_names(cls))
        return config.build(cls, select_settings(settings, cls))

    @property
    def consent(self) -> Consent:
        """What this call allows to be unpickled."""
        return Consent.of(getattr(self, "trust_pickle", False), getattr(self, "trusted", ()))

    @classmethod
    def of(cls, given: Self | Mapping[str, Any]) -> Self:
        """Return a request as it is, and build one from settings."""
        return given if isinstance(given, cls) else cls.from_settings(given)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class PretrainRequest(Common, VerbRequest):
    """What ``efface pretrain`` is asked to do."""

    data: DataSettings = None
    """The data: a source's name, a path, or a mapping with ``source`` and its options."""
    split: Mapping[str, Any] = field(default_factory=dict)
    """Sizes of the split, as given: see :class:`Sizes`."""
    objective: str = "simclr"
    """The objective, where ``recipe.objective`` names none."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Changes to the default recipe."""
    criteria: Criteria | None = None
    """When a model counts as forgetting: fixed here for every later audit. None: the defaults."""

    @cached_property
    def sizes(self) -> Sizes:
        """The sizes of the split."""
        return config.build(Sizes, self.split, path="split.")


@dataclass(frozen=True, kw_only=True)
class ForeignOptions:
    """Settings that only a foreign checkpoint needs: a run folder knows its own."""

    data: DataSettings = None
    """The data, as for pretraining."""
    split: Mapping[str, Any] = field(default_factory=dict)
    """Sizes of the split, as given: see :class:`Sizes`."""
    objective: Any = None
    """The objective that it was trained with, where its layout does not tell."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Changes to the recipe that is inferred from the file."""
    trust_pickle: bool = False
    """Unpickle a file that asks for classes."""
    trusted: tuple[str, ...] = ()
    """SHA-256 of files that may be unpickled."""
    check: bool = True
    """Refuse an encoder that is no better than the same network with random weights."""
    checked: bool = False
    """What is assumed was tried before on the same data, by `efface init`: it is not tried again."""
    fresh_head: bool = False
    """Start a head that the file lacks from random weights."""
    averaged: AveragedWeights | None = None
    """What happens to averaged weights (EMA, SWA) in the file: ``copy`` (the default) of the unlearned network,
    ``start`` from them, or ``drop``."""

    def as_settings(self) -> dict[str, Any]:
        """The options that were given, as a settings mapping."""
        values = {name: getattr(self, name) for name in ("data", "split", "objective", "recipe")}
        values |= {name: getattr(self, name) for name in ("trust_pickle", "trusted", "fresh_head")}
        values |= {"averaged": self.averaged and str(self.averaged)}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True, kw_only=True)
class ForgetOptions:
    """What is done about examples to forget beside the training."""

    skip_never_trained: bool = False
    """Skip listed examples that were never trained on; they are counted, and left out of rebuilt indexes."""
    purge_cache: bool = False
    """Remove the caches of decoded pictures that hold examples to forget, when the run is complete."""


@dataclass(frozen=True, kw_only=True)
class UnlearnRequest(Common, DataChecks, ForgetOptions, VerbRequest):
    """What ``efface unlearn`` is asked to do."""

    forget: str
    """What to forget: a selector such as ``@random:0.1``, or a file of keys."""
    method: Method | None
    """The method; None for ``auto``: chosen by unseen examples."""
    forget_seed: SeedNumber | None = None
    """Seed of a random selector; by default the original's seed, so that another ``seed`` forgets the same examples."""
    allow_duplicates: bool = False
    """Keep training on exact copies of listed examples, with a warning; by default they are an error."""
    stop: StoppingRule | None = None
    """When to stop early; None: run the method to its end."""
    budget: str | float | None = None
    """Largest number of optimizer steps, as ``"5%"`` of retraining's or as a number; implies ``stop``."""
    bank: str | None = None
    """A reference bank of the original, for methods that take targets from it; they are given one half of it."""
    criteria: Criteria | None = None
    """When the model counts as forgetting: fixed before unlearning. None: those that the original was trained with."""
    micro_batch: Count | None = None
    """Images that go through the network of a run folder at once; None: as in its recipe. A setting of the group
    ``recipe``, of which nothing else can be changed: a run folder knows how it was trained."""
    foreign: ForeignOptions | None = None
    """Options of a foreign checkpoint; None for a run folder."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], *, foreign: bool = False) -> Self:
        """Build the request from the settings of ``efface unlearn``.

        Args:
            settings: forget, forget_seed, allow_duplicates, method, stop, budget, criteria, skip_never_trained,
                purge_cache, seed, device, bf16, and the fields of :class:`DataChecks`; for a foreign checkpoint also
                those of :class:`ForeignOptions`.
            foreign: Whether the start is another library's checkpoint.

        Raises:
            EffaceError: A setting is unknown or has the wrong type, or the method or the forget set is missing.

        """
        known = setting_names(cls) - {"foreign", "micro_batch"}
        settings, micro_batch = (settings, None) if foreign else take_micro_batch(settings)
        refuse_unknown(settings, known | setting_names(ForeignOptions) if foreign else known)
        common = config.build(Common, select_settings(settings, Common))
        method = parse_method(settings.get("method") or "")
        if not settings.get("forget"):
            raise EffaceError(
                "Nothing was said about which examples to forget.",
                remedy="Add --forget IDS, as in --forget @random:0.1.",
            )
        stop, draw, criteria = settings.get("stop"), settings.get("forget_seed"), settings.get("criteria")
        copies = settings.get("allow_duplicates") or False
        if not isinstance(copies, bool):
            raise EffaceError(f"The setting 'allow_duplicates' cannot be {copies!r}.", "It is true or false.")
        return cls(
            **vars(common),
            **vars(config.build(DataChecks, select_settings(settings, DataChecks))),
            **vars(config.build(ForgetOptions, select_settings(settings, ForgetOptions))),
            forget=str(settings["forget"]),
            method=method,
            forget_seed=config.convert_setting(SeedNumber | None, draw, "forget_seed"),
            allow_duplicates=copies,
            stop=None if stop is None else config.build(StoppingRule, stop, path="stop."),
            budget=settings.get("budget"),
            bank=None if settings.get("bank") is None else str(settings["bank"]),
            criteria=None if criteria is None else config.build(Criteria, criteria, path="criteria."),
            micro_batch=micro_batch,
            foreign=config.build(ForeignOptions, select_settings(settings, ForeignOptions)) if foreign else None,
        )


def take_micro_batch(settings: Mapping[str, Any]) -> tuple[Mapping[str, Any], int | None]:
    """Take ``recipe.micro_batch`` out of settings for a run folder, if ``recipe`` sets nothing else.

    Returns:
        The other settings, and the number of images; None if it is not set.

    """
    recipe = settings.get("recipe")
    if not isinstance(recipe, Mapping) or set(recipe) != {"micro_batch"}:
        return settings, None
    others = {name: value for name, value in settings.items() if name != "recipe"}
    return others, config.convert_setting(Count | None, recipe["micro_batch"], "recipe.micro_batch")


def parse_method(value: str | Mapping[str, Any]) -> Method | None:
    """The method that a setting names, alone or in a mapping with ``name`` and fields; None for ``auto``."""
    named = dict(value) if isinstance(value, Mapping) else {"name": value}
    if named.get("name") != plugins.AUTO:
        return config.parse_choice(METHODS, value, "method", {Method: METHODS}, "method.")
    if len(named) > 1:
        raise auto_settings_error(named.keys() - {"name"})
    return None


@dataclass(frozen=True, kw_only=True)
class OfficeCase(Settings):
    """A request as the office knows it, for the first page of the report."""

    id: str = ""
    """The office's own name for it."""
    received: str = ""
    """When it came in, such as 2026-11-29."""
    due: str = ""
    """The last day to answer."""
    handled_by: str = ""
    """Who is responsible."""


@dataclass(frozen=True, kw_only=True)
class AuditRequest(DataChecks, VerbRequest):
    """What ``efface audit`` is asked to do."""

    criteria: Criteria | None = None
    """When a model counts as forgetting. None: the criteria that were fixed before unlearning; with others ``removed``
    is said only if those fixed before say it too."""
    watch: ObservationSettings = field(default_factory=ObservationSettings)
    """How models are observed."""
    withheld: DataSettings = None
    """Pictures that only the auditor has: a source or path, or a mapping with ``source`` and its options. The holdout
    is compared with them; without any, with a sample of the test part alone."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``mps``."""
    purge_cache: bool = False
    """Remove the caches of decoded pictures that hold examples to forget, after the audit."""
    goal: str = ""
    """Why the examples were to be forgotten, in the user's words; for the record."""
    case: OfficeCase = field(default_factory=OfficeCase)
    """Number, dates and person of the request, for the report: ``case.id``, ``received``, ``due``, ``handled_by``."""
    trust_pickle: bool = False
    """Unpickle a checkpoint named in this call that asks for classes."""
    trusted: tuple[str, ...] = ()
    """SHA-256 of files that may be unpickled, such as the original that the run names."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Build the request; numbers and dates in ``case`` count as text."""
        case = settings.get("case")
        if isinstance(case, Mapping):
            texts = {name: value if isinstance(value, (list, Mapping)) else str(value) for name, value in case.items()}
            settings = {**settings, "case": texts}
        return super().from_settings(settings)


@dataclass(frozen=True, kw_only=True)
class RelearnRequest(DataChecks, VerbRequest):
    """What ``efface relearn`` is asked to do."""

    relearn: RelearnSettings = field(default_factory=RelearnSettings)
    """How the copies are trained on."""
    watch: ObservationSettings = field(default_factory=lambda: ObservationSettings(gradient=False))
    """How the copies are observed."""
    seed: SeedNumber = 0
    """Seed of the training."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``mps``."""
    trust_pickle: bool = False
    """Unpickle a checkpoint named in this call that asks for classes."""
    trusted: tuple[str, ...] = ()
    """SHA-256 of files that may be unpickled, such as the original that the run names."""


@dataclass(frozen=True, kw_only=True)
class GuessRequest(DataChecks, VerbRequest):
    """What ``efface canaries guess`` is asked to do."""

    watch: ObservationSettings = field(default_factory=ObservationSettings)
    """How models are observed."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``mps``."""
    signal: str | None = None
    """The score to guess by; by default that of the outermost space."""
    level: OpenShare = 0.95
    """Confidence of the bound on ε."""
    delta: Decay = 0.0
    """The δ of (ε, δ)."""
    trust_pickle: bool = False
    """Unpickle a checkpoint named in this call that asks for classes."""
    trusted: tuple[str, ...] = ()
    """SHA-256 of files that may be unpickled, such as the original that the run names."""


class EmbeddingSpace(StrEnum):
    """Which embedding of an image."""

    BACKBONE = "backbone"
    PROJECTOR = "projector"


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions(Settings):
    """How images are embedded."""

    space: EmbeddingSpace = EmbeddingSpace.BACKBONE
    """The backbone's features, or the projector's embedding of them."""
    combine: Combination = Combination.CONCAT
    """Of a model that was trained in shards: the networks' embeddings side by side (``concat``), or their ``mean``."""
    batch_size: Count = 64
    """Images embedded together; affects only speed and memory."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``mps``."""


@dataclass(frozen=True, kw_only=True)
class EmbedRequest(EmbeddingOptions, VerbRequest):
    """What ``efface embed`` is asked to do."""

    data: DataSettings = None
    """The data; by default those of the run."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Of a foreign checkpoint: changes to the recipe that is inferred from the file."""
    objective: Any = None
    """Of a foreign checkpoint: the objective that it was trained with."""
    trust_pickle: bool = False
    """Unpickle a file that asks for classes."""
    trusted: tuple[str, ...] = ()
    """SHA-256 of files that may be unpickled."""


@dataclass(frozen=True, kw_only=True)
class CompatibilityRequest(EmbedRequest):
    """What ``efface compat`` is asked to do."""

    rule: CompatibilityCriteria = field(default_factory=CompatibilityCriteria)
    """When stored vectors may be kept."""
