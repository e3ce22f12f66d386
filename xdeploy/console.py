"""Progress on stderr: bars on a terminal, one plain line per stage elsewhere; the closing summary as text."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

    from xdeploy.pipeline import RunResult


class Console:
    """The progress object of the pipeline: `stage` announces a stage, a call reports steps within it."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bars: Progress | None = None
        self._task: Any = None
        self._started = time.monotonic()

    def __enter__(self) -> Console:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console as RichConsole
            from rich.progress import (
                BarColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bars = Progress(*columns, console=RichConsole(stderr=True), transient=True)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def stage(self, name: str, seconds: float | None = None) -> None:
        """A stage begins (seconds None) or has ended; a skipped stage ends in 0 seconds."""
        if self.quiet:
            return
        if seconds is None:
            self._begin(name)
            return
        text = f"{name:24} {'unchanged' if seconds == 0 else f'{seconds:.1f} s'}"
        if self._bars:
            self._bars.console.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def _begin(self, name: str) -> None:
        if self._bars:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(name, total=None)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Progress within the stage: `done` of `total` steps of `what`."""
        if self._bars and self._task is not None:
            self._bars.update(self._task, description=what, completed=done, total=total)

    def finish(self, result: RunResult) -> str | None:
        """The text printed on stdout after a run: summary and where the report lies."""
        if self.quiet:
            return None
        folder = result.folder.resolve()
        if result.report is None:
            shown = f"finished up to {result.until}: {folder}"
            return "\n".join([shown, *(f"{name}: {Path(path).resolve()}" for name, path in result.pages.items())])
        from rich.console import Console as RichConsole

        from xdeploy.report.terminal import show

        terminal = sys.stdout.isatty()
        text = io.StringIO()
        show(result.report, RichConsole(file=text, width=None if terminal else 120, force_terminal=terminal or None))
        seconds = time.monotonic() - self._started
        return f"{text.getvalue()}finished in {seconds:.0f} s\nreport: {folder / 'report.html'} (also .md, .json)"
