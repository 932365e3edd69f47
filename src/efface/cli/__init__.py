"""The command line: the only package that prints, asks or exits. Every verb wraps one function of another package.

Exit codes: 0 success (audit: removed or validated) · 1 a bug · 2 wrong input · 3 audit: residue; compat: rebuild the
index; init: an assumption does not fit; verify: refused; erase, rewrite, request: something is left · 4 audit:
inconclusive · 5 audit: utility lost; bench: some models failed · 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from typing import Any

import typer

from efface.cli.audit import audit_command, report_command
from efface.cli.bench import bench_command
from efface.cli.convert import convert_command
from efface.cli.desk import desk_command
from efface.cli.embed import compat_command, embed_command
from efface.cli.erase import erase_command
from efface.cli.export import export
from efface.cli.followup import canaries, relearn_command
from efface.cli.heads import heads
from efface.cli.init import init_command
from efface.cli.inspect import audits_command, data_command, inspect_command, methods_command
from efface.cli.options import ConsentingCommand
from efface.cli.output import prepare_streams, write_message
from efface.cli.references import references_command
from efface.cli.rehearse import rehearse_command
from efface.cli.request import request
from efface.cli.rewrite import rewrite_command
from efface.cli.share import onnx_command, pull_command, push_command
from efface.cli.sign import keys, sign_command, verify_command
from efface.cli.train import check_command, demo_command, pretrain_command, unlearn_command
from efface.errors import EffaceError, explain_memory
from efface.training import launch

INTERRUPTED = 130
PATH_ERRORS = (
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
"""Errors of the system that mean that a path of the user's cannot be used."""
VERBS: tuple[Callable[..., None], ...] = (
    init_command,
    pretrain_command,
    unlearn_command,
    check_command,
    references_command,
    rehearse_command,
    audit_command,
    report_command,
    sign_command,
    verify_command,
    erase_command,
    rewrite_command,
    desk_command,
    relearn_command,
    bench_command,
    inspect_command,
    compat_command,
    embed_command,
    push_command,
    pull_command,
    onnx_command,
    convert_command,
    methods_command,
    audits_command,
    data_command,
    demo_command,
)
"""The verbs, in the order of the help."""

SHARED_VERBS = ("pretrain", "unlearn", "audit")
"""The verbs that several processes can do together: `torchrun --nproc-per-node N -m efface ...`."""

app = typer.Typer(
    help="Make a trained vision model forget examples, and show the evidence.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in VERBS:
    app.command(verb.__name__.removesuffix("_command"), cls=ConsentingCommand)(verb)
app.add_typer(canaries, name="canaries")
app.add_typer(keys, name="keys")
app.add_typer(heads, name="heads")
app.add_typer(export, name="export")
app.add_typer(request, name="request")


@app.callback()
def prepare_process(context: typer.Context) -> None:
    """Let idle OpenMP threads sleep instead of spin, unless the user has set this; accept a launcher or refuse it."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if context.invoked_subcommand not in SHARED_VERBS:
        launch.refuse_several_processes(f"efface {context.invoked_subcommand}")
    elif launch.count_processes() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a hint on speed that does not apply here


def print_error(what: str, why: str, remedy: str) -> None:
    """Print an error on at most three lines of standard error, whatever the words come from."""
    if launch.is_follower():
        launch.let_the_first_speak()
        write_message(f"process {launch.process_number()} of {launch.count_processes()}:", by_all=True)
    for label, text in (("error", what), ("why", why), ("do", remedy)):
        if text:
            line = re.sub(r"\s*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+\s*", " ", text)
            shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)
            write_message(f"{label + ':':7}{shown}", by_all=True)


def main() -> None:
    """Run the command line; errors become a message and an exit code."""
    prepare_streams()
    try:
        code = app(standalone_mode=False)  # the code that a verb passed to typer.Exit, or None
    except EffaceError as error:
        print_error(error.what, error.why, error.remedy)
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):  # wrong usage
            usage: Any = error
            if type(error).__name__ == "NoArgsIsHelpError":
                usage.show()
                raise SystemExit(2) from None
            command = usage.ctx.command_path if getattr(usage, "ctx", None) else "efface"
            print_error(usage.format_message(), "", f"See `{command} --help`.")
            raise SystemExit(2) from None
        ended = explain_memory(error) or launch.explain_ended_process(error)
        if ended is not None:
            print_error(ended.what, ended.why, ended.remedy)
            raise SystemExit(ended.exit_code) from None
        if isinstance(error, OSError) and error.errno in PATH_ERRORS:
            print_error(f"{error.filename or 'A file'} cannot be used.", f"{error.strerror}.", "Name another path.")
            raise SystemExit(2) from None
        raise
    if code == INTERRUPTED:
        write_message("\nInterrupted. The same command resumes from the last finished epoch.")
    raise SystemExit(0 if launch.is_follower() and code != INTERRUPTED else code or 0)  # the first one's code counts
