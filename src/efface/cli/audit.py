"""The verbs that judge a run: audit, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from efface.cli.options import (
    AllowAbsent,
    AuditBank,
    Config,
    DataOption,
    Device,
    Force,
    Json,
    ModelOption,
    Oracles,
    PurgeCache,
    Quiet,
    References,
    Rehearsals,
    Set,
    Trust,
    consent_settings,
    print_result,
    progress,
    settings_of,
)
from efface.errors import EffaceError

if TYPE_CHECKING:
    from efface.api import AuditResult


def audit_command(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The run to audit; none with --embeddings.")
    ] = None,
    embeddings: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--embeddings", metavar="BEFORE AFTER", help="Judge two files of embeddings instead of a run."),
    ] = None,
    control: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--control", metavar="BEFORE AFTER", help="Embeddings of items that were never trained on."),
    ] = None,
    views: Annotated[int | None, typer.Option("--views", help="Views per item, in consecutive rows.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the evidence; by default RUN, with --embeddings embeddings-audit."),
    ] = None,
    force: Force = False,
    original: Annotated[
        Path | None, typer.Option("--original", help="The original; by default the run that RUN was made from.")
    ] = None,
    oracle: Oracles = None,
    references: References = None,
    bank: AuditBank = None,
    withheld: Annotated[
        str | None,
        typer.Option("--withheld", metavar="DATA", help="Pictures that nobody but you has, as one more control."),
    ] = None,
    rehearsals: Rehearsals = None,
    require: Annotated[
        Literal["any", "direct"],
        typer.Option("--require", help="direct: a validated procedure counts as undecided (exit code 4)."),
    ] = "any",
    trust_pickle: Trust = None,
    plain_ids: Annotated[
        bool, typer.Option("--plain-ids", help="Write bare keys into the record instead of digests.")
    ] = False,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Observe every model anew instead of using stored observations.")
    ] = False,
    data: DataOption = None,
    allow_absent: AllowAbsent = False,
    purge_cache: PurgeCache = False,
    model: ModelOption = None,
    config: Config = None,
    set_: Set = None,
    device: Device = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Judge whether a run has forgotten: writes findings, record and report; the exit code is the verdict (0, 3, 4, 5).

    After several requests, the last one and all of them together are judged; the exit code is the worse of the two.
    """
    settings = settings_of(
        config, set_, device=device, data=data, allow_absent=allow_absent or None, purge_cache=purge_cache or None,
        withheld={"source": withheld} if withheld else None,
        **consent_settings(trust_pickle),
    )  # fmt: skip
    if embeddings is not None:
        judge_embeddings(
            embeddings,
            control,
            settings,
            run,
            out or Path("embeddings-audit"),
            views,
            force=force,
            as_json=json_,
            quiet=quiet,
        )
    run = require_run(run, control, views)
    from efface.auditing.verdict import EXIT_CODES
    from efface.reporting.page import REPORT
    from efface.runs.audit import audit_run, evidence_folder
    from efface.runs.model_description import use_model_of_run

    with progress(quiet) as shown:
        for note in use_model_of_run(model, run):
            shown.say(note)
        judged = audit_run(
            run, settings, original=original, oracles=oracle or [], references=references, bank=bank,
            rehearsals=rehearsals,
            plain_ids=plain_ids, recheck=recheck, out=out, force=force, progress=shown,
        )  # fmt: skip
    result, lines = _summary(run, judged)
    kept = evidence_folder(run, out)
    if kept is None:  # nowhere to write: everything that was found is printed
        result["findings"] = {one.name: one.value for one in judged.findings}
        lines += [
            f"{name}: {'none' if value is None else f'{value:.4g}'}" for name, value in result["findings"].items()
        ]
    else:
        lines.append(f"Report: {kept / REPORT}")
    print_result(result, lines, as_json=json_, quiet=quiet)
    code = judged.exit_code
    if require == "direct" and code == 0 and judged.verdict.word != "removed":
        code = EXIT_CODES["inconclusive"]  # the procedure was validated, and this request was not decided by itself
    raise typer.Exit(code)


def _summary(run: Path, judged: AuditResult) -> tuple[dict[str, Any], list[str]]:
    """The verdict, and that of all requests together if there were several: as JSON and as lines to print."""
    verdict = judged.verdict
    result: dict[str, Any] = {
        "run": str(run),
        "verdict": verdict.word,
        "level": verdict.level,
        "sentence": verdict.sentence,
    }
    lines = [f"{verdict.word} ({verdict.level}): {verdict.sentence}"]
    if judged.sequence is not None:
        overall = judged.sequence.verdict
        word, sentence = (overall.word, overall.sentence) if overall else ("inconclusive", judged.sequence.note)
        result |= {"all_requests": {"verdict": word, "count": judged.sequence.count, "sentence": sentence}}
        lines += [f"All {judged.sequence.count} examples of all requests: {word}: {sentence}"]
    return result, lines


def require_run(run: Path | None, control: tuple[Path, Path] | None, views: int | None) -> Path:
    """Return the run; an error if none was named, or if options were given that only apply to embeddings."""
    if run is None or control is not None or views is not None:
        raise EffaceError(
            "Nothing was said about what to audit."
            if run is None
            else "--control and --views cannot be used with a run.",
            "They describe two files of embeddings." if run is not None else "",
            "Name a run folder, or two files: --embeddings before.npy after.npy.",
        )
    return run


def judge_embeddings(
    embeddings: tuple[Path, Path],
    control: tuple[Path, Path] | None,
    settings: dict[str, Any],
    run: Path | None,
    out: Path,
    views: int | None,
    *,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> NoReturn:
    """Audit two files of embeddings: arrays alone, without torch."""
    if run is not None or set(settings) - {"criteria"}:
        raise EffaceError(
            f"Embeddings are judged without {'a run' if run is not None else 'these settings'}.",
            remedy="Only --control, --views, --out and --set criteria.NAME=VALUE go with --embeddings.",
        )
    from efface import config
    from efface.auditing.criteria import Criteria
    from efface.reporting.page import REPORT
    from efface.runs.audit_embeddings import audit_embeddings

    criteria = config.build(Criteria, settings.get("criteria") or {}, path="criteria.")
    judged = audit_embeddings(embeddings, control, out, views=views, criteria=criteria, force=force)
    result = {
        "out": str(out),
        "verdict": judged.word,
        "sentence": judged.sentence,
        "findings": {one.name: one.value for one in judged.findings},
    }
    lines = [f"{judged.word}: {judged.sentence}", f"Report: {out / REPORT}"]
    print_result(result, lines, as_json=as_json, quiet=quiet)
    raise typer.Exit(judged.exit_code)


def report_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="An audited run.")],
    language: Annotated[
        str, typer.Option("--language", help="Language of the first page: en; de writes report.de.html beside it.")
    ] = "en",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write report.html again from the record, the observations and the log."""
    from efface.runs.audit import report_run

    with progress(quiet) as shown:
        path = report_run(run, shown, language=language)
    print_result({"report": str(path)}, [str(path)], as_json=json_, quiet=quiet)
