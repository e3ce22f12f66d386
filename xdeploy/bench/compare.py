"""Ours against other engines in one run: the same inputs, one thread each, in rounds A B C, A B C, ...

What slows the machine for a while slows all of a round, so ratios are formed within rounds. Each engine runs the form
of the network it is fastest on, and how far its outputs agree with ours is told beside its time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.bench.host import HostRunner
from xdeploy.bench.model import significant
from xdeploy.bench.peers import PEERS, Peer, Ready, Work, version
from xdeploy.bench.runner import Tell, silent
from xdeploy.errors import UsageError, choose_from
from xdeploy.files import read_json
from xdeploy.formats import Float64
from xdeploy.handover import Artifact, GoldenIo, IoSpec, Measurement, quantity

ROUNDS = 31
BURST_NS = 5_000_000  # each engine's turn in a round takes at least this long
PROBES = 5  # turns by which an engine's form is chosen
LEAST_AGREEMENT = 0.5  # forms whose top-1 agrees less than this with ours do other work
Step = Callable[[], Any]
Clock = Callable[[], int]


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """Names of peers, the ONNX file they read (None: the run's own), and the number of rounds."""

    peers: tuple[str, ...] = tuple(PEERS)
    model: Path | None = None
    rounds: int = ROUNDS


def known_peers(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        UsageError: one that is no peer.
    """
    for name in names:
        if name not in PEERS:
            raise choose_from("peer", name, PEERS)
    return tuple(dict.fromkeys(names))


def interleaved(steps: Sequence[Step], rounds: int, clock: Clock = time.perf_counter_ns) -> Float64:
    """Nanoseconds per inference, float64 (engines, rounds); within a round each has one turn, in order.

    A turn is as many inferences as BURST_NS needs, after one that is not timed and brings back the caches.
    """
    counts = [_enough(step, clock) for step in steps]
    times = np.empty((len(steps), rounds))
    for r in range(rounds):
        for i, (step, count) in enumerate(zip(steps, counts, strict=True)):
            times[i, r] = _turn(step, count, clock)
    return times


def _enough(step: Step, clock: Clock) -> int:
    return max(1, -(-BURST_NS // max(int(_turn(step, 1, clock)), 1)))


def _turn(step: Step, count: int, clock: Clock) -> float:
    step()
    start = clock()
    for _ in range(count):
        step()
    return (clock() - start) / count


def ratio(ours: Float64, theirs: Float64) -> dict[str, Any]:
    """The quantity of ours/theirs, both (rounds,): median of the ratios within rounds, 10th and 90th percentile."""
    low, middle, high = (significant(float(v)) for v in np.percentile(ours / theirs, (10, 50, 90)))
    note = "time of ours over time of the peer, by rounds; below 1 ours is faster"
    return quantity(middle, "1", "measured", low=low, high=high, n=len(ours), note=note)


def _latency(times: Float64) -> dict[str, Any]:
    low, middle, high = (significant(float(v) * 1e-9) for v in np.percentile(times, (10, 50, 90)))
    return quantity(middle, "s", "measured", low=low, high=high, n=len(times), note="one thread, input in place")


def agreement(real: NDArray[np.float32], expected: NDArray[np.int8], io: IoSpec) -> dict[str, Any]:
    """How far a peer's real outputs (N, ...) agree with our codes: top-1 (ties agree), and the largest difference."""
    assert io.output_q is not None, "a built artifact is quantised"
    found = io.output_q.quantise(np.moveaxis(real, 1, -1) if real.ndim == 4 else real).reshape(len(expected), -1)
    ours = expected.reshape(len(expected), -1).astype(int)
    top = np.take_along_axis(ours, found.argmax(1)[:, None], 1)[:, 0] == ours.max(1)
    return {
        "top1": quantity(float(top.mean()), "1", "measured", n=len(top)),
        "max_difference": quantity(int(np.abs(found - ours).max()), "code", "measured", n=len(top)),
    }


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A peer with the form it is fastest on; tried: configuration -> seconds, or why not."""

    peer: Peer
    ready: Ready
    agreement: dict[str, Any]
    tried: dict[str, Any]


def _choose(peer: Peer, work: Work, expected: NDArray[np.int8], clock: Clock) -> _Chosen | str:
    """The fastest form of those whose outputs agree; a text where there is none."""
    found, tried = peer.ready(work)
    rows: list[tuple[float, Ready, dict[str, Any]]] = []
    told: dict[str, Any] = dict(tried)
    for ready in found:
        agrees = agreement(ready.outputs(work.inputs), expected, work.graph.io)
        if agrees["top1"]["value"] < LEAST_AGREEMENT:
            told[ready.configuration] = f"other outputs: top-1 agrees in {agrees['top1']['value']:.0%}"
            continue
        best = float(np.median(interleaved([ready.step], PROBES, clock)))
        told[ready.configuration] = quantity(significant(best * 1e-9), "s", "measured")
        rows.append((best, ready, agrees))
    if not rows:
        return "cannot compare, because " + ("; ".join(f"{k}: {v}" for k, v in told.items()) or "it has no form to run")
    _, ready, agrees = min(rows, key=lambda row: row[0])
    return _Chosen(peer, ready, agrees, told)


def source_model(artifact: Artifact, given: Path | None = None) -> Path | None:
    """The ONNX file of the artifact's network: the given one, the run's export, or the file the run kept as it is.

    Raises:
        UsageError: a given file that is not there.
    """
    folder = artifact.folder.resolve().parent
    if given is not None:
        if not given.is_file():
            raise UsageError(f"{given} does not exist")
        return given
    if (folder / "model.onnx").is_file():
        return folder / "model.onnx"
    try:
        named = read_json(folder / "run.json", "xdeploy.run/1")["request"].get("model")
        sha256 = read_json(folder / "source.json", "xdeploy.source/1")["model"]["sha256"]
    except (UsageError, KeyError):
        return None
    from xdeploy.onnxfile import digest

    path = Path(str(named))
    return path if path.suffix == ".onnx" and path.is_file() and digest(path) == sha256 else None


def with_peers(
    measurement: Measurement,
    artifact: Artifact,
    options: CompareOptions,
    progress: Tell | None = None,
    clock: Clock = time.perf_counter_ns,
) -> Measurement:
    """The measurement with `peers` and `ratio_to_best_peer`, ours being the host library.

    Raises:
        UsageError: no host artifact, or it is not bit-exact: its time would mean nothing.
    """
    if measurement.runner != "host" or measurement.verdict != "bit-exact":
        reason = f": {measurement.reason}" if measurement.reason else ""
        raise UsageError(
            f"nothing to compare: {measurement.target} via {measurement.runner} is {measurement.verdict}{reason}",
            hint="--compare is for host targets, run here",
        )
    tell, golden = progress or silent, GoldenIo.load(artifact.folder / "golden.npz")
    work, why_not = _work(artifact, options, golden)
    chosen, values = list[_Chosen](), dict[str, Any]()
    for i, name in enumerate(options.peers):
        tell(f"preparing {name}", i, len(options.peers))
        found = _available(PEERS[name], work, golden, clock) if work else why_not
        if isinstance(found, str):
            values[name] = {"reason": found}
        else:
            chosen.append(found)
    tell("interleaved rounds", 0, options.rounds)
    ours = HostRunner(artifact).step(golden.input_codes)
    times = interleaved([ours, *(c.ready.step for c in chosen)], options.rounds, clock) if chosen else None
    for i, c in enumerate(chosen, 1):
        assert times is not None, "rounds were run"
        values[c.peer.name] = {
            "version": version(c.peer), "configuration": c.ready.configuration, "latency": _latency(times[i]),
            "ratio": ratio(times[0], times[i]), **c.agreement, "tried": c.tried,
        }  # fmt: skip
    kept = {**measurement.quantities, "peers": {name: values[name] for name in options.peers}}
    if times is not None:
        kept["latency_interleaved"] = _latency(times[0])
        best = min(chosen, key=lambda c: float(values[c.peer.name]["latency"]["value"]))
        kept["ratio_to_best_peer"] = {**values[best.peer.name]["ratio"], "peer": best.peer.name}
    return replace(measurement, quantities=kept)


def _available(peer: Peer, work: Work, golden: GoldenIo, clock: Clock) -> _Chosen | str:
    if version(peer) is None:
        return f"not installed: pip install {peer.name}"
    return _choose(peer, work, golden.output_codes, clock)


def _work(artifact: Artifact, options: CompareOptions, golden: GoldenIo) -> tuple[Work | None, str]:
    """What the peers are given; None with the reason where the run folder is not there."""
    from xdeploy.bench.peerfiles import forms
    from xdeploy.lir.graph import LoweredGraph

    graph_file = artifact.folder.resolve().parent / "graph.npz"
    if not graph_file.is_file():
        return None, f"{graph_file} is not there: the artifact is not in its run folder"
    io = IoSpec.from_dict(artifact.manifest["io"])
    path = source_model(artifact, options.model)
    found = tuple(forms(path, io)) if path else ()
    return Work(found, LoweredGraph.load(graph_file), golden.inputs), ""
