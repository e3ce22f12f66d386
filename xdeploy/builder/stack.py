"""Stack bound of the generated code, read from assembly text: the deepest path of frames through the call graph.

Compilers fix every frame at compile time here (no recursion, no variable-length arrays, no function pointers), so
the pushes and stack pointer subtractions of each function are all it takes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

RUNTIME_FRAME = 64  # assumed for a function of the compiler's runtime: memcpy, 64-bit multiplication, division
_REALIGN = 64

_FUNCTION = re.compile(r'^"?([A-Za-z_][\w.$]*)"?:')
_CALL = re.compile(r"^\s+(?:bl|b|b\.w|callq?|jmp)\s+\"?([A-Za-z_]\w*)(?:@PLT)?\"?\s*(?:$|[@#;/])")
_TYPE = re.compile(r'^\s*\.type\s+"?([\w.$]+)"?\s*,\s*[@%]function')
_NUMBER = r"#(-?(?:0x)?[0-9a-fA-F]+)"


@dataclass(slots=True)
class _Function:
    frame: int = 0
    calls: set[str] = field(default_factory=set)


def stack_bound(texts: list[str], entry: str) -> int | None:
    """Bytes of stack `entry` and all it calls need, the caller's frame excluded.

    Args:
        texts: assembly files (Arm, Thumb, AArch64 or x86-64 in GNU syntax) that hold all functions of the package.
        entry: the function called from outside.

    Returns:
        The bound, or None when a frame cannot be read from the text (recursion, computed size, unknown entry).
    """
    functions: dict[str, _Function] = {}
    try:
        for text in texts:
            functions.update(_read(text))
        return _depth(functions, entry, ()) if entry in functions else None
    except _UnreadableError:
        return None


class _UnreadableError(Exception):
    pass


def _depth(functions: dict[str, _Function], name: str, path: tuple[str, ...]) -> int:
    if name in path:
        raise _UnreadableError(name)
    if name not in functions:
        return RUNTIME_FRAME
    inner = [_depth(functions, callee, (*path, name)) for callee in sorted(functions[name].calls)]
    return functions[name].frame + max(inner, default=0)


def _read(text: str) -> dict[str, _Function]:
    """Frames and calls of every function of one file."""
    words = dict(re.findall(r"^(\.LCPI\w+):\n(?:\s*@.*\n)?\s*\.long\s+(-?\d+)", text, re.MULTILINE))
    x86 = "%rsp" in text or "%rdi" in text
    names = set(m[1] for line in text.splitlines() if (m := _TYPE.match(line)))
    functions: dict[str, _Function] = {}
    current: _Function | None = None
    loaded: dict[str, int] = {}
    for line in text.splitlines():
        label = _FUNCTION.match(line)
        if label and label[1] in names:
            current = functions.setdefault(label[1], _Function(8 if x86 else 0))
        if current is None or not line[:1].isspace():
            continue
        call = _CALL.match(line)
        if call and not call[1].startswith("L"):
            current.calls.add(call[1])
        constant = re.match(r"\s+(?:ldr\s+(r\d+), (\.LCPI\w+)|movw?\.?w?\s+(r\d+), #(\d+))", line)
        if constant:
            loaded[constant[1] or constant[3]] = int(words.get(constant[2], 0)) if constant[1] else int(constant[4])
        current.frame += _grown(line, loaded)
    return functions


def _registers(text: str) -> int:
    """Number of registers in a list like `r4, r5-r7, lr`."""
    count = 0
    for word in text.split(","):
        first, _, last = word.strip().partition("-")
        count += int(last[1:]) - int(first[1:]) + 1 if last else 1
    return count


def _grown(line: str, loaded: dict[str, int]) -> int:
    """Bytes by which one instruction lowers the stack pointer."""
    if "sp" not in line and "push" not in line:
        return 0
    if found := re.match(r"\s+(v?)push(?:\.w)?\s+\{([^}]*)\}", line):
        return _registers(found[2]) * (8 if found[1] else 4)
    if found := re.match(r"\s+stmdb(?:\.w)?\s+sp!,\s*\{([^}]*)\}", line):
        return _registers(found[1]) * 4
    if re.match(r"\s+pushq?\s", line):
        return 8
    if found := re.match(rf"\s+(?:sub|subw|sub\.w)\s+sp,(?:\s*sp,)?\s*{_NUMBER}(?:, lsl #(\d+))?", line):
        return int(found[1], 0) << int(found[2] or 0)
    if found := re.match(rf"\s+\w+(?:\.w)?\s.*\[sp,\s*{_NUMBER}\]!", line):
        return max(0, -int(found[1], 0))
    if found := re.match(r"\s+subq\s+\$(\d+), %rsp", line):
        return int(found[1])
    if found := re.match(r"\s+(sub|add)(?:\.w)?\s+sp,(?:\s*sp,)?\s*([rx]\d+)\b(?!, #)", line):
        size = loaded.get(found[2])
        if size is None:
            raise _UnreadableError(line)
        return max(0, size if found[1] == "sub" else -size)
    if re.match(r"\s+(?:and|bic|bfc|andq)\S*\s.*sp", line):
        return _REALIGN
    return 0
