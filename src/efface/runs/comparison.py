"""Collect the models to compare in an audit and check that the comparison is valid."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from efface.auditing.evidence import Cost, Finding
from efface.auditing.observations import Observations
from efface.auditing.observers.settings import ObservationSettings
from efface.data.dataset import Data, quote_first
from efface.data.split import EARLIER, NEVER_TRAINED, SPLIT_PARTS, Split
from efface.errors import EffaceError
from efface.files import REQUEST
from efface.interop.consent import Consent
from efface.interop.containers import weights_file
from efface.reporting.facts import WithheldFacts
from efface.runs import artifacts
from efface.runs.artifacts import SavedFindings
from efface.runs.audited_model import AuditedModel
from efface.runs.binding import OBSERVATIONS_FILE, Binder, stored_file
from efface.runs.data_at_hand import DataChecks, DataSettings
from efface.runs.foreign import is_foreign, load_foreign
from efface.runs.lineage import find_source, walk_back
from efface.runs.provenance import (
    NEAREST_RUN,
    require_honest,
    require_no_copy,
    require_pictures_of_request,
    require_same_views,
    run_folder_of,
)
from efface.runs.references import list_finished
from efface.runs.run import OpenedRun, Progress, StoredRun, open_run
from efface.runs.withheld_data import load_withheld, withheld_facts
from efface.training.checkpoint import WEIGHTS

UNCHECKED_CLAIM = "that it never saw the forgotten or the unseen examples is stated by the user, not checked"
"""Claim about a retrained reference of another library: nothing in its file says what it was trained on."""
_COSTS = {"subject": "subject", "original": "original", "oracle": "oracle 1"}


@dataclass(frozen=True, eq=False)
class Comparison:
    """A run, the models that it is compared with, and the observations of each."""

    subject: OpenedRun
    models: dict[str, AuditedModel]
    """By role: ``original``, ``subject``, ``oracle 1``, ..., ``unlearned 1``, ..."""
    observations: dict[str, Observations]
    """By role, as in ``models``."""
    binder: Binder
    """What the observations are bound to."""
    notes: tuple[str, ...] = ()
    """How the data differ from those that the run was made with, and what the audit could therefore not see."""
    withheld: WithheldFacts | None = None
    """The auditor's own pictures; None without any."""

    @property
    def claimed(self) -> frozenset[str]:
        """Digests of the references of which the user only states what they were trained on."""
        return frozenset(one.meta["digest"] for one in self.models.values() if one.claim)

    @property
    def oracles(self) -> list[Observations]:
        """Observations of the retrained references."""
        return [self.observations[name] for name in self.models if name.startswith("oracle")]

    @property
    def unlearned(self) -> list[Observations]:
        """Observations of other originals that were unlearned by the subject's method."""
        return [self.observations[name] for name in self.models if name.startswith("unlearned")]

    @property
    def claims(self) -> list[str]:
        """What is stated about the models but was not checked."""
        return [f"{name}, {one.weights}: {one.claim}" for name, one in self.models.items() if one.claim]

    @property
    def costs(self) -> dict[str, Cost]:
        """Training costs by role, of the models that efface made."""
        models = {role: self.models[name] for role, name in _COSTS.items() if name in self.models}
        return {role: model.cost for role, model in models.items() if not model.claim}


