"""Progress on a terminal (a bar with the time left) and elsewhere (a plain line now and then)."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any


def _sentence(record: dict[str, Any], total: int, began: float, first: int) -> str:
    done, terms = record["step"], ", ".join(f"{k} {v:.3f}" for k, v in record["terms"].items())
    if not total:
        return f"step {done}  {terms}"
    each = (time.monotonic() - began) / max(1, done - first + 1)
    left = int(each * (total - done))
    return f"step {done}/{total}  {terms}  {left // 60}:{left % 60:02d} left"


class LineProgress:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, every: float = 5.0) -> None:
        self.every, self.last, self.began, self.first = every, 0.0, 0.0, 0

    def step(self, record: dict[str, Any], total: int) -> None:
        """Called after each optimizer step."""
        now = time.monotonic()
        if not self.began or record["step"] <= self.first:
            self.began, self.first, self.last = now, record["step"], now
        if now - self.last >= self.every:
            self.last = now
            print(_sentence(record, total, self.began, self.first), file=sys.stderr, flush=True)

    def say(self, sentence: str) -> None:
        """A sentence of its own."""
        print(sentence, file=sys.stderr, flush=True)

    def status(self, sentence: str) -> None:
        """What is going on: said now and then."""
        if time.monotonic() - self.last >= 2 * self.every:
            self.last = time.monotonic()
            self.say(sentence)

    def close(self) -> None:
        """Nothing to clear."""


class BarProgress(LineProgress):
    """One line that is written over; the time left is at its end."""

    def __init__(self) -> None:
        super().__init__(every=0.2)

    def step(self, record: dict[str, Any], total: int) -> None:
        """Called after each optimizer step."""
        now = time.monotonic()
        if not self.began or record["step"] <= self.first:
            self.began, self.first = now, record["step"]
        if now - self.last >= self.every:
            self.last = now
            width = 24
            full = int(width * record["step"] / total) if total else 0
            bar = f"[{'=' * full}{' ' * (width - full)}] " if total else ""
            print(
                f"\r\033[K{bar}{_sentence(record, total, self.began, self.first)}", end="", file=sys.stderr, flush=True
            )

    def say(self, sentence: str) -> None:
        """A sentence above the bar."""
        print(f"\r\033[K{sentence}", file=sys.stderr, flush=True)

    def status(self, sentence: str) -> None:
        """What is going on, over what was."""
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            room = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{sentence[:room]}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the bar."""
        print("\r\033[K", end="", file=sys.stderr, flush=True)
