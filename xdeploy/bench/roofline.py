"""What each layer takes on this machine, and what the machine could do at best: the data of a roofline.

Times are the least of several inferences on one thread, taken between the layers by a hook in C; the clock's own call
is in them, some tens of nanoseconds. The machine's limits are measured right before and after, and the better of the
two is kept. (S. Williams, A. Waterman, D. Patterson: Roofline, CACM 52(4), 2009.)
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import numpy as np

from xdeploy.bench.host import HostRunner, aligned
from xdeploy.bench.model import significant
from xdeploy.bench.native import native_library
from xdeploy.cpu import cpu_flags
from xdeploy.errors import ToolchainError
from xdeploy.formats import Int8
from xdeploy.handover import quantity

ROUNDS = 40
_TIMES = f"least of {ROUNDS} inferences on one thread, memory warm, the clock's call included"
_SIZES = {"cache": 1 << 14, "memory": 1 << 26}  # bytes that are read again and again
_READ_TOTAL = 1 << 28  # bytes read for one figure
_TURNS = 200_000
# a word of the instruction set -> its function, and the instruction; the best first
_MULTIPLY = {
    "amx": ("xd_multiply_amx", "tdpbusd of AMX"), "vnni": ("xd_multiply_vnni", "vpdpbusd of AVX512-VNNI"),
    "": ("xd_multiply", "vpmaddwd of AVX2"),
}  # fmt: skip
_Q = dict[str, Any]


def layers_and_limits(runner: HostRunner, codes: Int8) -> _Q:
    """Measure; nothing where the compiler for the helper is missing or the CPU lacks what it needs.

    Args:
        runner: of an artifact that can run here, whose outputs were checked.
        codes: int8 inputs (N, *device input shape); the first is used.

    Returns:
        `layer_times`: by node name a quantity in seconds. `limits`: `multiply` (MAC/s, of x86-64 alone), `cache` and
        `memory` (byte/s).

    Raises:
        DeviceError: the library reports an error.
    """
    if platform.machine() in ("x86_64", "AMD64") and "avx2" not in cpu_flags():
        return {}
    try:
        helper = ctypes.CDLL(str(native_library("roofline.c")))
    except (ToolchainError, OSError):
        return {}
    before = _limits(helper, runner.isa)
    times = runner.layer_times(helper.xd_layer_times, codes, ROUNDS)
    after = _limits(helper, runner.isa)
    names = [str(n["name"]) for n in runner.image.nodes]
    found = {
        name: quantity(significant(ns * 1e-9), "s", "measured", note=_TIMES)
        for name, ns in zip(names, times.tolist(), strict=True)
        if ns > 0
    }
    return {"layer_times": found, "limits": {k: _better(before[k], after[k]) for k in before}}


def _better(a: _Q, b: _Q) -> _Q:
    return a if a["value"] >= b["value"] else b


def multiply_limit(isa: str, helper: ctypes.CDLL | None = None) -> _Q | None:
    """What this x86-64 machine multiplies at best on one thread, in MAC/s: the best of three measurements.

    Args:
        isa: the instruction set of the code that runs, as targets name it: its best instruction for int8 is measured.
        helper: the library of roofline.c, where it has been loaded already.

    Returns:
        A quantity; None on another machine.

    Raises:
        ToolchainError: the compiler for the helper is missing or fails.
    """
    helper = helper or ctypes.CDLL(str(native_library("roofline.c")))
    name, what = next(found for word, found in _MULTIPLY.items() if word in isa)
    if not hasattr(helper, name):
        return None
    function = getattr(helper, name)
    function.restype = ctypes.c_double
    function.argtypes = [ctypes.c_int64, ctypes.c_void_p]
    sum_ = np.zeros(1, np.int32)
    best = max(function(_TURNS, sum_.ctypes.data) for _ in range(3))
    assert sum_[0] % _TURNS == 0 < sum_[0], "the sums are kept"
    return quantity(significant(best), "MAC/s", "measured", note=f"{what} on registers, one thread")


def _limits(helper: ctypes.CDLL, isa: str) -> _Q:
    """The machine's limits on one thread, each the best of three."""
    multiply = multiply_limit(isa, helper)
    found = {"multiply": multiply} if multiply else {}
    for name, size in _SIZES.items():
        note = f"reading {size >> 10:,} KiB again and again, one thread"
        found[name] = quantity(significant(_reading(helper, size)), "byte/s", "measured", note=note)
    return found


def _reading(helper: ctypes.CDLL, size: int) -> float:
    helper.xd_read.restype = ctypes.c_double
    helper.xd_read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    data, sum_ = aligned(size, 64), np.zeros(1, np.uint64)
    data.fill(1)  # pages of zeros that were never written are one page
    turns = max(1, _READ_TOTAL // size // 3)
    return max(float(helper.xd_read(data.ctypes.data, size, turns, sum_.ctypes.data)) for _ in range(3))
