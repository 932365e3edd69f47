"""Options, settings, progress and output that the verbs share."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from efface.cli.output import write_lines
from efface.errors import EffaceError

if TYPE_CHECKING:
    from efface.runs.run import Progress

Out = Annotated[Path, typer.Option("--out", help="Folder to write; refused if it exists.")]
Force = Annotated[bool, typer.Option("--force", help="Replace --out if it exists.")]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="One setting, as key=value; repeatable.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]
On = Annotated[
    str, typer.Option("--on", help="Where tasks run: local, dask://HOST:PORT or slurm:PARTITION; see docs/cluster.md.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, last.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only errors (and --json).")]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        metavar="model.yaml|package:function",
        help="What `efface init` wrote for the checkpoint; or the function of yours that builds the network.",
    ),
]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-pickle",
        metavar="[SHA256]",
        help="Unpickle a file that asks for classes: it can run any code. Alone: the files named here; with a SHA-256: "
        "the file that has it, also where a run folder names it. Repeatable.",
    ),
]
SHA256 = re.compile("[0-9a-fA-F]{64}")
NAMED_FILES = "named"
"""Value of ``--trust-pickle`` without a SHA-256."""
CONSENT = ("trust_pickle", "trusted", "unpickled")
"""Settings that are never read from a file."""
DataOption = Annotated[
    str | None, typer.Option("--data", help="A source's name, or a path: folder, .csv, .jsonl, .npz, .tar, .parquet.")
]

AllowAbsent = Annotated[
    bool, typer.Option("--allow-absent", help="Go on although retained examples are missing from the data.")
]
PurgeCache = Annotated[
    bool, typer.Option("--purge-cache", help="Remove caches of decoded pictures that hold examples to forget.")
]


JobsOption = Annotated[
    int | None, typer.Option("--jobs", help="Number of processes with one thread; by default one per core.")
]
Oracles = Annotated[
    list[Path] | None,
    typer.Option("--oracle", help="A model retrained without F: a run, or (unchecked) a checkpoint; repeatable."),
]
References = Annotated[
    Path | None, typer.Option("--references", help="A folder filled by `efface references`, for the audit.")
]
AuditBank = Annotated[
    Path | None, typer.Option("--bank", help="A reference bank of the original: `efface references RUN --bank 8`.")
]
Rehearsals = Annotated[
    Path | None,
    typer.Option("--rehearsals", help="Rehearsals of this procedure; by default those beside the original."),
]
SkipNeverTrained = Annotated[
    bool, typer.Option("--skip-never-trained", help="Skip listed ids that were never trained on.")
]
ReleasedWeights = Annotated[Path | None, typer.Option("--weights", help="The released file; by default the run's own.")]
DeskFolder = Annotated[
    Path, typer.Option("--desk", help="Folder of the desk: ledger, private files, runs, bundles.", envvar="EFFACE_DESK")
]
DESK_HOME = Path("efface-desk")
LedgerUrl = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        help="An SQLite file, or postgresql://USER@HOST/NAME; by default a file in the desk.",
        envvar="EFFACE_LEDGER",
    ),
]
Actor = Annotated[str | None, typer.Option("--actor", help="Who does it; by default $EFFACE_ACTOR, else your account.")]


def settings_of(config: Path | None, assignments: list[str] | None, **given: Any) -> dict[str, Any]:
    """Merge the settings of a verb: from the file, then the options, then ``--set``; later ones win."""
    from efface.config import override, read

    values = read(config) if config else {}
    given_by_file = [name for name in CONSENT if name in values]
    if given_by_file:
        raise EffaceError(
            f"{config} cannot set {given_by_file[0]}.",
            "Consent to run the code in a file is given on the command line, each time.",
            "Remove it from there, and add --trust-pickle.",
        )
    named = {key: value for key, value in given.items() if value is not None}
    if isinstance(values.get("data"), dict) and isinstance(named.get("data"), str):
        named["data"] = {**values["data"], "source": named["data"]}
    if isinstance(values.get("method"), dict) and values["method"].get("name") == named.get("method"):
        named.pop("method")
    if isinstance(values.get("stop"), dict):
        named.pop("stop", None)
    values = values | named
    if isinstance(values.get("data"), str):
        values["data"] = {"source": values["data"]}
    return override(values, assignments or [])


def merge_group(settings: dict[str, Any], name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Merge the options of a verb into a group of its settings; the options win."""
    group = settings.get(name)
    if not isinstance(group, dict | None):
        raise EffaceError(f"The setting '{name}' cannot be {group!r}.", "Expected: a group of settings, `name: value`.")
    return {**(group or {}), **given}


class ConsentingCommand(TyperCommand):
    """A command whose ``--trust-pickle`` takes a SHA-256 or nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give ``--trust-pickle`` its value where none follows."""
        shown: list[str] = []
        for word, following in zip(args, [*args[1:], ""], strict=False):
            alone = word == "--trust-pickle" and not SHA256.fullmatch(following)
            shown.append(f"--trust-pickle={NAMED_FILES}" if alone else word)
        return super().parse_args(ctx, shown)


def consent_settings(trust: list[str] | None) -> dict[str, Any]:
    """The values of ``--trust-pickle`` as settings; None stands for what was not given."""
    digests = [one for one in trust or () if one != NAMED_FILES]
    return {"trust_pickle": NAMED_FILES in (trust or ()) or None, "trusted": digests or None}


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Yield callbacks that show a progress bar on a terminal and plain lines elsewhere; nothing if ``quiet``."""
    from efface.cli.progress import BarProgress, LineProgress

    shown = None if quiet else BarProgress() if sys.stderr is not None and sys.stderr.isatty() else LineProgress()
    from efface.runs.run import Progress

    if shown is None:
        yield Progress()
        return
    try:
        yield Progress(steps=shown.step, say=shown.say, status=shown.status)
    finally:
        shown.close()


def print_result(result: dict[str, Any], lines: list[str], *, as_json: bool, quiet: bool) -> None:
    """Print the lines unless ``quiet``, then the result as one line of JSON if ``as_json``."""
    shown = [] if quiet else list(lines)
    write_lines([*shown, json.dumps(result)] if as_json else shown)
