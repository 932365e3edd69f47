"""Pages as HTML: templates, and the words for states, outcomes and days."""

from __future__ import annotations

from datetime import date
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from efface.desk.ledger import utc_now
from efface.reporting.format import mark_commands
from efface.reporting.wording import WORDINGS, Wording

STATE_WORDS = {
    "received": "Received: not planned yet",
    "planned": "Planned: not run yet",
    "unlearned": "Unlearned: not audited yet",
    "audited": "Audited: waiting to be released",
    "released": "Released",
    "refused": "Refused",
    "withdrawn": "Withdrawn",
}
OUTCOME_WORDS = {
    "removed": "Removed",
    "rewritten": "Rewritten without them",
    "listed": "Still there: somebody has to decide",
    "absent": "Nothing was there",
    "failed": "Failed: still there",
}
PLANNED_WORDS = {
    "removed": "Would be removed",
    "rewritten": "Would be rewritten without them",
    "listed": "Would stay: somebody has to decide",
    "absent": "Nothing is there",
}
"""The same, where nothing has been done yet."""


def moment_words(moment: str) -> str:
    """A time of the ledger for people: the day alone if it is all that was said."""
    day, _, time = moment.rstrip("Z").partition("T")
    return day if time in ("", "00:00:00") else f"{day} {time} UTC"


def detail_words(detail: str) -> str:
    """A detail of an artefact, with the boxes of this page instead of options of commands."""
    return detail.replace("(remove it with --remove-models)", "(tick the box below)")


def days_words(deadline: str, today: str) -> str:
    """How long it is until a deadline, in words."""
    left = (date.fromisoformat(deadline) - date.fromisoformat(today)).days
    if left == 0:
        return "today"
    named = f"{abs(left)} day" + ("" if abs(left) == 1 else "s")
    return f"{named} late" if left < 0 else f"in {named}"


def duration_words(seconds: float | None) -> str:
    """A duration, rounded, in words."""
    if seconds is None:
        return "unknown"
    for size, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.0f} {name}"
    return f"about {max(1, seconds):.0f} s"


def verdict_words(word: str) -> Wording | None:
    """What a verdict means and what to do next; None for a word of a later version."""
    return next((words for known, words in WORDINGS.items() if known == word), None)


class PageTemplates:
    """Renders the templates of the page; text from outside is always escaped.

    Args:
        shared: Values that every template gets.

    """

    def __init__(self, **shared: Any) -> None:
        self.environment = Environment(
            loader=PackageLoader("efface.desk.page", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.environment.filters |= {
            "duration": duration_words, "commas": "{:,}".format, "commands": mark_commands, "moment": moment_words,
            "details": detail_words,
        }  # fmt: skip
        self.environment.globals |= shared | {
            "state_words": STATE_WORDS, "outcome_words": OUTCOME_WORDS, "planned_words": PLANNED_WORDS,
            "days_words": days_words, "verdict_words": verdict_words,
        }  # fmt: skip

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """Render a template as an answer."""
        text = self.environment.get_template(template).render(today=utc_now()[:10], **values)
        return HTMLResponse(text, status)
