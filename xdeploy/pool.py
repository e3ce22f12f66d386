"""What the calls of a program have in common: functions of equal text and arrays of equal content, each once."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.kernel import Code, Kernel


def function_key(row: str, code: Code) -> tuple[str, str, str]:
    """What two nodes have to agree in to share one function; the first part is the stem of its name."""
    return re.sub(r"\W+", "_", row.replace("_-", "")), code.text, code.llvm_ir


class Functions:
    """Distinct functions; nodes of one row with equal text share one. prefix: of their names."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.table: dict[str, Code] = {}
        self._known: dict[tuple[str, str, str], str] = {}

    def add(self, row: Kernel, code: Code) -> str:
        """The function's name in C."""
        key = function_key(row.name, code)
        stem = key[0]
        if key not in self._known:
            count = sum(known[0] == stem for known in self._known)
            self._known[key] = f"{self.prefix}_{stem}_{count}"
            self.table[self._known[key]] = code
        return self._known[key]


class Constants:
    """Distinct packed arrays, named in order of use. prefix: of their names."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.table: dict[str, NDArray[Any]] = {}
        self._known: dict[tuple[str, bytes], str] = {}

    def add(self, array: NDArray[Any]) -> str:
        """The array's name in C."""
        flat = np.ascontiguousarray(array).reshape(-1)
        key = (str(flat.dtype), flat.tobytes())
        if key not in self._known:
            self._known[key] = f"{self.prefix}_c{len(self._known)}"
            self.table[self._known[key]] = flat
        return self._known[key]
