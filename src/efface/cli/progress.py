"""Progress of training: a bar with the remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import time
from typing import Any

from efface.cli.output import write_message
from efface.runs.remaining import format_left


def _describe(record: dict[str, Any], total: int, began: float, first: int) -> str:
    """Step, loss terms and remaining time; ``first``: the step at time ``began``."""
    done, terms = record["step"], ", ".join(f"{k} {v:.3f}" for k, v in record["terms"].items())
    if not total:
        return f"step {done}  {terms}"
    each = (time.monotonic() - began) / max(1, done - first + 1)
    return f"step {done}/{total}  {terms}  {format_left(each * (total - done))}"


class LineProgress:
    """Print a line every few seconds, for logs and pipes."""

    def __init__(self, every: float = 5.0) -> None:
        self.every, self.last, self.began, self.first = every, 0.0, 0.0, 0

    def step(self, record: dict[str, Any], total: int) -> None:
        """Report one optimizer step."""
        now = time.monotonic()
        if not self.began or record["step"] <= self.first:
            self.began, self.first, self.last = now, record["step"], now
        if now - self.last >= self.every:
            self.last = now
            write_message(_describe(record, total, self.began, self.first))

    def say(self, sentence: str) -> None:
        """Print a message."""
        write_message(sentence)

    def status(self, sentence: str) -> None:
        """Print the current activity, if nothing was printed for a while."""
        if time.monotonic() - self.last >= 2 * self.every:
            self.last = time.monotonic()
            self.say(sentence)

    def close(self) -> None:
        """End the output; there is nothing to clear."""


class BarProgress(LineProgress):
    """Show one line that is overwritten, with the remaining time at its end."""

    def __init__(self) -> None:
        super().__init__(every=0.2)

    def step(self, record: dict[str, Any], total: int) -> None:
        """Report one optimizer step."""
        now = time.monotonic()
        if not self.began or record["step"] <= self.first:
            self.began, self.first = now, record["step"]
        if now - self.last >= self.every:
            self.last = now
            width = 24
            full = int(width * record["step"] / total) if total else 0
            bar = f"[{'=' * full}{' ' * (width - full)}] " if total else ""
            write_message(f"\r\033[K{bar}{_describe(record, total, self.began, self.first)}", end="")

    def say(self, sentence: str) -> None:
        """Print a message above the bar."""
        write_message(f"\r\033[K{sentence}")

    def status(self, sentence: str) -> None:
        """Show the current activity in place of the bar."""
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            room = shutil.get_terminal_size().columns - 1
            write_message(f"\r\033[K{sentence[:room]}", end="")

    def close(self) -> None:
        """Clear the bar."""
        write_message("\r\033[K", end="")
