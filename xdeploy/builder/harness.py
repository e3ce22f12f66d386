"""The package behind a serial port: folder serial/ of a firmware package, and its image for QEMU's boards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from xdeploy.builder.link import BOARDS, common_flags, link_inputs
from xdeploy.builder.package import Package
from xdeploy.builder.zig import cc
from xdeploy.files import sha256, write_text

SUPPORT = ("mlperf.c", "mlperf.h", "uart.h", "uart_mps2.c", "start_mps2.c")


def fingerprint(hashes: Mapping[str, str]) -> str:
    """One SHA-256 for what is compiled: of the paths and SHA-256 of the files in include/ and src/."""
    lines = (f"{path} {digest}\n" for path, digest in sorted(hashes.items()) if path.startswith(("include/", "src/")))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def link_serial(package: Package, folder: Path, weights: Path, board: str) -> Path:
    """firmware: serial/ with the protocol's sources, and build/<name>_serial.elf of them for one of QEMU's boards."""
    support = files("xdeploy.targets.support")
    package_files = (p for part in ("include", "src") for p in (folder / part).rglob("*") if p.is_file())
    build = fingerprint({p.relative_to(folder).as_posix(): sha256(p) for p in package_files})
    for name in SUPPORT:
        write_text(folder / "serial" / name, support.joinpath(name).read_text(encoding="utf-8"))
    main = package.fill("serial.c", {"build": build, "target": package.target.name})
    write_text(folder / "serial/main.c", main)
    script = Template(support.joinpath("serial.ld").read_text(encoding="utf-8"))
    place = {key: f"0x{value:08x}" for key, value in BOARDS[board].items()}
    write_text(folder / "build/serial.ld", script.substitute(place))
    compiled = [f"serial/{name}" for name in ("main.c", *SUPPORT) if name.endswith(".c")]
    sources = [*link_inputs(package, weights), *compiled]
    options = ["-ffreestanding", "-Iserial", "-Wl,--gc-sections", "-Wl,-e,xd_reset", "-Wl,-T,build/serial.ld"]
    image = f"build/{package.name}_serial.elf"
    cc([*common_flags(package, str(package.target.compiler["triple"])), *sources, *options, "-o", image], folder)
    return folder / image
