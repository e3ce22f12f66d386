"""Runs the static program of a Linux artifact on a board, over the user's own OpenSSH, and measures it there.

The program pins itself to one core, warms up, times bursts and writes them; this side copies, reads the board's state
right before and after, has `perf stat` count where it may, and tidies up.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.bench import board
from xdeploy.bench.board import State
from xdeploy.bench.openssh import Folder, Shell, remote_folder, said_text
from xdeploy.bench.runner import Image, Ran, RunOptions, Tell, Tells, silent
from xdeploy.errors import DeviceError, TransportError, UsageError
from xdeploy.formats import Int8
from xdeploy.handover import Artifact, quantity

if TYPE_CHECKING:
    from xdeploy.bench.via import Address

GRACE = 30.0  # seconds that connecting and answering may take beside the program
COUNTED_NS = 50e6  # the counters see about this many nanoseconds of inferences
_CANNOT = {
    "instructions per layer": "nothing is traced on a board: hooks between the layers would change what is measured",
    "mix": "a board's counters do not tell instruction classes; --via qemu or unicorn does",
    "stack": "the program runs as it is, its stack is not painted; the artifact states a bound",
}
_SIGNALS = {
    signal.SIGILL: "the board's CPU lacks instructions of the artifact's ISA; build for another target",
    signal.SIGKILL: "the board may have run out of memory: see `dmesg` there",
    signal.SIGSEGV: "the code went astray: `xdeploy diff` finds the first layer that differs",
}


class SshRunner:
    """Runner "ssh" of a Linux artifact; `address` is the board."""

    name = "ssh"

    def __init__(self, artifact: Artifact, address: Address, options: RunOptions) -> None:
        self.image, self.options = Image(artifact), options
        self.shell = Shell(address, options.ssh or os.environ.get("XDEPLOY_SSH", ""))
        self.tells = Tells(("outputs", "latency"), _CANNOT)
        try:
            self.wrapper = shlex.split(options.wrapper)
        except ValueError as error:
            raise UsageError(f"the wrapper {options.wrapper!r} cannot be split into words: {error}") from None

    def available(self) -> str | None:
        """Whether ssh is here and the artifact has a program; whether the board answers is seen when it runs."""
        manifest = self.image.manifest
        if "program" not in manifest["products"]:
            return f"{manifest['target']} is no Linux target: it has no program that a board could run"
        if not self.shell.installed():
            return f"{self.shell.program} is not installed: apt-get install openssh-client"
        return None

    def run(self, codes: Int8, tell: Tell = silent) -> Ran:
        """Run all inputs, then time the first.

        Raises:
            TransportError: the board cannot be reached, has another CPU or no room, or is lost.
            DeviceError: the program fails or takes too long.
        """
        inputs = self.image.check(codes)
        steps = 4
        with remote_folder(self.shell) as folder:
            tell(self.name, 0, steps)
            before = self._state(folder)
            emulator, core = self._emulator(before), self._core(before)
            tell(self.name, 1, steps)
            self._copy(folder, inputs)
            tell(self.name, 2, steps)
            got = self._infer(folder, core, inputs)
            tell(self.name, 3, steps)
            times, told = self._times(got, len(inputs))
            counts = {} if emulator else self._count(folder, core, before, times)
        tell(self.name, steps, steps)
        outputs = np.frombuffer(got["outputs"][: len(inputs) * self.image.output_bytes], np.int8)
        environment = self._environment(got, told, core, emulator, folder.left)
        quantities = self._quantities(times, told, counts, emulator)
        measured = None if emulator else times
        shaped = self.image.shaped(outputs.reshape(len(inputs), self.image.output_bytes))
        return Ran(self.name, shaped, times=measured, environment=environment, quantities=quantities)

    # ------------------------------------------------------------------------------------------- the board
    def _state(self, folder: Folder) -> State:
        script = f"{self.shell.section('state')}; {board.STATE}"
        return State.parse(self.shell.run("reading its state", folder.script(script), GRACE + 30)["state"])

    def _emulator(self, state: State) -> str | None:
        """What runs the program there if not the CPU itself; None if it does."""
        machine = str(self.image.manifest["machine"])
        if state.runs(machine):
            return None
        if self.wrapper:
            return shlex.join(self.wrapper)
        found = state.emulator(machine)
        if found is None:
            target = self.image.manifest["target"]
            raise TransportError(
                f"{self.shell.where} is {state.machine}, {target} is built for {machine}",
                hint=f"build for the board's CPU, or have an emulator there run it: --exec-with qemu-{machine}",
            )
        return found

    def _core(self, state: State) -> int | None:
        wanted = self.options.core
        if wanted is not None and state.cores and wanted not in state.cores:
            listed = ", ".join(map(str, state.cores))
            raise UsageError(f"{self.shell.where} has no core {wanted}; a program there may use {listed}")
        return state.fastest() if wanted is None else wanted

    # ------------------------------------------------------------------------------------------- the program
    def _copy(self, folder: Folder, inputs: Int8) -> None:
        path = self.image.artifact.folder / self.image.manifest["products"]["program"]
        try:
            program = path.read_bytes()
        except OSError as error:
            raise DeviceError(f"{path}: {error.strerror}", hint="build it again") from None
        folder.put("program", program, self.options.timeout)
        folder.put("inputs", inputs.tobytes(), self.options.timeout)

    def _command(self, core: int | None, *words: str) -> str:
        pin = () if core is None else ("--pin", str(core))
        limit = ("--limit", str(max(1, math.ceil(self.options.timeout))))
        # quotes that are double inside: the whole script stands between single ones
        return " ".join(_quoted(w) for w in (*self.wrapper, "./program", *pin, *limit, *words))

    def _infer(self, folder: Folder, core: int | None, inputs: Int8) -> Mapping[str, bytes]:
        """Sections: before, status, after, said, times, outputs."""
        section, size = self.shell.section, len(inputs) * self.image.output_bytes
        command = self._command(core, "--bursts", str(self.options.repeats), "--times", "times", "inputs", "outputs")
        script = "; ".join(
            ( section("before"), board.STATE,
                f"{command} < /dev/null > said 2>&1", "s=$?", section("status"), "echo $s",
                section("after"), board.STATE, section("said"), "tail -c 2000 said",
                section("times"), "cat times", section("outputs"), "cat outputs",
            )
        )  # fmt: skip
        allowed = size + self.options.repeats * 64
        got = self.shell.run("running the program", folder.script(script), self.options.timeout + GRACE, b"", allowed)
        self._judge(got)
        # the line end before the next mark was taken off already
        if len(got.get("outputs", b"")) != size:
            came = len(got.get("outputs", b""))
            raise DeviceError(
                f"{self.shell.where}: {came} bytes of outputs came back, {size} were expected",
                hint="is the disk full there?",
            )
        return got

    def _judge(self, got: Mapping[str, bytes]) -> None:
        """Raise unless the program ended well."""
        text = got.get("status", b"").strip().decode("ascii", "replace")
        if text == "0":
            return
        where, said = self.shell.where, said_text(got.get("said", b"") or got["stderr"])
        if not re.fullmatch(r"[0-9]{1,3}", text):
            raise DeviceError(f"{where}: the program's exit status did not come back: {said}")
        code = int(text)
        if code == 128 + signal.SIGALRM:
            raise DeviceError(f"{where}: the program had no end after {self.options.timeout:g} s")
        if code in (126, 127):
            raise TransportError(
                f"{where}: the program cannot be started: {said}",
                hint="a temporary folder mounted noexec, or a wrapper that is not there? TMPDIR says where",
            )
        if code > 128 and code - 128 in list(signal.Signals):
            number = signal.Signals(code - 128)
            raise DeviceError(
                f"{where}: the program was ended by {number.name}{': ' * bool(said)}{said}", hint=_SIGNALS.get(number)
            )
        raise DeviceError(f"{where}: the program ended with {code}: {said}")

    def _times(self, got: Mapping[str, bytes], inputs: int) -> tuple[NDArray[np.float64] | None, dict[str, int]]:
        """Nanoseconds per inference of each burst, and the other numbers the program wrote."""
        if not inputs:
            return None, {}
        bursts, told = [], {}
        for line in got.get("times", b"").decode("ascii", "replace").splitlines():
            found = re.fullmatch(r"(burst ([0-9]{1,10})|resolution|pinned|rss) (-?[0-9]{1,18})", line)
            if found and found[2] and int(found[2]) > 0 and int(found[3]) > 0:
                bursts.append(int(found[3]) / int(found[2]))
            elif found and not found[2]:
                told[found[1]] = int(found[3])
            else:
                raise DeviceError(f"{self.shell.where}: not a line of times: {said_text(line.encode(), 80)}")
        if len(bursts) != self.options.repeats:
            raise DeviceError(
                f"{self.shell.where}: {len(bursts)} of {self.options.repeats} times came back",
                hint="an artifact of an older version? build it again",
            )
        return np.array(bursts), told

    # ------------------------------------------------------------------------------------------- counters
    def _count(
        self, folder: Folder, core: int | None, state: State, times: NDArray[np.float64] | None
    ) -> dict[str, float]:
        """Events per inference, from two runs that differ in the number of inferences only."""
        reason = board.perf_obstacle(state)
        if reason is not None or times is None:
            self._cannot_count(reason or "there was no input")
            return {}
        extra = int(min(max(COUNTED_NS / float(np.median(times)), 1), 10_000))
        section, events = self.shell.section, ",".join(f"{e}:u" for e in board.EVENTS)
        parts = [f"dd if=inputs of=one bs={self.image.input_bytes} count=1 2> /dev/null"]
        for name, loops in (("few", 1), ("many", 1 + extra)):
            command = self._command(core, "--loop", str(loops), "one", "outputs")
            parts += [f"perf stat -x, -e {events} -o {name} -- {command} < /dev/null > said 2>&1", "s=$?",
                      section(name), f"cat {name}", section(f"{name}-status"), "echo $s"]  # fmt: skip
        script = "; ".join((*parts, section("said"), "tail -c 2000 said"))
        got = self.shell.run("counting", folder.script(script), 2 * self.options.timeout + GRACE)
        few, many = (board.parse_perf(got.get(n, b"")) for n in ("few", "many"))
        counts = {e: (many[e] - few[e]) / extra for e in few if many.get(e, 0) > few[e]}
        bad = any(got.get(f"{n}-status", b"").strip() != b"0" for n in ("few", "many"))
        if bad or "instructions" not in counts:
            said = said_text(got.get("said", b"")) or said_text(got.get("few", b"").rpartition(b"\n\n")[2])
            self._cannot_count(f"perf stat on the board did not count: {said}")
            return {}
        return counts | {"n": extra}

    def _cannot_count(self, reason: str) -> None:
        self.tells = Tells(self.tells.can, {"instructions": reason, "cycles": reason, **self.tells.cannot})

    # ------------------------------------------------------------------------------------------- the result
    def _environment(
        self, got: Mapping[str, bytes], told: Mapping[str, int], core: int | None, emulator: str | None,
        left: str | None,
    ) -> dict[str, Any]:  # fmt: skip
        before, after = (State.parse(got.get(n, b"")) for n in ("before", "after"))
        values = {"board": self.shell.where, **board.environment(before, after, core)}
        values["core"] = core if told.get("pinned") == core and core is not None else "not pinned"
        values |= {"executed_with": shlex.join(self.wrapper)} if self.wrapper else {}
        values |= {"emulator": emulator} if emulator else {}
        return values | ({"left_behind": left} if left else {})

    def _quantities(
        self, times: NDArray[np.float64] | None, told: Mapping[str, int], counts: Mapping[str, float],
        emulator: str | None,
    ) -> dict[str, Any]:  # fmt: skip
        values: dict[str, Any] = {}
        if emulator and times is not None:
            low, middle, high = (float(v) for v in np.percentile(times * 1e-9, (10, 50, 90)))
            reason = f"{emulator} runs the program there, not a CPU of the artifact's"
            note = f"wall time of an emulator, no figure of the target: {reason}"
            values["latency"] = quantity(middle, "s", "emulated", low=low, high=high, n=len(times), note=note)
            told_not = dict.fromkeys(("instructions", "cycles", "peak_rss"), reason)
            self.tells = Tells(("outputs",), {"latency": note, **told_not, **_CANNOT})
            return values
        if told.get("rss", 0) > 0:
            note = "largest resident set of the whole process: code, buffers and the C runtime"
            values["peak_rss"] = quantity(told["rss"] * 1024, "byte", "measured", note=note)
        note = "user mode, by perf stat: two runs' difference over the inferences that one has more"
        for event in board.EVENTS:
            if event in counts:
                unit = event.removesuffix("s")
                values[event] = quantity(round(counts[event]), unit, "measured", n=int(counts["n"]), note=note)
        self.tells = Tells((*self.tells.can, *values), self.tells.cannot)
        return values


def _quoted(word: str) -> str:
    """A word for a shell script that itself stands between single quotes."""
    if re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII):
        return word
    if not word.isprintable() or "'" in word:
        raise UsageError(f"the wrapper holds {word!r}: give words without quotes and control characters")
    return '"' + re.sub(r'([\\"$`])', r"\\\1", word) + '"'
