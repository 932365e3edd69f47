"""The command line: the only package that prints, asks or exits. Every verb wraps one function of another package.

Exit codes: 0 success (audit: removed) · 1 a bug · 2 wrong input · 3 audit: residue; compat: rebuild the index ·
4 audit: inconclusive · 5 bench: some models failed · 130 interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import typer

from efface.cli.audit import audit_command, report_command
from efface.cli.bench import bench_command
from efface.cli.embed import compat_command, embed_command
from efface.cli.followup import canaries, relearn_command
from efface.cli.inspect import audits_command, data_command, inspect_command, methods_command
from efface.cli.options import ConsentingCommand
from efface.cli.output import prepare_streams, write_message
from efface.cli.references import references_command
from efface.cli.train import demo_command, pretrain_command, unlearn_command
from efface.errors import EffaceError

INTERRUPTED = 130
VERBS: tuple[Callable[..., None], ...] = (
    pretrain_command,
    unlearn_command,
    references_command,
    audit_command,
    report_command,
    relearn_command,
    bench_command,
    inspect_command,
    compat_command,
    embed_command,
    methods_command,
    audits_command,
    data_command,
    demo_command,
)
"""The verbs, in the order of the help."""

app = typer.Typer(
    help="Make a trained vision model forget examples, and show the evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in VERBS:
    app.command(verb.__name__.removesuffix("_command"), cls=ConsentingCommand)(verb)
app.add_typer(canaries, name="canaries")


@app.callback()
def limit_threads() -> None:
    """Let idle OpenMP threads sleep instead of spin, unless the user has set this."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    """Run the command line; errors become a message and an exit code."""
    prepare_streams()
    try:
        code = app(standalone_mode=False)  # the code that a verb passed to typer.Exit, or None
    except EffaceError as error:
        for label, text in (("error", error.what), ("why", error.why), ("do", error.remedy)):
            if text:
                write_message(f"{label + ':':7}{text}")
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):  # wrong usage: click has a good message
            show: Callable[[], None] = getattr(error, "show")  # noqa: B009
            show()
            raise SystemExit(2) from None
        raise
    if code == INTERRUPTED:
        write_message("\nInterrupted. The same command resumes from the last finished epoch.")
    raise SystemExit(code or 0)
