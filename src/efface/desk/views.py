"""What the desk answers with: requests, batches, chains of models, plans and outcomes, as frozen dataclasses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from efface.desk.ledger import LedgerEvent
from efface.desk.states import CLOSED, BatchState, Goal, RequestState


@dataclass(frozen=True)
class DeskRequest:
    """One request, as the ledger knows it."""

    id: str
    """The user's own name for it."""
    state: RequestState
    goal: Goal
    model: str
    """Name of the chain of models that it is about."""
    received: str
    """When it came in: UTC, as ``2026-11-29T04:38:16Z``."""
    deadline: str
    """The last day on which it must be answered, as ``2026-12-29``."""
    count: int | None
    """Number of training examples to forget; None until it is planned."""
    batch: int | None
    """Number of the batch that answers it; None until it is run."""
    erased: str
    """When what remembers was last erased; empty if never."""

    @property
    def closed(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in CLOSED

    @staticmethod
    def of(row: Mapping[Any, Any]) -> DeskRequest:
        """Read a row of the ledger."""
        same = {name: row[name] for name in ("id", "model", "received", "deadline", "count", "batch", "erased")}
        return DeskRequest(state=RequestState(row["state"]), goal=Goal(row["goal"]), **same)

    def days_left(self, today: str) -> int:
        """Days from ``today`` (``2026-11-29``) to the deadline; negative when it has passed."""
        from datetime import date

        return (date.fromisoformat(self.deadline) - date.fromisoformat(today)).days

    def as_dict(self) -> dict[str, Any]:
        """The request as a JSON object."""
        return asdict(self) | {"closed": self.closed}

    def line(self) -> str:
        """The request as a line to print."""
        count = "?" if self.count is None else str(self.count)
        return f"{self.id:<24} {self.state:<10} {self.goal:<10} {self.model:<12} {count:>7}  due {self.deadline}"


@dataclass(frozen=True)
class RequestPlan:
    """What answering a request, or several at once, takes; nothing has been changed yet."""

    requests: tuple[str, ...]
    model: str
    start: str
    """The model that unlearning starts from: a run folder."""
    counts: dict[str, int]
    """Training examples to forget, by request."""
    total: int
    """The same of all requests together; an example that two requests name counts once."""
    retained: int
    """Training examples that stay."""
    earlier: int
    """Examples that earlier requests of this chain asked for: they stay forgotten, and are audited again."""
    method: dict[str, Any]
    """The method with its settings; ``{"name": "auto"}`` if it is chosen by search."""
    settings: dict[str, Any]
    """Everything that ``run`` will use: forget_seed, budget, seed, device, oracles, audit settings ..."""
    steps: int | None
    """Expected optimizer steps of unlearning; None if the method decides."""
    retraining_steps: int
    """Optimizer steps that retraining without them would take."""
    seconds: float | None
    """Expected seconds on the machine that trained the original; None if unknown."""
    retraining_seconds: float | None
    bytes: int
    """Disk space that the new run takes, without observations."""
    notes: tuple[str, ...] = ()
    """What a person should read before anything runs: what a selector stands for, copies, missing pictures."""

    @staticmethod
    def of(stored: Mapping[str, Any], notes: Sequence[str] = ()) -> RequestPlan:
        """Read a plan of the ledger, with the notes that are kept beside the forget list."""
        known = {one.name: stored[one.name] for one in fields(RequestPlan) if one.name in stored}
        return RequestPlan(**{**known, "requests": tuple(stored["requests"])}, notes=tuple(notes))

    def stored(self) -> dict[str, Any]:
        """The plan for the ledger: without its notes, which may name ids."""
        return {name: value for name, value in self.as_dict().items() if name != "notes"}

    def as_dict(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        return json.loads(json.dumps(asdict(self)))

    def lines(self) -> list[str]:
        """The plan as lines to print."""
        steps = "as many steps as the method takes" if self.steps is None else f"about {self.steps} steps"
        seconds = "" if self.seconds is None else f", about {self.seconds:.0f} s"
        again = "" if self.retraining_seconds is None else f", about {self.retraining_seconds:.0f} s"
        return [
            *(f"{name}: {count} training examples" for name, count in self.counts.items()),
            f"Together: {self.total} to forget, {self.retained} stay; {self.earlier} were forgotten earlier",
            f"Start: {self.start}",
            f"Method: {self.method['name']}, {steps}{seconds}",
            f"Retraining would take {self.retraining_steps} steps{again}",
            f"Disk: about {self.bytes / 1e6:.1f} MB, and the observations of the audit",
            *self.notes,
        ]


@dataclass(frozen=True)
class RequestBatch:
    """One run for one or more requests."""

    number: int
    model: str
    state: BatchState
    requests: tuple[str, ...]
    folder: str
    """The run folder."""
    start: str
    """The run folder that it starts from."""
    start_batch: int | None
    """The batch that it starts from; None for the first model of the chain."""
    digest: str
    """Digest of the unlearned model; empty until there is one."""
    weights: str
    """SHA-256 of the file of its weights."""
    settings: dict[str, Any]
    verdict: dict[str, Any]
    """``word``, ``level``, ``sentence``, ``exit_code``; ``all_requests`` with the same of all of them together."""

    @staticmethod
    def of(row: Mapping[Any, Any]) -> RequestBatch:
        """Read a row of the ledger."""
        same = {name: row[name] for name in ("number", "model", "folder", "start", "start_batch", "digest", "weights")}
        return RequestBatch(
            state=BatchState(row["state"]),
            requests=tuple(json.loads(row["requests"])),
            settings=json.loads(row["settings"]),
            verdict=json.loads(row["verdict"]),
            **same,
        )

    def as_dict(self) -> dict[str, Any]:
        """The batch as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class ModelChain:
    """A model over time: the first one, and one for each released batch."""

    name: str
    original: str
    """Run folder of the first model."""
    original_digest: str
    head: str
    """Run folder of the model that was released last; the original if none was."""
    head_digest: str
    head_batch: int | None
    released: tuple[RequestBatch, ...] = ()
    """The released batches, oldest first."""
    open: tuple[RequestBatch, ...] = ()
    """Batches that are not decided yet, oldest first."""

    def as_dict(self) -> dict[str, Any]:
        """The chain as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class ErasedArtefact:
    """Something that remembers forgotten examples, and what became of it."""

    kind: str
    """``decoded pictures``, ``shard``, ``observations``, ``split``, ``vectors``, ``index``, ``average``,
    ``checkpoint``, ``reference``, ``forget list``, ``key`` ..."""
    place: str
    """Where it is."""
    outcome: Literal["removed", "rewritten", "listed", "absent", "failed"]
    """``listed``: it is still there, and somebody has to decide; ``absent``: nothing was found there."""
    detail: str = ""
    """Why, and how much of it: never an id."""
    count: int = 0
    """How many entries of it were removed or still remember; 0 if that has no meaning."""

    def as_dict(self) -> dict[str, Any]:
        """The outcome as a JSON object."""
        return asdict(self)

    def line(self, *, planned: bool = False) -> str:
        """The outcome as a line to print; ``planned``: nothing has been done yet."""
        intents = {"removed": "to be removed", "rewritten": "to be rewritten", "listed": "to be listed"}
        word = f"{intents.get(self.outcome, self.outcome):<15}" if planned else f"{self.outcome:<9}"
        return f"{word} {self.kind}: {self.place}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class RequestDetails:
    """Everything about one request."""

    request: DeskRequest
    asked_by: str
    """Who asked; empty if that was erased."""
    forget: str
    """What is to be forgotten: a selector, or how many ids are listed; empty if the list was erased."""
    key: Literal["kept", "destroyed"]
    """Whether the ledger's entry can still be linked to ids."""
    events: tuple[LedgerEvent, ...]
    plan: RequestPlan | None
    batch: RequestBatch | None
    bundle: str
    """Path of the signed bundle; empty before the release."""
    artefacts: tuple[ErasedArtefact, ...]

    def as_dict(self) -> dict[str, Any]:
        """The details as a JSON object."""
        parts = {"plan": self.plan, "batch": self.batch}
        return self.request.as_dict() | {
            "asked_by": self.asked_by,
            "forget": self.forget,
            "key": self.key,
            "events": [one.as_dict() for one in self.events],
            "bundle": self.bundle,
            "artefacts": [one.as_dict() for one in self.artefacts],
            **{name: one and one.as_dict() for name, one in parts.items()},
        }

    def lines(self) -> list[str]:
        """The details as lines to print."""
        plan = [] if self.plan is None else [f"  {line}" for line in self.plan.lines()]
        verdict = self.batch.verdict if self.batch else {}
        return [
            self.request.line(),
            *([f"asked by {self.asked_by}"] if self.asked_by else []),
            *([f"to forget: {self.forget}"] if self.forget else ["the forget list was erased"]),
            *(["the key was destroyed: the ledger's entry cannot be linked to ids"] if self.key != "kept" else []),
            *(["Plan:", *plan] if plan else []),
            *([f"Run: {self.batch.folder} ({self.batch.state})"] if self.batch else []),
            *([f"Verdict: {verdict['word']} ({verdict['level']}): {verdict['sentence']}"] if verdict else []),
            *([f"Bundle: {self.bundle}"] if self.bundle else []),
            *(one.line() for one in self.artefacts),
            "Events:",
            *(
                f"  {one.time} {one.action} by {one.actor}" + (f": {one.reason}" if one.reason else "")
                for one in self.events
            ),
        ]


@dataclass(frozen=True)
class RunOutcome:
    """What became of a run."""

    batch: RequestBatch
    resumed: bool
    """Whether it went on with a run that was cut."""

    @property
    def exit_code(self) -> int:
        """0: removed, 3: residue, 4: inconclusive, as an audit has it."""
        return int(self.batch.verdict.get("exit_code", 4))

    def as_dict(self) -> dict[str, Any]:
        """The outcome as a JSON object."""
        return {"batch": self.batch.as_dict(), "resumed": self.resumed, "exit_code": self.exit_code}

    def lines(self) -> list[str]:
        """The outcome as lines to print."""
        batch, verdict = self.batch, self.batch.verdict
        every = verdict.get("all_requests")
        return [
            f"RequestBatch {batch.number} ({', '.join(batch.requests)}): {verdict['word']} ({verdict['level']}): "
            f"{verdict['sentence']}",
            *(
                [f"All {every['count']} examples of all requests: {every['word']}: {every['sentence']}"]
                if every
                else []
            ),
            f"Run: {batch.folder}",
        ]


@dataclass(frozen=True)
class ReleaseOutcome:
    """What was released."""

    batch: RequestBatch
    bundles: dict[str, str]
    """Path of the signed bundle of each request."""
    head: str
    """The run folder that is now the head of the chain."""
    certified: bool
    """Whether the bundles certify a pass."""
    claims: tuple[str, ...] = field(default=())
    """What the bundles state without a check."""

    def as_dict(self) -> dict[str, Any]:
        """The outcome as a JSON object."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The outcome as lines to print."""
        certified = "a pass is certified" if self.certified else "no pass is certified"
        return [
            f"Released: {', '.join(self.batch.requests)}; {certified}",
            f"Head of {self.batch.model}: {self.head}",
            *(f"Nobody checked: {claim}" for claim in self.claims),
            *(f"Bundle of {name}: {path}" for name, path in self.bundles.items()),
        ]
