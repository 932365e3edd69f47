"""States of a request, which may follow which, and the goals that a request can have."""

from __future__ import annotations

from enum import StrEnum

from efface.errors import EffaceError


class RequestState(StrEnum):
    """Where a request stands."""

    RECEIVED = "received"
    """It was written down; nothing else has happened."""
    PLANNED = "planned"
    """Its examples were found in the data, and method and cost are known."""
    UNLEARNED = "unlearned"
    """There is a model that was to forget them."""
    AUDITED = "audited"
    """That model was judged."""
    RELEASED = "released"
    """The model was signed for, and is the head of its chain."""
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"


class Goal(StrEnum):
    """Why examples are to be forgotten."""

    INDIVIDUAL = "individual"
    """A person asked for the examples that are about them."""
    CLASS = "class"
    """A whole class is to go."""
    CONCEPT = "concept"
    """A concept is to go, given by its examples."""


class BatchState(StrEnum):
    """Where a batch, one run for one or more requests, stands."""

    INTENDED = "intended"
    """Written down before the first weight changes."""
    UNLEARNED = "unlearned"
    AUDITED = "audited"
    RELEASED = "released"
    ABANDONED = "abandoned"
    """Its model is not used: it diverged, or one of its requests was refused, withdrawn or planned anew."""


_S = RequestState
LEGAL: dict[RequestState, tuple[RequestState, ...]] = {
    _S.RECEIVED: (_S.PLANNED, _S.REFUSED, _S.WITHDRAWN),
    _S.PLANNED: (_S.PLANNED, _S.UNLEARNED, _S.REFUSED, _S.WITHDRAWN),
    _S.UNLEARNED: (_S.AUDITED, _S.PLANNED, _S.REFUSED, _S.WITHDRAWN),
    _S.AUDITED: (_S.RELEASED, _S.PLANNED, _S.REFUSED, _S.WITHDRAWN),
    _S.RELEASED: (),
    _S.REFUSED: (),
    _S.WITHDRAWN: (),
}
"""State to the states that may follow. Back to ``planned`` leads a batch that is not used: it is done again."""
CLOSED = tuple(state for state, following in LEGAL.items() if not following)
"""The states in which nothing more happens to a request."""
NEXT_STEP = {
    _S.RECEIVED: "efface request plan",
    _S.PLANNED: "efface request run",
    _S.UNLEARNED: "efface request run",
    _S.AUDITED: "efface request release",
}
"""The command that brings a request on."""


def require_step(request: str, before: RequestState, after: RequestState) -> None:
    """Raise unless a request may go from one state to the other."""
    if after in LEGAL[before]:
        return
    if before in CLOSED:
        why = "Nothing more happens to a request that was released, refused or withdrawn."
        raise EffaceError(f"{request} is {before}, and cannot become {after}.", why, "Add a new request.")
    allowed = ", ".join(dict.fromkeys(state.value for state in LEGAL[before]))
    raise EffaceError(
        f"{request} is {before}, and cannot become {after}.",
        f"From there it can become: {allowed}.",
        f"Run `{NEXT_STEP[before]} {request}`.",
    )
