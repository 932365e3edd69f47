"""Questions to a desk: which requests there are, what is due, everything about one, whether the ledger is whole."""

from __future__ import annotations

import json
from datetime import date, timedelta

from sqlalchemy import func, select

from efface.desk.inputs import parse_day, parse_state
from efface.desk.ledger import ChainCheck, utc_now
from efface.desk.states import CLOSED, RequestState
from efface.desk.store import DeskStore
from efface.desk.tables import DESK_REQUESTS
from efface.desk.views import DeskRequest, RequestDetails, RequestPlan


class DeskQuestions(DeskStore):
    """The part of a desk that changes nothing."""

    def requests(
        self,
        *,
        state: RequestState | str | None = None,
        model: str | None = None,
        search: str = "",
        due_by: str | None = None,
        closed: bool | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[DeskRequest]:
        """List requests in the order in which they came in.

        Args:
            state: Only those in this state.
            model: Only those about this chain.
            search: Only those whose id contains this text.
            due_by: Only those whose deadline is on this day or before.
            closed: Only those at their end (True), or the others (False).
            limit: At most so many.
            offset: Leave out so many at the start.

        """
        table = DESK_REQUESTS.c
        chosen = select(DESK_REQUESTS).order_by(table.received, table.id).offset(offset)
        if state is not None:
            chosen = chosen.where(table.state == parse_state(state).value)
        if model is not None:
            chosen = chosen.where(table.model == model)
        if search:
            chosen = chosen.where(table.folded.contains(search.casefold(), autoescape=True))
        if due_by is not None:
            chosen = chosen.where(table.deadline <= parse_day(due_by, "due_by"))
        if closed is not None:
            ends = [one.value for one in CLOSED]
            chosen = chosen.where(table.state.in_(ends) if closed else table.state.not_in(ends))
        if limit is not None:
            chosen = chosen.limit(limit)
        with self.ledger.reading() as connection:
            return [DeskRequest.of(row) for row in connection.execute(chosen).mappings()]

    def counts(self) -> dict[str, int]:
        """How many requests are in each state."""
        chosen = select(DESK_REQUESTS.c.state, func.count()).group_by(DESK_REQUESTS.c.state)
        with self.ledger.reading() as connection:
            found = {str(state): int(count) for state, count in connection.execute(chosen)}
        return {state.value: found.get(state.value, 0) for state in RequestState}

    def show(self, id: str, *, checked: bool = True) -> RequestDetails:
        """Everything about one request; the whole chain is checked first, unless ``checked`` is False."""
        if checked:
            self.ledger.require_valid()
        row = self.rows([id])[0]
        kept, request = self.private.forget_list(id), DeskRequest.of(row)
        planned = json.loads(row["plan"])
        bundle = next((one for one in (self.amended_path(id), self.bundle_path(id)) if one.exists()), None)
        return RequestDetails(
            request=request,
            asked_by=kept.asked_by if kept else "",
            forget=kept.summary() if kept else "",
            key="destroyed" if self.private.key(id) is None else "kept",
            events=tuple(self.ledger.events(f"request {id}")),
            plan=RequestPlan.of(planned, kept.notes if kept else ()) if planned else None,
            batch=None if request.batch is None else self.batch(request.batch),
            bundle="" if bundle is None else str(bundle),
            artefacts=tuple(self.artefacts(id)),
        )

    def due(self, days: int = 7, *, today: str | None = None) -> list[DeskRequest]:
        """The requests that must be answered within so many days, and those that are late; the most urgent first."""
        now = parse_day(today, "today") if today else utc_now()[:10]
        last = (date.fromisoformat(now) + timedelta(days=days)).isoformat()
        return sorted(self.requests(due_by=last, closed=False), key=lambda one: (one.deadline, one.received, one.id))

    def verify(self) -> ChainCheck:
        """Check every event of the chain, and that the ledger says what follows from them."""
        return self.ledger.verify()
