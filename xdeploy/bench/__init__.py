"""bench: Artifact -> Measurement. Runs the artifact on golden inputs, compares bit for bit, and states every number."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xdeploy import __version__
from xdeploy.bench.classes import grouped
from xdeploy.bench.disasm import decoder
from xdeploy.bench.host import HostRunner
from xdeploy.bench.model import Cycles, call_mixes, cycles, energy_per_cycle, instruction_mix, significant
from xdeploy.bench.model import quantities as cycle_quantities
from xdeploy.bench.proxy import LABEL, layer_energy
from xdeploy.bench.roofline import layers_and_limits
from xdeploy.bench.runner import Image, Ran, Runner, RunOptions, Tell, silent
from xdeploy.bench.threads import outputs_of_two, with_two
from xdeploy.bench.via import runner_for
from xdeploy.cpu import cpu_name
from xdeploy.errors import DeviceError, ToolchainError, TransportError
from xdeploy.formats import Int8
from xdeploy.handover import Artifact, GoldenIo, LayerCount, Measurement, quantity
from xdeploy.target import Target, load_target

__all__ = ["RunResult", "bench", "run_codes", "runner_for"]

EXECUTOR = "(executor)"  # the row of LayerCount for what no kernel does


@dataclass(frozen=True, slots=True)
class RunResult:
    """Outputs int8 (N, *output shape), executed instructions per input (or None), and which runner it was."""

    outputs: Int8
    instructions: NDArray[np.int64] | None
    runner: str


def run_codes(
    artifact: Artifact, via: str | None, codes: Int8, progress: Tell | None = None, options: RunOptions | None = None
) -> RunResult:
    """Run int8 codes (N, *device input shape) through an artifact.

    Raises:
        UsageError: unknown runner or wrong inputs. DeviceError: it cannot run here, or the run fails.
    """
    runner = runner_for(artifact, load_target(artifact.target), via, options)
    if (reason := runner.available()) is not None:
        raise DeviceError(f"{artifact.target} cannot run via {runner.name}: {reason}")
    ran = runner.run(codes, progress or silent)
    return RunResult(ran.outputs, ran.instructions, ran.runner)


def bench(
    artifact: Artifact,
    golden: GoldenIo,
    target: Target,
    via: str | None = None,
    options: RunOptions | None = None,
    progress: Tell | None = None,
) -> Measurement:
    """Run the golden inputs and measure.

    Args:
        artifact: what was built for `target`.
        golden: inputs and the outputs that must come back, bit for bit.
        target: names the runner and the cycle and energy tables.
        via: another runner than the target's own.
        options: what the runner is told.
        progress: told after every input.

    Returns:
        The measurement; verdict "not run" with the reason where the runner is not there. A run that fails is
        "differs" with what failed.

    Raises:
        TransportError: a board could not be reached or was lost; nothing is known about the artifact.
    """
    options = options or RunOptions()
    runner = runner_for(artifact, target, via, options)
    image = Image(artifact)
    quantities = _sizes(image)
    environment: dict[str, Any] = {"machine": cpu_name(), "python": platform.python_version(), "xdeploy": __version__}

    def result(verdict: Literal["bit-exact", "differs", "not run"], reason: str | None, **extra: Any) -> Measurement:
        told = runner.tells.to_dict()
        if level := getattr(runner, "image", image).level:  # what ran, where the target has several
            told["level"] = level
        return Measurement(
            target.name, runner.name, verdict, reason, quantities, environment=environment, tells=told, **extra
        )

    if (reason := runner.available()) is not None:
        return result("not run", reason)
    try:
        ran = runner.run(golden.input_codes, progress or silent)
    except ToolchainError as error:
        return result("not run", str(error))
    except TransportError:
        raise
    except DeviceError as error:
        return result("differs", str(error))
    environment |= ran.environment
    found = _cycles(ran, target, len(golden.input_codes))
    layers = _layers(image, ran, target, len(golden.input_codes), found)
    quantities |= _counted(image, ran, len(golden.input_codes))
    quantities |= cycle_quantities(found, target.cycles, target.energy) if found else {}
    quantities |= _accelerator(layers)
    quantities |= _timed(runner, ran, golden.input_codes, options.repeats)
    quantities |= ran.quantities
    difference = _difference(ran.outputs, golden.output_codes, image.floats)
    difference = difference or _difference_of_two(runner, golden, image.floats)
    return result("differs" if difference else "bit-exact", difference, layers=layers)


def _timed(runner: Runner, ran: Ran, codes: Int8, repeats: int) -> dict[str, Any]:
    """Latency where the runner can time, and what else a host tells."""
    if not isinstance(runner, HostRunner):
        return {} if ran.times is None else {"latency": _latency(ran.times)}
    found = {"latency": _latency(runner.latency(codes, repeats))}
    return found | layers_and_limits(runner, codes) | with_two(runner, codes)


def _difference_of_two(runner: Runner, golden: GoldenIo, floats: Sequence[str]) -> str | None:
    """What differs with two threads; None: nothing, or there are no two."""
    two = outputs_of_two(runner, golden.input_codes) if isinstance(runner, HostRunner) else None
    found = None if two is None else _difference(two, golden.output_codes, floats)
    return found and f"with two threads {found}"


def _difference(outputs: Int8, expected: Int8, floats: Sequence[str]) -> str | None:
    """What differs, or None; where parts run in float (`floats`), that they may be why."""
    wrong = outputs.reshape(-1) != expected.reshape(-1)
    if not wrong.any():
        return None
    apart = np.abs(outputs.reshape(-1).astype(int) - expected.reshape(-1).astype(int)).max()
    told = f"{int(wrong.sum())} of {wrong.size} output codes differ from the reference, by up to {apart}"
    if not floats:
        return told
    return f"{told}; in float, where compiled code rounds differently: {', '.join(floats)}"


def _sizes(image: Image) -> dict[str, Any]:
    """Flash and RAM of the package alone, and the stack's bound."""
    flash, manifest = image.manifest["flash"], image.manifest
    weights = int(manifest["weight_bytes"])
    parts = {
        "code": flash["code"], "weights": weights, "constants": flash["constants"] - weights, "data": flash["data"],
    }  # fmt: skip
    total = flash["code"] + flash["constants"] + flash["data"]
    static = flash["data"] + flash["zeros"]
    included = "sections of the package linked alone, with what it takes from the compiler's runtime"
    values = {
        "flash": quantity(total, "byte", "measured", note=included),
        "flash_parts": {k: quantity(v, "byte", "measured") for k, v in parts.items()},
        "arena": quantity(image.arena, "byte", "measured",
                          note="without input and output, which lie in the caller's buffers"),
        "arena_lower_bound": quantity(manifest["arena"]["lower_bound"], "byte", "measured"),
        "ram": quantity(image.arena + static, "byte", "measured", note="arena and static variables, without stack"),
    }  # fmt: skip
    if manifest["stack_bound"] is not None:
        bound = "bound from the stack frames of the code"
        values["stack"] = quantity(manifest["stack_bound"], "byte", "modelled", note=bound)
    return values


