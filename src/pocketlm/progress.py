"""Progress bars with the time left, on standard error; quiet where nobody looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_EVERY_SECONDS = 15.0


class Progress(Protocol):
    """What a stage needs in order to show how far it is."""

    def task(
        self, description: str, total: int, done: int = 0
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Open a bar of `total` steps, `done` of them behind us; yields a function that advances it."""
        ...

    def say(self, message: str) -> None:
        """Print one line between the bars."""
        ...


class Quiet:
    """Shows nothing: the default of the Python API."""

    @contextmanager
    def task(self, description: str, total: int, done: int = 0) -> Generator[Callable[[int], None]]:
        """A bar that nobody sees."""
        del description, total, done
        yield lambda steps: None

    def say(self, message: str) -> None:
        """Say nothing."""
        del message


class Bars:
    """Rich bars on a terminal; elsewhere a line every 15 seconds, so that a log stays readable."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bars = RichProgress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._open = 0

    @contextmanager
    def task(self, description: str, total: int, done: int = 0) -> Generator[Callable[[int], None]]:
        """See `Progress.task`."""
        manager = self._bar if self.console.is_terminal else self._lines
        with manager(description, total, done) as advance:
            yield advance

    def say(self, message: str) -> None:
        """See `Progress.say`."""
        self.console.print(message, highlight=False, markup=False)

    @contextmanager
    def _bar(self, description: str, total: int, done: int) -> Generator[Callable[[int], None]]:
        # Bars may be open inside each other, and only one display can live on a terminal.
        bar = self._bars.add_task(description, total=total, completed=done)
        self._open += 1
        if self._open == 1:
            self._bars.start()
        try:
            yield lambda steps: self._bars.advance(bar, steps)
        finally:
            self._open -= 1
            if self._open == 0:
                self._bars.stop()

    @contextmanager
    def _lines(self, description: str, total: int, done: int) -> Generator[Callable[[int], None]]:
        start = last = time.monotonic()
        first = done

        def advance(steps: int) -> None:
            nonlocal done, last
            done += steps
            now = time.monotonic()
            if now - last >= LINE_EVERY_SECONDS and done > first:
                last = now
                left = (now - start) / (done - first) * (total - done)
                self.say(f"{description}: {done}/{total}, {left:.0f} s left")

        yield advance
        seconds = time.monotonic() - start
        if seconds >= 2:
            self.say(f"{description}: done in {seconds:.0f} s")
