"""What is written about an audit: the record, the report page and its figures."""

from typing import TYPE_CHECKING

from efface._lazy import lazy_exports

if TYPE_CHECKING:
    from efface.reporting.page import render_report
    from efface.reporting.record import Record

_HOMES = {
    "Record": "record",
    "render_report": "page",
}

__all__ = [
    "Record",
    "render_report",
]

__getattr__ = lazy_exports(__name__, _HOMES)
