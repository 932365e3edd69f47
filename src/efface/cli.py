"""The command line: the only place that prints, asks or exits. Every verb is a few lines around ``runs``.

Exit codes: 0 done (audit: removed) · 1 a bug · 2 the input is wrong · 3 audit: residue · 4 audit: inconclusive ·
130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.errors import EffaceError

if TYPE_CHECKING:
    from efface.runs import Progress

app = typer.Typer(
    help="Make a trained vision model forget examples, and show the evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130
Out = Annotated[Path, typer.Option("--out", help="Folder to write; refused if it exists.")]
Force = Annotated[bool, typer.Option("--force", help="Replace --out if it exists.")]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file with the same settings.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="One setting, as key=value; repeatable.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, last.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors (and --json).")]
Trust = Annotated[
    bool, typer.Option("--trust-pickle", help="Unpickle a file that asks for classes: it can run what it likes.")
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="A source's name, or a path: folder, .csv, .jsonl, .npz.")
]


def main() -> None:
    """Run the command line; every failure is a sentence and an exit code."""
    try:
        code = app(standalone_mode=False)  # what a verb gave to typer.Exit, or None
    except EffaceError as error:
        for label, text in (("error", error.what), ("why", error.why), ("do", error.remedy)):
            if text:
                typer.echo(f"{label + ':':7}{text}", err=True)
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):  # wrong usage: click words it well already
            show: Callable[[], None] = getattr(error, "show")  # noqa: B009
            show()
            raise SystemExit(2) from None
        raise
    if code == INTERRUPTED:
        typer.echo("\nInterrupted. The same command goes on from the last finished epoch.", err=True)
    raise SystemExit(code or 0)


def settings_of(config: Path | None, assignments: list[str] | None, **given: Any) -> dict[str, Any]:
    """The settings of a verb: the file, then the options, then ``--set``."""
    from efface.config import override, read

    values = read(config) if config else {}
    named = {key: value for key, value in given.items() if value is not None}
    if isinstance(values.get("data"), dict) and isinstance(named.get("data"), str):
        named["data"] = {**values["data"], "source": named["data"]}
    if isinstance(values.get("method"), dict) and values["method"].get("name") == named.get("method"):
        named.pop("method")
    values = values | named
    if isinstance(values.get("data"), str):
        values["data"] = {"source": values["data"]}
    return override(values, assignments or [])


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """A bar with the time left on a terminal, plain lines elsewhere."""
    from efface.progress import Bar, Lines

    shown = None if quiet else Bar() if sys.stderr.isatty() else Lines()
    from efface.runs import Progress

    if shown is None:
        yield Progress()
        return
    try:
        yield Progress(steps=shown.step, say=shown.say)
    finally:
        shown.close()


def tell(result: dict[str, Any], lines: list[str], *, as_json: bool, quiet: bool) -> None:
    """Print the sentences, then the machine-readable line."""
    if not quiet:
        for line in lines:
            typer.echo(line)
    if as_json:
        typer.echo(json.dumps(result))


@app.command()
def pretrain(
    out: Out,
    data: DataOption = None,
    objective: Annotated[str | None, typer.Option("--objective", help="simclr, moco, byol, cross_entropy.")] = None,
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an original checkpoint; cut at any moment, the same command goes on to the same weights."""
    settings = settings_of(config, set_, data=data, objective=objective, seed=seed, device=device)
    from efface import runs

    with progress(quiet) as shown:
        made = runs.pretrain(out, settings, force=force, progress=shown)
    result = {"run": str(out), "digest": made.model.digest(), **vars(made.tally)}
    tell(result, [f"{out}: {made.tally.steps} steps, {made.tally.seconds:.0f} s"], as_json=json_, quiet=quiet)