def build_comparison(
    run: Path,
    watch: ObservationSettings,
    device: str,
    progress: Progress,
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    references: Path | None = None,
    consent: Consent | None = None,
    checks: DataChecks | None = None,
    recheck: bool = False,
    keep: bool = False,
    withheld: DataSettings = None,
) -> Comparison:
    """Open a run and the models to compare it with, check that they are comparable, and observe each of them.

    Args:
        run: An unlearned run folder.
        watch: How to observe the models.
        device: Device for the observation.
        progress: Receives progress messages.
        original: Where the original is now; by default where it was when the run was made.
        oracles: Retrained references: run folders, or checkpoints of other libraries with the same architecture.
        references: Folder filled by ``efface references``.
        consent: What may be unpickled: files named in this call, and files with certain digests.
        checks: Where the data are now, and which differences are accepted.
        recheck: Observe every model anew, whatever is stored.
        keep: Leave stored observations that were made in another way: they are those of the audit.
        withheld: Pictures that only the auditor has.

    Raises:
        EffaceError: A model is missing, or cannot be compared with the run: for example a retrained reference that
            was trained on examples to forget.

    """
    subject, consent = _open_subject(run, checks), consent or Consent()
    pair = {"original": _original(subject, original, consent), "subject": _audited_model(subject.stored, subject)}
    models = {role: replace(model, load=cache(model.load)) for role, model in pair.items()}  # compared with each oracle
    views = require_same_views(subject, models["original"].meta, models["subject"].meta)
    require_pictures_of_request(subject)
    models |= _others(subject, models, oracles, references, consent)
    models["original"] = _with_copies(models)
    own, left_out = load_withheld(withheld, subject) if withheld else (None, 0)
    binder = Binder(subject.data, watch, views, recheck, keep, own)
    if own is not None:
        models = {role: one.beside_withheld(subject.folder, binder.withheld_digest()) for role, one in models.items()}
    models, seen, notes = observe_what_is_left(models, subject.split, binder, device, progress, subject.folder)
    notes = (*subject.at_hand.notes, *notes)
    compared = Comparison(subject, models, seen, binder, notes, withheld_facts(own, binder.withheld_digest(), left_out))
    for sentence in (*compared.claims, *compared.notes):
        progress.say(sentence)
    return compared


def observe_what_is_left(
    models: Mapping[str, AuditedModel], split: Split, binder: Binder, device: str, progress: Progress, run: Path
) -> tuple[dict[str, AuditedModel], dict[str, Observations], tuple[str, ...]]:
    """Observe models on a split of which examples may be absent, all of them on the same examples.

    Where every model was observed while the data were complete, that is used. Otherwise every model is observed on
    what is left, into files of their own, so that complete observations are never overwritten.

    Returns:
        Models and observations by role, and what the audit could not see.

    Raises:
        EffaceError: None of the examples to forget is left, and a model was not observed before.

    """
    if not split.absent:
        seen = {name: one.observe(split, binder, device, progress) for name, one in models.items()}
        return dict(models), seen, ()
    whole = {name: one.stored_observations(split, binder) for name, one in models.items()}
    stored = {name: one for name, one in whole.items() if one is not None}
    if len(stored) == len(models):
        note = "Judged by observations stored while the data were complete; pictures that are gone were not compared."
        return dict(models), stored, (note,)
    left, total, gone = split.present(), split.sizes()["forget"], len(split.absent.get("forget", ()))
    unseen = [name for name in models if name not in stored]
    if gone and not len(left.forget):
        raise EffaceError(
            f"The {total} examples to forget are not in the data, and {run} was not audited like this before.",
            f"An audit looks at what a model does with these pictures; not observed while they were there: "
            f"{', '.join(unseen)}.",
            "Name a copy of the data that has them: --data PATH. (Had it been audited before with these references "
            "and settings, the stored observations would be used.)",
        )
    digest = left.digest(binder.data)
    moved = {role: one.elsewhere(run, digest) for role, one in models.items()}
    notes = (f"Judged by {len(left.forget)} of {total} examples to forget: the other {gone} are gone.",) if gone else ()
    seen = {role: one.observe(left, binder, device, progress) for role, one in moved.items()}
    return moved, seen, notes


def save_findings(compared: Comparison, name: str, findings: list[Finding]) -> SavedFindings:
    """Store findings about the subject in its folder, where the next audit picks them up."""
    subject = compared.subject
    if not os.access(subject.folder, os.W_OK):
        return SavedFindings(findings, None, compared.claims)
    path = artifacts.save_extra_findings(
        subject.folder, name, compared.observations["subject"], findings, compared.claims
    )
    return SavedFindings(findings, path, compared.claims)


def lineage(subject: OpenedRun) -> tuple[str, ...]:
    """Digests of the subject and its ancestors, oldest first, as far back as their folders still exist."""
    digests = [subject.meta["digest"]]
    for run in walk_back(subject.stored, subject.folders):
        if run.meta["digest"] != digests[-1] or not run.meta["parent"]:
            break  # another run is at the place of the ancestor now, or this is the first one
        digests.append(run.meta["parent"])
    return tuple(reversed(digests))


