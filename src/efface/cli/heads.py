"""The verbs for heads on a frozen encoder: fit, delete, check, show, predict. None loads torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli.options import Json, Quiet, print_result

heads = typer.Typer(
    help="Classifiers on embeddings from which rows can be deleted exactly.", no_args_is_help=True, add_completion=False
)
HeadFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a head.")]
EmbeddingsNow = Annotated[
    Path | None, typer.Option("--embeddings", help="Where the embeddings are now; by default where they were.")
]
LabelsOption = Annotated[
    Path | None, typer.Option("--labels", help="Table with the columns key and label; by default those in the file.")
]
NOT_EXACT = 3
"""Exit code of check when the head is not the one that is fitted again."""


@heads.command("fit")
def fit_head_command(
    embeddings: Annotated[
        Path, typer.Argument(metavar="EMBEDDINGS", help="An .npz of `efface embed`, an .npy with its keys, a .parquet.")
    ],
    out: Annotated[Path, typer.Option("--out", help="HeadFolder to write; refused if it exists.")],
    labels: LabelsOption = None,
    kind: Annotated[str, typer.Option("--kind", help="ridge or knn.")] = "ridge",
    penalty: Annotated[float, typer.Option("--penalty", help="λ of a ridge head.")] = 1.0,
    neighbors: Annotated[int, typer.Option("--neighbors", help="How many rows of a kNN head vote.")] = 20,
    without: Annotated[str | None, typer.Option("--without", help="File of keys to leave out, or @keys:a,b.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a ridge or kNN classifier on embeddings."""
    from efface.runs.heads import HeadSettings, describe_head, fit_head
    from efface.runs.vectors import read_forget_list

    left_out = read_forget_list(without) if without else []
    made = fit_head(embeddings, out, HeadSettings(kind, penalty, neighbors), labels=labels, without=left_out)
    lines = [f"{out}: {made.kind}, {made.rows} rows of {made.width} numbers, {len(made.classes)} classes"]
    print_result({"head": str(out), **describe_head(made)}, lines, as_json=json_, quiet=quiet)


@heads.command("delete")
def delete_head_command(
    folder: HeadFolder,
    forget: Annotated[str, typer.Option("--forget", help="File of keys, or @keys:a,b.")],
    embeddings: EmbeddingsNow = None,
    labels: LabelsOption = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Delete rows exactly: the head becomes the one that was never fitted on them."""
    from efface.runs.heads import delete_rows
    from efface.runs.vectors import read_forget_list

    done = delete_rows(folder, read_forget_list(forget), embeddings=embeddings, labels=labels)
    result = {"head": str(folder), **done.model_dump(mode="json")}
    lines = [f"{folder}: {done.count} rows deleted in {done.seconds:.2f} s", f"Record: {folder / done.record}"]
    print_result(result, lines, as_json=json_, quiet=quiet)


@heads.command("check")
def check_head_command(
    folder: HeadFolder,
    embeddings: EmbeddingsNow = None,
    labels: LabelsOption = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit the head again on the rows that are left, and compare: 0 if it is the same, 3 if it is not."""
    from efface.runs.heads import check_head

    found = check_head(folder, embeddings=embeddings, labels=labels)
    word = "the same" if found.passed else "NOT the same"
    lines = [f"{folder} is {word}: {found.what}; {found.measured}"]
    print_result({"head": str(folder), **found.model_dump(mode="json")}, lines, as_json=json_, quiet=quiet)
    raise typer.Exit(0 if found.passed else NOT_EXACT)


@heads.command("show")
def show_head_command(folder: HeadFolder, json_: Json = False) -> None:
    """Show what a head was fitted on, and what was deleted from it."""
    from efface.runs.head_store import HeadStore
    from efface.runs.heads import describe_head

    found = HeadStore(folder).describe()
    setting = f"penalty {found.penalty:g}" if found.kind == "ridge" else f"{found.neighbors} neighbors"
    lines = [
        f"{found.kind} ({setting}): {found.rows} of {found.fitted} rows, {found.width} numbers each",
        f"classes  {', '.join(found.classes[:10])}{' …' if len(found.classes) > 10 else ''}",
        f"digest   {found.digest()}",
        *(f"{one.created}  {one.count} rows deleted: {one.record}" for one in found.deletions),
    ]
    print_result({"head": str(folder), **describe_head(found)}, lines, as_json=json_, quiet=json_)


@heads.command("predict")
def predict_head_command(
    folder: HeadFolder,
    embeddings: Annotated[Path, typer.Argument(metavar="EMBEDDINGS", help="Embeddings to classify.")],
    json_: Json = False,
) -> None:
    """Print the predicted class of each embedding, one line of key and class each."""
    from efface.runs.heads import predict_classes

    keys, classes = predict_classes(folder, embeddings)
    lines = [f"{key}\t{name}" for key, name in zip(keys.tolist(), classes, strict=True)]
    result = {"head": str(folder), "predictions": dict(zip(keys.tolist(), classes, strict=True))}
    print_result(result, lines, as_json=json_, quiet=json_)
