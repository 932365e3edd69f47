"""Listings of methods, audits and data sources, generated from their docstrings and fields."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from efface.config import describe_fields
from efface.errors import unknown_name_error

Listing = tuple[dict[str, Any], list[str]]
"""A JSON object, and the lines to print."""


def describe_methods(name: str | None = None) -> Listing:
    """List all methods with what each needs, or describe one: equation, source, departures, fields."""
    from efface.api import METHODS  # includes the methods of installed packages
    from efface.unlearning.plugins import get_plugin_origin

    needs = {key: cls.needs.names() for key, cls in METHODS.items()}
    origins = {key: {"origin": origin} for key, cls in METHODS.items() if (origin := get_plugin_origin(cls))}
    if name is None:
        rows, lines = dict[str, Any](), [f"{'method':22}{'needs':26}idea"]
        for key, cls in sorted(METHODS.items()):
            rows[key] = {"needs": needs[key], "idea": _idea(cls)} | origins.get(key, {})
            origin = f" [{origins[key]['origin']}]" if key in origins else ""
            lines.append(f"{key:22}{', '.join(needs[key]):26}{rows[key]['idea']}{origin}")
        return rows, lines
    cls = _pick("method", name, METHODS)
    head = [f"Needs  {', '.join(needs[name])}"]
    if name in origins:
        head.append(f"From   {origins[name]['origin']}")
    return _page(name, cls, {"needs": needs[name]} | origins.get(name, {}), head)


def describe_audits(name: str | None = None) -> Listing:
    """List all audits, or describe one."""
    from efface.auditing.audits import AUDITS

    if name is None:
        rows = {key: {"idea": _idea(cls)} for key, cls in sorted(AUDITS.items())}
        return rows, [f"{key:22}{row['idea']}" for key, row in rows.items()]
    return _page(name, _pick("audit", name, AUDITS), {}, [])


def describe_sources(name: str | None = None) -> Listing:
    """List all data sources, or describe one with its options."""
    from efface.data.sources import SOURCES

    if name is None:
        rows = {key: {"idea": _first(inspect.getdoc(source))} for key, source in sorted(SOURCES.items())}
        return rows, [f"{key:22}{row['idea']}" for key, row in rows.items()]
    if name not in SOURCES:
        raise unknown_name_error("data source", name, SOURCES)
    text = inspect.getdoc(SOURCES[name]) or ""
    options = {p.name: str(p.default) for p in inspect.signature(SOURCES[name]).parameters.values()}
    lines = ["", "Options (--set data.NAME=VALUE)", *(f"  {key} = {value}" for key, value in options.items())]
    lines.append("  classes: order of the classes, with every source: text, number, natural, lower, a list, or a file")
    return {"name": name, "text": text, "options": options}, [name, "", text, *lines]


def _pick(kind: str, name: str, known: Mapping[str, type]) -> type:
    if name not in known:
        raise unknown_name_error(kind, name, known)
    return known[name]


def _page(name: str, cls: type, extra: dict[str, Any], head: list[str]) -> Listing:
    text = (sys.modules[cls.__module__].__doc__ or "").strip()
    fields = describe_fields(cls)
    result = {
        "name": name,
        "text": text,
        "fields": [dict(zip(("name", "type", "default", "doc"), f, strict=True)) for f in fields],
        **extra,
    }
    lines = [name, "", text, "", *head]
    if fields:
        lines += [
            "",
            "Fields (--set GROUP.NAME=VALUE)",
            *(f"  {f} = {default}\n      {doc}" for f, _, default, doc in fields),
        ]
    return result, lines


def _idea(cls: type) -> str:
    return _first(sys.modules[cls.__module__].__doc__)


def _first(text: str | None) -> str:
    """The first sentence of a docstring."""
    return " ".join((text or "").strip().split("\n\n")[0].split()).rstrip(".")