def foreign_original(
    run: StoredRun, file: Path, data: Data, consent: Consent, split: str, home: Path, *, named: bool = False
) -> AuditedModel:
    """A foreign checkpoint as the original of a run, loaded as it was when the run was made.

    ``split``: digest of the split to observe it on; ``home``: folder of the audited run, where that is stored.
    ``named``: whether the user named the file; else it is the run that names it, and a pickle needs consent for its
    digest.
    """
    by = "" if named else str(run.folder / REQUEST)
    checkpoint = load_foreign(file, data, run.request, int(run.request["seed"]), consent, named_by=by)
    if checkpoint.model.digest() != run.meta["parent"]:
        raise EffaceError(
            f"{file} has changed since {run.folder} was made from it.", remedy="Restore it, or unlearn again."
        )
    meta = checkpoint.meta()
    path = stored_file(file.parent, home, meta, split)
    return AuditedModel(meta, weights_file(file) or file, lambda: checkpoint, path)


def _open_subject(run: Path, checks: DataChecks | None) -> OpenedRun:
    """Open a run and check that it has examples to forget."""
    subject = open_run(run, checks)
    list(walk_back(subject.stored, subject.folders))  # a circle raises
    if not subject.split.sizes()["forget"]:
        raise EffaceError(
            f"{run} was asked to forget nothing: it is an original.", remedy="Name a run that `efface unlearn` made."
        )
    return subject


def _audited_model(run: StoredRun, subject: OpenedRun, folder: Path | None = None) -> AuditedModel:
    """A run folder as a model of the audit; ``folder``: its path as the user named it."""
    folder = folder or run.folder
    path = stored_file(folder, subject.folder, run.meta, subject.split.digest(subject.data))
    return AuditedModel(run.meta, folder / WEIGHTS, run.checkpoint, path)


def _original(subject: OpenedRun, named: Path | None, consent: Consent) -> AuditedModel:
    """The run that the subject was made from, or the ancestor that the user named."""
    source = Path(named) if named else find_source(subject.stored) or Path("?")
    if not source.exists():
        raise EffaceError(
            f"The original is no longer at {source}.",
            f"{subject.folder} was made from it, and an audit compares the two.",
            "Say where it is now: --original RUN.",
        )
    if is_foreign(source):
        digest = subject.split.digest(subject.data)
        return foreign_original(
            subject.stored, source, subject.data, consent, digest, subject.folder, named=named is not None
        )
    run, split = subject.folders.read(source), _split_of(source, subject)
    parts = ("retain",) if run.meta["exact"] else ("forget", "retain")
    trained = {key for part in parts for key in split.keys(subject.data, part)}
    absent = [key for key in _keys(subject, "forget") if key not in trained]
    if absent:
        raise EffaceError(
            f"{source} is not the original of this request: it never trained on {len(absent)} of the examples.",
            f"Such as {quote_first(absent)}.",
            "Name the checkpoint that they were to be removed from: --original RUN.",
        )
    if run.meta["digest"] not in lineage(subject):
        raise EffaceError(
            f"{source} is not an ancestor of {subject.folder}.",
            f"That run was made from {subject.meta['parent'][:16]}; this is {run.meta['digest'][:16]}.",
            "Name the run that it was made from: --original RUN.",
        )
    return _audited_model(run, subject, source)


def _with_copies(models: Mapping[str, AuditedModel]) -> AuditedModel:
    """The original, which an audit of a retrained reference may have observed already for the same request."""
    original, name = models["original"], models["original"].observations_file.name
    if name == OBSERVATIONS_FILE:
        return original
    folders = [one.weights.parent for role, one in models.items() if role not in ("original", "subject")]
    return replace(original, copies=tuple(folder / name for folder in folders))


