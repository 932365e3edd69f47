"""The verbs of the desk for deletion requests: efface request ... Listing requests loads neither torch nor NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.cli.chains import ChainOption, choose_chain, require_chain
from efface.cli.options import (
    DESK_HOME,
    Actor,
    AllowAbsent,
    AuditBank,
    Config,
    ConsentingCommand,
    DataOption,
    DeskFolder,
    Device,
    Force,
    Json,
    LedgerUrl,
    Oracles,
    Quiet,
    References,
    Rehearsals,
    ReleasedWeights,
    Seed,
    Set,
    SkipNeverTrained,
    merge_group,
    print_result,
    progress,
    settings_of,
)
from efface.cli.sign import open_signer

if TYPE_CHECKING:
    from efface.desk import Desk

RequestId = Annotated[str, typer.Argument(metavar="ID", help="Your own name for the request, as DSR-2026-0042.")]
ReasonText = Annotated[str, typer.Option("--reason", help="Why; kept in the ledger.")]
ModelName = Annotated[str | None, typer.Option("--model", help="The chain of models, if there are several.")]

request = typer.Typer(
    help="Answer deletion requests: add, plan, run, release, and keep a ledger of it all.",
    no_args_is_help=True,
    add_completion=False,
)


def opened(desk: Path, ledger: str | None, *, create: bool = False) -> Desk:
    """Open the desk that the options name."""
    from efface.desk import open_desk

    return open_desk(desk, ledger, create=create)


@request.command("model", cls=ConsentingCommand)
def model_command(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Run folder of the first model.")] = None,
    name: Annotated[str, typer.Option("--model", help="Your own name for it.")] = "main",
    desk: DeskFolder = DESK_HOME,
    ledger: LedgerUrl = None,
    actor: Actor = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Name the first model of a chain; without RUN, list the chains with their heads."""
    if run is not None:
        from efface.training.checkpoint import read_meta

        read_meta(run)  # a folder that is no run begins no desk
    with opened(desk, ledger, create=run is not None) as found:
        chains = [found.add_model(name, run, actor=actor)] if run is not None else found.models()
    lines = [f"{one.name}: head {one.head}, {len(one.released)} released, {len(one.open)} open" for one in chains]
    print_result({"models": [one.as_dict() for one in chains]}, lines, as_json=json_, quiet=quiet)


