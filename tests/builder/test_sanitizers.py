"""The portable form under AddressSanitizer and UndefinedBehaviorSanitizer, with buffers of exactly the stated sizes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.builder.test_portable import network
from tests.networks import residual_network
from xdeploy.builder.package import Package
from xdeploy.formats import Int8
from xdeploy.lir.graph import LoweredGraph
from xdeploy.lir.ops import run
from xdeploy.program import bind
from xdeploy.target import load_target

NETWORKS = {"pieces": network, "residual": residual_network}
SANITIZE = [
    "-fsanitize=address,undefined,integer-divide-by-zero,shift,signed-integer-overflow,bounds,alignment,pointer-overflow",
    "-fno-sanitize-recover=all", "-fno-omit-frame-pointer",
]  # fmt: skip
# the buffers come from malloc one by one: the sanitizer knows their ends to the byte
MAIN = r"""
#include "xd_net.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(void)
{
    static int8_t codes[XD_NET_INPUT_BYTES];
    while (fread(codes, sizeof codes, 1, stdin) == 1) {
        int8_t *const input = malloc(XD_NET_INPUT_BYTES), *const output = malloc(XD_NET_OUTPUT_BYTES);
        void *const arena = malloc(XD_NET_ARENA_BYTES - MISSING);
        int status;
        memcpy(input, codes, sizeof codes);
        memset(arena, 0xA5, XD_NET_ARENA_BYTES - MISSING);
        status = xd_net_run(input, output, arena);
        if (status != 0 || fwrite(output, XD_NET_OUTPUT_BYTES, 1, stdout) != 1) { return 1; }
        free(input);
        free(output);
        free(arena);
    }
    return 0;
}
"""


@pytest.fixture(scope="module", params=NETWORKS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoweredGraph]:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    graph, golden = NETWORKS[request.param]()
    target = load_target("cortex-m4")
    folder = tmp_path_factory.mktemp("sanitized")
    Package(bind(graph, target, "net", form="portable"), graph, golden, target, {}, "").write(folder, None)
    (folder / "main.c").write_text(MAIN)
    for name, missing in (("run", 0), ("short", 1)):
        sources = ["main.c", *(f"src/xd_net{part}.c" for part in ("", "_weights", "_kernels"))]
        words = ["gcc", "-std=c99", "-O1", "-g", f"-DMISSING={missing}", *SANITIZE, "-Iinclude", "-Isrc", *sources]
        done = subprocess.run([*words, "-o", name], cwd=folder, capture_output=True, text=True, check=False)
        if "cannot find" in done.stderr:
            pytest.skip("gcc has no sanitizer libraries")
        assert done.returncode == 0, done.stderr
    return folder, graph


def _inputs(graph: LoweredGraph, count: int) -> Int8:
    """All extremes first, then random codes over the full range."""
    shape = graph.tensors[graph.input].shape
    rng = np.random.default_rng(9)
    codes = rng.integers(-128, 128, (count, *shape)).astype(np.int8)
    codes[0], codes[1] = -128, 127
    codes[2].reshape(-1)[::2], codes[2].reshape(-1)[1::2] = -128, 127
    codes[3] = rng.choice([-128, 127], shape)
    return codes


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_same_bits_and_nothing_undefined(program: tuple[Path, LoweredGraph], count: int) -> None:
    folder, graph = program
    codes = _inputs(graph, count)
    done = subprocess.run([folder / "run"], input=codes.tobytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    given = np.frombuffer(done.stdout, np.int8).reshape(count, -1)
    for start in range(0, count, 500):
        wanted = run(graph, codes[start : start + 500])[graph.output]
        np.testing.assert_array_equal(given[start : start + 500], wanted.reshape(len(wanted), -1))


def test_an_arena_of_one_byte_less_is_noticed(program: tuple[Path, LoweredGraph]) -> None:
    folder, graph = program
    done = subprocess.run([folder / "short"], input=_inputs(graph, 4).tobytes(), capture_output=True, check=False)
    assert done.returncode != 0
    assert b"heap-buffer-overflow" in done.stderr
