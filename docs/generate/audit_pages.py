"""``docs/audits``: one page for each audit, from its own docstrings."""

from __future__ import annotations

from docs.generate.markdown import table_head, table_row

from efface.auditing.audits import AUDITS
from efface.cli import catalog


def audit_page(name: str) -> str:
    """What one audit measures, and its fields."""
    result, _ = catalog.describe_audits(name)
    fields = [
        table_row(f"`{one['name']}`", f"`{one['default']}`", one["doc"].replace("|", "∣")) for one in result["fields"]
    ]
    table = [*table_head("field", "default", ""), *fields] if fields else ["It has no fields."]
    return "\n".join([f"# {name}", "", "```", result["text"], "```", "", *table, ""])


def index_page() -> str:
    """All audits with what each measures."""
    lines = [
        "# Audits",
        "",
        "An audit turns observations of models into findings. The [verdict](../concepts/verdict.md) rests on a few of",
        "them, named before any result was seen; all are in `findings.json` and in the report. The same texts are in",
        "the terminal: `efface audits NAME`.",
        "",
        *table_head("audit", "what it measures"),
    ]
    for name in AUDITS:
        idea = catalog.describe_audits(name)[0]["text"].split("\n\n")[0].replace("\n", " ")
        lines.append(table_row(f"[{name}]({name}.md)", idea))
    return "\n".join([*lines, ""])
