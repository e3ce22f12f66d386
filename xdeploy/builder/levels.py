"""One library for several feature levels of a CPU: a program for each, and the choice between them when it is loaded.

The target's own features are level 0, which `xd_<m>_run` holds as in any package. Every further level of the target
file is a program `xd_<m>_<level>` with kernels of its own; constants that a level before it holds are not stored again.
A constructor asks the kernel's auxiliary vector or CPUID once, before main; an inference costs a test and a jump more.
`xd_<m>_choose_level` takes another level later. <M>_LEVEL, defined as a level's number, builds that one alone, without
operating system; <M>_CHOOSES builds all without a C library, for a program that runs constructors and has a getauxval
(targets/support/linux.h).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from xdeploy.kernel import KERNELS
from xdeploy.program import Choice, Program, bind
from xdeploy.sharing import smaller
from xdeploy.target import Level, Target

if TYPE_CHECKING:
    from xdeploy.builder.package import Package
    from xdeploy.lir.graph import LoweredGraph

_HEADER = """\
#ifndef {upper}_LEVELS_H
#define {upper}_LEVELS_H

#include "{name}.h"

#ifdef __cplusplus
extern "C" {{
#endif

/* Feature levels: 0 is {base}{told}.
 * Under Linux the best one that the CPU has is chosen once, before main. Define {upper}_LEVEL as a number to build that
 * level alone; without an operating system it is 0 unless it is defined, or {upper}_CHOOSES is. */
#if !defined({upper}_LEVEL) && !defined({upper}_CHOOSES) && !defined(__linux__)
#define {upper}_LEVEL 0
#endif

{prototypes}
/* The number of the level that {name}_run runs. */
{upper}_API int {name}_level(void);

/* Let {name}_run run another level from now on, not during an inference: 0, or -1 if this CPU or build lacks it. */
{upper}_API int {name}_choose_level(int level);

#ifndef {upper}_LEVEL
extern int (*{name}_better)(const int8_t *input, int8_t *output, void *arena);
#endif

#ifdef __cplusplus
}}
#endif

#endif
"""
_SOURCE = """\
#include "{name}_levels.h"

#include <stddef.h>

#ifdef {upper}_LEVEL

int {name}_level(void)
{{
    return {upper}_LEVEL;
}}

int {name}_choose_level(int level)
{{
    return (level == {upper}_LEVEL) ? 0 : -1;
}}

#else

{asking}
int (*{name}_better)(const int8_t *input, int8_t *output, void *arena) = NULL;
static int chosen = 0;

int {name}_choose_level(int level)
{{
    int (*run)(const int8_t *input, int8_t *output, void *arena) = NULL;

{tests}
    if ((level != 0) && (run == NULL)) {{
        return -1;
    }}
    {name}_better = run;
    chosen = level;
    return 0;
}}

/* Runs when the program or the library is loaded. */
__attribute__((constructor)) static void choose(void)
{{
    int level;

    for (level = 1; level <= {count}; ++level) {{
        (void){name}_choose_level(level);
    }}
}}

int {name}_level(void)
{{
    return chosen;
}}

#endif
"""
_TEST = """\
    if ((level == {number}) && {able}) {{
        run = {name}_{level}_run;
    }}"""
_AUXILIARY = """\
#ifdef __linux__
#include <sys/auxv.h>
#else
enum { AT_HWCAP = 16, AT_HWCAP2 = 26 };
unsigned long getauxval(unsigned long number);
#endif
"""
_CPUID = """\
#include <cpuid.h>

/* Bit of a leaf of CPUID; registers are numbered from EAX on. */
static int has(unsigned leaf, int number, unsigned bit)
{
    unsigned r[4] = {0U, 0U, 0U, 0U};

    return (__get_cpuid_count(leaf, 0U, &r[0], &r[1], &r[2], &r[3]) != 0) && (((r[number] >> bit) & 1U) != 0U);
}

/* Whether the operating system saves these registers. */
static int saved(unsigned registers)
{
    unsigned low, high;

    if (has(1U, 2, 27U) == 0) {
        return 0;
    }
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0U));
    (void)high;
    return (low & registers) == registers;
}
"""
# name in /proc/cpuinfo -> leaf of CPUID (subleaf 0), register from EAX on, bit (Intel SDM volume 2, CPUID)
_BITS = {
    "avx512f": (7, 1, 16), "avx512dq": (7, 1, 17), "avx512bw": (7, 1, 30), "avx512vl": (7, 1, 31),
    "avx512_vnni": (7, 2, 11), "amx_tile": (7, 3, 24), "amx_int8": (7, 3, 25),
}  # fmt: skip
# The operating system keeps a register file for programs where its bits of XCR0 are set (Intel SDM volume 1, 13.3)
_AVX512_STATE, _TILE_STATE = 0xE6, 0x60000
_JUMP = """\
#ifndef {upper}_LEVEL
    if ({name}_better != NULL) {{
        return {name}_better(input, output, arena);
    }}
