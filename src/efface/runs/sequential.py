"""Audit several requests made one after the other: all of them as one, and the drift of the model over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from efface import api
from efface.auditing.criteria import Criteria
from efface.auditing.observations import Observations
from efface.auditing.observers.weight_changes import relative_change
from efface.auditing.sequential import RequestSequence, SequenceStep, measure_step, strip_details
from efface.data.split import EARLIER, Split, merge_requests, read_split
from efface.files import REQUEST
from efface.interop.consent import Consent
from efface.runs.audited_model import AuditedModel
from efface.runs.binding import Binder, stored_file
from efface.runs.comparison import foreign_original
from efface.runs.foreign import is_foreign
from efface.runs.lineage import find_source, walk_back
from efface.runs.run import OpenedRun, Progress
from efface.training.checkpoint import WEIGHTS


def audit_sequence(
    subject: OpenedRun,
    models: Mapping[str, AuditedModel],
    original: Path | None,
    criteria: Criteria,
    fixed: Criteria,
    binder: Binder,
    device: str,
    progress: Progress,
    consent: Consent | None = None,
) -> RequestSequence | None:
    """Judge all requests so far as one against the first original, and measure how far each moved the model.

    Args:
        subject: The run of the last request.
        models: The models of the audit of the last request, by role.
        original: Where the user says an ancestor is now.
        criteria: Criteria of the verdict.
        fixed: The criteria that were fixed before unlearning.
        binder: How the models are observed, and what that is bound to.
        device: Device for the observation.
        progress: Receives progress messages.
        consent: What may be unpickled.

    Returns:
        The sequence; None if the subject's request is the first one.

    """
    if EARLIER not in subject.split.sizes():
        return None
    split = merge_requests(subject.split, subject.data)
    chain, note = _chain(subject, split, original, consent or Consent())
    count = split.sizes()["forget"]
    progress.say(f"Judging all {count} examples forgotten so far, over {len(chain) - 1} requests")
    digest = split.digest(subject.data)
    held = [model for role, model in models.items() if role.startswith("oracle")]
    oracles = [model.elsewhere(subject.folder, digest) for model in held]
    chained = [model for model, _ in chain]
    whole = [model.stored_observations(split, binder) for model in (*chained, *oracles)] if split.absent else []
    complete = [stored for stored in whole if stored is not None]
    if split.absent and len(complete) < len(whole):
        gone, split = len(split.absent.get("forget", ())), split.present()
        left = split.digest(subject.data)
        chained = [model.elsewhere(subject.folder, left) for model in chained]
        oracles = [model.elsewhere(subject.folder, left) for model in held]
        complete = []
        if gone:
            note = note or (
                f"Not judged: {gone} of the {count} examples of all requests are not in the data any more, and not all "
                "models were observed on them before. Whether earlier requests stay forgotten cannot be seen."
            )

    def observe(asked: Sequence[AuditedModel]) -> list[Observations]:
        return [model.observe(split, binder, device, progress) for model in asked]

    observed = complete[: len(chained)] or observe(chained)
    steps = _steps(chain, observed)
    if note:
        return RequestSequence(steps=steps, count=count, note=note)
    references = complete[len(chained) :] if complete else observe(oracles)
    claimed = frozenset(model.meta["digest"] for model in oracles if model.claim)
    result = api.judge_observations(
        observed[0], observed[-1], references, criteria=criteria, fixed=fixed, claimed=claimed
    )
    return RequestSequence(steps=steps, count=count, verdict=result.verdict, findings=strip_details(result.findings))


def _steps(chain: Sequence[tuple[AuditedModel, int]], observed: Sequence[Observations]) -> tuple[SequenceStep, ...]:
    """Utility, CKA and weight change of each model relative to the previous one and to the first."""
    loaded = [model.load().model for model, _ in chain]
    return tuple(
        measure_step(
            observed[: i + 1],
            method=model.meta["method"],
            forgotten=forgotten,
            moved_before=relative_change(loaded[i - 1], loaded[i]) if i else None,
            moved_first=relative_change(loaded[0], loaded[i]) if i else None,
        )
        for i, (model, forgotten) in enumerate(chain)
    )


def _chain(
    subject: OpenedRun, split: Split, named: Path | None, consent: Consent
) -> tuple[list[tuple[AuditedModel, int]], str]:
    """The models from the first original to the subject, and why the first original is not among them.

    Each model comes with the number of examples that it was to have forgotten; the note is empty if the chain is
    complete. ``named``: where an ancestor is now; it is used for the first folder that no longer exists.
    """
    digest, run, folder = split.digest(subject.data), subject.stored, subject.folder
    found: list[tuple[AuditedModel, int]] = []
    passed: set[Path] = set()
    while True:
        passed.add(folder.resolve())
        stored = read_split(folder)["parts"]
        forgotten = len(stored["forget"]) + len(stored.get(EARLIER, ()))
        path = stored_file(folder, subject.folder, run.meta, digest)
        found.append((AuditedModel(run.meta, folder / WEIGHTS, run.checkpoint, path), forgotten))
        source, by_user = find_source(run) or Path(), False
        if run.request.get("verb") != "unlearn":
            return found[::-1], ""
        if named is not None and not source.exists():
            by_user = is_foreign(named) or subject.folders.read(named).meta["digest"] == run.meta["parent"]
            source = named if by_user else source
        if is_foreign(source):
            first = foreign_original(run, source, subject.data, consent, digest, subject.folder, named=by_user)
            return [(first, 0), *found[::-1]], ""
        if not (source / REQUEST).exists():
            return found[::-1], (
                f"Not judged: {folder} was made from {source}, which is not there any more, and only the first "
                "original shows whether all of it is forgotten."
            )
        if source.resolve() in passed:
            list(walk_back(subject.stored, subject.folders))  # raises: it names the circle
        run, folder = subject.folders.read(source), source
