"""The executor: one C function that calls the kernels in order, and the declarations it needs."""

from __future__ import annotations

import re

from xdeploy.builder.ctext import c_type, comment
from xdeploy.kernel import Arg, Code
from xdeploy.program import Call, Program

# of functions in assembly, as `tir.clean_assembly` writes it
_SECTION = re.compile(r'^(\s*\.section\s+"?\.text\.[^\n]*)$', re.MULTILINE)
# functions of C text, not data: the word before the parameters may follow on any line
_STATIC = re.compile(r"^static (?=(?:inline )?\w+ \*?[\w{}]+\()", re.MULTILINE)
_PLACES = """\
/* Where the linker puts code and weights: define these as names of sections, e.g. '".fast_code"'. A compiler with
 * another way of saying so than GCC takes {upper}_CODE and {upper}_SECTION, which stand before what is placed. */
#ifndef {upper}_CODE
#ifdef {upper}_CODE_SECTION
#define {upper}_CODE __attribute__((section({upper}_CODE_SECTION)))
#else
#define {upper}_CODE
#endif
#endif
#ifndef {upper}_SECTION
#ifdef {upper}_WEIGHTS_SECTION
#define {upper}_SECTION __attribute__((section({upper}_WEIGHTS_SECTION)))
#else
#define {upper}_SECTION
#endif
#endif

"""

_C_TYPES = {"input": "const int8_t *", "output": "int8_t *", "workspace": "void *", "int": "int32_t "}

_HEAD = """\
#include "{name}.h"
#include "{name}_internal.h"

#include <stddef.h>

/* Define {upper}_HOOKS as the name of a header to be told when layers begin and end, e.g. to read a cycle counter. */
#ifdef {upper}_HOOKS
#include {upper}_HOOKS
#endif
#ifndef {prefix}_LAYER_BEGIN
#define {prefix}_LAYER_BEGIN(i) ((void)0)
#endif
#ifndef {prefix}_LAYER_END
#define {prefix}_LAYER_END(i) ((void)0)
#endif

{upper}_CODE int {name}_run(const int8_t *input, int8_t *output, void *arena)
{{
    int8_t *const a = (int8_t *)arena;

    if ((input == NULL) || (output == NULL) || (({upper}_ARENA_USED > 0) && (arena == NULL))) {{
        return {upper}_ERROR_POINTER;
    }}
    if ((((uintptr_t)input | (uintptr_t)output | (uintptr_t)arena) & ({upper}_ARENA_ALIGN - 1U)) != 0U) {{
        return {upper}_ERROR_ALIGNMENT;
    }}
    (void)a;
"""


def executor_source(program: Program) -> str:
    """Text of src/xd_<m>.c."""
    name = program.name
    head = _HEAD.format(name=name, upper=name.upper(), prefix=program.prefix.upper())
    lines = [_for_two(program, head) if program.halved else head]
    for i, call in enumerate(program.calls):
        lines.append(_call(program, i, call))
    lines += _copies(program)
    end = f"    {program.worker}_end(threads);\n" if program.halved else ""
    return "".join(lines) + end + "    return 0;\n}\n"


def _for_two(program: Program, head: str) -> str:
    """The head of a program with halves: the lower ones as functions, then an inference that may have two threads."""
    include = f'#include "{program.name}_internal.h"\n'
    head = head.replace(include, f'{include}#include "{program.worker}_threads.h"\n', 1)
    start, run, rest = head.partition(f"{program.name.upper()}_CODE int {program.name}_run(")
    lower = [_lower(program, i, call) for i, call in enumerate(program.calls) if call.half == 2]
    begin = f"    const int threads = {program.worker}_begin();\n"
    return "".join([start, *lower, run, rest.replace("    (void)a;\n", begin)])


def _lower(program: Program, index: int, call: Call) -> str:
    """The lower half of a layer as a function that can be handed over."""
    return (
        f"{half_prototype(program, index)}\n{{\n    (void)input;\n    (void)output;\n    (void)a;\n"
        f"    {_invocation(program, call)}\n}}\n\n"
    )


def half_prototype(program: Program, index: int) -> str:
    """Head of the function of a call that is the lower half of a layer."""
    code = f"{program.name.upper()}_CODE"
    return f"{code} void {program.name}_half_{index}(const int8_t *input, int8_t *output, int8_t *a)"


def _call(program: Program, index: int, call: Call) -> str:
    note = comment(f"{index}: {call.node}: {call.op}, {call.kernel}, {call.macs} MAC", 110)
    prefix, done = program.prefix.upper(), f"    {_invocation(program, call)}\n"
    if call.half == 1:
        done = f"    {program.worker}_offer(threads, {program.name}_half_{index + 1}, input, output, a);\n{done}"
    if call.half == 2:
        done = f"    if ({program.worker}_done(threads) == 0) {{\n    {done}    }}\n"
    return f"\n    /* {note} */\n    {prefix}_LAYER_BEGIN({index});\n{done}    {prefix}_LAYER_END({index});\n"


