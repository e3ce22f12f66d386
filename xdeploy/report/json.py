"""report.json: everything a run folder holds, in one document of schema `xdeploy.report/1`.

Reads saved objects only (S32), so that any report can be made again from its folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xdeploy import __version__
from xdeploy.errors import UsageError
from xdeploy.files import read_json
from xdeploy.handover import How, Measurement, RelevanceMap, quantity
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual, macs
from xdeploy.lir.rows import origin
from xdeploy.report.outliers import outliers
from xdeploy.report.provenance import provenance, stages, stages_memory
from xdeploy.report.timeline import arena, front, points

SCHEMA = "xdeploy.report/1"
_BENCH_QUANTITIES = ("flash", "ram", "arena", "stack", "instructions", "cycles", "latency", "energy", "accelerator")
_FURTHER = ("flash_parts", "classes", "cycles_parts", "boards")
_OF_TWO = ("latency_two_threads", "ratio_two_threads")  # of packages for two threads
_MODELLED = {"cycles": "cycle", "energy": "J", "accelerator": "J"}  # per layer, of LayerCount
ACCELERATOR = "accelerator-class, for comparing layers, not this board's energy"


def collect(folder: Path) -> dict[str, Any]:
    """Make the report document of a run folder; parts that the run does not have are null.

    Raises:
        UsageError: the folder holds no finished run.
    """
    if not (folder / "accuracy.json").exists():
        raise UsageError(f"{folder} holds no finished run", hint="run `xdeploy build ... -o` on it first")
    source = read_json(folder / "source.json", "xdeploy.source/1")
    graph = LoweredGraph.load(folder / "graph.npz")
    accuracy = read_json(folder / "accuracy.json", "xdeploy.accuracy/1")
    run = read_json(folder / "run.json", "xdeploy.run/1")
    scored = "score" in run["stages"]
    relevance = RelevanceMap.load(folder / "relevance.npz") if scored else None
    targets = {name: _target(folder / name) for name in run["request"].get("targets", [])}
    packed = sum(_weight_bytes(node) for node in graph.nodes)
    floats = source["model"]["float_bytes"]["value"]  # 0: all layers with weights stay in float
    document = {
        "schema": SCHEMA,
        "tool": {"name": "xdeploy", "version": __version__},
        "model": source["model"],
        "data": source["data"],
        "accuracy": {k: accuracy[k] for k in ("float", "fake_quant", "deployed")},
        "steps": read_json(folder / "compressed.json", "xdeploy.compressed/1")["steps"] if scored else [],
        "weights": {
            "packed_bytes": quantity(packed, "byte", "measured", note="codes, codebooks, multipliers and biases"),
            "coded_bytes": _coded_bytes(folder / "model.xdc"),
            "ratio_to_float": quantity(packed / floats if floats else None, "1", "measured"),
        },
        "onnx": accuracy["onnx"],
        "relevance": relevance and _relevance(relevance, accuracy),
        "fallback": [_fallback(n, targets) for n in graph.nodes if n.op == "float"],
        "layers": _layers(graph, relevance.share() if relevance else {}, source, targets),
        "targets": {name: value["summary"] for name, value in targets.items()},
        "recipe": run["request"].get("recipe", {}),
        "stages": stages(run),
        "stages_memory": stages_memory(run),
        "confusion": accuracy.get("confusion"),
        "memory": {name: found for name, value in targets.items() if (found := value["arena"])},
        "environment": accuracy.get("environment"),
        "provenance": provenance(folder, run, list(targets)),
    }
    return {**document, "points": points(document), "front": front(folder)}


def _fallback(node: Node, targets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A part in float: its nodes, and by target what share of an inference it is, of time or else of instructions."""
    share = {}
    for name, target in targets.items():
        timed = bool(target["times"])
        by = target["times"] if timed else target["counts"]
        if node.name in by:
            part, of = round(by[node.name] / sum(by.values()), 4), "time" if timed else "instructions"
            how: How = "measured" if timed else "emulated"
            share[name] = quantity(part, "1", how, note=f"of the {of} of an inference")
    return {"node": node.name, "ops": list(node.attrs["ops"]), "nodes": list(node.attrs["nodes"]), "share": share}


def _relevance(relevance: RelevanceMap, accuracy: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": relevance.method,
        "parameters": dict(relevance.parameters),
        "samples": relevance.samples,
        "conservation_residual": relevance.conservation_residual,
        "survival": accuracy.get("survival"),
        "survival_reason": accuracy.get("survival_reason"),
    }


def _coded_bytes(path: Path) -> dict[str, Any] | None:
    """Length of the packed file that the run left; none for quantised files that are kept."""
    if not path.is_file():
        return None
    note = "model.xdc: structure and all parameters, entropy-coded"
    return quantity(path.stat().st_size, "byte", "measured", note=note)


