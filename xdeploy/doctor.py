"""`xdeploy doctor`: what the tool needs, what is there, and the one command that mends what is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from typing import Any

from xdeploy.errors import ToolchainError

# distribution -> (import name, what for)
_PACKAGES = {
    "torch": ("torch", "capture, scoring, fine-tuning"),
    "captum": ("captum", "DeepLIFT"),
    "scipy": ("scipy", "planning"),
    "scikit-learn": ("sklearn", "the bundled demo"),
    "onnx": ("onnx", "export and lowering"),
    "onnxruntime": ("onnxruntime", "checking the export"),
    "apache-tvm": ("tvm", "kernels"),
    "ziglang": ("ziglang", "compiling for every target"),
    "unicorn": ("unicorn", "running Arm code"),
    "capstone": ("capstone", "instruction mix"),
    "pyserial": ("serial", "boards on a serial port"),
    "pyelftools": ("elftools", "measuring flash"),
    "safetensors": ("safetensors", "weights"),
    "pillow": ("PIL", "images"),
}
_PROGRAMS = {
    "qemu-system-arm": ("running Cortex-M55 code", "apt-get install qemu-system-arm"),
    "qemu-aarch64": ("counting in Linux programs for Arm and x86", "apt-get install qemu-user"),
    "ssh": ("boards in the network", "apt-get install openssh-client"),
    "arm-none-eabi-gcc": ("cross-checking the C package", "apt-get install gcc-arm-none-eabi"),
    "cmake": ("cross-checking the C package", "apt-get install cmake"),
}


def missing_package(module: str) -> ToolchainError:
    """The error for a module that cannot be imported, with the command that installs it."""
    top = module.partition(".")[0]
    name = next((dist for dist, (imported, _) in _PACKAGES.items() if imported == top), top)
    return ToolchainError(f"the Python package {name!r} is not installed", hint=f"pip install {name}")


def examine() -> list[dict[str, Any]]:
    """One row per requirement: name, ok, found (version or path), what for, how to mend, optional."""
    python = sys.version_info >= (3, 11)
    rows = [_row("python", python, sys.version.split()[0], "the tool itself", "install Python 3.11 or newer", False)]
    for name, (module, use) in _PACKAGES.items():
        there = importlib.util.find_spec(module) is not None
        version = importlib.metadata.version(name) if there else ""
        rows.append(_row(name, there, version, use, f"pip install {name}", False))
    if importlib.util.find_spec("ziglang"):
        rows.append(_zig())
    for name, (use, mend) in _PROGRAMS.items():
        path = shutil.which(name)
        rows.append(_row(name, path is not None, path or "", use, mend, True))
    return rows


def _zig() -> dict[str, Any]:
    command = [sys.executable, "-m", "ziglang", "version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    mend = "pip install --force-reinstall ziglang"
    return _row("zig runs", done.returncode == 0, done.stdout.strip(), "compiling for every target", mend, False)


def _row(name: str, ok: bool, found: str, use: str, mend: str, optional: bool) -> dict[str, Any]:
    return {"name": name, "ok": ok, "found": found, "for": use, "mend": f"for {use}: {mend}", "optional": optional}
