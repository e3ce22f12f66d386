"""Runner `serial:/dev/ttyX[@baud]`: a board that speaks MLPerf Tiny's protocol on a serial port.

The port is anything that a terminal program could open, a pseudo-terminal of an emulator included. Nothing waits
without an end: every command has its time, every line and answer its length, and all of a run `RunOptions.timeout`.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from xdeploy.bench.model import significant
from xdeploy.bench.protocol import Answer, Ask, Conversation, Identity, Job, Reply, greet, infer, tells_codes
from xdeploy.bench.runner import Image, Ran, RunOptions, Tell, Tells, silent
from xdeploy.builder.harness import fingerprint
from xdeploy.errors import DeviceError, TransportError, UsageError, shown
from xdeploy.formats import Int8, QParams
from xdeploy.handover import Artifact, quantity

if TYPE_CHECKING:
    from serial import Serial

T = TypeVar("T")
BAUD, BAUD_MOST = 115200, 12_000_000
QUIET = 0.1  # seconds without a byte that make a line quiet
REPEATS_MOST = 100_000  # the device takes 10 times as many
DRAIN_SECONDS, DRAIN_BYTES = 2.0, 1 << 16  # how much is thrown away at most before a fresh start
_VIA = re.compile(r"serial:(?P<port>[^@\x00-\x1f]+)(?:@(?P<baud>[0-9]{1,9}))?")
_HINTS = {
    errno.ENOENT: "is the board plugged in? `python -m serial.tools.list_ports` lists the ports",
    errno.EACCES: "add yourself to the group that owns it (often dialout or uucp) and log in again",
    errno.EBUSY: "another program has it open, e.g. a terminal; close that",
    errno.EAGAIN: "another program has it open, e.g. a terminal; close that",
}
_CANNOT = {
    "instructions": "the protocol has no counter of instructions; run the artifact via unicorn or qemu",
    "instructions per layer": "the protocol times whole inferences only; run the artifact via unicorn or qemu",
    "stack": "the protocol does not tell; the bound from the code is given",
    "energy": "needs a power meter beside the board",
}


class Port(Protocol):
    """A byte stream both ways, and the clock that its waits go by."""

    baud: int

    def read(self, seconds: float) -> bytes:
        """What has come, waiting for the first byte no longer than that; b"" if none does."""

    def write(self, data: bytes) -> None:
        """Send all of it."""

    def now(self) -> float:
        """Seconds, monotonic."""


def parse_via(via: str) -> tuple[str, int]:
    """Port and baud rate of `serial:PORT[@BAUD]`.

    Raises:
        UsageError: it is not that.
    """
    found = _VIA.fullmatch(via)
    baud = int(found["baud"] or BAUD) if found else 0
    if found is None or not 50 <= baud <= BAUD_MOST:
        raise UsageError(f"--via {shown(via)} is no serial:/dev/ttyX[@baud], baud 50 to {BAUD_MOST}")
    return found["port"], baud


class SystemPort:
    """A port of this machine, by pyserial."""

    def __init__(self, device: Serial) -> None:
        self._device, self.baud = device, int(device.baudrate)

    def read(self, seconds: float) -> bytes:
        """See `Port`."""
        with self._lost():
            self._device.timeout = max(seconds, 0.0)
            return bytes(self._device.read(1) + self._device.read(self._device.in_waiting or 0))

    def write(self, data: bytes) -> None:
        """See `Port`."""
        with self._lost():
            self._device.write_timeout = 2.0 + len(data) * 20 / self.baud
            self._device.write(data)

    def now(self) -> float:
        """See `Port`."""
        return time.monotonic()

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except (OSError, TypeError) as error:  # SerialException is an OSError; a port closed below gives TypeError
            raise TransportError(f"serial port {self._device.name}: {error}", hint="was it unplugged?") from None


@contextlib.contextmanager
def open_port(name: str, baud: int) -> Iterator[SystemPort]:
    """Open a port for this program alone.

    Raises:
        TransportError: it is missing, busy or not ours. UsageError: it cannot do that baud rate.
    """
    import serial

    try:
        device = serial.Serial(name, baud, timeout=QUIET, exclusive=True)
    except serial.SerialException as error:
        number = getattr(error, "errno", None)
        if number is None and "lock" in str(error):
            number = errno.EBUSY
        hint = _HINTS.get(number or 0, "is it a serial port?")
        raise TransportError(f"serial port {shown(name)} cannot be opened: {error}", hint=hint) from None
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"serial port {shown(name)} at {baud} baud: {error}") from None
    try:
        yield SystemPort(device)
    finally:
        with contextlib.suppress(OSError):
            device.close()


def drive(conversation: Conversation[T], port: Port, end: float) -> T:
    """Hold a conversation over a port until it is over; `end` is when it must be, by the port's clock.

    Raises:
        TransportError: it is not over by then, or the port is lost; whatever the conversation raises.
    """
    try:
        ask = next(conversation)
        while True:
            ask = conversation.send(exchange(port, ask, end))
    except StopIteration as over:
        value: T = over.value
        return value
    finally:
        conversation.close()


def exchange(port: Port, ask: Ask, end: float) -> Reply:
    """Send one command and take its answer, within its time and before `end`."""
    if ask.fresh:
        _drain(port, end)
    begin = port.now()
    if begin >= end:
        raise TransportError("the board did not finish in the time that a run may take", hint="fewer --repeats?")
    line_time = (len(ask.command) + ask.answer + 64) * 20 / port.baud
    until = min(end, begin + ask.seconds + line_time)
    port.write(ask.command.encode("ascii") + b"%")
    answer = Answer(ask.answer)
    while not (answer.done or answer.broken) and (left := until - port.now()) > 0:
        answer.feed(port.read(left))
    return Reply(tuple(answer.lines) if answer.done else None, port.now() - begin)


def _drain(port: Port, end: float) -> None:
    """Throw away what comes until the line is quiet, or clearly never will be."""
    until, room = min(end, port.now() + DRAIN_SECONDS), DRAIN_BYTES
    while room > 0 and port.now() < until:
        data = port.read(QUIET)
        if not data:
            return
        room -= len(data)


def _measured(times: NDArray[np.float64]) -> dict[str, Any]:
    """Fields of `Ran` for nanoseconds per inference (N,), one per input; none where the device's clock stands still."""
    if not times.any():
        return {}
    low, middle, high = (significant(float(v)) for v in np.percentile(times * 1e-9, (10, 50, 90)))
    note = "by the device's own clock, median over the inputs; where the device is an emulator, not the core's time"
    latency = quantity(middle, "s", "measured", low=low, high=high, n=len(times), note=note)
    return {"times": times, "quantities": {"latency": latency}}