def _weight_bytes(node: Node) -> int:
    """Bytes of packed codes, codebook, and per channel a 4-byte multiplier and a 4-byte bias."""
    if node.format is None:
        return 0
    codes = node.consts["codes"]
    return node.format.packed_bytes(len(codes), codes[0].size) + 8 * len(codes)


def _traffic(graph: LoweredGraph, node: Node) -> int:
    """Bytes that a layer moves at the least: its tensors of int8, and its packed weights."""
    return sum(math.prod(graph.tensors[t].shape) for t in (*node.inputs, node.output)) + _weight_bytes(node)


def _zeros(node: Node) -> int | None:
    """How many of the layer's weights are zero."""
    return None if node.format is None else int((node.values == 0).sum())


def _target(folder: Path) -> dict[str, Any]:
    """The summary of one target and its kernels and instructions by node name."""
    manifest = read_json(folder / "manifest.json", "xdeploy.manifest/1")
    program = read_json(folder / "program.json", "xdeploy.program/1")
    bench = Measurement.load(folder / "bench.json")
    level = manifest.get("levels", {}).get(bench.tells.get("level", ""), {})  # the one that was measured
    ran = read_json(folder / level["program"], "xdeploy.program/1") if level else program
    summary: dict[str, Any] = {
        "isa": level.get("isa", manifest["isa"]), "runner": bench.runner, "verdict": bench.verdict,
        "reason": bench.reason,
    }  # fmt: skip
    for key in _BENCH_QUANTITIES:
        summary[key] = bench.quantities.get(key)
    summary |= {key: bench.quantities.get(key) for key in _FURTHER}
    summary |= {key: bench.quantities[key] for key in _OF_TWO if key in bench.quantities}
    summary |= {"form": manifest["form"], "cannot": dict(bench.tells.get("cannot", {}))}
    summary["limits"] = bench.quantities.get("limits")
    counts, kernels = dict[str, int](), dict[str, str]()
    times: dict[str, float] = {}
    for call, found in (bench.quantities.get("layer_times") or {}).items():
        times[origin(call)] = times.get(origin(call), 0.0) + found["value"]
    models: dict[str, dict[str, float]] = {}
    for row in bench.layers:  # the bands of a streamed layer, and the copies of rows that it keeps, are one layer
        counts[origin(row.node)] = counts.get(origin(row.node), 0) + row.instructions
        model = models.setdefault(origin(row.node), {})
        for key in _MODELLED:
            if getattr(row, key) is not None:
                model[key] = model.get(key, 0.0) + getattr(row, key)
    for node in ran["nodes"]:
        names = kernels.get(origin(node["name"]), "").split(" and ")
        if node["op"] != "stack" and node["kernel"] not in names:
            kernels[origin(node["name"])] = " and ".join([*filter(None, names), node["kernel"]])
    found = {"summary": summary, "kernels": kernels, "counts": counts, "models": models, "times": times}
    return {**found, "arena": arena(program)}


def _layers(
    graph: LoweredGraph,
    share: Mapping[str, float],
    source: Mapping[str, Any],
    targets: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    before = {row["name"]: row["shape"][0] for row in source["layers"]}
    notes = outliers(graph, targets)
    rows = []
    for node in graph.nodes:
        channels = len(node.consts["codes"]) if node.format else None
        row = {
            "origin": node.name,
            "op": node.op + ("+add" if has_residual(node) else ""),
            "shape": list(graph.tensors[node.output].shape),
            "macs": macs(graph, node),
            "weight_format": node.format.name if node.format else None,
            "activation_format": "int8",
            "channels_before": before.get(node.name, channels) if node.format else None,
            "channels_after": channels,
            "relevance_share": share.get(node.name),
            "bytes": _weight_bytes(node),
            "traffic": quantity(_traffic(graph, node), "byte", "modelled", note="all that goes in and out, once"),
            "weights": node.consts["codes"].size if node.format else None,
            "zeros": _zeros(node),
            "targets": {name: _on_target(node.name, t, notes[name]) for name, t in targets.items()},
        }
        rows.append(row)
    return rows


def _on_target(node: str, target: Mapping[str, Any], notes: Mapping[str, str]) -> dict[str, Any]:
    count = target["counts"].get(node)
    instructions = None if count is None else quantity(count, "instruction", "emulated")
    model = target["models"].get(node, {})
    values = {key: quantity(model[key], unit, "modelled") if key in model else None for key, unit in _MODELLED.items()}
    if values["accelerator"]:
        values["accelerator"]["note"] = ACCELERATOR
    taken = target["times"].get(node)
    time = None if taken is None else quantity(taken, "s", "measured")
    told = {"kernel": target["kernels"].get(node), "instructions": instructions, "note": notes.get(node)}
    return {**told, "time": time, **values}


def render(report: Mapping[str, Any]) -> str:
    """The document as text, NaN refused."""
    return json.dumps(report, indent=1, allow_nan=False) + "\n"
