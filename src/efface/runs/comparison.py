"""Collect the models to compare and check that the comparison is valid."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from efface import api, config
from efface.auditing.evidence import Cost, Finding
from efface.auditing.observations import Observations
from efface.auditing.observers.observe import ObservationSettings
from efface.data.dataset import Data, quote_first
from efface.data.split import EARLIER, NEVER_TRAINED, Split
from efface.errors import EffaceError
from efface.files import REQUEST
from efface.interop.containers import weights_file
from efface.runs import artifacts
from efface.runs.artifacts import SavedFindings
from efface.runs.folder import read_request
from efface.runs.foreign import foreign_start, is_foreign
from efface.runs.references import list_finished
from efface.runs.run import OpenedRun, Progress, open_run
from efface.training.checkpoint import WEIGHTS, Checkpoint, read_meta


@dataclass(frozen=True, eq=False)
class Comparison:
    """A run opened beside what it is compared with, each looked at."""

    subject: OpenedRun
    models: dict[str, AuditedModel]
    """``original``, ``subject``, ``oracle 1`` ..."""
    observations: dict[str, Observations]

    @property
    def oracles(self) -> list[Observations]:
        """What the oracles show."""
        return [self.observations[name] for name in self.models if name.startswith("oracle")]

    @property
    def unlearned(self) -> list[Observations]:
        """What other originals show that were unlearned in the same way."""
        return [self.observations[name] for name in self.models if name.startswith("unlearned")]

    @property
    def claims(self) -> list[str]:
        """What is said of the models that nobody checked."""
        return [f"{name}, {one.weights}: {one.claim}" for name, one in self.models.items() if one.claim]

    @property
    def costs(self) -> dict[str, Cost]:
        """What the models took to make that were made here."""
        there = {role: self.models[name] for role, name in _COSTS.items() if name in self.models}
        return {role: one.cost for role, one in there.items() if not one.claim}


def build_comparison(
    run: Path,
    watch: ObservationSettings,
    device: str,
    progress: Progress,
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    references: Path | None = None,
    trust: bool = False,
) -> Comparison:
    """Open a run, its original and its oracles, refuse what cannot be compared, and look at each."""
    subject = _open_subject(run)
    models = {"original": _original(subject, original), "subject": _audited_model(subject.folder, subject)}
    models |= _others(subject, models, oracles, references, trust=trust)
    seen: dict[str, Observations] = {}
    beside = Comparison(subject, models, seen)
    for claim in beside.claims:
        progress.say(claim)
    for name, one in models.items():
        seen[name] = one.observe(subject.data, subject.split, watch, device, progress)
    return beside


def _open_subject(run: Path) -> OpenedRun:
    """A run that was asked to forget something."""
    subject = open_run(run)
    if not len(subject.split.forget):
        raise EffaceError(
            f"{run} was asked to forget nothing: it is an original.", remedy="Name a run that `efface unlearn` made."
        )
    return subject


_COSTS = {"subject": "subject", "original": "original", "oracle": "oracle 1"}


def _observations_path(folder: Path, split: str) -> Path:
    """Where a run folder keeps what its model shows of the split with this digest."""
    own = (folder / "meta.json").exists() and read_meta(folder)["split"] == split
    return folder / (OBSERVATIONS_FILE if own else observations_file_name(split))


def _oracle_observations_path(run: Path, digest: str) -> Path:
    """Where a run keeps what a foreign oracle shows."""
    return run / f"oracle-{digest[:8]}-{OBSERVATIONS_FILE}"


def _audited_model(folder: Path, subject: OpenedRun) -> AuditedModel:
    return AuditedModel(
        read_meta(folder),
        folder / WEIGHTS,
        lambda: Checkpoint.load(folder),
        _observations_path(folder, subject.split.digest(subject.data)),
    )


def _original(subject: OpenedRun, named: Path | None) -> AuditedModel:
    """The run that the subject was made from, or the ancestor that was named."""
    source = Path(named) if named else Path(subject.request["from"])
    if not source.exists():
        raise EffaceError(
            f"The original is not at {source} any more.",
            f"{subject.folder} was made from it, and an audit compares the two.",
            "Say where it is now: --original RUN.",
        )
    if is_foreign(source):
        return foreign_original(subject.folder, subject.request, source)
    meta, split = read_meta(source), Split.load(source, subject.data)
    trained = set(subject.data.keys[split.retain if meta["exact"] else split.train].tolist())
    absent = [key for key in _keys(subject, "forget") if key not in trained]
    if absent:
        raise EffaceError(
            f"{source} is not the original of this request: it never trained on {len(absent)} of the examples.",
            f"Such as {quote_first(absent)}.",
            "Name the checkpoint that was to forget them: --original RUN.",
        )
    if meta["digest"] not in _lineage(subject):
        raise EffaceError(
            f"{source} is not an ancestor of {subject.folder}.",
            f"It was made from {read_meta(subject.folder)['parent'][:16]}; this is {meta['digest'][:16]}.",
            "Name the run that it was made from: --original RUN.",
        )
    return _audited_model(source, subject)


def _oracle(folder: Path, subject: OpenedRun, others: Mapping[str, AuditedModel], trust: bool) -> AuditedModel:
    """A run that never saw the forget set, nor anything that stands for the unseen."""
    if is_foreign(folder):
        return _foreign_oracle(folder, subject, others, trust)
    meta = read_meta(folder)
    if not meta["exact"]:
        made = (meta["method"] or {}).get("name", "training on everything")
        raise EffaceError(
            f"{folder} is no oracle: it was made by {made}, from weights that had seen the examples.",
            remedy="Make one with `efface unlearn ORIGINAL --forget IDS --method retrain --out ORACLE`.",
        )
    trained = set(subject.data.keys[Split.load(folder, subject.data).retain].tolist())
    for part in ("forget", EARLIER, *NEVER_TRAINED):
        shared = [key for key in _keys(subject, part) if key in trained]
        if shared:
            which = "of the examples of earlier requests" if part == EARLIER else f"of its {part} examples"
            again = (
                f"{subject.request['from']} and the same --forget"
                if part == EARLIER
                else "the same --forget and --seed"
            )
            raise EffaceError(
                f"{folder} is no oracle for this request: it trained on {len(shared)} {which}.",
                f"Such as {quote_first(shared)}.",
                f"Retrain with {again} as the run on trial.",
            )
    return _audited_model(folder, subject)


def _foreign_oracle(file: Path, subject: OpenedRun, others: Mapping[str, AuditedModel], trust: bool) -> AuditedModel:
    """Another library's checkpoint as an oracle: of the subject's shape, looked at through the subject's views."""
    recipe = read_meta(subject.folder)["recipe"]
    settings = subject.request | {"recipe": recipe, "trust_pickle": trust, "split": {}}
    _, _, found, _ = foreign_start(file, settings, int(subject.request["seed"]))
    found = replace(found, exact=True)
    same = next((name for name, one in others.items() if one.meta["digest"] == found.model.digest()), None)
    if same:
        raise EffaceError(
            f"{file} is no oracle: its weights are those of the {same} itself.",
            remedy="Name a checkpoint that was trained without the examples.",
        )
    return AuditedModel(
        found.meta(),
        weights_file(file) or file,
        lambda: found,
        _oracle_observations_path(subject.folder, found.model.digest()),
        UNCHECKED_CLAIM,
    )