@request.command("add", cls=ConsentingCommand)
def add_command(
    id_: RequestId,
    forget: Annotated[str, typer.Option("--forget", help="File of ids, @class:5, @group:x, @random:20, @keys:a,b.")],
    model: ChainOption = None,
    goal: Annotated[str, typer.Option("--goal", help="individual, class or concept.")] = "individual",
    asked_by: Annotated[str, typer.Option("--asked-by", help="Who asked; kept in a private file only.")] = "",
    received: Annotated[
        str | None, typer.Option("--received", help="When it came in, as 2026-11-29; by default now.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option("--deadline", help="Last day to answer, as 2026-12-29; by default after 30 days.")
    ] = None,
    desk: DeskFolder = DESK_HOME,
    ledger: LedgerUrl = None,
    actor: Actor = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a request down. The same one twice is one; another one of the same name is refused."""
    with opened(desk, ledger) as found:
        added = found.add(
            id_, forget, model=choose_chain(found, model) or "main", goal=goal, asked_by=asked_by, received=received,
            deadline=deadline, actor=actor,
        )  # fmt: skip
    print_result(added.as_dict(), [added.line()], as_json=json_, quiet=quiet)


@request.command("list", cls=ConsentingCommand)
def list_command(
    state: Annotated[str | None, typer.Option("--state", help="Only requests in this state.")] = None,
    model: ModelName = None,
    search: Annotated[str, typer.Option("--search", help="Only requests whose id contains this.")] = "",
    due_by: Annotated[str | None, typer.Option("--due-by", help="Only those due on this day or before.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    desk: DeskFolder = DESK_HOME,
    ledger: LedgerUrl = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """List requests with state, goal, size and deadline, in the order in which they came in."""
    with opened(desk, ledger) as found:
        rows = found.requests(state=state, model=model, search=search, due_by=due_by, limit=limit)
        counts = found.counts()
    result = {"requests": [one.as_dict() for one in rows], "counts": counts}
    total = ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "none yet"
    print_result(result, [*(one.line() for one in rows), f"All: {total}"], as_json=json_, quiet=quiet)


@request.command("show", cls=ConsentingCommand)
def show_command(
    id_: RequestId, desk: DeskFolder = DESK_HOME, ledger: LedgerUrl = None, json_: Json = False, quiet: Quiet = False
) -> None:
    """Show everything about one request, after checking the chain of the ledger."""
    with opened(desk, ledger) as found:
        details = found.show(id_)
    print_result(details.as_dict(), details.lines(), as_json=json_, quiet=quiet)


@request.command("plan", cls=ConsentingCommand)
def plan_command(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Requests to answer by one run.")],
    method: Annotated[
        str | None, typer.Option("--method", help="See `efface methods`; auto: chosen by search.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Largest number of steps: 5% of retraining's, or a number.")
    ] = None,
    oracle: Oracles = None,
    references: References = None,
    bank: AuditBank = None,
    rehearsals: Rehearsals = None,
    data: DataOption = None,
    skip_never_trained: SkipNeverTrained = False,
    allow_absent: AllowAbsent = False,
    model: ChainOption = None,
    config: Config = None,
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    desk: DeskFolder = DESK_HOME,
    ledger: LedgerUrl = None,
    actor: Actor = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the examples of requests, and say what answering them at once takes. Nothing is trained.

    Settings are those of `efface unlearn`; for one of the audit, put `audit.` before its name.
    """
    settings = settings_of(
        config, set_, method=method, budget=budget, data=data, seed=seed, device=device,
        skip_never_trained=skip_never_trained or None, allow_absent=allow_absent or None,
        oracles=[str(one) for one in oracle] if oracle else None, references=references and str(references),
    )  # fmt: skip
    beside = {"bank": bank and str(bank), "rehearsals": rehearsals and str(rehearsals)}
    settings["audit"] = merge_group(settings, "audit", {name: path for name, path in beside.items() if path})
    with opened(desk, ledger) as found:
        require_chain(found, ids, choose_chain(found, model))
        plan = found.plan(ids, settings, actor=actor)
    print_result(plan.as_dict(), plan.lines(), as_json=json_, quiet=quiet)


@request.command("run", cls=ConsentingCommand)
def run_command(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="Planned requests; by default all of one plan.")
    ] = None,
    model: ChainOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for another run of this model.")] = False,
    desk: DeskFolder = DESK_HOME,
    ledger: LedgerUrl = None,
    actor: Actor = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Unlearn and audit planned requests, from the newest model; the exit code is the verdict (0, 3, 4, 5).

    Killed at any moment, the same command goes on.
    """
    with opened(desk, ledger) as found, progress(quiet) as shown:
        made = found.run(ids, model=choose_chain(found, model), wait=wait, actor=actor, progress=shown)
    print_result(made.as_dict(), made.lines(), as_json=json_, quiet=quiet)
    raise typer.Exit(made.exit_code)


@request.command("release", cls=ConsentingCommand)
def release_command(
    id_: RequestId,
    key: Annotated[Path, typer.Option("--key", help="Private key, from `efface keys new`.")],
    weights: ReleasedWeights = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, if the exit code of the verdict is not 0.")] = "",
    desk: DeskFolder = DESK_HOME,
    ledger: LedgerUrl = None,
    actor: Actor = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Sign for the model that answers a request and those of its run, and make it the head of its chain."""
    signer = open_signer(key)
    with opened(desk, ledger) as found:
        made = found.release(id_, signer, weights=weights, reason=reason, actor=actor)
    print_result(made.as_dict(), made.lines(), as_json=json_, quiet=quiet)


def _decide(verb: str, id_: str, reason: str, desk: Path, ledger: str | None, actor: str | None, **shown: bool) -> None:
    with opened(desk, ledger) as found:
        decided = getattr(found, verb)(id_, reason, actor=actor)
    print_result(decided.as_dict(), [decided.line()], **shown)


@request.command("refuse", cls=ConsentingCommand)
def refuse_command(
    id_: RequestId,
    reason: ReasonText = "",
    desk: DeskFolder = DESK_HOME,
    ledger: LedgerUrl = None,
    actor: Actor = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Refuse a request, for a reason. A run that was to answer it is not used."""
    _decide("refuse", id_, reason, desk, ledger, actor, as_json=json_, quiet=quiet)


@request.command("withdraw", cls=ConsentingCommand)
def withdraw_command(
    id_: RequestId,
    reason: ReasonText = "",
    desk: DeskFolder = DESK_HOME,
    ledger: LedgerUrl = None,
    actor: Actor = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Note that a request was withdrawn, and why. A run that was to answer it is not used."""
    _decide("withdraw", id_, reason, desk, ledger, actor, as_json=json_, quiet=quiet)


@request.command("discard", cls=ConsentingCommand)
def discard_command(
    id_: RequestId,
    reason: ReasonText = "",
    desk: DeskFolder = DESK_HOME,
    ledger: LedgerUrl = None,
    actor: Actor = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Give up the run that was to answer a request: its requests are planned again, as for another method."""
    _decide("discard", id_, reason, desk, ledger, actor, as_json=json_, quiet=quiet)


@request.command("due", cls=ConsentingCommand)
def due_command(
    days: Annotated[int, typer.Option("--days", min=0, help="Due within so many days, or late.")] = 7,
    desk: DeskFolder = DESK_HOME,
    ledger: LedgerUrl = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """List what must be answered soon, the most urgent first; the exit code is 3 if something is late."""
    from efface.desk.ledger import utc_now

    today = utc_now()[:10]
    with opened(desk, ledger) as found:
        rows = found.due(days, today=today)
    left = {one.id: one.days_left(today) for one in rows}
    result = {"today": today, "requests": [one.as_dict() | {"days_left": left[one.id]} for one in rows]}
    lines = [f"{one.line()}  {_days(left[one.id])}" for one in rows] or [f"Nothing is due within {days} days."]
    print_result(result, lines, as_json=json_, quiet=quiet)
    raise typer.Exit(3 if any(one < 0 for one in left.values()) else 0)


def _days(left: int) -> str:
    return f"{-left} days late" if left < 0 else "today" if left == 0 else f"{left} days left"


@request.command("verify", cls=ConsentingCommand)
def verify_ledger_command(
    desk: DeskFolder = DESK_HOME, ledger: LedgerUrl = None, json_: Json = False, quiet: Quiet = False
) -> None:
    """Check every event of the ledger, and all that follows from them; the exit code is 3 if something is wrong."""
    with opened(desk, ledger) as found:
        check = found.verify()
    good = f"The chain of {check.events} events is whole. Its head, to note elsewhere: {check.head}"
    print_result(check.as_dict(), [good] if check.valid else list(check.problems), as_json=json_, quiet=quiet)
    raise typer.Exit(0 if check.valid else 3)


@request.command("export", cls=ConsentingCommand)
def export_command(
    id_: RequestId,
    out: Annotated[Path | None, typer.Option("--out", help="ZIP archive to write; by default ID.zip.")] = None,
    force: Force = False,
    desk: DeskFolder = DESK_HOME,
    ledger: LedgerUrl = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write what may be passed on about a request: bundle, report, record and events, without ids."""
    with opened(desk, ledger) as found:
        path = found.export(id_, out or Path(f"{id_}.zip"), force=force)
    print_result({"archive": str(path)}, [str(path)], as_json=json_, quiet=quiet)


@request.command("replay", cls=ConsentingCommand)
def replay_command(
    apply: Annotated[
        bool, typer.Option("--apply", help="Write the events that the ledger lacks back, from the journal.")
    ] = False,
    desk: DeskFolder = DESK_HOME,
    ledger: LedgerUrl = None,
    actor: Actor = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """List what a restored backup brought back and must be erased again; the exit code is 3 if there is any."""
    with opened(desk, ledger) as found:
        items, gaps = found.replay(apply=apply, actor=actor), found.replay_gaps()
    result: dict[str, Any] = {"items": [one.as_dict() for one in items], "not_checked": gaps}
    lines = [one.line() for one in items] or ["Nothing came back: models and files are as the ledger says."]
    if gaps:
        lines.append(
            f"Not checked: rewritten files of {', '.join(gaps[:5])}{' ...' if len(gaps) > 5 else ''} ({len(gaps)}); "
            "without their keys nobody can tell whose rows a backup brings back."
        )
    print_result(result, lines, as_json=json_, quiet=quiet)
    raise typer.Exit(3 if items else 0)
