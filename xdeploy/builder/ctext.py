"""Pieces of C text: safe comments, arrays, string literals, types."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t", "int32": "int32_t",
          "uint32": "uint32_t", "int64": "int64_t"}  # fmt: skip
COLUMNS = 120


def c_type(dtype: np.dtype[Any]) -> str:
    """The stdint type of a packed constant."""
    return _TYPES[str(dtype)]


def comment(text: str, limit: int = 80) -> str:
    """`text` as it may stand inside a C comment: printable ASCII, no comment marks, no line end, no trigraph."""
    safe = "".join(c if " " <= c <= "~" else "?" for c in text).replace("\\", "|")
    safe = re.sub(r"\*(?=/)|/(?=\*)|\?(?=\?)", lambda m: f"{m[0]} ", safe)  # pairs may overlap
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."


def string(text: str) -> str:
    """A C string literal of UTF-8 bytes; everything unusual is an octal escape of three digits."""
    plain = set(range(0x20, 0x7F)) - set(b'"\\?')
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode()) + '"'


def numbers(values: NDArray[Any]) -> str:
    """The elements of an initialiser, wrapped."""
    if values.dtype.itemsize == 8 or not values.size:
        raise ValueError(f"no initialiser for {values.dtype} of {values.size} elements")
    plain = values.dtype.kind == "i" and values.min() > -(2**31)
    flat = values.reshape(-1).tolist()
    words = list(map(str, flat)) if plain else [_literal(v, values.dtype) for v in flat]
    wide = max(map(len, words)) + 1
    per = max(1, COLUMNS // wide)
    return "\n".join("    " + ",".join(words[i : i + per]) + "," for i in range(0, len(words), per))


def _literal(value: int, dtype: np.dtype[Any]) -> str:
    if dtype.kind == "u":
        return f"{value}U"
    return "(-2147483647-1)" if value == -(2**31) else str(value)


def banner(what: str, lines: list[str]) -> str:
    """The comment at the head of every generated file."""
    body = "\n".join(f" * {comment(line, 160)}" for line in lines)
    return f"/* {comment(what, 160)}\n{body}\n */\n"
