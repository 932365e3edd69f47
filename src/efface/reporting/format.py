"""Format numbers, settings and digests for the HTML pages, and set up the templates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cache, partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from efface import stats
from efface.auditing.evidence import Finding
from efface.auditing.formatting import DASH, format_count, format_number
from efface.auditing.signal_verdict import SignalVerdict
from efface.reporting.figures.audit import slug
from efface.reporting.translation import ENGLISH, Catalog, load_catalog
from efface.reporting.wording import SIGNAL_PLACES, SYMBOLS


def format_data(value: float | None, digits: int = 3) -> Markup:
    """A rounded number, with its full value in the markup for programs that read the page."""
    if value is None:
        return Markup('<span class="absent">{}</span>').format(DASH)
    return Markup('<data value="{}">{}</data>').format(repr(value), format_number(value, digits))


def ceiling(value: float | None) -> Markup:
    """The largest leak that could be detected, rounded down as in the limits of the verdict."""
    if value is None:
        return format_data(value)
    return Markup('<data value="{}">{:g}</data>').format(repr(value), stats.rounded_down(value))


def format_interval(interval: Sequence[float] | None) -> Markup:
    """An interval as ``low to high``."""
    if interval is None:
        return Markup('<span class="absent">{}</span>').format(DASH)
    return Markup('<span class="span">{} to {}</span>').format(format_data(interval[0]), format_data(interval[1]))


def format_digest(value: str | None) -> Markup:
    """A complete digest, which may break anywhere in a line."""
    return Markup("<code class=digest>{}</code>").format(value) if value else Markup("<span class=absent>none</span>")


def shorten_digest(value: str | None) -> Markup:
    """The first twelve characters of a digest, enough to distinguish checkpoints."""
    if not value:
        return Markup('<span class="absent">none</span>')
    bare = value.rpartition(":")[2]
    return Markup('<code title="{}">{}</code>').format(value, bare[:12])


def format_time(value: datetime) -> str:
    """Date and time to the minute."""
    return value.strftime("%Y-%m-%d %H:%M ") + (value.tzname() or "")


def format_duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def mark_commands(text: str) -> Markup:
    """A text as HTML, in which what stands between backticks is shown as code; all else is escaped."""
    parts = str(escape(text)).split("`")
    if len(parts) % 2 == 0:
        return Markup(escape(text))
    return Markup("".join(f"<code>{one}</code>" if place % 2 else one for place, one in enumerate(parts)))


def pairs_right(auc: float) -> str:
    """An AUC as the number of pairs, of a hundred, that the attack gets right."""
    return f"{100 * auc:.1f}"


def format_percent(share: float) -> str:
    """A share in percent, without trailing zeros and without the percent sign."""
    return f"{100 * share:.6g}"


def format_share(value: float | None) -> str:
    """A share in percent with one decimal."""
    return DASH if value is None else f"{100 * value:.1f}"


def format_setting(value: Any) -> str:
    """A setting as a user would write it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@cache
def template_environment(language: str = ENGLISH) -> Environment:
    """The Jinja environment of the pages in a language, with the filters that format numbers.

    Raises:
        EffaceError: There is no catalogue of that language.

    """
    catalog = load_catalog(language)
    environment = Environment(
        loader=PackageLoader("efface.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    translate: Any = environment
    translate.install_gettext_callables(catalog.gettext, catalog.ngettext, newstyle=True)
    filters: dict[str, Any] = {
        "number": format_number,
        "count": format_count,
        "data": format_data,
        "span": format_interval,
        "digest": format_digest,
        "short": shorten_digest,
        "ceiling": ceiling,
        "moment": format_time,
        "duration": format_duration,
        "pairs_right": pairs_right,
        "pretty": format_setting,
        "plural": pluralize,
        "percent": format_percent,
        "anchor": anchor,
        "linked": linked,
        "share": format_share,
        "local": catalog.number,
        "capital": capitalize_first,
        "commands": mark_commands,
    }
    variables: dict[str, Any] = {
        "SYMBOLS": SYMBOLS,
        "PLACES": SIGNAL_PLACES,
        "wanted": partial(needed_examples_text, catalog=catalog),
        "language": language,
        "foreign": Markup("" if language == ENGLISH else ' lang="en"'),
    }
    environment.filters.update(filters)
    environment.globals.update(variables)
    return environment


def pluralize(value: int, one: str, many: str = "") -> str:
    """``1 example``, ``2 examples``."""
    return f"{format_count(value)} {one if value == 1 else many or one + 's'}"


def capitalize_first(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


NO_NUMBER = "with these never-trained examples, no number of forgotten examples would be enough to decide"
NEEDED = "about %(count)s forgotten examples would be needed to decide"


def needed_examples_text(one: SignalVerdict, catalog: Catalog | None = None) -> str:
    """How many forgotten examples would be needed to decide an inconclusive signal; empty if it is decided."""
    translate = (catalog or load_catalog(ENGLISH)).gettext
    if one.word != "inconclusive":
        return ""
    if one.needed is None:
        return translate(NO_NUMBER)
    return translate(NEEDED) % {"count": format_count(one.needed)}


def anchor(name: str) -> str:
    """The id of a finding's row on the page."""
    return f"f-{slug(name)}"


def linked(value: Any, one: Finding | None) -> Markup:
    """A number as a link to the row of its finding; plain text if there is no finding."""
    shown = value if isinstance(value, Markup) else format_data(value)
    if one is None:
        return shown
    return Markup('<a class="number" href="#{}">{}</a>').format(anchor(one.name), shown)
