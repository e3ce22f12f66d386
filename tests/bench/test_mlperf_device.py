"""targets/support/mlperf.c: what mlcommons' runner expects of a device, and that no input does harm."""

from __future__ import annotations

import ctypes
import random
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.bench import boards
from tests.bench.boards import INPUTS, OUTPUTS, Device, expected
from tests.builder import compilers
from xdeploy.formats import QParams

SEED = 20240607


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return boards.compile_library(tmp_path_factory.mktemp("device"))


@pytest.fixture
def device(library: ctypes.CDLL) -> Device:
    return Device(library)


# --------------------------------------------------------------- what benchmark/runner of mlcommons/tiny looks for
def test_name_and_profile_as_the_runner_reads_them(device: Device) -> None:
    (name, ready), profile = device.ask("name"), device.ask("profile")
    assert re.match(r"^m-(name)-dut-\[([^]]+)]$", name)
    assert "m-ready" in ready
    found = dict(re.match(r"^m-(model|profile)-\[([^]]+)]$", line).groups() for line in profile[:-1])  # type: ignore[union-attr]
    assert found["model"] == "kws01"
    assert found["profile"].startswith("ULPMark for tinyML")
    assert profile[-1] == "m-ready"


def test_infer_as_the_runner_reads_it(device: Device) -> None:
    codes = boards.job(1).codes
    device.load(codes.tobytes())
    lines = device.ask("infer 7 2")
    assert [line for line in lines if re.match(r"^m-results-\[([^]]+)\]$", line)] == lines[-2:-1]
    start, end = (int(m[1]) for m in map(re.compile(r"^m-lap-us-([0-9]+)$").match, lines) if m)
    assert (end - start) % 2**32 == 7 * boards.MICROSECONDS
    assert lines[0] == "m-warmup-start-2"
    assert [x for x in lines if x.startswith("m-infer")] == ["m-infer-start-7", "m-infer-done"]
    values = [float(x) for x in lines[-2][len("m-results-[") : -1].split(",") if x.strip()]
    assert values == [float(f"{v:.3f}") for v in boards.OUTPUT_Q.dequantise(expected(codes))]
    assert device.ask("results") == lines[-2:]


def test_longest_command_of_the_runner_fits(device: Device) -> None:
    assert len("db " + 31 * "ff") <= 80  # EE_CMD_SIZE
    device.load(bytes(INPUTS))


def test_own_commands(device: Device) -> None:
    codes = boards.job(2).codes
    device.load(codes.tobytes())
    assert device.ask("xd crc") == [f"m-crc-[{boards.crc(codes.tobytes())}]", "m-ready"]
    assert device.ask("xd codes")[0] == "e-[No inference has been run]"
    device.ask("infer 1 0")
    out = expected(codes).tobytes()
    assert device.ask("xd codes") == [
        f"m-codes-0-[{out[:32].hex()}]", f"m-codes-32-[{out[32:].hex()}]", f"m-codes-crc-[{boards.crc(out)}]",
        "m-ready",
    ]  # fmt: skip
    info = dict(part.split("=") for part in device.ask("xd info")[0][len("m-info-[") : -1].split(","))
    assert info == {"xdeploy": "1", "build": boards.BUILD, "inputs": "70", "outputs": "40", "form": "0", "score": "0",
                    "command": "255"}  # fmt: skip


def test_print_of_the_buffer(device: Device) -> None:
    data = bytes(range(INPUTS))
    device.load(data)
    rows = [f"m-buffer-{data[i : i + 8].hex('-')}" for i in range(0, INPUTS, 8)]
    assert device.ask("db print") == [*rows, "m-ready"]
    assert device.ask("db print 3 68") == [f"m-buffer-{data[68:].hex('-')}", "m-ready"]
    assert device.ask("db print 3 4000000000")[0].startswith("e-[")


@pytest.mark.parametrize("q", [QParams(1 / 256, -128), QParams(0.0517, 7), QParams(123.456, 0), QParams(1e-4, 127),
                               QParams(3e9, 1), QParams(2e30, 0), QParams(1e-44, 0), QParams(0.0005, 0)])  # fmt: skip
