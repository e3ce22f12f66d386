"""What the user allows for the length of one command. Refused unless a command says otherwise.

A permission holds in the thread that was given it; work handed to other threads starts without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

EXTERNAL_DATA = "--allow-external-data"  # the flag of `external_data`, for messages
_external: ContextVar[bool] = ContextVar("external data", default=False)


@contextlib.contextmanager
def external_data(allowed: bool) -> Iterator[None]:
    """Inside, ONNX files may keep tensors in other files of their own folder, or (False) may not."""
    token = _external.set(allowed)
    try:
        yield
    finally:
        _external.reset(token)


def external_data_allowed() -> bool:
    """Whether this command may open the files beside an ONNX file that it names."""
    return _external.get()
