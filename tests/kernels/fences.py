"""Sees every byte that emulated code reads or writes: nothing but the buffers of a call may be touched, to the byte.

Guard bytes show wrong writes only, and unmapped pages end at multiples of their size. Here every load and store is
compared with the bytes of the blocks: by a hook of unicorn, and by a plugin of QEMU.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.kernels.harness import Batch, Image, Unicorn, link, run_qemu
from xdeploy.bench.qemu import plugin_version
from xdeploy.builder.zig import cc

MOST = 64
READ, WRITE = 1, 2
_COMMON = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct access { uint64_t address; uint32_t size, write; };
struct fence { uint64_t base, size; const uint8_t *allowed; uint32_t count, seen; struct access bad[64]; };
static void look(struct fence *f, uint64_t address, uint32_t size, uint32_t write)
{
    uint32_t i;
    if (address + size <= f->base || address >= f->base + f->size) { return; }
    ++f->seen;
    for (i = 0; i < size; ++i) {
        const uint64_t at = address + i - f->base;
        if (at >= f->size || (f->allowed[at] & (write ? 2 : 1)) == 0) {
            if (f->count < 64) { struct access a = {address, size, write}; f->bad[f->count] = a; }
            ++f->count;
            return;
        }
    }
}
"""
_UNICORN = r"""
void on_access(void *uc, int type, uint64_t address, int size, int64_t value, void *user)
{
    (void)uc; (void)value;
    look((struct fence *)user, address, (uint32_t)size, type == 17);
}
"""
_QEMU = r"""
typedef uint64_t id_t_;
struct tb; struct insn;
extern void qemu_plugin_register_vcpu_tb_trans_cb(id_t_, void (*)(id_t_, struct tb *));
extern void qemu_plugin_register_vcpu_mem_cb(struct insn *, void (*)(unsigned, uint32_t, uint64_t, void *), int, int,
                                             void *);
extern void qemu_plugin_register_atexit_cb(id_t_, void (*)(id_t_, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const struct tb *);
extern struct insn *qemu_plugin_tb_get_insn(const struct tb *, size_t);
extern unsigned qemu_plugin_mem_size_shift(uint32_t);
extern _Bool qemu_plugin_mem_is_store(uint32_t);
__attribute__((visibility("default"))) int qemu_plugin_version = XD_PLUGIN_VERSION;
static struct fence fence;
static void on_access(unsigned cpu, uint32_t info, uint64_t address, void *user)
{
    (void)cpu; (void)user;
    look(&fence, address, 1U << qemu_plugin_mem_size_shift(info), qemu_plugin_mem_is_store(info));
}
static void on_translation(id_t_ id, struct tb *tb)
{
    size_t i;
    (void)id;
    for (i = 0; i < qemu_plugin_tb_n_insns(tb); ++i) {
        qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), on_access, 0, 3, NULL);
    }
}
static void at_exit(id_t_ id, void *user)
{
    FILE *out = fopen("accesses.bin", "wb");
    (void)id; (void)user;
    if (out != NULL) { fwrite(&fence, sizeof fence, 1, out); fclose(out); }
}
__attribute__((visibility("default"))) int qemu_plugin_install(id_t_ id, const void *info, int argc, char **argv)
{
    FILE *in = fopen("allowed.bin", "rb");
    uint8_t *allowed;
    (void)info; (void)argc; (void)argv;
    if (in == NULL || fread(&fence.base, 8, 1, in) != 1 || fread(&fence.size, 8, 1, in) != 1) { return -1; }
    allowed = malloc(fence.size);
    if (allowed == NULL || fread(allowed, 1, fence.size, in) != fence.size) { return -1; }
    fence.allowed = allowed;
    fclose(in);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, at_exit, NULL);
    return 0;
}
"""


class _Access(ctypes.Structure):
    _fields_ = [("address", ctypes.c_uint64), ("size", ctypes.c_uint32), ("write", ctypes.c_uint32)]