def test_reals_are_printed_as_printf_does(library: ctypes.CDLL, q: QParams) -> None:
    q = QParams(float(np.float32(q.scale)), q.zero_point)
    device = Device(library, q=q)
    for start in range(-128, 128, OUTPUTS):
        codes = np.resize(np.arange(start, min(start + OUTPUTS, 128)), INPUTS).astype(np.int8)
        codes[0] = codes[1]
        device.load(codes.tobytes())
        printed = device.ask("infer 1 0")[-2][len("m-results-[") : -1].split(",")
        real = (expected(codes).astype(np.float32) - np.float32(q.zero_point)) * np.float32(q.scale)
        capped = np.clip(real.astype(np.float64), -(2.0**53), 2.0**53)
        small = np.abs(real) < 2.0**53
        assert [p for p, ok in zip(printed, small, strict=True) if ok] == [f"{v:.3f}" for v in capped[small]]
        assert all(re.fullmatch(r"-?[0-9]{16}\.[0-9]{3}", p) for p, ok in zip(printed, small, strict=True) if not ok)


def test_pixels_and_floats_as_inputs(library: ctypes.CDLL) -> None:
    codes = boards.job(3).codes
    pixels = Device(library, form=1)
    pixels.load((codes.view(np.uint8) + np.uint8(128)).tobytes())
    pixels.ask("infer 1 0")
    assert pixels.ask("xd codes")[0] == f"m-codes-0-[{expected(codes).tobytes()[:32].hex()}]"
    rng = np.random.default_rng(4)
    real = rng.normal(0, 4, INPUTS).astype(np.float32)
    real[1:8] = [np.inf, -np.inf, np.nan, 1e30, 0.025, -0.075, 0.125]
    floats = Device(library, form=2)
    floats.load(real.astype("<f4").tobytes())
    floats.ask("infer 1 0")
    real[3] = 0.0  # not a number counts as zero
    wanted = expected(boards.INPUT_Q.quantise(real)).tobytes()
    assert floats.ask("xd codes")[0] == f"m-codes-0-[{wanted[:32].hex()}]"


def test_score_of_an_autoencoder(library: ctypes.CDLL) -> None:
    device = Device(library, form=2, score=1)
    real = np.random.default_rng(5).normal(0, 1, INPUTS).astype("<f4")
    device.load(real.tobytes())
    line = device.ask("infer 1 0")[-2]
    outputs = boards.OUTPUT_Q.dequantise(expected(boards.INPUT_Q.quantise(real)))
    assert line == f"m-results-[{np.mean((outputs - real[:OUTPUTS]) ** 2):.3f}]"


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("", "e-[Unknown command: ]"),
        ("nonsense", "e-[Unknown command: nonsense]"),
        ("db", "e-[Command 'db' requires a subcommand]"),
        ("db load", "e-[Command 'db load' requires the # of bytes]"),
        ("db load 0", "e-[Command 'db load' must be >0 bytes]"),
        ("db load -1", "e-[Command 'db load' must be >0 bytes]"),
        ("db load 4294967297", "e-[Command 'db load' must be >0 bytes]"),
        ("db load 71", "e-[Supplied buffer size exceeds maximum of 70]"),
        ("db 00", "e-[No bytes are expected; use 'db load' first]"),
        ("db 0", "e-[Insufficent number of hex digits]"),
        ("db 0x", "e-[Invalid hex digit]"),
        ("infer 0", "e-[Inference iterations must be >0 and <=1000000]"),
        ("infer x", "e-[Inference iterations must be >0 and <=1000000]"),
        ("infer 1 9999999", "e-[Inference warmup must be >=0 and <=1000000]"),
        ("infer", "e-[Input db has 0 bytes, expected 70]"),
        ("results", "e-[No inference has been run]"),
        ("xd", "e-[Command 'xd' requires info, crc or codes]"),
        ("name" + 300 * " ", "e-[Command too long]"),
        ("setbaud 9600", "e-[Unknown command: setbaud]"),
    ],
)
def test_refusals(device: Device, command: str, answer: str) -> None:
    assert device.ask(command) == [answer, "m-ready"]
    assert device.ask("name") == ["m-name-dut-[test board]", "m-ready"]


def test_line_ends_do_not_matter_and_failures_are_told(device: Device) -> None:
    assert device.feed(b"\r\n\0  name \r\n%") == b"m-name-dut-[test board]\r\nm-ready\r\n"
    data = np.full(INPUTS, 99, np.int8).tobytes()
    device.load(data)
    assert device.ask("infer 3 0")[-2:] == ["e-[The inference failed]", "m-ready"]
    assert device.ask("results")[0] == "e-[No inference has been run]"
    assert device.ask("db load 8")[0] == "m-[Expecting 8 bytes]"
    assert device.ask("infer 1 0")[0] == "e-[Input db has 0 bytes, expected 70]"


