"""Where the package's C text departs from MISRA C:2012: counted in the text itself, as cppcheck's add-on finds it.

The add-on checks the rules that can be decided from the text of one program; the rest needs a certified tool and a
person. The counts are of places (lines), with the self-test compiled in; a test compares them with the tool's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_MACRO = re.compile(r"^#define (\w+)", re.MULTILINE)
_TYPE = re.compile(r"^typedef [^;]*?(\w+)(?:\[[^;]*\])?;", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Deviation:
    """One rule that the text does not keep everywhere.

    count: places in the C text, comments taken out.
    """

    rule: str
    kind: str  # required | advisory
    count: Callable[[str], int]
    reason: str


def _unused(pattern: re.Pattern[str]) -> Callable[[str], int]:
    """How many of the names that the pattern defines are never mentioned again."""

    def count(text: str) -> int:
        names, words = Counter(pattern.findall(text)), Counter(re.findall(r"\w+", text))
        return sum(words[name] == count for name, count in names.items())

    return count


def _lines(pattern: str) -> Callable[[str], int]:
    wanted = re.compile(pattern)
    return lambda text: sum(bool(wanted.search(line)) for line in text.splitlines())


DEVIATIONS = (
    Deviation("2.3", "advisory", _unused(_TYPE), "types for the caller's buffers; checks when it compiles (C99 has no "
              "static assertion); a file of C must not be empty"),
    Deviation("2.5", "advisory", _unused(_MACRO), "the header tells the caller sizes, shapes, scales and names"),
    Deviation("8.9", "advisory", _lines(r"^static const .*\[.*\]\[.*\] = \{"),
              "the self-test's inputs and outputs are long: they stand before the function"),
    Deviation("10.1", "required", _lines(r"~\(~v >> n\)"), "rounds down; `~v` is not negative here, so all is defined, "
              "and compilers make one instruction of it"),
    Deviation("11.4", "advisory", _lines(r"\(uintptr_t\)"), "alignment of the caller's pointers is checked"),
    Deviation("11.5", "advisory", _lines(r"\((?:const volatile u)?int8_t \*\)(?:arena|start)\b"),
              "the arena and what a checksum covers are bytes without a type"),
    Deviation("15.5", "advisory", _lines(r"^ {8,}return\b"), "a wrong argument or a failed check ends the function"),
    Deviation("20.10", "advisory", _lines(r"\(\"\w+=\" #\w+\)"), "IAR takes an alignment by pragma only"),
)  # fmt: skip


def deviations(code: Mapping[str, str]) -> dict[str, int]:
    """Number of places by rule, for the rules that have any.

    Args:
        code: text by path; files that are not C are passed over.
    """
    text = _COMMENT.sub("", "\n".join(body for path, body in code.items() if path.endswith((".c", ".h"))))
    found = {d.rule: d.count(text) for d in DEVIATIONS}
    return {rule: count for rule, count in found.items() if count}


def deviations_table(code: Mapping[str, str]) -> str:
    """The rows of the README's table: rule, kind, places, reason."""
    found = deviations(code)
    return "\n".join(f"| {d.rule} | {d.kind} | {found[d.rule]} | {d.reason} |" for d in DEVIATIONS if d.rule in found)
