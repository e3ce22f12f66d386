"""The error tree of xdeploy, with the exit code each branch ends a command with.

    XdeployError            1  internal
    ├── UsageError          2  a flag, recipe key, path or data set is wrong
    ├── ModelError          3  the model cannot be read or deployed
    │   └── UnsupportedError   ... because of named nodes
    ├── GateError           4  a budget or accuracy gate failed
    │   └── PlanError          ... no plan fits, or a plan line cannot be honoured
    ├── ToolchainError      5  a compiler, emulator or optional package is missing
    └── DeviceError         6  the device, emulator or transport failed

A message says what was given, what is allowed and where it came from; the hint says what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


class UnsupportedError(ModelError):
    """The model holds something outside the supported vocabulary; names the node."""


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


def choose_from(what: str, given: str, allowed: Iterable[str]) -> UsageError:
    """The error for a name that is not in a list: says what is allowed and what is close."""
    names = sorted(allowed)
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}?" if close else None
    return UsageError(f"unknown {what} {given!r}; allowed: {', '.join(names)}", hint=hint)