#endif
"""


def bind_levels(
    program: Program, graph: LoweredGraph, target: Target, choices: Mapping[str, Choice]
) -> tuple[Program, list[tuple[Target, Program]]]:
    """A program for every further level, and the first one with an arena that is large enough for all.

    Equal constants are stored once, by the first program that reads them, and weights of few bits are not stored
    expanded besides.
    choices: kernels that were chosen already, by level.
    """
    if program.form == "portable":
        return program, []
    found: list[tuple[Target, Program]] = []
    for level in target.levels:
        at = target.at(level)
        name, choice = f"{program.model}_{level.name}", choices.get(level.name, Choice({}))
        threads = 2 if program.worker else 1
        bound = partial(bind, graph, at, name, program.form, prefix=program.prefix, threads=threads)
        own = bound(choice=choice)
        if found and (kept := _smaller(graph, own, found[-1][1], choice)):
            own = bound(choice=replace(choice, kernels=kept))
        own = replace(own, worker=program.worker)
        found.append((at, _sharing(own, [program, *(p for _, p in found)])))
    arena = max([program.arena, *(p.arena for _, p in found)])
    return replace(program, arena=arena), found


def _smaller(graph: LoweredGraph, own: Program, before: Program, choice: Choice) -> dict[str, str]:
    """The choice with those rows of the level before that pack weights smaller; empty: there are none."""
    rows = [{c.node: KERNELS[c.kernel] for c in p.calls} for p in (own, before)]
    kept = {node: row.name for node, row in smaller(graph, *rows).items() if node not in choice.kernels}
    return {**kept, **choice.kernels} if kept else {}


def _sharing(program: Program, before: Sequence[Program]) -> Program:
    """The program without those constants that one before it holds."""
    known = {_content(array): (p.name, symbol) for p in before for symbol, array in p.constants.items()}
    elsewhere: dict[str, dict[str, NDArray[Any]]] = {}
    renamed, kept = {}, {}
    for symbol, array in program.constants.items():
        if (key := _content(array)) in known:
            owner, renamed[symbol] = known[key]
            elsewhere.setdefault(owner, {})[renamed[symbol]] = array
        else:
            kept[symbol] = array
    calls = tuple(
        replace(c, constants={k: renamed.get(symbol, symbol) for k, symbol in c.constants.items()})
        for c in program.calls
    )
    return replace(program, calls=calls, constants=kept, elsewhere=elsewhere)


def _content(array: NDArray[Any]) -> tuple[str, bytes]:
    return str(array.dtype), sha256(array.tobytes()).digest()


def level_files(package: Package) -> dict[str, str]:
    """Sources and headers of the further levels, and of the choice, by path."""
    texts: dict[str, str] = {}
    for other in package.levels:
        kept = {f"include/{other.name}.h", f"src/{other.name}_internal.h", *other.sources}
        texts |= {path: text for path, text in other.files().items() if path in kept}
    values = {"name": package.name, "upper": package.name.upper()}
    levels = package.target.levels
    told = "".join(f", {i} {level.name} ({level.isa})" for i, level in enumerate(levels, 1))
    prototypes = "".join(
        f"int {package.name}_{level.name}_run(const int8_t *input, int8_t *output, void *arena);\n"
        + (f"int {package.name}_{level.name}_tiles(void);\n" if "amx" in level.features else "")
        for level in levels
    )
    tests = "\n".join(_test(package.name, i, level) for i, level in enumerate(levels, 1))
    asking = _CPUID if any(level.cpuid for level in levels) else _AUXILIARY
    header = _HEADER.format(**values, base=package.target.isa, told=told, prototypes=prototypes)
    return {
        **texts, f"include/{package.name}_levels.h": header,
        f"src/{package.name}_levels.c": _SOURCE.format(**values, tests=tests, asking=asking, count=len(levels)),
    }  # fmt: skip


def _test(name: str, number: int, level: Level) -> str:
    return _TEST.format(name=name, able=_able(name, level), level=level.name, number=number)


def _able(name: str, level: Level) -> str:
    """C expression: whether this CPU has a level."""
    if level.cpuid:
        bits = [_BITS[flag] for flag in level.cpuid]
        words = [f"(has({leaf}U, {number}, {bit}U) != 0)" for leaf, number, bit in bits]
        state = _AVX512_STATE | (_TILE_STATE if "amx" in level.features else 0)
        allowed = [f"({name}_{level.name}_tiles() != 0)"] if "amx" in level.features else []
        return " && ".join([*words, f"(saved(0x{state:X}U) != 0)", *allowed])
    vector, bit = ("AT_HWCAP2", level.hwcap2) if level.hwcap2 >= 0 else ("AT_HWCAP", level.hwcap)
    return f"(((getauxval({vector}) >> {bit}) & 1UL) != 0UL)"


def with_levels(package: Package, executor: str) -> str:
    """The executor of level 0, which goes to a better level first."""
    name, upper = package.name, package.name.upper()
    head, mark, body = executor.partition("    int8_t *const a = (int8_t *)arena;\n")
    assert mark, "the executor begins otherwise"
    jumps = "".join(
        f"#{'elif' if i > 1 else 'if'} {upper}_LEVEL == {i}\n"
        f"    return {name}_{level.name}_run(input, output, arena);\n"
        for i, level in enumerate(package.target.levels, 1)
    )
    include = f'#include "{name}_internal.h"\n'
    head = head.replace(include, f'{include}#include "{name}_levels.h"\n', 1)
    start, _, rest = body.rpartition("    return 0;\n}\n")
    checked = _JUMP.format(name=name, upper=upper)
    # a level that is built alone takes the place of this one
    return (
        f"{head}#if defined({upper}_LEVEL) && ({upper}_LEVEL > 0)\n{jumps}#endif\n#else\n{mark}{checked}{start}"
        f"    return 0;\n#endif\n}}\n{rest}"
    )


def choosing(name: str) -> str:
    """The flag for a program with linux.h: the package takes the CPU's best level there, too."""
    return f"-D{name.upper()}_CHOOSES"


def level_assembly(target: Target, assembly: str) -> str:
    """Assembly that says itself which instructions it holds: the package is compiled for level 0.

    Assemblers of x86-64 take all instructions that they know.
    """
    return assembly if "x86" in target.features else f"\t.arch {target.isa}\n{assembly}"
