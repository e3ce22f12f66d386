"""MLPerf Tiny's device protocol, the host's side, without any input or output.

A conversation is a generator: it yields what to ask the device (`Ask`) and is sent what came back (`Reply`), so it can
be driven over a serial port or, in tests, over recorded and damaged bytes. Commands end with "%", answers with a line
"m-ready" (mlcommons/tiny, benchmark/api/internally_implemented.cpp). Devices that were built by xdeploy also know
`xd info`, `xd crc` and `xd codes` (targets/support/mlperf.h), with which outputs are compared bit for bit; of others
the codes are recovered from the three decimals of `m-results`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from xdeploy.errors import DeviceError, TransportError, shown
from xdeploy.formats import Int8, QParams

T = TypeVar("T")
TRIES = 3  # of whatever came back damaged
READY = "m-ready"
LINE, TOTAL = 1024, 16384  # characters of a line and of an answer, beyond those that are expected
QUICK, INFERENCE = 2.0, 60.0  # seconds for a command that computes nothing, and for one inference
PLAIN_BYTES = 31  # bytes in one `db` of devices whose longest command is not known: the reference takes 80 characters
DECIMALS = 0.001  # what a printed result may be off: some devices cut off instead of rounding
INT8, UINT8, FLOAT32 = 0, 1, 2  # forms of the input, as in mlperf.h
_WRAP = 1 << 32  # of the device's microseconds
_LAP = re.compile(r"m-lap-us-([0-9]{1,10})")
_NAME = re.compile(r"m-name-(\w{1,40})-\[([ -\\^-~]{1,80})\]")
_RESULTS = re.compile(r"m-results-\[([-+0-9.,eE ]*)\]")
_CODES = re.compile(r"m-codes-([0-9]{1,9})-\[((?:[0-9a-f]{2}){1,64})\]")
_CRC = re.compile(r"m-(?:codes-)?crc-\[([0-9a-f]{8})\]")
_INFO = re.compile(r"m-info-\[([ -\\^-~]{1,400})\]")
_REAL = re.compile(r"[-+]?[0-9]{1,20}(?:\.[0-9]{1,20})?")


class GarbledError(TransportError):
    """An answer that does not come, or is not what the protocol says: worth another try."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A command without its "%".

    seconds: to wait for the whole answer, beyond the time on the line. answer: characters of it that are expected.
    fresh: first throw away whatever comes until the line is quiet.
    """

    command: str
    seconds: float = QUICK
    answer: int = 0
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The lines before m-ready; None when no whole answer came in time, or one without an end. seconds: it took."""

    lines: tuple[str, ...] | None
    seconds: float


Conversation = Generator[Ask, Reply, T]


class Answer:
    """Takes the bytes of one answer; `done` at m-ready, `broken` where a line or the whole is longer than allowed."""

    def __init__(self, expected: int = 0) -> None:
        self.lines: list[str] = []
        self.done = self.broken = False
        self._line = bytearray()
        self._room = TOTAL + 4 * expected
        self._width = LINE + 2 * expected

    def feed(self, data: bytes) -> None:
        """Take bytes in the order they came; those behind m-ready are dropped."""
        for byte in data:
            if self.done or self.broken:
                return
            self._room -= 1
            if byte == 0x0A:
                text = self._line.decode("ascii", "replace")
                self._line.clear()
                self.done = text == READY
                if text and not self.done:
                    self.lines.append(text)
            elif byte not in (0x0D, 0x00):
                self._line.append(byte)
            self.broken = not self.done and (self._room < 0 or len(self._line) > self._width)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers. build: hash of the package in it, None where the device speaks plain MLPerf Tiny."""

    name: str
    build: str | None = None
    inputs: int = 0
    outputs: int = 0
    form: int = INT8
    score: int = 0
    command: int = 3 + 2 * PLAIN_BYTES


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of a device for one input: device codes int8 (bytes,) and how often it is timed."""

    codes: Int8
    outputs: int
    input_q: QParams
    output_q: QParams
    repeats: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Output codes int8 (bytes,), and microseconds per inference by the device's clock."""

    codes: Int8
    microseconds: float


