"""``docs/reference/cli.md``: every verb of the command line with its options, from the command line itself."""

from __future__ import annotations

from typing import Any

import typer.main
from docs.generate.markdown import table_head, table_row

from efface.cli import app

EXIT_CODES = {
    0: "success; `audit`: removed or validated; `compat`: stored embeddings still fit; `verify`: holds",
    2: "wrong input: nothing was changed, and the message says what to do",
    3: "`audit`: a trace remains or the examples stand out; `compat`: rebuild the index; `init`: an assumption does "
    "not fit; `verify`: refused; `erase`, `rewrite`, `request`: something is left",
    4: "`audit`: undecided",
    5: "`audit`: the model has lost its utility; `bench`: some models failed, the rest is there",
    130: "interrupted: the same command resumes",
}


def page() -> str:
    """All verbs, in the order of ``efface --help``."""
    lines = [
        "# Command line",
        "",
        "Every verb takes `--help`. `--json` prints the result as one line of JSON, `--quiet` only errors. `--set`",
        "and a YAML file with `--config` take every setting; `efface methods NAME` lists those of a method.",
        "",
        *table_head("exit code", "meaning"),
        *(table_row(code, meaning) for code, meaning in EXIT_CODES.items()),
        "",
    ]
    for path, command in walk(typer.main.get_command(app), ()):
        arguments = " ".join(one.metavar or one.name.upper() for one in command.params if is_argument(one))
        lines += [f"## efface {' '.join(path)}", "", first(command.help), ""]
        lines += ["```", f"efface {' '.join(path)} {arguments} [OPTIONS]".replace("  ", " "), "```", ""]
        options = [one for one in command.params if not is_argument(one)]
        lines += [*table_head("option", ""), *(table_row(f"`{names(one)}`", tidy(one.help)) for one in options), ""]
    return "\n".join(lines)


def walk(command: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its words."""
    if hasattr(command, "commands"):
        return [found for name, inner in command.commands.items() for found in walk(inner, (*path, name))]
    return [(path, command)]


def is_argument(parameter: Any) -> bool:
    """Whether a parameter is typed without a name."""
    return parameter.param_type_name == "argument"


def names(option: Any) -> str:
    """The names of an option, with the placeholder of its value."""
    value = "" if option.is_flag else f" {option.metavar}" if option.metavar else " …"
    return ", ".join(option.opts) + value


def first(text: str | None) -> str:
    """A help text without typer's line breaks."""
    return " ".join((text or "").split())


def tidy(text: str | None) -> str:
    """A help text that fits into a cell."""
    return first(text).replace("|", "∣").replace("<", "&lt;")
