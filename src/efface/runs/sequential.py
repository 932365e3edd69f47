"""Several requests, one after the other: all of them judged as one, and how far each moved the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from efface import api
from efface.auditing.observations import Observations
from efface.auditing.observers.observe import ObservationSettings
from efface.auditing.observers.weight_changes import relative_change
from efface.auditing.sequential import RequestSequence, SequenceStep, measure_step, strip_details
from efface.auditing.verdict import Criteria
from efface.data.split import EARLIER, Split, merge_requests, read_split
from efface.files import REQUEST
from efface.runs.comparison import AuditedModel, foreign_original, observations_file_name
from efface.runs.folder import read_request
from efface.runs.foreign import is_foreign
from efface.runs.run import OpenedRun, Progress
from efface.training.checkpoint import WEIGHTS, Checkpoint, read_meta


def audit_sequence(
    subject: OpenedRun,
    models: Mapping[str, AuditedModel],
    named: Path | None,
    criteria: Criteria,
    watch: ObservationSettings,
    device: str,
    progress: Progress,
) -> RequestSequence | None:
    """All requests so far as one, against the first original, and how far each moved the model; None for a first."""
    if not len(subject.split.earlier):
        return None
    split = merge_requests(subject.split, subject.data)
    chain, note = _chain(subject, split, named)
    progress.say(f"Judging all {len(split.forget)} examples forgotten so far, over {len(chain) - 1} requests")

    seen = [one.observe(subject.data, split, watch, device, progress) for one, _ in chain]
    steps = _steps(chain, seen)
    if note:
        return RequestSequence(steps=steps, count=len(split.forget), note=note)
    name = observations_file_name(split.digest(subject.data))
    oracles = [
        replace(
            one,
            observations_file=one.observations_file.with_name(
                f"{one.meta['digest'][:8]}-{name}" if one.claim else name
            ),
        ).observe(subject.data, split, watch, device, progress)
        for role, one in models.items()
        if role.startswith("oracle")
    ]
    result = api.judge_observations(seen[0], seen[-1], oracles, criteria=criteria)
    return RequestSequence(
        steps=steps, count=len(split.forget), verdict=result.verdict, findings=strip_details(result.findings)
    )


def _steps(chain: Sequence[tuple[AuditedModel, int]], seen: Sequence[Observations]) -> tuple[SequenceStep, ...]:
    """Utility, CKA and weights of each model against the one before it and the first."""
    loaded = [model.load().model for model, _ in chain]
    return tuple(
        measure_step(
            seen[: i + 1],
            method=model.meta["method"],
            forgotten=forgotten,
            moved_before=relative_change(loaded[i - 1], loaded[i]) if i else None,
            moved_first=relative_change(loaded[0], loaded[i]) if i else None,
        )
        for i, (model, forgotten) in enumerate(chain)
    )


def _chain(subject: OpenedRun, split: Split, named: Path | None) -> tuple[list[tuple[AuditedModel, int]], str]:
    """The models from the first original to the subject, each with how many examples it was to have forgotten.

    Second: why the first of them is not the first original, where its folder is gone. ``named``: where an ancestor
    is now; it takes the place of the first one if it trained on all of the examples.
    """
    digest, folder, request = split.digest(subject.data), subject.folder, subject.request
    found: list[tuple[AuditedModel, int]] = []
    while True:
        stored = read_split(folder)["parts"]
        forgotten = len(stored["forget"]) + len(stored.get(EARLIER, ()))
        run = AuditedModel(
            read_meta(folder), folder / WEIGHTS, _loader(folder), folder / observations_file_name(digest)
        )
        found.append((run, forgotten))
        source = Path(str(request.get("from", "")))
        if request.get("verb") != "unlearn":
            return found[::-1], ""
        if named is not None and not source.exists() and read_meta(folder)["parent"] == read_meta(named)["digest"]:
            source = named
        if is_foreign(source):
            return [(foreign_original(folder, request, source, digest), 0), *found[::-1]], ""
        if not (source / REQUEST).exists():
            return found[::-1], (
                f"Not judged: {folder} was made from {source}, which is not there any more, and only the first "
                "original shows whether all of it is forgotten."
            )
        folder, request = source, read_request(source)


def _loader(folder: Path) -> Callable[[], Checkpoint]:
    return lambda: Checkpoint.load(folder)
