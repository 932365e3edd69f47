"""The verbs that judge them: audit, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli.options import Config, Device, Json, Quiet, Set, progress, settings_of, tell


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
    """Judge whether a run forgot: findings, record, report and a verdict as the exit code (0, 3 or 4).

    After several requests: the last one, and all of them together against the first original; the worse one counts.
    """
    settings = settings_of(config, set_, device=device)
    from efface import auditing, evidence

    with progress(quiet) as shown:
        judged = auditing.audit(
            run, settings, original=original, oracles=oracle or [], plain_ids=plain_ids, progress=shown
        )
    verdict = judged.verdict
    result = {"run": str(run), "verdict": verdict.word, "level": verdict.level, "sentence": verdict.sentence}
    lines = [f"{verdict.word} ({verdict.level}): {verdict.sentence}"]
    if judged.sequence is not None:
        whole = judged.sequence.verdict
        word, sentence = (whole.word, whole.sentence) if whole else ("inconclusive", judged.sequence.note)
        result |= {"all_requests": {"verdict": word, "count": judged.sequence.count, "sentence": sentence}}
        lines += [f"All {judged.sequence.count} examples of all requests: {word}: {sentence}"]
    tell(result, [*lines, f"Report: {run / evidence.REPORT}"], as_json=json_, quiet=quiet)
    raise typer.Exit(judged.exit_code)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="An audited run.")],
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write report.html again from the record, the observations and the log."""
    from efface import auditing

    path = auditing.report(run)
    tell({"report": str(path)}, [str(path)], as_json=json_, quiet=quiet)
