"""`serial:`: the harness's firmware in QEMU, its UART on a pseudo-terminal; and ports that are not as they should."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pty
import re
import select
import shutil
import subprocess
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.bench.conftest import Built
from tests.builder import compilers
from tests.networks import residual_network
from xdeploy.bench import bench, run_codes
from xdeploy.bench.runner import RunOptions
from xdeploy.bench.serial import SerialRunner, open_port, parse_via
from xdeploy.builder.harness import SUPPORT, fingerprint
from xdeploy.errors import TransportError, UsageError
from xdeploy.handover import Artifact
from xdeploy.lir import ops
from xdeploy.target import load_target

needs_qemu = pytest.mark.skipif(shutil.which("qemu-system-arm") is None, reason="qemu-system-arm is not installed")


@contextlib.contextmanager
def board(artifact: Artifact, *options: str) -> Iterator[str]:
    """The serial firmware of an artifact running in QEMU; gives the name of its pseudo-terminal."""
    machine = str(load_target(artifact.target).runner["machine"])
    image = artifact.folder / artifact.manifest["products"]["serial"]
    command = ["qemu-system-arm", "-M", machine, "-display", "none", "-monitor", "none", "-serial", "pty", *options]
    with subprocess.Popen([*command, "-kernel", str(image)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as qemu:  # fmt: skip
        try:
            assert qemu.stdout is not None
            assert select.select([qemu.stdout], [], [], 60)[0], "QEMU says nothing"
            said = qemu.stdout.readline().decode()
            found = re.search(r"redirected to (\S+)", said)
            assert found, said
            yield found[1]
        finally:
            qemu.kill()


@needs_qemu
@pytest.mark.qemu
@pytest.mark.parametrize("name", ["cortex-m4", "cortex-m55"])
def test_firmware_in_qemu(built: Built, name: str) -> None:
    artifact, golden = built(name)
    with board(artifact) as port:
        m = bench(artifact, golden, load_target(name), via=f"serial:{port}", options=RunOptions(repeats=3))
        assert (m.verdict, m.reason, m.runner) == ("bit-exact", None, "serial")
        assert m.environment["device"] == f"xdeploy-{name}"
        assert 0 < m.quantities["latency"]["low"] <= m.quantities["latency"]["value"]
        assert "instructions" not in m.quantities
        assert {"instructions", "stack"} <= set(m.tells["cannot"])
        # a second connection, other inputs
        codes = np.stack([np.full((8, 8, 4), v, np.int8) for v in (-128, 0, 127)])
        result = run_codes(artifact, f"serial:{port}@9600", codes)
        graph, _ = residual_network()
        assert np.array_equal(result.outputs, ops.run(graph, codes)[graph.output])
        assert result.instructions is None
        # another artifact than the one in the device, and another expectation
        other = Artifact(artifact.folder, {**artifact.manifest, "files": {}})
        with pytest.raises(TransportError, match="holds another build") as caught:
            run_codes(other, f"serial:{port}", codes)
        assert "flash this artifact" in str(caught.value.hint)
        wrong = golden.output_codes.copy()
        wrong[0, 0] ^= 1
        m = bench(artifact, dataclasses.replace(golden, output_codes=wrong), load_target(name), via=f"serial:{port}")
        assert m.verdict == "differs"


@needs_qemu
@pytest.mark.qemu
def test_virtual_time_follows_the_instructions(built: Built) -> None:
    """With -icount an instruction takes 2^10 ns, so the device's clock agrees with the other emulator's count."""
    artifact, golden = built("cortex-m4")
    counted = bench(artifact, golden, load_target("cortex-m4"), via="unicorn").quantities["instructions"]["value"]
    with board(artifact, "-icount", "shift=10") as port:
        m = bench(artifact, golden, load_target("cortex-m4"), via=f"serial:{port}", options=RunOptions(repeats=1))
    nanoseconds = m.quantities["latency"]["value"] * 1e9
    assert nanoseconds / 1024 == pytest.approx(counted, rel=0.01)


def test_the_package_holds_the_harness(built: Built) -> None:
    artifact, _ = built("cortex-m4")
    listed = artifact.manifest["files"]
    assert {f"serial/{name}" for name in (*SUPPORT, "main.c")} <= set(listed)
    assert fingerprint(listed) in (artifact.folder / "serial/main.c").read_text()
    changed = {**listed, "src/xd_net_weights.c": "0" * 64}
    assert fingerprint(changed) != fingerprint(listed)


@pytest.mark.parametrize("options", [[], ["-DXD_FORM=1U"], ["-DXD_FORM=2U", "-DXD_SCORE=1U", '-DXD_MODEL="ad01"']])
def test_a_user_compiles_it(built: Built, options: list[str], tmp_path: Path) -> None:
    """As for a board of one's own: serial/main.c beside the package, any form of input, without a warning."""
    artifact, _ = built("cortex-m4")
    words = [*compilers.command("gcc", "cortex-m4"), *compilers.C, "-std=c99", "-O2", "-ffreestanding", *options]
    folders = [f"-I{artifact.folder / part}" for part in ("include", "serial")]
    main = str(artifact.folder / "serial/main.c")
    done = subprocess.run([*words, *folders, "-c", main, "-o", str(tmp_path / "main.o")], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("via", "port", "baud"),
    [("serial:/dev/ttyACM0", "/dev/ttyACM0", 115200), ("serial:COM3@9600", "COM3", 9600),
     ("serial:/dev/serial/by-id/usb-a_b:1.2@921600", "/dev/serial/by-id/usb-a_b:1.2", 921600)],
)  # fmt: skip
def test_addresses(via: str, port: str, baud: int) -> None:
    assert parse_via(via) == (port, baud)


