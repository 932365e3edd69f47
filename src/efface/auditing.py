"""The verbs ``audit`` and ``report`` on run folders: who is compared with whom, and that they may be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from efface import api, config, evidence
from efface.audits import Cost
from efface.changes import changes, moved
from efface.checkpoint import WEIGHTS, Checkpoint, read_meta
from efface.data import Data, first
from efface.drift import Requests, Step, bare, step
from efface.environment import Environment
from efface.errors import EffaceError
from efface.folder import LOG, REQUEST, SPLIT, read_log
from efface.layouts.container import weights_file
from efface.observations import Observations
from efface.record import file_digest
from efface.runs import Opened, Progress, foreign_start, is_foreign, opened, refuse_unknown
from efface.splits import EARLIER, NEVER_TRAINED, Split, cumulative
from efface.verdict import Criteria
from efface.watch import Watch

OBSERVED = "observations.npz"


@dataclass(frozen=True, eq=False)
class Model:
    """One model of an audit: where its weights are, what is known of it, where its observations are kept."""

    meta: dict[str, Any]
    weights: Path
    load: Callable[[], Checkpoint]
    observed: Path

    @property
    def cost(self) -> Cost:
        """What it took to make."""
        spent = self.meta["cost"]
        return Cost(spent["steps"], spent["examples"], spent["seconds"])

    def look(self, data: Data, split: Split, watch: Watch, device: str, progress: Progress) -> Observations:
        """What it shows of a split: from its file where it was looked at in the same way before."""
        stamp = json.loads(json.dumps(config.dump(watch)))
        if self.observed.exists():
            found = Observations.load(self.observed)
            if (found.model, found.split, found.meta.get("watch")) == (self.meta["digest"], split.digest(data), stamp):
                return found
        progress.say(f"Looking at {self.weights.parent.name}")
        seen = api.observe(self.load(), data, split, watch, device=device)
        seen.meta["watch"] = stamp
        evidence.keep_observations(self.observed, seen)
        return seen


def audit(
    run: Path,
    settings: Mapping[str, Any],
    *,
    original: Path | None = None,
    oracles: Sequence[Path] = (),
    plain_ids: bool = False,
    progress: Progress | None = None,
) -> api.Result:
    """Judge a run and write the evidence into its folder. ``settings``: criteria, watch, goal, device."""
    progress = progress or Progress()
    refuse_unknown(settings, {"criteria", "watch", "goal", "device"})
    criteria = config.build(Criteria, settings.get("criteria") or {}, path="criteria.")
    watch = config.build(Watch, settings.get("watch") or {}, path="watch.")
    device = str(settings.get("device", "auto"))
    subject = opened(run)
    if not len(subject.split.forget):
        raise EffaceError(
            f"{run} was asked to forget nothing: it is an original.", remedy="Name a run that `efface unlearn` made."
        )
    models = {"original": _original(subject, original), "subject": _of(subject.folder, subject)}
    models |= {f"oracle {i + 1}": _oracle(Path(one), subject) for i, one in enumerate(oracles)}
    seen = {name: one.look(subject.data, subject.split, watch, device, progress) for name, one in models.items()}
    costs = {role: models[name].cost for role, name in _COSTS.items() if name in models}
    result = api.judge_observations(
        seen["original"],
        seen["subject"],
        [seen[name] for name in models if name.startswith("oracle")],
        criteria=criteria,
        costs=costs,
    )
    requests = _requests(subject, models, original, criteria, watch, device, progress)
    changed = changes(models["original"].load().model, models["subject"].load().model, models["subject"].meta["purged"])
    log = read_log(subject.folder / LOG)
    record = evidence.compose(
        subject.data,
        subject.split,
        {name: evidence.checkpoint_facts(m.meta, str(m.weights), file_digest(m.weights)) for name, m in models.items()},
        result.verdict,
        result.findings,
        Environment.here(torch.__version__, torch.get_num_threads(), str(api.device_of(device))),
        criteria=criteria,
        changes=changed,
        costs=costs,
        config=subject.request | {"audit": {"watch": config.dump(watch), "criteria": config.dump(criteria)}},
        log=log,
        lineage=_lineage(subject),
        goal=str(settings.get("goal", "")),
        requests=requests,
    )
    keys = [str(key) for key in subject.data.keys[subject.split.forget]]
    evidence.write(subject.folder, record, keys, seen, log, plain_ids=plain_ids)
    return replace(result, sequence=requests)


def report(run: Path) -> Path:
    """Write ``report.html`` again from the record and whatever observations are still there; its path."""
    record = evidence.require_record(Path(run))
    split = read_meta(run)["split"]
    files: dict[str, Path] = {}
    for role, facts in record.checkpoints.items():
        home = Path(run) if role == "subject" else Path(facts.file).parent
        files[role] = _observed(home, split)
    beside = Path(run) / f"original-{OBSERVED}"
    if beside.exists():
        files["original"] = beside
    return evidence.write_report(Path(run), record, evidence.read_observations(files), read_log(Path(run) / LOG))


_COSTS = {"subject": "subject", "original": "original", "oracle": "oracle 1"}


def _observed(folder: Path, split: str) -> Path:
    """Where a run folder keeps what its model shows of the split with this digest."""
    own = (folder / "meta.json").exists() and read_meta(folder)["split"] == split
    return folder / (OBSERVED if own else _named(split))


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
        return _foreign(subject.folder, subject.request, source)
    meta, split = read_meta(source), _split(source, subject)
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


def _foreign(run: Path, request: Mapping[str, Any], file: Path, split: str = "") -> Model:
    """A foreign checkpoint as the original of a run: read again as it was when the run was made.

    ``split``: digest of the split that it is to be looked at with, where that is not the run's own.
    """
    _, _, checkpoint, _ = foreign_start(file, request, int(request["seed"]))
    if checkpoint.model.digest() != read_meta(run)["parent"]:
        raise EffaceError(f"{file} has changed since {run} was made from it.", remedy="Restore it, or unlearn again.")
    name = f"original-observations-{split[:8]}.npz" if split else f"original-{OBSERVED}"
    return Model(checkpoint.meta(), weights_file(file) or file, lambda: checkpoint, run / name)


def _oracle(folder: Path, subject: Opened) -> Model:
    """A run that never saw the forget set, nor anything that stands for the unseen."""
    meta = read_meta(folder)
    if not meta["exact"]:
        made = (meta["method"] or {}).get("name", "training on everything")
        raise EffaceError(
            f"{folder} is no oracle: it was made by {made}, from weights that had seen the examples.",
            remedy="Make one with `efface unlearn ORIGINAL --forget IDS --method retrain --out ORACLE`.",
        )
    trained = set(subject.data.keys[_split(folder, subject).retain].tolist())
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


# ---- several requests, one after the other ----


def _requests(
    subject: Opened,
    models: Mapping[str, Model],
    named: Path | None,
    criteria: Criteria,
    watch: Watch,
    device: str,
    progress: Progress,
) -> Requests | None:
    """All requests so far as one, against the first original, and how far each moved the model; None for a first."""
    if not len(subject.split.earlier):
        return None
    split = cumulative(subject.split, subject.data)
    chain, note = _chain(subject, split, named)
    progress.say(f"Judging all {len(split.forget)} examples forgotten so far, over {len(chain) - 1} requests")

    seen = [one.look(subject.data, split, watch, device, progress) for one, _ in chain]
    steps = _steps(chain, seen)
    if note:
        return Requests(steps=steps, count=len(split.forget), note=note)
    elsewhere = _named(split.digest(subject.data))
    oracles = [
        replace(one, observed=one.observed.with_name(elsewhere)).look(subject.data, split, watch, device, progress)
        for name, one in models.items()
        if name.startswith("oracle")
    ]
    result = api.judge_observations(seen[0], seen[-1], oracles, criteria=criteria)
    return Requests(steps=steps, count=len(split.forget), verdict=result.verdict, findings=bare(result.findings))


def _steps(chain: Sequence[tuple[Model, int]], seen: Sequence[Observations]) -> tuple[Step, ...]:
    """Utility, CKA and weights of each model against the one before it and the first."""
    loaded = [model.load().model for model, _ in chain]
    return tuple(
        step(
            seen[: i + 1],
            method=model.meta["method"],
            forgotten=forgotten,
            moved_before=moved(loaded[i - 1], loaded[i]) if i else None,
            moved_first=moved(loaded[0], loaded[i]) if i else None,
        )
        for i, (model, forgotten) in enumerate(chain)
    )


def _chain(subject: Opened, split: Split, named: Path | None) -> tuple[list[tuple[Model, int]], str]:
    """The models from the first original to the subject, each with how many examples it was to have forgotten.

    Second: why the first of them is not the first original, where its folder is gone. ``named``: where an ancestor
    is now; it takes the place of the first one if it trained on all of the examples.
    """
    digest, folder, request = split.digest(subject.data), subject.folder, subject.request
    found: list[tuple[Model, int]] = []
    while True:
        stored = json.loads((folder / SPLIT).read_text(encoding="utf-8"))["parts"]
        forgotten = len(stored["forget"]) + len(stored.get(EARLIER, ()))
        run = Model(read_meta(folder), folder / WEIGHTS, _loader(folder), folder / _named(digest))
        found.append((run, forgotten))
        source = Path(str(request.get("from", "")))
        if request.get("verb") != "unlearn":
            return found[::-1], ""
        if named is not None and not source.exists() and read_meta(folder)["parent"] == read_meta(named)["digest"]:
            source = named
        if is_foreign(source):
            return [(_foreign(folder, request, source, digest), 0), *found[::-1]], ""
        if not (source / REQUEST).exists():
            return found[::-1], (
                f"Not judged: {folder} was made from {source}, which is not there any more, and only the first "
                "original shows whether all of it is forgotten."
            )
        folder, request = source, config.read(source / REQUEST)


def _loader(folder: Path) -> Callable[[], Checkpoint]:
    return lambda: Checkpoint.load(folder)


def _named(split: str) -> str:
    """What a run's observations of another split than its own are called."""
    return f"observations-{split[:8]}.npz"


def _split(folder: Path, subject: Opened) -> Split:
    try:
        stored = json.loads((folder / SPLIT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EffaceError(
            f"{folder / SPLIT} cannot be read.", str(error), "Restore it, or make the run again."
        ) from error
    return Split.from_dict(subject.data, stored)


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
        meta, request = read_meta(source), config.read(source / REQUEST)
    return tuple(reversed(found))
