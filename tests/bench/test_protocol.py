"""The host's side of MLPerf Tiny's protocol, over a port whose clock is not the wall's and whose line may be bad."""

from __future__ import annotations

import ctypes
import random
import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from tests.bench import boards
from tests.bench.boards import INPUTS, Device, expected
from xdeploy.bench.protocol import Answer, Identity, Job, Sample, from_decimals, greet, infer, payload, tells_codes
from xdeploy.bench.serial import drive
from xdeploy.errors import DeviceError, TransportError
from xdeploy.formats import QParams

SEED = 20240608
END = 300.0  # seconds of the port's clock that a session may take


class FakePort:
    """Answers by a function; its clock moves by the bytes on the line and by waiting."""

    baud = 115200

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self._answer, self._queue, self._time, self._endless = answer, bytearray(), 0.0, False
        self.sent: list[bytes] = []
        self.heard: list[bytes] = []

    def now(self) -> float:
        return self._time

    def write(self, data: bytes) -> None:
        self.sent.append(data)
        self._time += len(data) * 10 / self.baud
        answer = self._answer(data)
        self._endless |= answer is None
        self.heard.append(answer or b"")
        self._queue += answer or b""

    def read(self, seconds: float) -> bytes:
        assert seconds >= 0
        if self._endless:
            self._queue += b"\xaaendless" * 8
        if not self._queue:
            self._time += seconds
            return b""
        data = bytes(self._queue[:48])
        del self._queue[:48]
        self._time += len(data) * 10 / self.baud
        return data


def session(port: FakePort, job: Job) -> Sample:
    return drive(infer(drive(greet(), port, END), job), port, END)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return boards.compile_library(tmp_path_factory.mktemp("device"))


@pytest.mark.parametrize("form", [0, 1, 2])
@pytest.mark.parametrize("repeats", [1, 5])
def test_a_good_line(library: ctypes.CDLL, form: int, repeats: int) -> None:
    port = FakePort(Device(library, form=form).feed)
    job = boards.job(form, repeats)
    sample = session(port, job)
    assert np.array_equal(sample.codes, expected(job.codes))
    assert sample.microseconds == boards.MICROSECONDS  # across the wrap of the device's clock too
    assert port.sent[:2] == [b"name%", b"xd info%"]
    assert max(map(len, port.sent)) <= 256
    assert port.now() < 2


def test_whatever_was_on_the_line_before(library: ctypes.CDLL) -> None:
    """A command that another program left half, and its answer still to be read."""
    device = Device(library)
    first = iter([device.feed(b"%") + b"junk\x00\xff" + device.feed(b"db load 12")])
    port = FakePort(lambda data: next(first, b"") + device.feed(data))
    job = boards.job(4)
    assert np.array_equal(session(port, job).codes, expected(job.codes))


@pytest.mark.parametrize(
    ("answer", "said", "hint"),
    [
        (lambda data: b"", "no answer to name%", "baud rate"),
        (lambda data: None, "no answer to name%", "baud rate"),
        (lambda data: b"\x00\x01" * 50000, "no answer to name%", "baud rate"),
        (lambda data: b"login: \r\nm-ready\r\n", "does not speak MLPerf Tiny's protocol", "serial/"),
    ],
)
def test_nobody_there(answer: Callable[[bytes], bytes | None], said: str, hint: str) -> None:
    port = FakePort(answer)
    with pytest.raises(TransportError, match=re.escape(said)) as caught:
        drive(greet(), port, END)
    assert hint in str(caught.value.hint)
    assert port.now() < 30


def test_a_failing_inference_is_the_device_s_fault(library: ctypes.CDLL) -> None:
    job = boards.job(1)
    job.codes[0] = 99
    with pytest.raises(DeviceError, match="its inference failed") as caught:
        session(FakePort(Device(library).feed), job)
    assert not isinstance(caught.value, TransportError)


def test_a_run_has_an_end(library: ctypes.CDLL) -> None:
    with pytest.raises(TransportError, match="did not finish in the time"):
        drive(infer(Identity("x"), boards.job(1)), FakePort(lambda data: b""), 1.0)


# --------------------------------------------------------------------------------- a device of mlcommons' reference
class Plain:
    """Answers as the reference does, without commands of ours; `text` prints a result."""

    def __init__(self, text: Callable[[float], str], shift: int = 0) -> None:
        self._text, self._shift, self._data, self._now = text, shift, b"", 0

    def feed(self, data: bytes) -> bytes:
        lines = self._lines(data.decode().removesuffix("%").split(" "))
        return "".join(f"{line}\r\n" for line in [*lines, "m-ready"]).encode()

    def _lines(self, words: list[str]) -> list[str]:
        if words == ["name"]:
            return ["m-name-dut-[unspecified]"]
        if words[:2] == ["db", "load"]:
            self._data = b""
            return [f"m-[Expecting {words[2]} bytes]"]
        if words[0] == "db":
            assert len(words[1]) <= 62
            self._data += bytes.fromhex(words[1])
            return ["m-load-done"] * (len(self._data) == INPUTS)
        if words[0] == "infer":
            codes = expected(np.frombuffer(self._data, np.int8)) + self._shift
            results = ",".join(self._text(v) for v in boards.OUTPUT_Q.dequantise(codes.astype(np.int8)))
            start, self._now = self._now, self._now + 500 * int(words[1])
            return [f"m-warmup-start-{words[2]}", "m-warmup-done", f"m-infer-start-{words[1]}", f"m-lap-us-{start}",
                    f"m-lap-us-{self._now}", "m-infer-done", f"m-results-[{results}]"]  # fmt: skip
        return [f"e-[Unknown command: {words[0]}]"]


