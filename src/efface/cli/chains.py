"""The option that names a chain of models of the desk, or says something about the model that it begins with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.errors import EffaceError

if TYPE_CHECKING:
    from efface.desk import Desk
    from efface.desk.views import ModelChain

ChainOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME|model.yaml|package:function",
        help="The chain of models, if there are several; or what `efface init` wrote for its first model; or the "
        "function of yours that builds the network. Repeatable.",
    ),
]


def choose_chain(desk: Desk, values: list[str] | None) -> str | None:
    """Take the values of ``--model`` apart: consent to a function of the user's, checks of a chain, and its name.

    Args:
        desk: The desk.
        values: Names of chains, ``model.yaml`` files, and functions as ``package:function``.

    Returns:
        The name of the chain; None if nothing says which one.

    Raises:
        EffaceError: Several chains were named, or a file describes another model than that of the chain.

    """
    names, files = list[str](), list[Path]()
    for value in values or ():
        path = Path(value)
        if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
            files.append(path)
        elif ":" in value:
            from efface.training.networks.own_module import allow_own_module

            allow_own_module(value)
        else:
            names.append(desk.model(value).name)
    for file in files:
        chains = [desk.model(name) for name in names] or desk.models()
        names += [_find_described(chains, file)]
    if len(set(names)) > 1:
        raise EffaceError(
            f"Several models were named: {', '.join(dict.fromkeys(names))}.",
            "A request is about one chain of models.",
            "Name one: --model NAME.",
        )
    return names[0] if names else None


def require_chain(desk: Desk, requests: list[str], name: str | None) -> None:
    """Raise an error if a request is about another chain of models than the one that was named."""
    for one in requests:
        about = desk.request(one).model
        if name is not None and about != name:
            raise EffaceError(
                f"{one} is about the model '{about}', and not about '{name}'.",
                "One run changes one model.",
                f"Leave out the other requests, or name its own model: --model {about}.",
            )


def _find_described(chains: list[ModelChain], file: Path) -> str:
    """The chain that begins with the model that a file describes."""
    from efface.runs.model_description import use_model_of_run

    error: EffaceError | None = None
    for chain in chains:
        first = Path(chain.original)
        try:
            use_model_of_run(file, first if first.exists() else Path(chain.head))
        except EffaceError as other:
            error = other
            continue
        return chain.name
    if error is not None and len(chains) == 1:
        raise error
    raise EffaceError(
        f"No chain of this desk goes back to the model that {file} describes.",
        f"The chains are: {', '.join(one.name for one in chains) or 'none yet'}.",
        "Name the chain: --model NAME, or begin one: `efface request model RUN`.",
    )
