"""The part of `xdeploy doctor` about this machine: compilers, emulators, folders, processor, memory and disk."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from xdeploy.caches import cache_root, own_cache
from xdeploy.cpu import cpu_flags
from xdeploy.doctor import Check

_LIMIT = 300.0  # seconds that a program may take to answer: on a busy machine it only loads for a minute
_GIB = 1024**3
_LEAST_MEMORY, _LEAST_DISK = 2 * _GIB, 2 * _GIB
_LLVM = ("x86_64", "arm", "thumb", "aarch64")  # what the targets are made for
_ASK_TVM = "import tvm; print(*tvm.get_global_func('target.llvm_get_targets')())"
# program -> (what for, package of Debian)
_PROGRAMS = {
    "qemu-system-arm": ("running Cortex-M55 code", "qemu-system-arm"),
    "qemu-aarch64": ("counting in Linux programs for Arm and x86", "qemu-user"),
    "ssh": ("boards in the network", "openssh-client"),
    "arm-none-eabi-gcc": ("cross-checking the C package", "gcc-arm-none-eabi"),
    "cmake": ("cross-checking the C package", "cmake"),
}
# flag of /proc/cpuinfo -> (what it enables, whether host libraries need it)
_FEATURES = {
    "avx2": ("libraries for the target x86-64, and accuracy of the deployed code", True),
    "amx_bf16": ("fine-tuning in bfloat16", False),
}


def compilers() -> list[Check]:
    """The C compiler inside ziglang and the code generators inside TVM, both asked to run."""
    rows = []
    if importlib.util.find_spec("ziglang"):
        ok, said = _ask([sys.executable, "-m", "ziglang", "version"])
        mend = "pip install --force-reinstall ziglang"
        rows.append(Check("zig runs", ok, said if ok else "", "compiling for every target", mend, problem=said))
    if importlib.util.find_spec("tvm"):
        ok, said = _ask([sys.executable, "-c", _ASK_TVM])
        lacking = [name for name in _LLVM if name not in said.split()] if ok else []
        ok = ok and not lacking
        problem = f"without LLVM's {', '.join(lacking)}" if lacking else said
        mend = "pip install --force-reinstall apache-tvm"
        rows.append(Check("LLVM inside tvm", ok, ", ".join(_LLVM) if ok else "", "kernels", mend, problem=problem))
    return rows


def _ask(command: list[str]) -> tuple[bool, str]:
    """Whether a program ends well, and the last line that it says."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, f"does not run: {error}"
    words = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, words[-1] if words else f"ended with {done.returncode}"


def programs() -> list[Check]:
    """Emulators and tools outside Python; a build goes without them."""
    rows = []
    for name, (use, package) in _PROGRAMS.items():
        path = shutil.which(name)
        mend = f"apt-get install {package}"
        rows.append(Check(name, path is not None, path or "", use, mend, True, "not installed"))
    return rows


def places() -> list[Check]:
    """The folders that are written into."""
    zig = os.environ.get("ZIG_GLOBAL_CACHE_DIR") or str(cache_root() / "zig")
    return [
        _writable(
            "measured kernels", own_cache(), "kept figures; without them they are measured again", "XDEPLOY_CACHE", True
        ),
        _writable("compiler's cache", Path(zig), "compiling", "ZIG_GLOBAL_CACHE_DIR", False),
        _writable("temporary files", Path(tempfile.gettempdir()), "compiling", "TMPDIR", False),
    ]


def _writable(name: str, folder: Path, use: str, variable: str, optional: bool) -> Check:
    """Whether a file can be made in the folder, or the folder itself; nothing is left behind."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            problem = ""
    except OSError as error:
        problem = f"{folder} cannot be written: {error.strerror}"
    mend = f"export {variable}=DIR, with a folder that you can write"
    return Check(name, not problem, str(folder), use, mend, optional, problem)


def hardware() -> list[Check]:
    """Processor, memory and disk."""
    rows = (
        [_feature(name, *row) for name, row in _FEATURES.items()] if platform.machine() in ("x86_64", "AMD64") else []
    )
    free = _free_memory()
    if free is not None:
        problem = "" if free >= _LEAST_MEMORY else f"{free / _GIB:.1f} GiB free, a build wants {_LEAST_MEMORY // _GIB}"
        mend = "end other programs, or add swap"
        rows.append(
            Check("memory", not problem, f"{free / _GIB:.1f} GiB free", "scoring and compiling", mend, True, problem)
        )
    for name, folder in (("disk here", Path.cwd()), ("disk of the caches", cache_root())):
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        room = shutil.disk_usage(there).free
        problem = "" if room >= _LEAST_DISK else f"{room / _GIB:.1f} GiB free, a build wants {_LEAST_DISK // _GIB}"
        mend = "rm -r ~/.cache/zig" if "cache" in name else "make room, or build elsewhere with -o"
        rows.append(Check(name, not problem, f"{room / _GIB:.1f} GiB free", "packages and caches", mend, True, problem))
    return rows


def _feature(flag: str, use: str, needed: bool) -> Check:
    there = flag in cpu_flags()
    found = f"enables {use}"
    mend = "build for other targets, with bench.accuracy = false" if needed else "nothing: it is done in float32"
    return Check(f"processor: {flag}", there, found, use, mend, True, "this processor has it not")


def _free_memory() -> int | None:
    """Bytes that can be had without swapping; None: not known."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
