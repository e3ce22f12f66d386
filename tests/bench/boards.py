"""The device's side of the protocol, compiled for this machine, with a model that can be foretold."""

from __future__ import annotations

import ctypes
import zlib
from pathlib import Path

import numpy as np

from xdeploy.bench.protocol import Job
from xdeploy.builder.zig import cc
from xdeploy.formats import Int8, QParams

SUPPORT = Path(__file__).resolve().parents[2] / "targets/support"
INPUTS, OUTPUTS = 70, 40
INPUT_Q, OUTPUT_Q = QParams(0.05, 3), QParams(1 / 256, -128)
MICROSECONDS = 1234  # of one inference
BUILD = "0123456789abcdef" * 4
# the model: outputs are inputs with some bits turned; buffers come from malloc, so that a sanitizer knows their ends
SHIM = r"""
#include "mlperf.h"
#include "uart.h"
#include <stdlib.h>
static uint32_t now = 4294967000U; /* shortly before it wraps */
static int8_t *input, *output;
static int run(void)
{
    uint32_t i;
    now += 1234U;
    for (i = 0U; i < OUTPUTS; ++i) { output[i] = (int8_t)(input[i] ^ 0x5A); }
    return input[0] == 99 ? 1 : 0;
}
uint32_t xd_time_us(void) { return now; }
int xd_uart_get(void) { return -1; }
void xd_uart_init(void) {}
static xd_mlperf_model model;
static xd_mlperf *begin(uint32_t form, uint32_t score, uint32_t outputs, float scale, int32_t zero)
{
    xd_mlperf *const d = malloc(sizeof *d);
    const xd_mlperf_model m = {"test board", "kws01", BUILD, malloc(INPUTS), malloc(OUTPUTS),
        malloc((form == 2U ? 4U : 1U) * INPUTS), INPUTS, outputs, 0.05f, scale, 3, zero, form, score, run};
    model = m;
    input = m.input;
    output = (int8_t *)(uintptr_t)m.output;
    xd_mlperf_start(d, &model);
    return d;
}
"""
LIBRARY = r"""
static char text[1 << 20];
static uint32_t length;
void xd_uart_put(char c) { if (length < sizeof text) { text[length++] = c; } }
xd_mlperf *shim_begin(uint32_t form, uint32_t score, uint32_t outputs, float scale, int32_t zero);
xd_mlperf *shim_begin(uint32_t form, uint32_t score, uint32_t outputs, float scale, int32_t zero)
{
    return begin(form, score, outputs, scale, zero);
}
const char *shim_feed(xd_mlperf *d, const char *data, uint32_t n, uint32_t *size);
const char *shim_feed(xd_mlperf *d, const char *data, uint32_t n, uint32_t *size)
{
    length = 0U;
    for (; n > 0U; --n) { xd_mlperf_receive(d, *data++); }
    *size = length;
    return text;
}
"""


def defines() -> list[str]:
    """What SHIM needs on the command line."""
    return [f"-DINPUTS={INPUTS}", f"-DOUTPUTS={OUTPUTS}", f'-DBUILD="{BUILD}"', "-I", str(SUPPORT)]


def compile_library(folder: Path) -> ctypes.CDLL:
    """mlperf.c with SHIM and LIBRARY."""
    (folder / "shim.c").write_text(SHIM + LIBRARY)
    sources = ["shim.c", str(SUPPORT / "mlperf.c")]
    cc(["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-fno-sanitize=all", *defines(), *sources, "-shared", "-fPIC",
        "-o", "device.so"], folder)  # fmt: skip
    library = ctypes.CDLL(str(folder / "device.so"))
    library.shim_begin.restype = ctypes.c_void_p
    library.shim_begin.argtypes = [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_float, ctypes.c_int32]
    library.shim_feed.restype = ctypes.c_void_p
    library.shim_feed.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_void_p]
    return library


class Device:
    """One device in this process: bytes in, bytes out."""

    def __init__(
        self, library: ctypes.CDLL, form: int = 0, score: int = 0, outputs: int = OUTPUTS, q: QParams = OUTPUT_Q
    ) -> None:
        self._library = library
        self._state = library.shim_begin(form, score, outputs, q.scale, q.zero_point)

    def feed(self, data: bytes) -> bytes:
        """Its answer to some bytes."""
        size = ctypes.c_uint32()
        at = self._library.shim_feed(self._state, data, len(data), ctypes.byref(size))
        return ctypes.string_at(at, size.value)

    def ask(self, command: str) -> list[str]:
        """Lines of the answer, m-ready included."""
        text = self.feed(command.encode() + b"%").decode()
        assert text.endswith("\r\n")
        return text.split("\r\n")[:-1]

    def load(self, data: bytes) -> None:
        """The input, 31 bytes at a time as mlcommons' runner does."""
        assert self.ask(f"db load {len(data)}") == [f"m-[Expecting {len(data)} bytes]", "m-ready"]
        for start in range(0, len(data), 31):
            last = start + 31 >= len(data)
            assert self.ask("db " + data[start : start + 31].hex()) == ["m-load-done"] * last + ["m-ready"]


def expected(codes: Int8) -> Int8:
    """What the model answers."""
    return (codes.reshape(-1)[:OUTPUTS].view(np.uint8) ^ np.uint8(0x5A)).view(np.int8)


def job(seed: int, repeats: int = 1) -> Job:
    """Some input; its first code is never the one that the model fails for."""
    codes = np.random.default_rng(seed).integers(-128, 128, INPUTS).astype(np.int8)
    codes[0] = seed % 90
    return Job(codes, OUTPUTS, INPUT_Q, OUTPUT_Q, repeats)


def crc(data: bytes) -> str:
    """As the device prints it."""
    return f"{zlib.crc32(data):08x}"
