"""The forms: add, plan, run, release, discard, refuse, withdraw, erase."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from efface.desk.inputs import SELECTORS, read_forget
from efface.desk.page.office import Office, field, go_to, lines_of, upload
from efface.desk.page.pages import known_request, request_values
from efface.desk.planning import AUDIT_FOLDERS
from efface.desk.states import Goal, RequestState
from efface.errors import EffaceError

SETTINGS = ("method", "budget", "seed", "device", "references")
"""Settings of a plan that the page asks for."""


class DecisionForms:
    """The forms, and what they do."""

    def __init__(self, office: Office) -> None:
        self.office, self.desk = office, office.desk

    def actions(self) -> dict[str, Callable[[Request, FormData], Response]]:
        """The forms about one request, by the last part of their address."""
        return {
            "plan": self.plan, "run": self.run, "release": self.release, "discard": self.decide,
            "refuse": self.decide, "withdraw": self.decide, "look": self.look, "erase": self.erase,
        }  # fmt: skip

    def show_add(self, request: Request) -> Response:
        """The form of a new request."""
        return self._add_page({}, None)

    def add(self, request: Request, form: FormData) -> Response:
        """Write a request down; what is wrong is said above the form, which keeps what was entered."""
        names = ("id", "model", "goal", "forget", "asked_by", "received", "deadline")
        given = {name: field(form, name) for name in names}
        try:
            added = self.desk.add(
                given["id"], self._forget(form), model=given["model"] or "main", goal=given["goal"] or Goal.INDIVIDUAL,
                asked_by=given["asked_by"], received=given["received"] or None, deadline=given["deadline"] or None,
                actor=self.office.actor,
            )  # fmt: skip
        except EffaceError as error:
            return self._add_page(given, (error.what, error.why, error.remedy))
        return go_to(f"/requests/{added.id}")

    def _forget(self, form: FormData) -> str | tuple[str, ...]:
        """What is to be forgotten: a file, a selector, or ids, one on each line."""
        sent, typed = upload(form, "file"), field(form, "forget")
        if sent is not None and typed:
            raise EffaceError("Ids were typed, and a file was chosen.", "One of them is meant.", "Leave one out.")
        if sent is None:
            return typed if typed.startswith(SELECTORS) else read_forget(lines_of(form, "forget"))
        suffix = Path(sent.filename or "").suffix.lower()
        with tempfile.TemporaryDirectory(prefix="efface-") as folder:
            path = Path(folder) / f"ids{suffix if suffix in ('.csv', '.json', '.jsonl') else '.txt'}"
            sent.file.seek(0)
            path.write_bytes(sent.file.read())
            return read_forget(path)

    def _add_page(self, given: dict[str, str], error: tuple[str, str, str] | None) -> Response:
        return self.office.templates.page(
            "add.html", 400 if error else 200, given=given, error=error, goals=[one.value for one in Goal],
            models=[one.name for one in self.desk.models()],
        )  # fmt: skip

    def plan(self, request: Request, form: FormData) -> Response:
        """Start planning a request, with others that were ticked."""
        name = known_request(self.desk, request.path_params["id"]).id
        given: dict[str, Any] = {one: field(form, one) for one in SETTINGS if field(form, one)}
        if "seed" in given and not given["seed"].isdigit():
            raise EffaceError(f"The seed '{given['seed']}' is no number.", remedy="Leave it empty, or enter a number.")
        if "seed" in given:
            given["seed"] = int(given["seed"])
        default = self.office.settings.plan.get("method")
        if isinstance(default, dict) and default.get("name") == given.get("method"):
            given.pop("method")
        given |= {"oracles": oracles} if (oracles := lines_of(form, "oracles")) else {}
        given |= {"skip_never_trained": True} if field(form, "skip_never_trained") else {}
        if beside := {one: field(form, one) for one in AUDIT_FOLDERS if field(form, one)}:
            given["audit"] = {**(self.office.settings.plan.get("audit") or {}), **beside}
        ids = [name, *(str(one) for one in form.getlist("beside") if isinstance(one, str))]
        self.office.worker.start("plan", ids, self.office.actor, {**self.office.settings.plan, **given})
        return go_to(f"/requests/{name}#work")

    def run(self, request: Request, form: FormData) -> Response:
        """Start the run of the requests that were planned together, or go on with one that was cut."""
        found = known_request(self.desk, request.path_params["id"])
        batch = None if found.batch is None else self.desk.batch(found.batch)
        ids = [found.id] if batch is None else list(batch.requests)
        plan = self.desk.show(found.id, checked=False).plan
        if batch is None and plan is not None:
            others = [self.desk.show(one, checked=False) for one in plan.requests if one != found.id]
            ids += [one.request.id for one in others if one.request.state is RequestState.PLANNED
                    and one.plan is not None and one.plan.settings == plan.settings]  # fmt: skip
        self.office.worker.start("run", ids, self.office.actor)
        return go_to(f"/requests/{found.id}#work")

    def stop(self, request: Request, form: FormData) -> Response:
        """Stop the work that is going on."""
        now = self.office.worker.status()
        self.office.worker.stop()
        return go_to(f"/requests/{now.requests[0]}#work" if now is not None else "/")

    def release(self, request: Request, form: FormData) -> Response:
        """Sign for the model that answers a request."""
        name = known_request(self.desk, request.path_params["id"]).id
        if self.office.settings.signer is None:
            raise EffaceError(
                "The page was started without a key.", "Whoever releases a model signs for it.",
                "Start it with one: `efface desk --key release.pem`.",
            )  # fmt: skip
        self.desk.release(name, self.office.settings.signer, reason=field(form, "reason"), actor=self.office.actor)
        return go_to(f"/requests/{name}")

    def decide(self, request: Request, form: FormData) -> Response:
        """Refuse or withdraw a request, or give its run up, for a reason."""
        name, verb = known_request(self.desk, request.path_params["id"]).id, request.url.path.rpartition("/")[2]
        acts = {"refuse": self.desk.refuse, "withdraw": self.desk.withdraw, "discard": self.desk.discard}
        acts[verb](name, field(form, "reason"), actor=self.office.actor)
        return go_to(f"/requests/{name}")

    def look(self, request: Request, form: FormData) -> Response:
        """What still remembers a request, and what would become of it; nothing is changed."""
        name = known_request(self.desk, request.path_params["id"]).id
        asked = self._asked(form)
        found = self.desk.erase(name, dry_run=True, actor=self.office.actor, **asked)
        values: dict[str, Any] = {**request_values(self.office, name), "found": found}
        values["asked"] = asked | {"places": [str(one) for one in asked["places"]]}
        return self.office.templates.page("request.html", **values)

    def erase(self, request: Request, form: FormData) -> Response:
        """Erase what still remembers a request."""
        name = known_request(self.desk, request.path_params["id"]).id
        if not field(form, "sure"):
            raise EffaceError(
                "Nothing was erased.", "It cannot be brought back, and the box that says so was not ticked.",
                "Tick it, and press the button again.",
            )  # fmt: skip
        signer = self.office.settings.signer if self.desk.bundle_path(name).exists() else None
        self.desk.erase(name, signer=signer, actor=self.office.actor, **self._asked(form))
        return go_to(f"/requests/{name}#remains")

    def _asked(self, form: FormData) -> dict[str, Any]:
        return {
            "places": [Path(one).expanduser() for one in lines_of(form, "places")],
            "destroy_key": bool(field(form, "destroy_key")),
            "remove_models": bool(field(form, "remove_models")),
        }