class _State(ctypes.Structure):
    """struct fence of the C text."""

    _fields_ = [
        ("base", ctypes.c_uint64), ("size", ctypes.c_uint64), ("allowed", ctypes.c_void_p),
        ("count", ctypes.c_uint32), ("seen", ctypes.c_uint32), ("bad", _Access * MOST),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Access:
    """A load or store of `size` bytes, some of which are not the call's."""

    address: int
    size: int
    write: bool


def _library(folder: Path, text: str, *options: str) -> Path:
    if (folder / "fence.so").exists():
        return folder / "fence.so"
    (folder / "fence.c").write_text(_COMMON + text)
    own = ["-target", f"{platform.machine()}-linux-gnu"] if sys.platform == "linux" else []
    flags = ["-shared", "-fPIC", "-O2", "-fno-sanitize=all", *options]
    cc([*own, *flags, "fence.c", "-o", "fence.so"], folder)
    return folder / "fence.so"


def _accesses(state: _State) -> list[Access]:
    assert state.seen, "no access was seen at all"
    return [Access(a.address, a.size, bool(a.write)) for a in state.bad[: min(state.count, MOST)]]


class Fence:
    """A native hook on every access of a unicorn CPU to `size` bytes from `base` on; `allowed` may be changed."""

    def __init__(self, cpu: Any, base: int, allowed: NDArray[np.uint8], folder: Path) -> None:
        from unicorn import UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE
        from unicorn.unicorn_py3 import unicorn as binding

        self.allowed = allowed  # kept alive: the hook reads it
        self.state = _State(base=base, size=len(allowed), allowed=allowed.ctypes.data)
        self._library = ctypes.CDLL(str(_library(folder, _UNICORN)))
        function = ctypes.cast(self._library.on_access, ctypes.c_void_p)
        status = binding.uclib.uc_hook_add(
            cpu._uch, ctypes.byref(ctypes.c_size_t()), UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, function,
            ctypes.cast(ctypes.addressof(self.state), ctypes.c_void_p), ctypes.c_uint64(1), ctypes.c_uint64(0),
        )  # fmt: skip
        assert status == 0

    def violations(self) -> list[Access]:
        """What was touched and is not allowed, the first of them."""
        return _accesses(self.state)


def allowed_bytes(image: Image) -> NDArray[np.uint8]:
    """READ and WRITE for every byte of an image."""
    allowed = np.zeros(len(image.bytes), np.uint8)
    for start, size, written in image.blocks:
        allowed[start : start + size] |= READ | WRITE * written
    return allowed


def unicorn_violations(batch: Batch, folder: Path) -> list[str]:
    """Run all calls; a line for every access beyond the blocks."""
    machine = Unicorn(link(batch, folder), batch.target, batch.image)
    fence = Fence(machine.cpu, batch.image.base, allowed_bytes(batch.image), folder)
    for call in batch.calls:
        machine.call(call.symbol, call.args)
    machine.read_back()
    return [explain(batch, a) for a in fence.violations()]


def qemu_violations(batch: Batch, folder: Path) -> list[str]:
    """The same in qemu-system-arm."""
    allowed = allowed_bytes(batch.image)
    head = np.array([batch.image.base, len(allowed)], np.uint64).tobytes()
    (folder / "allowed.bin").write_bytes(head + allowed.tobytes())
    plugin = _library(folder, _QEMU, f"-DXD_PLUGIN_VERSION={plugin_version()}", "-Wl,-z,lazy")
    run_qemu(batch, folder, ["-plugin", str(plugin)])
    state = _State.from_buffer_copy((folder / "accesses.bin").read_bytes())
    return [explain(batch, a) for a in _accesses(state)]


def explain(batch: Batch, access: Access) -> str:
    """Which block of which call an access is nearest to."""
    at = access.address - batch.image.base
    start, size, _ = min(batch.image.blocks, key=lambda b: max(b[0] - at, at - b[0] - b[1], 0))
    owner = next((c.label for c in batch.calls if batch.image.base + start in c.args), "?")
    what = "write" if access.write else "read"
    return f"{what} of {access.size} at {at - start} of a block of {size}: {owner}"
