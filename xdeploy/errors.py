"""The error tree of xdeploy, with the exit code each branch ends a command with.

    XdeployError            1  internal
    ├── UsageError          2  a flag, recipe key, path or data set is wrong
    ├── ModelError          3  the model cannot be read or deployed
    │   └── UnsupportedError   ... because of named nodes
    ├── GateError           4  a budget or accuracy gate failed
    │   └── PlanError          ... no plan fits, or a plan line cannot be honoured
    ├── ToolchainError      5  a compiler, emulator or optional package is missing
    └── DeviceError         6  the device, emulator or transport failed
        └── TransportError     ... could not be reached, or was lost: nothing to compare

A message says what was given, what is allowed and where it came from; the hint says what to do next.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class XdeployError(Exception):
    """Base of every error that xdeploy raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class UsageError(XdeployError):
    """The user's input (flag, recipe, path, data) is wrong."""

    exit_code = 2


class ModelError(XdeployError):
    """The model cannot be read, traced or deployed."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One reason why a model cannot be deployed as it is.

    node: its name or origin. op: the operator. attribute: the one to blame, "" if none in particular. shape: of the
    output per sample, () if not known. rewrite: the nearest thing that works.
    """

    node: str
    op: str
    reason: str
    rewrite: str = ""
    attribute: str = ""
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        head = (
            f"{shown(self.node, quote=False)} ({shown(self.op, quote=False)}): {shown(self.reason, 400, quote=False)}"
        )
        return head + (f"; instead: {self.rewrite}" if self.rewrite else "")


class UnsupportedError(ModelError):
    """The model holds something outside the supported vocabulary; `obstacles` has each where they were collected."""

    def __init__(self, message: str, *, hint: str | None = None, obstacles: Iterable[Obstacle] = ()) -> None:
        super().__init__(message, hint=hint)
        self.obstacles = tuple(obstacles)


class GateError(XdeployError):
    """A budget or accuracy gate was not met."""

    exit_code = 4


class PlanError(GateError):
    """No plan satisfies the constraints, or a plan line cannot be honoured."""


class ToolchainError(XdeployError):
    """A compiler, emulator or optional Python package is missing or broken."""

    exit_code = 5


class DeviceError(XdeployError):
    """The emulator, board or transport failed while running the artifact."""

    exit_code = 6


class TransportError(DeviceError):
    """The device could not be reached or used, or was lost: nothing is known about the artifact."""


def shown(text: str, limit: int = 80, *, quote: bool = True) -> str:
    """Text from a user's file as it may stand in a message: one printable line, of `limit` characters at most.

    Line ends, terminal escapes and marks that turn the direction of writing are shown as escapes.
    """
    cut = text if len(text) <= limit else f"{text[: limit // 2]}...{text[3 - limit // 2 :]}"
    return repr(cut) if quote else "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def choose_from(what: str, given: str, allowed: Iterable[str]) -> UsageError:
    """The error for a name that is not in a list: says what is allowed and what is close."""
    names = sorted(allowed)
    return UsageError(f"unknown {what} {given!r}; allowed: {', '.join(names)}", hint=did_you_mean(given, names))


def did_you_mean(given: str, names: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The hint that tells up to three close names; None where nothing is as close as `cutoff`, 0..1."""
    close = difflib.get_close_matches(given, sorted(names), n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(repr(c) for c in close)}?" if close else None


def not_there(path: Path, what: str = "") -> UsageError:
    """The error for a file or folder that does not exist: which part of the path is missing, and what is close.

    Args:
        path: as it was given.
        what: what it was to be, such as "recipe"; "" says the path alone.
    """
    told = f"{what} {path}".lstrip()
    folder = path.parent
    if not folder.is_dir():
        return UsageError(f"{told} does not exist: there is no folder {folder}", hint=_begins(path))
    with_same_end: list[str] = []
    with contextlib.suppress(OSError):  # a folder that cannot be listed tells nothing more
        with_same_end = [x for x in os.listdir(folder) if Path(x).suffix == path.suffix][:1000]
    hint = did_you_mean(path.name, filter(str.isprintable, with_same_end))
    return UsageError(f"{told} does not exist", hint=hint or _begins(path))


def _begins(path: Path) -> str | None:
    return None if path.is_absolute() else f"paths begin at the working folder, {Path.cwd()}"
