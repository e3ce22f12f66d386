"""Progress of work inside this unit: told to the caller's callable, or drawn on a terminal, or nowhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Progress = Callable[[str, int, int], None]  # what, done, total


@contextlib.contextmanager
def stepping(what: str, total: int, progress: Progress | None) -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many of `total` steps are done.

    With no `progress` of the caller's, a bar is drawn on stderr if that is a terminal.
    """
    if progress is not None:
        yield lambda done: progress(what, done, total)
        return
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