# ---------------------------------------------------------------------------------------------------- who is there
def greet() -> Conversation[Identity]:
    """Find out who is there, whatever state the line is in.

    Raises:
        TransportError: nobody answers, or something that does not speak the protocol.
    """
    name = yield from _retry(_name)
    return (yield from _retry(lambda: _info(name)))


def _retry(step: Callable[[], Conversation[T]]) -> Conversation[T]:
    for _ in range(TRIES - 1):
        try:
            return (yield from step())
        except GarbledError:
            yield Ask("name", fresh=True)  # ends a half command; what it answers does not matter
    return (yield from step())


def _name() -> Conversation[str]:
    reply = yield Ask("name", fresh=True)
    found = _first(_NAME, reply.lines or ())
    if found is not None:
        return found[2]
    if reply.lines is None:
        raise GarbledError(
            "no answer to name%",
            hint="is the firmware running, the port the right one and the baud rate the firmware's? "
            "serial:/dev/ttyX@9600 chooses another than 115200",
        )
    said = shown(" ".join(reply.lines)) or "nothing"
    raise GarbledError(f"what answers does not speak MLPerf Tiny's protocol: to name% it said {said}",
                       hint="flash the firmware of the artifact's folder serial/")  # fmt: skip


def _info(name: str) -> Conversation[Identity]:
    reply = yield Ask("xd info", answer=256)
    found = _first(_INFO, reply.lines or ())
    if found is None:
        if any(line.startswith("e-[Unknown command") for line in reply.lines or ()):
            return Identity(name)
        raise GarbledError(f"{shown(name)} gave no readable answer to xd info%")
    values = dict(part.partition("=")[::2] for part in found[1].split(","))
    try:
        numbers = {k: _natural(values[k]) for k in ("inputs", "outputs", "form", "score", "command")}
    except (KeyError, ValueError):
        raise GarbledError(f"{shown(name)} gave no readable answer to xd info%") from None
    if values.get("xdeploy") != "1" or numbers["form"] > FLOAT32 or numbers["command"] < 64:
        raise GarbledError(f"{shown(name)} speaks another version of the commands of xdeploy: {shown(found[1])}")
    return Identity(name, values.get("build", ""), **numbers)


