"""What a launcher such as torchrun tells a process of itself and the others: read from the environment, without torch.

``torchrun --nproc-per-node N -m efface ...`` starts N processes that run the same command. The first of them leads: it
alone writes and prints.
"""

from __future__ import annotations

import os
import signal
import time

from efface.errors import EffaceError

ENDED_WORDS = ("gloo", "nccl", "connection closed by peer", "connection reset", "processgroup", "tcpstore", "c10d")
"""What the messages of torch say when another process of a run is gone."""

SECONDS_FOR_THE_FIRST = 10.0
"""How long other processes wait before they print an error."""


def count_processes() -> int:
    """Number of processes that a launcher has started for this command; 1 without a launcher."""
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def process_number() -> int:
    """Number of this process among them, from 0."""
    return _number("RANK", 0) if count_processes() > 1 else 0


def local_number() -> int:
    """Number of this process among those on its machine, from 0: that of its accelerator."""
    return _number("LOCAL_RANK", 0) if count_processes() > 1 else 0


def count_local_processes() -> int:
    """Number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", count_processes()) if count_processes() > 1 else 1


def is_follower() -> bool:
    """Whether this process belongs to others of which the first one writes and prints."""
    return process_number() > 0


def let_the_first_speak() -> None:
    """Wait before an error is printed: if all have it, the first one says so, and the launcher ends this one."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(SECONDS_FOR_THE_FIRST)


def refuse_several_processes(command: str) -> None:
    """Raise an error if a launcher has started several processes for a command that works in one.

    Raises:
        EffaceError: There are several.

    """
    if count_processes() > 1:
        raise EffaceError(
            f"{command} does not run in several processes.",
            f"The launcher started {count_processes()}, and each of them would do all of the work.",
            "Start it by itself, without torchrun. pretrain, unlearn and audit run in several processes.",
        )


def accept_fabric_options() -> None:
    """Take over processes that `fabric run` started, as if torchrun had.

    Raises:
        EffaceError: It was given a strategy or a precision that training here does not have.

    """
    given = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("LT_")}
    for name, known in {"LT_STRATEGY": ("auto", "ddp"), "LT_PRECISION": ("32", "32-true")}.items():
        option, value = name.removeprefix("LT_").lower(), given.get(name)
        if value is not None and value not in known:
            raise EffaceError(
                f"`fabric run --{option} {value}` cannot be followed.",
                f"Known here: {', '.join(known)}. For bfloat16 there is the setting bf16=true.",
                f"Leave out --{option}.",
            )


def processes_ended(reason: str = "") -> EffaceError:
    """The error of a process whose run cannot go on because another process is gone."""
    return EffaceError(
        "Another process of this run ended before its work was done.",
        f"Process {process_number()} of {count_processes()} cannot go on alone. {reason}".strip(),
        "See what that process, or the launcher, says of the cause. The same command resumes from the last finished "
        "epoch.",
    )


def explain_ended_process(error: Exception) -> EffaceError | None:
    """The error for a collective operation that failed because a process is gone; None if that is not what happened."""
    if count_processes() == 1 or not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if type(error).__module__.startswith("torch") or any(words in text.lower() for words in ENDED_WORDS):
        return processes_ended((text.strip().splitlines() or [""])[0][:160])
    return None


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise EffaceError(
            f"The variable {name} of the environment is '{text}', which is no number.",
            "Launchers such as torchrun set it for each process that they start.",
            f"Unset {name}, or start the command by torchrun.",
        )
    return int(text)
