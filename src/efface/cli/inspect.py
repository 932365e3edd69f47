"""The verbs that list and describe: inspect, methods, audits, data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli.options import Json, Set, Trust, consent_settings, print_result


def inspect_command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A run folder, or any library's file or folder.")
    ],
    model: Annotated[
        Path | None, typer.Option("--model", metavar="model.yaml", help="What `efface init` wrote for the checkpoint.")
    ] = None,
    trust_pickle: Trust = None,
    json_: Json = False,
) -> None:
    """Describe a checkpoint: its layout, network and parts, and what may be personal. No code in it is run."""
    from efface.interop.consent import Consent
    from efface.interop.inspect import inspect_checkpoint
    from efface.runs.model_description import describe_stored_model

    checkpoint, stated, described = describe_stored_model(model, checkpoint)
    consent = Consent.of(**consent_settings(trust_pickle))
    found = inspect_checkpoint(checkpoint, trust_pickle=consent.covers(checkpoint, named=True))
    result = found.as_dict() | ({"model": stated} if stated else {})
    print_result(result, found.lines() + described, as_json=json_, quiet=json_)


def methods_command(name: Annotated[str | None, typer.Argument()] = None, json_: Json = False) -> None:
    """List the unlearning methods and what each needs; with NAME, its equation, source and fields."""
    from efface.cli import catalog

    result, lines = catalog.describe_methods(name)
    print_result(result, lines, as_json=json_, quiet=json_)


def audits_command(name: Annotated[str | None, typer.Argument()] = None, json_: Json = False) -> None:
    """List the audits; with NAME, what it measures."""
    from efface.cli import catalog

    result, lines = catalog.describe_audits(name)
    print_result(result, lines, as_json=json_, quiet=json_)


def data_command(
    name: Annotated[str | None, typer.Argument(metavar="NAME|PATH")] = None, set_: Set = None, json_: Json = False
) -> None:
    """List the data sources; with NAME, its options; with PATH, what is read there, and what is not."""
    from efface.cli import catalog, data_summary

    if name is not None and data_summary.is_data_path(name):
        result, lines = data_summary.describe_data(name, set_ or [])
    else:
        result, lines = catalog.describe_sources(name)
    print_result(result, lines, as_json=json_, quiet=json_)