def _oracle(folder: Path, subject: OpenedRun, others: Mapping[str, AuditedModel], consent: Consent) -> AuditedModel:
    """A retrained reference: checked to be trained on neither the forget set nor any never-trained part."""
    folder = run_folder_of(folder)
    if is_foreign(folder):
        return _foreign_oracle(folder, subject, others, consent)
    run = subject.folders.read(folder)
    require_honest(run)
    if not run.meta["exact"]:
        method = (run.meta["method"] or {}).get("name", "training on everything")
        raise EffaceError(
            f"{folder} cannot be used as a retrained reference: "
            f"it was made by {method}, from weights that had seen the examples.",
            remedy="Make one with `efface unlearn ORIGINAL --forget IDS --method retrain --out ORACLE`.",
        )
    trained = set(_split_of(folder, subject).keys(subject.data, "retain"))
    for part in ("forget", EARLIER, *NEVER_TRAINED):
        shared = [key for key in _keys(subject, part) if key in trained]
        if not shared:
            continue
        if part == EARLIER:
            which = "of the examples of earlier requests"
            settings = f"from {subject.request['from']} with the same --forget"
        else:
            which, settings = f"of its {part} examples", "with the same --forget and --seed"
        raise EffaceError(
            f"{folder} cannot be used as a retrained reference for this request: it trained on {len(shared)} {which}.",
            f"Such as {quote_first(shared)}.",
            f"Retrain {settings} as the audited run.",
        )
    require_no_copy(folder, run.checkpoint(), others, NEAREST_RUN)
    return _audited_model(run, subject, Path(folder))


def _foreign_oracle(
    file: Path, subject: OpenedRun, others: Mapping[str, AuditedModel], consent: Consent
) -> AuditedModel:
    """Another library's checkpoint as a retrained reference: with the subject's architecture and views."""
    settings, seed = subject.request | {"recipe": subject.meta["recipe"]}, int(subject.request["seed"])
    checkpoint = replace(load_foreign(file, subject.data, settings, seed, consent), exact=True)
    digest = checkpoint.model.digest()
    same = next((name for name, one in others.items() if one.meta["digest"] == digest), None)
    if same:
        raise EffaceError(
            f"{file} cannot be used as a retrained reference: its weights are those of the {same} itself.",
            remedy="Name a checkpoint that was trained without the examples.",
        )
    require_no_copy(file, checkpoint, others)
    return AuditedModel(
        checkpoint.meta(),
        weights_file(file) or file,
        lambda: checkpoint,
        stored_file(file.parent, subject.folder, checkpoint.meta(), subject.split.digest(subject.data)),
        UNCHECKED_CLAIM,
    )


def _others(
    subject: OpenedRun,
    own: Mapping[str, AuditedModel],
    oracles: Sequence[Path],
    references: Path | None,
    consent: Consent,
) -> dict[str, AuditedModel]:
    """All references by role; a planned model that the user also names is used once."""
    made = list_finished(Path(references)) if references else {"out": [], "in": []}
    named = [_oracle(Path(one), subject, own, consent) for one in oracles]
    known = {one.meta["digest"] for one in named}
    planned = [_oracle(folder, subject, own, consent) for folder in made["out"]]
    named += [one for one in planned if one.meta["digest"] not in known]
    found = {f"oracle {i}": one for i, one in enumerate(named, 1)}
    return found | {f"unlearned {i}": _unlearned(folder, subject) for i, folder in enumerate(made["in"], 1)}


def _unlearned(folder: Path, subject: OpenedRun) -> AuditedModel:
    """Another original, unlearned by the subject's own method with the same examples to forget."""
    run = subject.folders.read(folder)
    for name in ("split", "method", "recipe"):
        if run.meta[name] != subject.meta[name]:
            raise EffaceError(
                f"{folder} cannot be half of a pair for {subject.folder}: its {name} differs.",
                "The models of a pair differ from the audited run only in their seed.",
                f"Plan again: `efface references {subject.folder} --out DIR`.",
            )
    return _audited_model(run, subject, Path(folder))


def _keys(subject: OpenedRun, part: str) -> list[str]:
    return subject.split.keys(subject.data, part)


def _split_of(folder: Path, subject: OpenedRun) -> Split:
    """The split of another run on the subject's data, of which the same examples may be absent."""
    gone = {key for keys in subject.split.absent.values() for key in keys}
    split = Split.load(folder, subject.data, may_lack=SPLIT_PARTS, without=gone)
    unknown = {key for keys in split.absent.values() for key in keys} - gone
    return Split.load(folder, subject.data, without=gone) if unknown else split  # raises, with their keys