class SerialRunner:
    """Runner "serial" of an artifact whose program is in a board's flash already."""

    name = "serial"

    def __init__(self, artifact: Artifact, via: str, options: RunOptions) -> None:
        self.port, self.baud = parse_via(via)
        self.image, self.options = Image(artifact), options
        self.tells = Tells(("outputs", "latency"), _CANNOT)
        io: Mapping[str, Any] = artifact.manifest["io"]
        self._input_q, self._output_q = (QParams(**io[key]) for key in ("input_q", "output_q"))

    def available(self) -> str | None:
        """Whether pyserial is there; the port itself is tried by `run`."""
        if importlib.util.find_spec("serial") is None:
            return "the Python package pyserial is not installed: pip install pyserial"
        return None

    def run(self, codes: Int8, tell: Tell = silent) -> Ran:
        """Run all inputs; times are the device's, one per input, each the mean of `repeats`."""
        inputs = self.image.check(codes)
        with open_port(self.port, self.baud) as port:
            return self.run_on(port, inputs, tell)

    def run_on(self, port: Port, inputs: Int8, tell: Tell = silent) -> Ran:
        """`run` over an open port; inputs are int8 (N, bytes)."""
        end = port.now() + self.options.timeout
        device = drive(greet(), port, end)
        self._check(device)
        outputs, times, repeats = [], [], max(1, min(self.options.repeats, REPEATS_MOST))
        for i, row in enumerate(inputs):
            job = Job(row, self.image.output_bytes, self._input_q, self._output_q, repeats)
            sample = drive(infer(device, job), port, end)
            outputs.append(sample.codes)
            times.append(sample.microseconds * 1e3)
            tell(self.name, i + 1, len(inputs))
        merged = np.array(outputs, np.int8).reshape(len(inputs), self.image.output_bytes)
        environment = {"device": device.name, "port": self.port, "baud": self.baud, "repeats": repeats,
                       "build": device.build or "not told"}  # fmt: skip
        return Ran(self.name, self.image.shaped(merged), environment=environment, **_measured(np.array(times)))

    def _check(self, device: Identity) -> None:
        """Refuse a device with something else in it; say what one that speaks plain MLPerf Tiny cannot tell.

        Raises:
            TransportError: another build, or other sizes. DeviceError: its results are too coarse to be codes.
        """
        if device.build is None:
            self._check_plain(device)
            return
        wanted = fingerprint(self.image.manifest["files"])
        sizes = (device.inputs, device.outputs) == (self.image.input_bytes, self.image.output_bytes)
        if device.build != wanted or not sizes:
            raise TransportError(
                f"{shown(device.name)} holds another build than {self.image.artifact.folder}: it says "
                f"{shown(device.build[:16])}, the artifact is {wanted[:16]}",
                hint="flash this artifact's firmware (folder serial/), or give the folder that was flashed",
            )

    def _check_plain(self, device: Identity) -> None:
        if not tells_codes(self._output_q):
            raise DeviceError(
                f"{shown(device.name)} prints outputs with three decimals, but one code is {self._output_q.scale:g}: "
                f"they cannot be told apart",
                hint="flash the artifact's own firmware (folder serial/): it also tells the codes",
            )
        cannot = {"build": "plain MLPerf Tiny: whether the device holds this very artifact is not known"}
        coarse = f"outputs from three printed decimals (one code is {self._output_q.scale:.4g})"
        self.tells = Tells((coarse, "latency"), {**_CANNOT, **cannot})
