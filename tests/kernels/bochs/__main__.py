"""Build the rows with a boot program, run them in Bochs and tell how many calls gave other codes than the reference.

Bochs (bochs-emu/Bochs on GitHub, configured with --enable-x86-64 --enable-avx --enable-evex --enable-amx --with-nogui)
is an implementation of AMX that nobody here has written, unlike amx.c. In its version of August 2026 `DPBDUS` in
cpu/avx/amx.cc takes the second factor's bytes as unsigned, against the Intel SDM: they have to be made Bit8s.
Needs gcc and binutils. `--isa vnni` runs the rows of AVX512-VNNI on the same cases.

    python -m tests.kernels.bochs --bochs bochs/bochs --vga bochs/bios/VGABIOS-lgpl/VGABIOS-lgpl-latest.bin
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.kernels import harness
from tests.kernels.test_amx import OWN, TARGET, at_their_ends, row_of
from xdeploy.builder.tir import compile_tir
from xdeploy.kernel import KERNELS

HERE = Path(__file__).resolve().parent
PROGRAM, DATA = 0x2000000, 0x4000000  # where they lie in memory
ROM, ROM_DATA, ROM_BOOT = 0x200000, 0x20000, 0x1F0000  # its size, and where its parts begin
MOST_ARGS = 24
_SETTINGS = """\
megs: 512
cpu: model=sapphire_rapids, count=1, ips=100000000, reset_on_triple_fault=0
romimage: file=rom.bin, address=0xffe00000
vgaromimage: file={vga}
port_e9_hack: enabled=1
display_library: nogui
log: bochs.log
panic: action=fatal
"""
_LAYOUT = (
    f"SECTIONS {{ . = {PROGRAM:#x}; .text : {{ *(.text.start) *(.text*) }} .data : {{ *(.rodata*) *(.data*) *(.bss*) }}"
    " /DISCARD/ : { *(.eh_frame*) *(.comment) *(.note*) *(.debug*) } }"
)
_COMPILE = ("gcc", "-O1", "-ffreestanding", "-fno-pic", "-fno-stack-protector", "-mno-red-zone", "-mcmodel=large", "-c")


def calls_of(isa: str) -> harness.Batch:
    """The same cases as the test's."""
    batch = harness.Batch(TARGET, harness.Image(DATA, 1 << 24))
    for case in [*OWN, *at_their_ends()]:
        row = KERNELS[row_of(case, isa)]
        if row.applies(case.graph, case.node, TARGET):
            batch.add(row, case, samples=2)
    return batch


def build(batch: harness.Batch, folder: Path) -> None:
    """Write rom.bin."""
    compile_tir(batch.functions, batch.target).object(folder / "k.o")
    rows = []
    for call in batch.calls:
        wanted = batch.image.put(call.expected)
        args = ", ".join(f"{a}LL" for a in [*call.args, *[0] * (MOST_ARGS - len(call.args))])
        rows.append(f"{{{call.symbol}, {{{args}}}, {call.output}LL, {wanted}LL, {call.expected.size}}}")
    text = [
        "#include <stdint.h>", "typedef int64_t word;",
        f"struct call {{ char *function; word args[{MOST_ARGS}], output, wanted, size; }};",
        *(f"extern char {symbol}[];" for symbol in batch.functions), f"const int count = {len(rows)};",
        "const struct call calls[] = {", ",\n".join(rows), "};", "",
    ]  # fmt: skip
    (folder / "calls.c").write_text("\n".join(text), encoding="utf-8")
    (folder / "layout.ld").write_text(_LAYOUT, encoding="utf-8")

    def run(*command: str | Path) -> None:
        subprocess.run(command, cwd=folder, check=True)

    run(*_COMPILE, "calls.c", "-o", "calls.o")
    run(*_COMPILE, HERE / "main.c", "-o", "main.o")
    run(*_COMPILE, HERE / "boot.S", "-o", "boot.o")
    run(
        "ld",
        "--no-warn-rwx-segments",
        "-T",
        "layout.ld",
        "-e",
        "start",
        "-o",
        "program.elf",
        "main.o",
        "calls.o",
        "k.o",
    )
    run("objcopy", "-O", "binary", "program.elf", "program.bin")
    run("ld", "-Ttext", "0", "-e", "0", "--oformat", "binary", "-o", "boot.bin", "boot.o")
    rom, data = bytearray(ROM), batch.image.bytes[: batch.image.used + 4096].tobytes()
    program = (folder / "program.bin").read_bytes()
    assert len(program) <= ROM_DATA, "the rows do not fit"
    assert len(data) <= ROM_BOOT - ROM_DATA, "the cases do not fit"
    rom[: len(program)], rom[ROM_DATA : ROM_DATA + len(data)] = program, data
    rom[ROM_BOOT:] = (folder / "boot.bin").read_bytes()
    (folder / "rom.bin").write_bytes(rom)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bochs", type=Path, required=True, help="the program, built with AMX")
    parser.add_argument("--vga", type=Path, required=True, help="a VGA BIOS image, which Bochs wants")
    parser.add_argument("--isa", choices=("amx", "vnni"), default="amx")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(calls_of(args.isa), folder)
        (folder / "bochsrc").write_text(_SETTINGS.format(vga=args.vga.resolve()), encoding="utf-8")
        command = [args.bochs.resolve(), "-q", "-f", "bochsrc", "-unlock"]
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=600)
    said = re.findall(r"call \d+ differs|calls \d+ bad \d+", done.stdout.decode(errors="replace"))
    print("\n".join(said) or "Bochs ended without a result")
    return 0 if said and said[-1].endswith(" bad 0") else 1


if __name__ == "__main__":
    sys.exit(main())