def _invocation(program: Program, call: Call) -> str:
    return f"{call.symbol}({', '.join(_argument(program, call, a) for a in call.args)});"


def _argument(program: Program, call: Call, arg: Arg) -> str:
    if arg.kind == "int":
        return str(arg.value) if arg.value != -(2**31) else "(-2147483647 - 1)"
    if arg.kind == "const":
        return call.constants[arg.name]
    if arg.kind == "workspace":
        return _at("a", call.workspace_offset + arg.value) if call.workspace else "a"
    return _pointer(program, call.output if arg.kind == "output" else call.inputs[arg.index])


def _pointer(program: Program, tensor: str) -> str:
    place = program.places[tensor]
    return _at("a" if place.kind == "arena" else place.kind, place.offset)


def _at(start: str, offset: int) -> str:
    return f"&{start}[{offset}]" if offset else start


def _copies(program: Program) -> list[str]:
    """A network that only renames its input still has to fill the caller's output."""
    if program.calls:
        return []
    size = next(p.size for p in program.places.values() if p.kind == "output")
    return [f"    {{\n        int32_t i;\n        for (i = 0; i < {size}; ++i) {{\n"
            "            output[i] = input[i];\n        }\n    }\n"]  # fmt: skip


def internal_header(program: Program, functions: dict[str, str]) -> str:
    """Text of src/xd_<m>_internal.h: where code and weights lie, constants and prototypes of the kernels."""
    upper = program.name.upper()
    guard = f"{upper}_INTERNAL_H"
    others = "".join(f'#include "{name}_internal.h"\n' for name in program.elsewhere)  # whose constants it reads
    lines = [f"#ifndef {guard}\n#define {guard}\n\n#include <stdint.h>\n{others}", _PLACES.format(upper=upper)]
    lines.append('#ifdef __cplusplus\nextern "C" {\n#endif\n')
    for symbol, array in program.constants.items():
        lines.append(f"extern const {c_type(array.dtype)} {symbol}[{array.size}];")
    lines.append("")
    lines += [f"{upper}_CODE {prototype};" for prototype in functions.values()]
    lines += [f"{half_prototype(program, i)};" for i, call in enumerate(program.calls) if call.half == 2]
    return "\n".join(lines) + "\n\n#ifdef __cplusplus\n}\n#endif\n\n#endif\n"


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
        kind = _C_TYPES.get(arg.kind) or f"const {c_type(program.arrays[call.constants[arg.name]].dtype)} *"
        kinds.append(f"{kind}p{i}")
    return f"void {symbol}({', '.join(kinds)})"


def _head(symbol: str, code: Code) -> str:
    found = re.search(r"static\s+void\s+\{symbol\}\s*\(([^)]*)\)", code.text)
    if found is None:
        raise ValueError(f"{symbol}: a c99 kernel must define `static void {{symbol}}(...)`")
    return f"void {symbol}({' '.join(found[1].split())})"


def c99_source(program: Program) -> str:
    """Text of src/xd_<m>_kernels.c: every c99 kernel, as a function that a profiler can find; "" if there is none."""
    parts = [f'#include "{program.name}_internal.h"\n']
    place = f"{program.name.upper()}_CODE"
    for symbol, code in program.functions.items():
        if code.language == "c99":
            text = re.sub(r"static\s+void\s+\{symbol\}(?=\s*\()", place + " void {symbol}", code.text, count=1)
            # the internal header includes it, and includes belong to the head of a file
            text = _STATIC.sub(f"{place} static ", text.removeprefix("#include <stdint.h>\n"))
            parts.append(text.replace("{symbol}", symbol).strip() + "\n")
    return "\n".join(parts) if len(parts) > 1 else ""


def placed_assembly(program: Program, assembly: str) -> str:
    """Text of src/xd_<m>_kernels.S: the functions' sections give way to <UPPER>_CODE_SECTION where that is defined."""
    name = f"{program.name.upper()}_CODE_SECTION"
    return _SECTION.sub(rf'#ifdef {name}\n\t.section\t{name},"ax",%progbits\n#else\n\1\n#endif', assembly)


def prefixed_assembly(program: Program, assembly: str) -> str:
    """Assembly whose shared functions, named by a hash of their text, begin with the program's prefix too."""
    return re.sub(r"\bxd_(?=\w+_[0-9a-f]{12}\b)", f"{program.prefix}_", assembly)


def weight_parts(program: Program) -> dict[str, str]:
    """What verify.c says of the constants that kernels read: one step of the checksum for each."""
    steps = (f"    crc = checksum(crc, {symbol}, (uint32_t)sizeof {symbol});" for symbol in program.constants)
    return {"steps": "\n".join(steps) or "    crc = checksum(crc, &crc, 0U);"}
