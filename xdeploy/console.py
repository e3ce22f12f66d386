"""Progress on stderr: what runs and how long it will take on a terminal, one plain line per stage elsewhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from xdeploy.commands.summary import cut, summary

if TYPE_CHECKING:
    from rich.live import Live

    from xdeploy.pipeline import RunResult

_BAR = 20  # columns
_SLOWER = 1.5  # a stage that took this times what was expected: nobody knows when it ends


class Console:
    """The progress object of the pipeline.

    `expect` says once how long the stages will take, `stage` announces one, a call reports steps within it.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._live: Live | None = None
        self._started = self._stage_started = time.monotonic()
        self._expected: dict[str, float] = {}
        self._all: list[str] = []
        self._ended: list[str] = []
        self._now: str | None = None
        self._what: tuple[str, int, int] = ("", 0, 0)

    def __enter__(self) -> Console:
        if not self.quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console as RichConsole
            from rich.live import Live

            self._live = Live(
                get_renderable=self._shown, console=RichConsole(stderr=True), transient=True, refresh_per_second=5
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._now = None
        if self._live:
            with contextlib.suppress(OSError):
                self._live.stop()

    def expect(self, stages: Mapping[str, float]) -> None:
        """The stages to come, in order, with the seconds each will take as far as known; 0: it will be skipped."""
        self._expected, self._all = dict(stages), list(stages)

    def stage(self, name: str, seconds: float | None = None) -> None:
        """A stage begins (seconds None) or has ended; a skipped stage ends in 0 seconds."""
        if seconds is None:
            self._now, self._stage_started, self._what = name, time.monotonic(), ("", 0, 0)
            return
        self._now = None
        self._ended.append(name)
        if not self.quiet:
            self._line(f"{name:24} {'unchanged' if seconds == 0 else f'{seconds:.1f} s'}")

    def _line(self, text: str) -> None:
        """Say it, unless nobody listens any more: the work goes on."""
        with contextlib.suppress(OSError):
            if self._live:
                self._live.console.print(text, markup=False, highlight=False, no_wrap=True, overflow="ellipsis")
            else:
                print(text, file=sys.stderr, flush=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Progress within the stage: `done` of `total` steps of `what`."""
        self._what = (what, done, total)

    # ------------------------------------------------------------------------------------------ the live lines
    def _shown(self) -> Any:
        from rich.text import Text

        width = self._live.console.width if self._live else 80
        return Text("\n".join(cut(line, width) for line in self.lines()), no_wrap=True, overflow="ellipsis")

    def lines(self) -> list[str]:
        """What is shown of the work in progress: the step, and where the whole stands."""
        if self._now is None:
            return []
        what, done, total = self._what
        text = f"{self._now}: {what}" if what else self._now
        if total > 0:
            share = min(max(done / total, 0.0), 1.0)
            full = round(share * _BAR)
            text = f"{'#' * full}{'-' * (_BAR - full)} {share:4.0%}  {text}"
        whole = [f"{_clock(time.monotonic() - self._started)} so far"]
        if self._now in self._all:
            whole.insert(0, f"stage {self._all.index(self._now) + 1} of {len(self._all)}")
        left = self._left()
        return [text, ", ".join([*whole, *([f"about {_clock(left)} left"] if left is not None else [])])]

    def _left(self) -> float | None:
        """Seconds until the end, None if not known."""
        if self._now not in self._expected:
            return None
        spent = time.monotonic() - self._stage_started
        here = self._expected[self._now]
        if spent > _SLOWER * here + 1.0:
            return None
        behind = self._all[self._all.index(self._now) + 1 :]
        return max(here - spent, 0.0) + sum(self._expected[name] for name in behind if name not in self._ended)

    def finish(self, result: RunResult) -> str | None:
        """The text printed on stdout after a run: the summary, and where the report lies as the last line."""
        if self.quiet:
            return None
        folder = result.folder.resolve()
        if result.report is None:
            shown = f"finished up to {result.until}: {folder}"
            return "\n".join([shown, *(f"{name}: {Path(path).resolve()}" for name, path in result.pages.items())])
        terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if terminal else None
        lines = summary(result.report, width)
        took = f"finished in {time.monotonic() - self._started:.0f} s; also report.md and report.json"
        return "\n".join([*lines, took if width is None else cut(took, width), f"report: {folder / 'report.html'}"])


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: 1:05, 2:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