def _natural(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise ValueError(text)
    return int(text)


# ------------------------------------------------------------------------------------------------------ one input
def infer(device: Identity, job: Job) -> Conversation[Sample]:
    """Load one input, run it `repeats` times, read the outputs.

    Raises:
        TransportError: the line is too bad. DeviceError: the device's code failed.
    """
    return (yield from _retry(lambda: _infer(device, job)))


def _infer(device: Identity, job: Job) -> Conversation[Sample]:
    yield from _load(device, payload(job.codes, job.input_q, device.form))
    lines, seconds = yield from _timed(job, 1, 0, INFERENCE)
    if job.repeats > 1:
        lines, _ = yield from _timed(job, job.repeats, 1, QUICK + 4 * (job.repeats + 1) * max(seconds, 0.01))
    laps = [int(found[1]) for found in map(_LAP.fullmatch, lines) if found]
    if len(laps) != 2 or max(laps) >= _WRAP:
        raise GarbledError(f"infer% answered with {len(laps)} time stamps; 2 were expected")
    codes = yield from _codes(device, job, lines)
    return Sample(codes, (laps[1] - laps[0]) % _WRAP / job.repeats)


def payload(codes: Int8, q: QParams, form: int) -> bytes:
    """The bytes of `db` that make the device see `codes`."""
    if form == FLOAT32:
        return q.dequantise(codes).astype("<f4").tobytes()
    return (codes.view(np.uint8) ^ np.uint8(0x80)).tobytes() if form == UINT8 else codes.tobytes()


def _load(device: Identity, data: bytes) -> Conversation[None]:
    lines = yield from _told(Ask(f"db load {len(data)}"))
    if f"m-[Expecting {len(data)} bytes]" not in lines:
        raise GarbledError("db load% was not answered as expected")
    step = min((device.command - 3) // 2, 512)
    for start in range(0, len(data), step):
        lines = yield from _told(Ask("db " + data[start : start + step].hex()))
    if "m-load-done" not in lines:
        raise GarbledError("the device did not say that the input is complete")
    if device.build is not None:
        lines = yield from _told(Ask("xd crc", answer=20))
        _check_crc(lines, data)


def _timed(job: Job, repeats: int, warmups: int, seconds: float) -> Conversation[tuple[tuple[str, ...], float]]:
    reply = yield Ask(f"infer {repeats} {warmups}", seconds, 200 + 40 * job.outputs)
    return _checked(reply, "infer%"), reply.seconds


def _codes(device: Identity, job: Job, lines: Sequence[str]) -> Conversation[Int8]:
    if device.build is None:
        return from_decimals(lines, job)
    lines = yield from _told(Ask("xd codes", answer=100 + 4 * job.outputs))
    data = bytearray()
    for found in filter(None, map(_CODES.fullmatch, lines)):
        if int(found[1]) != len(data):
            raise GarbledError("xd codes% left a gap")
        data += bytes.fromhex(found[2])
    if len(data) != job.outputs:
        raise GarbledError(f"xd codes% gave {len(data)} codes; {job.outputs} were expected")
    _check_crc(lines, bytes(data))
    return np.frombuffer(bytes(data), np.int8)


def from_decimals(lines: Sequence[str], job: Job) -> Int8:
    """Codes from `m-results-[...]`: the nearest ones, which must come within what was printed.

    Raises:
        GarbledError: there is none, or a number that no code stands for.
    """
    found = _first(_RESULTS, lines)
    words = [w.strip() for w in found[1].split(",")] if found else []
    if words[-1:] == [""]:  # the reference for person detection puts a comma behind the last
        words.pop()
    if len(words) != job.outputs or not all(map(_REAL.fullmatch, words)):
        raise GarbledError(f"infer% gave {len(words)} results; {job.outputs} numbers were expected")
    real = np.array([float(w) for w in words])
    q = job.output_q
    codes = np.clip(np.rint(real / q.scale) + q.zero_point, -128, 127)
    if (np.abs((codes - q.zero_point) * q.scale - real) > DECIMALS * 1.01 + np.abs(real) * 1e-6).any():
        raise GarbledError("infer% gave results that no output code stands for",
                           hint="does the device run another model than the artifact's?")  # fmt: skip
    result: Int8 = codes.astype(np.int8)
    return result


def tells_codes(output_q: QParams) -> bool:
    """Whether three decimals tell neighbouring codes apart."""
    return output_q.scale > 2.1 * DECIMALS


# ------------------------------------------------------------------------------------------------------- answers
def _told(ask: Ask) -> Conversation[tuple[str, ...]]:
    reply = yield ask
    return _checked(reply, ask.command[:16] + "%")


def _checked(reply: Reply, what: str) -> tuple[str, ...]:
    """The lines of a whole answer without an error."""
    if reply.lines is None:
        raise GarbledError(f"no whole answer to {what} within its time",
                           hint="was the device reset or unplugged, or is the line noisy?")  # fmt: skip
    for line in reply.lines:
        if line == "e-[The inference failed]":
            raise DeviceError("the device says that its inference failed")
        if line.startswith("e-"):
            raise GarbledError(f"to {what} the device said {shown(line)}")
    return reply.lines


def _check_crc(lines: Sequence[str], data: bytes) -> None:
    found = _first(_CRC, lines)
    if found is None or int(found[1], 16) != zlib.crc32(data):
        raise GarbledError("bytes were damaged on the line", hint="try a lower baud rate or a better cable")


def _first(pattern: re.Pattern[str], lines: Sequence[str]) -> re.Match[str] | None:
    return next(filter(None, map(pattern.fullmatch, lines)), None)