def _others(
    subject: OpenedRun,
    own: Mapping[str, AuditedModel],
    oracles: Sequence[Path],
    references: Path | None,
    *,
    trust: bool,
) -> dict[str, AuditedModel]:
    """Every model that the subject is compared with, by role; one that is given twice is taken once."""
    made = list_finished(Path(references)) if references else {"out": [], "in": []}
    named = [_oracle(Path(one), subject, own, trust) for one in oracles]
    known = {one.meta["digest"] for one in named}
    outs = [_oracle(folder, subject, own, trust) for folder in made["out"]]
    named += [one for one in outs if one.meta["digest"] not in known]
    found = {f"oracle {i}": one for i, one in enumerate(named, 1)}
    return found | {f"unlearned {i}": _unlearned(folder, subject) for i, folder in enumerate(made["in"], 1)}


def _unlearned(folder: Path, subject: OpenedRun) -> AuditedModel:
    """Another original that the subject's own method made forget the same examples."""
    meta, own = read_meta(folder), read_meta(subject.folder)
    for name in ("split", "method", "recipe"):
        if meta[name] != own[name]:
            raise EffaceError(
                f"{folder} is no pair's half for {subject.folder}: its {name} differs.",
                "A pair differs from the run on trial in its seed alone.",
                f"Plan anew: `efface references {subject.folder} --out DIR`.",
            )
    return _audited_model(folder, subject)


