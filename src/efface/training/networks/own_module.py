"""A network that the user's own code builds: ``python:package.module:function``.

The function returns any ``torch.nn.Module``; which of its methods gives features [B, dim], and which of its parts is
the classifier, is stated by name. The code runs only if the user named it in this process
(``--model package:function``): what a run folder or a configuration says is no consent, since a name alone can run
anything that is installed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from efface.errors import EffaceError
from efface.training.networks.weight_kinds import require_float32

LIBRARY = "python"
"""Prefix of the names of such backbones."""
FEATURES, HEAD = "features", "head"
"""Options in addition to the arguments of the function: the method that gives features, and the classifier's name."""
_allowed: set[str] = set()


def allow_own_module(name: str) -> None:
    """Allow ``package.module:function`` to be imported and called in this process; only the user may say so."""
    if not all(part.isidentifier() for part in name.replace(":", ".").split(".")) or name.count(":") != 1:
        raise EffaceError(
            f"'{name}' names no function.", "It is written as package.module:function.", "Correct --model."
        )
    _allowed.add(name)


def with_own_modules(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that other processes run with the consent that the user gave in this one."""
    return partial(_call_with, tuple(sorted(_allowed)), function) if _allowed else function


def _call_with(names: tuple[str, ...], function: Callable[..., Any], *arguments: Any) -> Any:
    _allowed.update(names)
    return function(*arguments)


def build_own_backbone(name: str, channels: int, size: tuple[int, int], options: Mapping[str, Any]) -> OwnModule:
    """Build a network with the user's own function.

    Args:
        name: ``package.module:function``.
        channels: Channels of the images; the function must build a network for them.
        size: Height and width of the images; likewise.
        options: Arguments of the function, and ``features`` and ``head``.

    Raises:
        EffaceError: The user did not name the function in this process, it cannot be imported or called, or it returns
            no module with such a method, or one that is not of single precision.

    """
    if name not in _allowed:
        raise EffaceError(
            f"The network is built by the function {name}, and nobody named it in this call.",
            "It is the user's own code: what a file says is no consent to run it.",
            f"If you trust it, add --model {name}.",
        )
    place, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(place), function)
        net = made(**{key: value for key, value in options.items() if key not in (FEATURES, HEAD)})
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise EffaceError(
            f"{name} cannot be called.",
            f"{type(error).__name__}: {error}",
            "Run it from the folder of the package, or install the package; arguments go into "
            "--set recipe.backbone.options.NAME=VALUE.",
        ) from error
    if isinstance(net, nn.Module):
        require_float32(net, name)
    method, head = str(options.get(FEATURES, "forward")), options.get(HEAD)
    if not isinstance(net, nn.Module) or not callable(getattr(net, method, None)):
        raise EffaceError(
            f"{name} returned a {type(net).__name__} without a method '{method}'.",
            "It must be a torch.nn.Module, and the method must map images [B, C, H, W] to features [B, dim].",
            "Name the method: --set recipe.backbone.options.features=METHOD.",
        )
    if head is not None:
        try:
            net.get_submodule(str(head))  # raises, where the next one would add it
            net.set_submodule(str(head), nn.Identity())
        except (AttributeError, ValueError) as error:
            raise EffaceError(f"{name} has no part called '{head}'.", str(error), "Correct options.head.") from error
    return OwnModule(net, method)


class OwnModule(nn.Module):
    """A user's module as a backbone; its weights keep the names that they have in the user's files."""

    def __init__(self, net: nn.Module, method: str) -> None:
        super().__init__()
        self.net, self.method = net, method
        self.register_state_dict_post_hook(_write_own_names)
        self.register_load_state_dict_pre_hook(_read_own_names)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features of normalized images."""
        return getattr(self.net, self.method)(x)


def _write_own_names(_module: nn.Module, state: dict[str, Tensor], prefix: str, _meta: object) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}net.")]:
        state[prefix + name.removeprefix(f"{prefix}net.")] = state.pop(name)


def _read_own_names(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    own = {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    for name in own:
        short = prefix + name.removeprefix("net.")
        if short in state:
            state[prefix + name] = state.pop(short)