def _counted(image: Image, ran: Ran, inputs: int) -> dict[str, Any]:
    """Quantities that a counting runner gives."""
    values: dict[str, Any] = {}
    if ran.stack is not None:
        values["stack"] = quantity(ran.stack, "byte", "emulated", note="deepest use, below the caller's frame")
    if ran.instructions is None:
        return values
    counts = ran.instructions
    values["instructions"] = quantity(
        int(counts[0]), "instruction", "emulated", low=int(counts.min()), high=int(counts.max()), n=len(counts),
        note="executed by xd_run for the first golden input; low and high over all",
    )  # fmt: skip
    if ran.blocks and ran.elf is not None:
        mix = instruction_mix(ran.blocks, ran.elf, inputs, decoder(str(image.manifest["machine"])))
        values["mix"] = {k: quantity(round(v), "instruction", "emulated") for k, v in mix.items()}
        values["classes"] = {k: quantity(round(v), "instruction", "emulated") for k, v in grouped(mix).items()}
    return values


def _latency(times: NDArray[np.float64]) -> dict[str, Any]:
    """The quantity of measured nanoseconds per inference (M,)."""
    low, middle, high = (significant(float(v)) for v in np.percentile(times * 1e-9, (10, 50, 90)))
    note = "median of bursts on one thread, 10th and 90th percentile, memory warm"
    return quantity(middle, "s", "measured", low=low, high=high, n=len(times), note=note)


def _cycles(ran: Ran, target: Target, inputs: int) -> Cycles | None:
    """The model's cycles where blocks were counted."""
    return cycles(ran.blocks, ran.elf, inputs, target.cycles, ran.waits) if ran.blocks and ran.elf is not None else None


def _layers(image: Image, ran: Ran, target: Target, inputs: int, found: Cycles | None) -> tuple[LayerCount, ...]:
    """A row per kernel call and one for the executor; cycles and mix are the mean over all inputs."""
    if not ran.layers:
        return ()
    rows = [
        LayerCount(n["name"], n["kernel"], count, accelerator=_proxy(n, image))
        for n, count in zip(image.nodes, ran.layers, strict=False)
    ]
    rows.append(LayerCount(EXECUTOR, "-", ran.layers[-1]))
    calls, joules = (found.calls if found else {}), energy_per_cycle(target.energy)
    mixes = {}
    if ran.elf is not None:
        mixes = call_mixes(ran.blocks, ran.elf, inputs, decoder(str(image.manifest["machine"])))
    for i, row in enumerate(rows):
        taken = calls.get(i)
        energy = None if taken is None or joules is None else significant(taken * joules)
        mix = {k: round(v) for k, v in grouped(mixes[i]).items()} if i in mixes else {}
        rows[i] = replace(row, cycles=None if taken is None else round(taken, 1), energy=energy, mix=mix)
    return tuple(rows)


def _accelerator(layers: Sequence[LayerCount]) -> dict[str, Any]:
    """The sum of the layers' proxies, where there are layers."""
    proxies = [x.accelerator for x in layers if x.accelerator is not None]
    return {"accelerator": quantity(significant(sum(proxies)), "J", "modelled", note=LABEL)} if layers else {}


def _proxy(node: Mapping[str, Any], image: Image) -> float:
    return significant(layer_energy(node, image.arena, int(image.manifest["weight_bytes"])))
