"""The verbs for a search index: embed, compat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli.options import (
    Config,
    DataOption,
    Device,
    Force,
    Json,
    ModelOption,
    Quiet,
    Set,
    Trust,
    consent_settings,
    merge_group,
    print_result,
    progress,
    settings_of,
)

Space = Annotated[str | None, typer.Option("--space", help="backbone (the default) or projector.")]
ObjectiveOption = Annotated[
    str | None, typer.Option("--objective", help="Objective of a foreign checkpoint, for its projector.")
]
BatchSizeOption = Annotated[int | None, typer.Option("--batch-size", help="Images embedded together.")]
REBUILD = 3
"""Exit code of compat when the index must be rebuilt."""


def embed_command(
    run: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder, or any library's checkpoint.")],
    out: Annotated[Path, typer.Option("--out", help="A .npz file, or a .npy file that gets a file of keys.")],
    data: DataOption = None,
    space: Space = None,
    everything: Annotated[bool, typer.Option("--all", help="Include images that the run has forgotten.")] = False,
    without: Annotated[
        str | None, typer.Option("--without", help="Further images to leave out: file of keys, @keys:a,b ...")
    ] = None,
    objective: ObjectiveOption = None,
    model: ModelOption = None,
    batch_size: BatchSizeOption = None,
    trust_pickle: Trust = None,
    config: Config = None,
    set_: Set = None,
    device: Device = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write embeddings and keys for a search index, without the images that the run has forgotten."""
    settings = settings_of(
        config, set_, data=data, objective=objective, space=space, device=device, batch_size=batch_size,
        **consent_settings(trust_pickle),
    )  # fmt: skip
    from efface.runs.embed import embed_checkpoint
    from efface.runs.model_description import use_model_to_embed

    run, settings, notes = use_model_to_embed(settings, model, run)
    with progress(quiet) as shown:
        for note in notes:
            shown.say(note)
        made = embed_checkpoint(run, out, settings, everything=everything, without=without, force=force, progress=shown)
    left = f"{made.forgotten} forgotten" + (f" and {made.copies} exact copies of them" if made.copies else "")
    lines = [f"{made.path}: {made.rows} embeddings of {made.width} numbers ({made.space}); left out: {left}"]
    lines += [f"Keys, in the same order: {made.keys}"] if made.keys != made.path else []
    print_result(vars(made), lines, as_json=json_, quiet=quiet)


def compat_command(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The encoder that made the stored vectors.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The encoder after unlearning.")],
    data: DataOption = None,
    space: Space = None,
    min_cosine: Annotated[
        float | None, typer.Option("--min-cosine", help="Smallest 5 % quantile of cos(old, new); 0.95.")
    ] = None,
    min_overlap: Annotated[
        float | None, typer.Option("--min-overlap", help="Smallest share of common neighbors; 0.9.")
    ] = None,
    neighbors: Annotated[int | None, typer.Option("--neighbors", help="Number of neighbors; 10.")] = None,
    objective: ObjectiveOption = None,
    model: ModelOption = None,
    batch_size: BatchSizeOption = None,
    trust_pickle: Trust = None,
    config: Config = None,
    set_: Set = None,
    device: Device = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check whether stored vectors can be kept after unlearning (exit code 0) or the index must be rebuilt (3)."""
    settings = settings_of(
        config, set_, data=data, objective=objective, space=space, device=device, batch_size=batch_size,
        **consent_settings(trust_pickle),
    )  # fmt: skip
    named = {"min_cosine": min_cosine, "min_overlap": min_overlap, "neighbors": neighbors}
    chosen = {key: value for key, value in named.items() if value is not None}
    settings["rule"] = merge_group(settings, "rule", chosen)
    from efface.runs.embed import check_compatibility
    from efface.runs.model_description import use_model_to_embed

    old, settings, notes = use_model_to_embed(settings, model, old)
    with progress(quiet) as shown:
        for note in notes:
            shown.say(note)
        found, forgotten = check_compatibility(old, new, settings, progress=shown)
    result = found.as_dict() | {"old": str(old), "new": str(new), "forgotten": forgotten}
    print_result(result, found.lines(forgotten), as_json=json_, quiet=quiet)
    raise typer.Exit(0 if found.keep else REBUILD)