@app.command()
def unlearn(
    start: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder, or any library's checkpoint.")],
    out: Out,
    forget: Annotated[
        str | None, typer.Option("--forget", help="File of keys, @class:5, @group:x, @random:0.1, @keys:a,b.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="`efface methods` lists them.")] = None,
    data: DataOption = None,
    objective: Annotated[str | None, typer.Option("--objective", help="Of a foreign checkpoint.")] = None,
    trust_pickle: Trust = False,
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a checkpoint forget examples: a new run folder beside the original, which stays as it is."""
    settings = settings_of(
        config, set_, forget=forget, method=method, data=data, objective=objective, seed=seed, device=device,
        trust_pickle=trust_pickle or None,
    )  # fmt: skip
    from efface import runs

    with progress(quiet) as shown:
        made = runs.unlearn(start, out, settings, force=force, progress=shown)
    result = {"run": str(out), "digest": made.model.digest(), "parent": made.parent, **vars(made.tally)}
    tell(result, [f"{out}: {made.tally.steps} steps, {made.tally.seconds:.0f} s"], as_json=json_, quiet=quiet)


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run on trial.")],
    original: Annotated[
        Path | None, typer.Option("--original", help="By default the run that it was made from.")
    ] = None,
    oracle: Annotated[list[Path] | None, typer.Option("--oracle", help="A run that never saw F; repeatable.")] = None,
    plain_ids: Annotated[
        bool, typer.Option("--plain-ids", help="Write bare keys into the record, not digests.")
    ] = False,
    config: Config = None,
    set_: Set = None,
    device: Device = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Judge whether a run forgot: findings, record, report and a verdict as the exit code (0, 3 or 4)."""
    settings = settings_of(config, set_, device=device)
    from efface import auditing, evidence

    with progress(quiet) as shown:
        judged = auditing.audit(
            run, settings, original=original, oracles=oracle or [], plain_ids=plain_ids, progress=shown
        )
    verdict = judged.verdict
    result = {"run": str(run), "verdict": verdict.word, "level": verdict.level, "sentence": verdict.sentence}
    lines = [f"{verdict.word} ({verdict.level}): {verdict.sentence}", f"Report: {run / evidence.REPORT}"]
    tell(result, lines, as_json=json_, quiet=quiet)
    raise typer.Exit(verdict.exit_code)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="An audited run.")],
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write report.html again from the record, the observations and the log."""
    from efface import auditing

    path = auditing.report(run)
    tell({"report": str(path)}, [str(path)], as_json=json_, quiet=quiet)


@app.command()
def inspect(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A run folder, or any library's file or folder.")
    ],
    trust_pickle: Trust = False,
    json_: Json = False,
) -> None:
    """Say what is in a checkpoint: whose layout, which network, parts, what is personal. Nothing in it is run."""
    from efface.inspect import inspect as look

    found = look(checkpoint, trust_pickle=trust_pickle)
    tell(found.as_dict(), found.lines(), as_json=json_, quiet=json_)


@app.command()
def methods(name: Annotated[str | None, typer.Argument()] = None, json_: Json = False) -> None:
    """List the unlearning methods and what each needs; with NAME its equation, source and fields."""
    from efface import catalog

    result, lines = catalog.methods(name)
    tell(result, lines, as_json=json_, quiet=json_)


@app.command()
def audits(name: Annotated[str | None, typer.Argument()] = None, json_: Json = False) -> None:
    """List the audits; with NAME what it measures."""
    from efface import catalog

    result, lines = catalog.audits(name)
    tell(result, lines, as_json=json_, quiet=json_)


@app.command()
def data(name: Annotated[str | None, typer.Argument()] = None, json_: Json = False) -> None:
    """List the data sources; with NAME its options."""
    from efface import catalog

    result, lines = catalog.sources(name)
    tell(result, lines, as_json=json_, quiet=json_)


@app.command()
def demo(
    data: Annotated[str, typer.Option("--data", help="digits or fashion-mnist.")] = "digits",
    out: Annotated[Path, typer.Option("--out", help="Folder for the demo's runs.")] = Path("runs/demo"),
    seed: Seed = None,
    device: Device = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """See a model forget: pretrain, unlearn two ways, retrain, audit, report."""
    from efface import demo as show

    with progress(quiet) as shown:
        result = show.run(data, out, seed=seed or 0, device=device or "auto", force=force, progress=shown)
    tell(result.as_dict(), result.lines(), as_json=json_, quiet=quiet)


@app.callback()
def threads() -> None:
    """One job alone is fastest with its threads bound; the user's own settings win."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


if __name__ == "__main__":
    main()
