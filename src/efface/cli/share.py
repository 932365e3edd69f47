"""The verbs that hand a model on: push, pull, onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli.options import Force, Json, ModelOption, Quiet, print_result


def push_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    to: Annotated[str, typer.Argument(metavar="TO", help="OWNER/NAME on the Hugging Face Hub, or file:DIR.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    with_record: Annotated[
        bool, typer.Option("--with-record", help="Push record, findings and report too: they hold class names, paths.")
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Push the model of a run to the Hugging Face Hub or to a folder, with a model card that states the verdict."""
    from efface.runs.hub import push

    where = push(run, to, private=not public, with_record=with_record)
    print_result({"pushed": str(run), "to": where}, [where], as_json=json_, quiet=quiet)


def pull_command(
    source: Annotated[str, typer.Argument(metavar="FROM", help="OWNER/NAME on the Hugging Face Hub, or file:DIR.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; refused if it exists.")],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pull a pushed model into a folder, and check that its weights are those that it describes."""
    from efface.runs.hub import pull

    folder = pull(source, out, revision=revision)
    print_result({"pulled": source, "folder": str(folder)}, [str(folder)], as_json=json_, quiet=quiet)


def onnx_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[Path, typer.Option("--out", help="The .onnx file to write; refused if it exists.")],
    space: Annotated[
        str | None, typer.Option("--space", help="backbone, projector or logits; by default logits, else backbone.")
    ] = None,
    model: ModelOption = None,
    force: Force = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export the network of a run to ONNX, and check with onnxruntime that it computes the same."""
    from efface.interop.onnx_export import export_onnx
    from efface.runs.model_description import use_model_of_run
    from efface.training.checkpoint import Checkpoint

    use_model_of_run(model, run)
    made = export_onnx(Checkpoint.load(run), out, space=space, force=force)
    print_result(made.as_dict(), made.lines(), as_json=json_, quiet=quiet)