@pytest.mark.parametrize("via", ["serial:", "serial:@9600", "serial:/dev/x@", "serial:/dev/x@fast", "serial:/dev/x@10",
                                 "serial:/dev/x@99999999999", "serial:/dev/x\n", "serial"])  # fmt: skip
def test_bad_addresses(built: Built, via: str) -> None:
    artifact, golden = built("cortex-m4")
    with pytest.raises(UsageError, match="no serial:/dev/ttyX"):
        run_codes(artifact, via, golden.input_codes)


def test_missing_port_and_no_port(built: Built, tmp_path: Path) -> None:
    artifact, golden = built("cortex-m4")
    with pytest.raises(TransportError, match="cannot be opened") as caught:
        bench(artifact, golden, load_target("cortex-m4"), via="serial:/dev/ttyNOWHERE7")
    assert "plugged in" in str(caught.value.hint)
    (tmp_path / "file").touch()
    with pytest.raises(TransportError, match="cannot be opened"):
        run_codes(artifact, f"serial:{tmp_path / 'file'}", golden.input_codes)


def test_busy_silent_and_lost_port(built: Built) -> None:
    artifact, golden = built("cortex-m4")
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    name = os.ttyname(theirs)
    options = RunOptions(timeout=0.5)
    with open_port(name, 115200), pytest.raises(TransportError, match="cannot be opened") as caught:
        run_codes(artifact, f"serial:{name}", golden.input_codes)
    assert "another program has it open" in str(caught.value.hint)
    begin = time.monotonic()
    with pytest.raises(TransportError, match=r"no answer to name%|did not finish in the time"):
        run_codes(artifact, f"serial:{name}", golden.input_codes, options=options)
    assert time.monotonic() - begin < 30
    with open_port(name, 115200) as port:
        os.close(ours)
        os.close(theirs)
        runner = SerialRunner(artifact, f"serial:{name}", options)
        with pytest.raises(TransportError, match="serial port"):
            runner.run_on(port, golden.input_codes.reshape(len(golden.input_codes), -1))
