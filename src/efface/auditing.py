"""The verbs ``audit`` and ``report`` on run folders: who is compared with whom, and that they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efface import api, config, evidence, sequence
from efface.audits import Cost
from efface.changes import changes
from efface.checkpoint import WEIGHTS, Checkpoint, read_meta
from efface.data import first
from efface.drift import Requests
from efface.environment import Environment
from efface.errors import EffaceError
from efface.folder import LOG, REQUEST, read_log, read_request
from efface.layouts.container import weights_file
from efface.looked import CLAIM, OBSERVED, Model, elsewhere, foreign
from efface.observations import Observations
from efface.record import Record, file_digest
from efface.references import finished
from efface.runs import Opened, Progress, foreign_start, is_foreign, opened, refuse_unknown
from efface.splits import EARLIER, NEVER_TRAINED, Split
from efface.verdict import Criteria
from efface.watch import Watch


@dataclass(frozen=True, eq=False)
class Compared:
    """A run opened beside what it is compared with, each looked at."""

    subject: Opened
    models: dict[str, Model]
    """``original``, ``subject``, ``oracle 1`` ..."""
    seen: dict[str, Observations]

    @property
    def oracles(self) -> list[Observations]:
        """What the oracles show."""
        return [self.seen[name] for name in self.models if name.startswith("oracle")]

    @property
    def unlearned(self) -> list[Observations]:
        """What other originals show that were unlearned in the same way."""
        return [self.seen[name] for name in self.models if name.startswith("unlearned")]

    @property
    def claims(self) -> list[str]:
        """What is said of the models that nobody checked."""
        return [f"{name}, {one.weights}: {one.claim}" for name, one in self.models.items() if one.claim]

    @property
    def costs(self) -> dict[str, Cost]:
        """What the models took to make that were made here."""
        there = {role: self.models[name] for role, name in _COSTS.items() if name in self.models}
        return {role: one.cost for role, one in there.items() if not one.claim}


@dataclass(frozen=True)
class Asked:
    """How an audit is to be done."""

    criteria: Criteria
    watch: Watch
    device: str
    goal: str
    trust: bool

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Asked:
        """From the settings of the verb; unknown ones are refused."""
        refuse_unknown(settings, {"criteria", "watch", "goal", "device", "trust_pickle"})
        return cls(
            config.build(Criteria, settings.get("criteria") or {}, path="criteria."),
            config.build(Watch, settings.get("watch") or {}, path="watch."),
            str(settings.get("device", "auto")),
            str(settings.get("goal", "")),
            bool(settings.get("trust_pickle")),
        )


def compared(
    run: Path,
    watch: Watch,
    device: str,
    progress: Progress,
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    references: Path | None = None,
    trust: bool = False,
) -> Compared:
    """Open a run, its original and its oracles, refuse what cannot be compared, and look at each."""
    subject = _on_trial(run)
    models = {"original": _original(subject, original), "subject": _of(subject.folder, subject)}
    models |= _others(subject, models, oracles, references, trust=trust)
    seen: dict[str, Observations] = {}
    beside = Compared(subject, models, seen)
    for claim in beside.claims:
        progress.say(claim)
    for name, one in models.items():
        seen[name] = one.look(subject.data, subject.split, watch, device, progress)
    return beside


def audit(
    run: Path,
    settings: Mapping[str, Any],
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    references: Path | None = None,
    plain_ids: bool = False,
    progress: Progress | None = None,
) -> api.Result:
    """Judge a run and write the evidence into its folder. ``settings``: criteria, watch, goal, device, trust_pickle.

    ``oracles``: runs that never saw the examples, which is checked; or other libraries' checkpoints of the same shape,
    of which the user states it, and the record says so. ``references``: a folder that :mod:`efface.references` filled;
    its models are taken beside them.
    """
    progress, asked = progress or Progress(), Asked.of(settings)
    beside = compared(
        run, asked.watch, asked.device, progress,
        original=original, oracles=oracles, references=references, trust=asked.trust,
    )  # fmt: skip
    subject, models, seen = beside.subject, beside.models, beside.seen
    result = api.judge_observations(
        seen["original"],
        seen["subject"],
        beside.oracles,
        criteria=asked.criteria,
        costs=beside.costs,
        unlearned=beside.unlearned,
    )
    kept = evidence.read_further(subject.folder, seen["subject"])
    result.findings.extend(kept.findings)
    requests = sequence.requests(subject, models, original, asked.criteria, asked.watch, asked.device, progress)
    log = read_log(subject.folder / LOG)
    record = _record(beside, asked, result, log, (*beside.claims, *kept.claims), requests)
    keys = [str(key) for key in subject.data.keys[subject.split.forget]]
    evidence.write(subject.folder, record, keys, seen, log, plain_ids=plain_ids)
    return replace(result, sequence=requests)


def _record(
    beside: Compared,
    asked: Asked,
    result: api.Result,
    log: Sequence[Mapping[str, Any]],
    claims: Sequence[str],
    requests: Requests | None,
) -> Record:
    """The record of an audit, unsealed."""
    subject, models = beside.subject, beside.models
    return evidence.compose(
        subject.data,
        subject.split,
        {
            name: evidence.checkpoint_facts(m.meta, str(m.weights), file_digest(m.weights), m.claim)
            for name, m in models.items()
        },
        result.verdict,
        result.findings,
        Environment.here(torch.__version__, torch.get_num_threads(), str(api.device_of(asked.device))),
        criteria=asked.criteria,
        changes=changes(
            models["original"].load().model, models["subject"].load().model, models["subject"].meta["purged"]
        ),
        costs=beside.costs,
        config=subject.request
        | {"audit": {"watch": config.dump(asked.watch), "criteria": config.dump(asked.criteria)}},
        log=log,
        lineage=_lineage(subject),
        goal=asked.goal,
        warnings=claims,
        requests=requests,
    )


def _on_trial(run: Path) -> Opened:
    """A run that was asked to forget something."""
    subject = opened(run)
    if not len(subject.split.forget):
        raise EffaceError(
            f"{run} was asked to forget nothing: it is an original.", remedy="Name a run that `efface unlearn` made."
        )
    return subject


def report(run: Path) -> Path:
    """Write ``report.html`` again from the record and whatever observations are still there; its path."""
    record = evidence.require_record(Path(run))
    split = read_meta(run)["split"]
    files: dict[str, Path] = {}
    for role, facts in record.checkpoints.items():
        home = Path(run) if role == "subject" else Path(facts.file).parent
        files[role] = _beside(Path(run), facts.digest) if facts.claim else _observed(home, split)
    beside = Path(run) / f"original-{OBSERVED}"
    if beside.exists():
        files["original"] = beside
    return evidence.write_report(Path(run), record, evidence.read_observations(files), read_log(Path(run) / LOG))


_COSTS = {"subject": "subject", "original": "original", "oracle": "oracle 1"}


def _observed(folder: Path, split: str) -> Path:
    """Where a run folder keeps what its model shows of the split with this digest."""
    own = (folder / "meta.json").exists() and read_meta(folder)["split"] == split
    return folder / (OBSERVED if own else elsewhere(split))


def _beside(run: Path, digest: str) -> Path:
    """Where a run keeps what a foreign oracle shows."""
    return run / f"oracle-{digest[:8]}-{OBSERVED}"


def _of(folder: Path, subject: Opened) -> Model:
    return Model(
        read_meta(folder),
        folder / WEIGHTS,
        lambda: Checkpoint.load(folder),
        _observed(folder, subject.split.digest(subject.data)),
    )


def _original(subject: Opened, named: Path | None) -> Model:
    """The run that the subject was made from, or the ancestor that was named."""
    source = Path(named) if named else Path(subject.request["from"])
    if not source.exists():
        raise EffaceError(
            f"The original is not at {source} any more.",
            f"{subject.folder} was made from it, and an audit compares the two.",
            "Say where it is now: --original RUN.",
        )
    if is_foreign(source):
        return foreign(subject.folder, subject.request, source)
    meta, split = read_meta(source), Split.load(source, subject.data)
    trained = set(subject.data.keys[split.retain if meta["exact"] else split.train].tolist())
    absent = [key for key in _keys(subject, "forget") if key not in trained]
    if absent:
        raise EffaceError(
            f"{source} is not the original of this request: it never trained on {len(absent)} of the examples.",
            f"Such as {first(absent)}.",
            "Name the checkpoint that was to forget them: --original RUN.",
        )
    if meta["digest"] not in _lineage(subject):
        raise EffaceError(
            f"{source} is not an ancestor of {subject.folder}.",
            f"It was made from {read_meta(subject.folder)['parent'][:16]}; this is {meta['digest'][:16]}.",
            "Name the run that it was made from: --original RUN.",
        )
    return _of(source, subject)


def _oracle(folder: Path, subject: Opened, others: Mapping[str, Model], trust: bool) -> Model:
    """A run that never saw the forget set, nor anything that stands for the unseen."""
    if is_foreign(folder):
        return _stated(folder, subject, others, trust)
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
                f"Such as {first(shared)}.",
                f"Retrain with {again} as the run on trial.",
            )
    return _of(folder, subject)


def _stated(file: Path, subject: Opened, others: Mapping[str, Model], trust: bool) -> Model:
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
    return Model(
        found.meta(), weights_file(file) or file, lambda: found, _beside(subject.folder, found.model.digest()), CLAIM
    )


def _others(
    subject: Opened, own: Mapping[str, Model], oracles: Sequence[Path], references: Path | None, *, trust: bool
) -> dict[str, Model]:
    """Every model that the subject is compared with, by role; one that is given twice is taken once."""
    made = finished(Path(references)) if references else {"out": [], "in": []}
    named = [_oracle(Path(one), subject, own, trust) for one in oracles]
    known = {one.meta["digest"] for one in named}
    outs = [_oracle(folder, subject, own, trust) for folder in made["out"]]
    named += [one for one in outs if one.meta["digest"] not in known]
    found = {f"oracle {i}": one for i, one in enumerate(named, 1)}
    return found | {f"unlearned {i}": _unlearned(folder, subject) for i, folder in enumerate(made["in"], 1)}


def _unlearned(folder: Path, subject: Opened) -> Model:
    """Another original that the subject's own method made forget the same examples."""
    meta, own = read_meta(folder), read_meta(subject.folder)
    for name in ("split", "method", "recipe"):
        if meta[name] != own[name]:
            raise EffaceError(
                f"{folder} is no pair's half for {subject.folder}: its {name} differs.",
                "A pair differs from the run on trial in its seed alone.",
                f"Plan anew: `efface references {subject.folder} --out DIR`.",
            )
    return _of(folder, subject)


def _keys(subject: Opened, part: str) -> list[str]:
    return subject.data.keys[getattr(subject.split, part)].tolist()


def _lineage(subject: Opened) -> tuple[str, ...]:
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