def _keys(subject: OpenedRun, part: str) -> list[str]:
    return subject.data.keys[getattr(subject.split, part)].tolist()


def _lineage(subject: OpenedRun) -> tuple[str, ...]:
    """Digests from the oldest ancestor that can still be found to the subject."""
    meta, request = read_meta(subject.folder), subject.request
    found = [meta["digest"]]
    while meta["parent"]:
        found.append(meta["parent"])
        source = Path(str(request.get("from", "")))
        if not (source / REQUEST).exists():
            break
        meta, request = read_meta(source), read_request(source)
    return tuple(reversed(found))


def _save_findings(beside: Comparison, name: str, found: list[Finding]) -> SavedFindings:
    path = artifacts.save_extra_findings(
        beside.subject.folder, name, beside.observations["subject"], found, beside.claims
    )
    return SavedFindings(found, path, beside.claims)


OBSERVATIONS_FILE = "observations.npz"


UNCHECKED_CLAIM = "that it never saw the forgotten or the unseen examples is stated by the user, not checked"
"""Of an oracle that another library trained: nothing in its file says on what."""


@dataclass(frozen=True, eq=False)
class AuditedModel:
    """One model of an audit: where its weights are, what is known of it, where its observations are kept."""

    meta: dict[str, Any]
    weights: Path
    load: Callable[[], Checkpoint]
    observations_file: Path
    claim: str = ""
    """What is said of it that nobody checked."""

    @property
    def cost(self) -> Cost:
        """What it took to make."""
        spent = self.meta["cost"]
        return Cost(spent["steps"], spent["examples"], spent["seconds"])

    def observe(
        self, data: Data, split: Split, watch: ObservationSettings, device: str, progress: Progress
    ) -> Observations:
        """What it shows of a split: from its file where it was looked at in the same way before."""
        stamp = json.loads(json.dumps(config.dump(watch)))
        if self.observations_file.exists():
            found = Observations.load(self.observations_file)
            if (found.model, found.split, found.meta.get("watch")) == (self.meta["digest"], split.digest(data), stamp):
                return found
        progress.say(f"Looking at {self.weights.parent.name}")
        seen = api.observe(self.load(), data, split, watch, device=device)
        seen.meta["watch"] = stamp
        artifacts.save_observations(self.observations_file, seen)
        return seen


def foreign_original(run: Path, request: Mapping[str, Any], file: Path, split: str = "") -> AuditedModel:
    """A foreign checkpoint as the original of a run: read again as it was when the run was made.

    ``split``: digest of the split that it is to be looked at with, where that is not the run's own.
    """
    # The run has its split in its folder: the file of keys that it was made from need not be there any more.
    _, _, checkpoint, _ = foreign_start(file, {**request, "split": {}}, int(request["seed"]))
    if checkpoint.model.digest() != read_meta(run)["parent"]:
        raise EffaceError(f"{file} has changed since {run} was made from it.", remedy="Restore it, or unlearn again.")
    name = f"original-{observations_file_name(split)}" if split else f"original-{OBSERVATIONS_FILE}"
    return AuditedModel(checkpoint.meta(), weights_file(file) or file, lambda: checkpoint, run / name)


def observations_file_name(split: str) -> str:
    """What a run's observations of another split than its own are called."""
    return f"observations-{split[:8]}.npz"