@pytest.mark.parametrize("text", [lambda v: f"{v:.3f}", lambda v: f"{int(v * 1000) / 1000:.3f}"], ids=["round", "cut"])
def test_codes_from_three_decimals(text: Callable[[float], str]) -> None:
    assert tells_codes(boards.OUTPUT_Q)
    assert not tells_codes(QParams(0.002, 0))
    for seed in range(20):
        job = boards.job(seed, 3)
        sample = session(FakePort(Plain(text).feed), job)
        assert np.array_equal(sample.codes, expected(job.codes))
        assert sample.microseconds == 500


def test_results_that_no_code_gives() -> None:
    job = Job(np.zeros(1, np.int8), 2, boards.INPUT_Q, QParams(0.25, 0), 1)
    assert from_decimals(["m-results-[0.250,-1.750]"], job).tolist() == [1, -7]
    assert from_decimals(["m-results-[0.250,-1.750,]"], job).tolist() == [1, -7]
    for line in ("m-results-[0.250,0.300]", "m-results-[0.250]", "m-results-[a,b]", "m-results-[1e400,nan]", "x",
                 "m-results-[99.0,0.0]", "m-results-[" + 30 * "9" + ",0.0]"):  # fmt: skip
        with pytest.raises(TransportError):
            from_decimals([line], job)


# ------------------------------------------------------------------------------------------------------ bad lines
def damage(rng: random.Random, data: bytes) -> bytes | None:
    """Bytes as a bad line, a dying board or a confused one gives them; None: without an end."""
    kind, at = rng.randrange(10), rng.randrange(len(data) + 1)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return bytes(b ^ (1 << rng.randrange(8)) if rng.random() < 0.05 else b for b in data)
    if kind == 2:
        return data[:at] + rng.randbytes(rng.randrange(1, 200)) + data[at:]
    if kind == 3:
        return data[:at] + b"A" * rng.choice([500, 5000, 200_000]) + data[at:]
    if kind == 4:
        return data[:at] + bytes(rng.randrange(1, 50)) + data[at:]
    if kind == 5:
        return re.sub(rb"[0-9]+", lambda m: rng.choice([m[0], b"9" * 40, b"-1", b"4294967296", b"0", b""]), data)
    if kind == 6:
        lines = data.split(b"\r\n")
        rng.shuffle(lines)
        return b"\r\n".join(lines)
    if kind == 7:
        return data + data[at:]
    if kind == 8:
        return b""
    return None if rng.random() < 0.2 else data.replace(b"\r\n", b"\n\r")


def test_a_thousand_damaged_transcripts(library: ctypes.CDLL) -> None:
    """Each ends with the right codes or a DeviceError, in time."""
    job = boards.job(7, 3)
    good = FakePort(Device(library).feed)
    session(good, job)
    ends: Counter[str] = Counter()
    for seed in range(1000):
        rng = random.Random(SEED + seed)
        answers = list(good.heard) * 4  # enough for all tries
        if rng.random() < 0.2:
            rng.shuffle(answers)
        for i in rng.sample(range(len(good.heard)), rng.randrange(1, 4)):
            answers[i] = damage(rng, answers[i])  # type: ignore[call-overload]
        replies = iter(answers)
        port = FakePort(lambda data, replies=replies: next(replies, b""))  # type: ignore[misc]
        try:
            sample = session(port, job)
        except DeviceError as error:
            ends[type(error).__name__] += 1
        else:
            assert np.array_equal(sample.codes, expected(job.codes)), seed
            ends["codes"] += 1
        assert port.now() <= END + 1, seed
    assert sum(ends.values()) == 1000
    assert min(ends["codes"], ends["GarbledError"]) > 50, ends


def test_a_noisy_line_is_lived_with(library: ctypes.CDLL) -> None:
    """A real device, a few answers and commands damaged: the session finds back and the codes are right."""
    right = 0
    for seed in range(300):
        rng, device, job = random.Random(SEED - seed), Device(library), boards.job(seed)
        left = [rng.randrange(8), rng.randrange(8)]

        def answer(data: bytes, rng: random.Random = rng, device: Device = device, left: list[int] = left) -> bytes:
            if 0 in left:
                data = damage(rng, data) or b""
            reply = device.feed(data)
            left[:] = [n - 1 for n in left]
            return reply if rng.random() > 0.03 else damage(rng, reply) or b""

        port = FakePort(answer)
        try:
            assert np.array_equal(session(port, job).codes, expected(job.codes)), seed
            right += 1
        except TransportError:
            pass
        assert port.now() <= END + 1
    assert right >= 270, right


def test_answers_are_bounded() -> None:
    answer = Answer()
    answer.feed(b"x" * 10_000_000)
    assert answer.broken
    answer = Answer()
    for _ in range(100_000):
        answer.feed(b"m-spam\r\n")
    assert answer.broken
    assert len(answer.lines) < 3000
    answer = Answer()
    answer.feed(b"m-ready: not quite\r\nm-rea\0dy\r\nlater")
    assert answer.done
    assert answer.lines == ["m-ready: not quite"]


def test_payloads() -> None:
    codes, q = np.arange(-128, 128).astype(np.int8), QParams(0.05, 3)
    assert payload(codes, q, 0) == codes.tobytes()
    assert payload(codes, q, 1) == bytes(range(256))
    assert np.array_equal(q.quantise(np.frombuffer(payload(codes, q, 2), "<f4")), codes)
