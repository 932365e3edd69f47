"""Several requests, one after the other: all of them judged as one, and how far each moved the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from efface import api
from efface.changes import moved
from efface.checkpoint import WEIGHTS, Checkpoint, read_meta
from efface.drift import Requests, Step, bare, step
from efface.folder import REQUEST, read_request, read_split
from efface.looked import Model, elsewhere, foreign
from efface.observations import Observations
from efface.runs import Opened, Progress, is_foreign
from efface.splits import EARLIER, Split, cumulative
from efface.verdict import Criteria
from efface.watch import Watch


def requests(
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
    name = elsewhere(split.digest(subject.data))
    oracles = [
        replace(one, observed=one.observed.with_name(f"{one.meta['digest'][:8]}-{name}" if one.claim else name)).look(
            subject.data, split, watch, device, progress
        )
        for role, one in models.items()
        if role.startswith("oracle")
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
        stored = read_split(folder)["parts"]
        forgotten = len(stored["forget"]) + len(stored.get(EARLIER, ()))
        run = Model(read_meta(folder), folder / WEIGHTS, _loader(folder), folder / elsewhere(digest))
        found.append((run, forgotten))
        source = Path(str(request.get("from", "")))
        if request.get("verb") != "unlearn":
            return found[::-1], ""
        if named is not None and not source.exists() and read_meta(folder)["parent"] == read_meta(named)["digest"]:
            source = named
        if is_foreign(source):
            return [(foreign(folder, request, source, digest), 0), *found[::-1]], ""
        if not (source / REQUEST).exists():
            return found[::-1], (
                f"Not judged: {folder} was made from {source}, which is not there any more, and only the first "
                "original shows whether all of it is forgotten."
            )
        folder, request = source, read_request(source)


def _loader(folder: Path) -> Callable[[], Checkpoint]:
    return lambda: Checkpoint.load(folder)
