"""The executor: one C function that calls the kernels in order, and the declarations it needs."""

from __future__ import annotations

import re

from xdeploy.builder.ctext import c_type, comment
from xdeploy.kernel import Arg, Code
from xdeploy.program import Call, Program

_C_TYPES = {"input": "const int8_t *", "output": "int8_t *", "workspace": "void *", "int": "int32_t "}

_HEAD = """\
#include "{name}.h"
#include "{name}_internal.h"

/* Define {upper}_HOOKS as the name of a header to be told when layers begin and end, e.g. to read a cycle counter. */
#ifdef {upper}_HOOKS
#include {upper}_HOOKS
#endif
#ifndef XD_LAYER_BEGIN
#define XD_LAYER_BEGIN(i) ((void)0)
#endif
#ifndef XD_LAYER_END
#define XD_LAYER_END(i) ((void)0)
#endif

int {name}_run(const int8_t *input, int8_t *output, void *arena)
{{
    int8_t *const a = (int8_t *)arena;

    if (input == 0 || output == 0 || ({upper}_ARENA_USED > 0 && arena == 0)) {{
        return {upper}_ERROR_POINTER;
    }}
    if ((((uintptr_t)input | (uintptr_t)output | (uintptr_t)arena) & ({upper}_ARENA_ALIGN - 1U)) != 0U) {{
        return {upper}_ERROR_ALIGNMENT;
    }}
    (void)a;
"""


def executor_source(program: Program) -> str:
    """Text of src/xd_<m>.c."""
    name = f"xd_{program.model}"
    lines = [_HEAD.format(name=name, upper=name.upper())]
    for i, call in enumerate(program.calls):
        lines.append(_call(program, i, call))
    lines += _copies(program)
    return "".join(lines) + "    return 0;\n}\n"


def _call(program: Program, index: int, call: Call) -> str:
    arguments = ", ".join(_argument(program, call, a) for a in call.args)
    note = comment(f"{index}: {call.node}: {call.op}, {call.kernel}, {call.macs} MAC", 110)
    return (
        f"\n    /* {note} */\n    XD_LAYER_BEGIN({index});\n"
        f"    {call.symbol}({arguments});\n    XD_LAYER_END({index});\n"
    )


def _argument(program: Program, call: Call, arg: Arg) -> str:
    if arg.kind == "int":
        return str(arg.value) if arg.value != -(2**31) else "(-2147483647 - 1)"
    if arg.kind == "const":
        return call.constants[arg.name]
    if arg.kind == "workspace":
        return f"(void *)(a + {call.workspace_offset + arg.value})" if call.workspace else "(void *)a"
    return _pointer(program, call.output if arg.kind == "output" else call.inputs[arg.index])


def _pointer(program: Program, tensor: str) -> str:
    place = program.places[tensor]
    if place.kind != "arena" and not place.offset:
        return place.kind
    return f"{'a' if place.kind == 'arena' else place.kind} + {place.offset}"


def _copies(program: Program) -> list[str]:
    """A network that only renames its input still has to fill the caller's output."""
    if program.calls:
        return []
    size = next(p.size for p in program.places.values() if p.kind == "output")
    return [f"    {{\n        int32_t i;\n        for (i = 0; i < {size}; ++i) {{\n"
            "            output[i] = input[i];\n        }\n    }\n"]  # fmt: skip


def internal_header(program: Program, functions: dict[str, str]) -> str:
    """Text of src/xd_<m>_internal.h: constants and prototypes of the kernels."""
    guard = f"XD_{program.model.upper()}_INTERNAL_H"
    lines = [f"#ifndef {guard}\n#define {guard}\n\n#include <stdint.h>\n"]
    for symbol, array in program.constants.items():
        lines.append(f"extern const {c_type(array.dtype)} {symbol}[{array.size}];")
    lines.append("")
    lines += [f"{prototype};" for prototype in functions.values()]
    return "\n".join(lines) + "\n\n#endif\n"


def prototypes(program: Program) -> dict[str, str]:
    """C prototype of every kernel function: from its own text (c99) or from its call (tir)."""
    calls = {c.symbol: c for c in reversed(program.calls)}
    return {
        symbol: _head(symbol, code) if code.language == "c99" else _prototype(program, symbol, calls[symbol])
        for symbol, code in program.functions.items()
    }


def _prototype(program: Program, symbol: str, call: Call) -> str:
    kinds = []
    for i, arg in enumerate(call.args):
        kind = _C_TYPES.get(arg.kind) or f"const {c_type(program.constants[call.constants[arg.name]].dtype)} *"
        kinds.append(f"{kind}p{i}")
    return f"void {symbol}({', '.join(kinds)})"


def _head(symbol: str, code: Code) -> str:
    found = re.search(r"static\s+void\s+\{symbol\}\s*\(([^)]*)\)", code.text)
    if found is None:
        raise ValueError(f"{symbol}: a c99 kernel must define `static void {{symbol}}(...)`")
    return f"void {symbol}({' '.join(found[1].split())})"


def c99_source(program: Program) -> str:
    """Text of src/xd_<m>_kernels.c: every c99 kernel, as a function that a profiler can find; "" if there is none."""
    parts = [f'#include "xd_{program.model}_internal.h"\n']
    for symbol, code in program.functions.items():
        if code.language == "c99":
            text = re.sub(r"static\s+void\s+\{symbol\}(?=\s*\()", "void {symbol}", code.text, count=1)
            parts.append(text.replace("{symbol}", symbol).strip() + "\n")
    return "\n".join(parts) if len(parts) > 1 else ""