# ------------------------------------------------------------------------------------------------- damaged commands
FUZZ = r"""
#include <stdio.h>
void xd_uart_put(char c) { (void)putchar(c); }
int main(void)
{
    uint32_t head[2];
    while (fread(head, sizeof head, 1, stdin) == 1) {
        xd_mlperf *const d = begin(head[1] % 3U, head[1] / 3U % 2U, OUTPUTS, 0.01f, 5);
        char *const data = malloc(head[0]);
        uint32_t i;
        if (fread(data, 1, head[0], stdin) != head[0]) { return 1; }
        for (i = 0U; i < head[0]; ++i) { xd_mlperf_receive(d, data[i]); }
        (void)putchar(0);
        free(data); free(d); free(model.input); free(output); free(model.buffer);
    }
    return 0;
}
"""
FLAGS = ["-std=c99", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
WORDS = [b"name", b"profile", b"help", b"timestamp", b"db", b"load", b"print", b"infer", b"results", b"xd", b"info",
         b"crc", b"codes", b"0", b"1", b"70", b"71", b"280", b"4294967295", b"99999999999999999999", b"-5", b"ff" * 35,
         b"00" * 127, b"0f" * 128, b"gg", b"setbaud", b"\xff\xfe", b"%", b" "]  # fmt: skip


def stream(rng: random.Random) -> bytes:
    """Real sessions with damage, words in any order, or just bytes."""
    kind = rng.randrange(3)
    if kind == 0:
        return rng.randbytes(rng.randrange(600)).replace(b"\n", b"%")
    if kind == 1:
        return b"".join(rng.choice(WORDS) + rng.choice([b" ", b"%", b" ", b"\r\n"]) for _ in range(rng.randrange(80)))
    good = b"name%db load 70%db " + rng.randbytes(40).hex().encode() + b"%db " + rng.randbytes(30).hex().encode()
    data = bytearray(good + b"%db print%infer 3 1%results%xd codes%xd crc%")
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data))
        choice = rng.randrange(4)
        if choice == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif choice == 1:
            del data[at : at + rng.randrange(1, 40)]
        elif choice == 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 400))
        else:
            data[at:at] = data[at : at + 60]
        data = data or bytearray(b"%")
    return bytes(data)


def test_damaged_commands_under_sanitizers(tmp_path: Path) -> None:
    """1,000 streams: no access outside, no undefined behaviour, one m-ready per "%", and the device still answers."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (tmp_path / "fuzz.c").write_text(boards.SHIM + FUZZ)
    words = ["gcc", *FLAGS, *boards.defines(), "fuzz.c", str(boards.SUPPORT / "mlperf.c"), "-o", "fuzz"]
    built = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr:
        pytest.skip("gcc has no sanitizer libraries")
    assert built.returncode == 0, built.stderr
    rng = random.Random(SEED)
    streams = [stream(rng) + b"%name%" for _ in range(1000)]
    data = b"".join(struct.pack("<II", len(s), i) + s for i, s in enumerate(streams))
    done = subprocess.run([tmp_path / "fuzz"], input=data, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    answers = [a.split(b"m-init-done\r\nm-ready\r\n", 1)[1] for a in done.stdout.split(b"\0")[:-1]]
    assert len(answers) == len(streams)
    for given, answer in zip(streams, answers, strict=True):
        assert answer.split(b"\r\n").count(b"m-ready") == given.count(b"%")
        assert b"m-name-dut-[test board]\r\nm-ready\r\n" in answer[-40:]


@pytest.mark.parametrize("compiler", ["gcc", "zig"])
@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4", "cortex-m55"])
def test_support_compiles_without_a_warning(compiler: str, core: str, tmp_path: Path) -> None:
    words = [*compilers.command(compiler, core), *compilers.C, "-O2", "-ffreestanding", "-std=c99"]
    for name in ("mlperf.c", "uart_mps2.c", "start_mps2.c"):
        more = ["-c", str(boards.SUPPORT / name), "-o", str(tmp_path / "x.o")]
        done = subprocess.run([*words, *more], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    defined, _, writable = compilers.symbols([tmp_path / "x.o"])
    assert "xd_reset" in defined
    assert not writable
