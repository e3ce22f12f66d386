"""The packed model file against other lossless coders; writes results/coding.json.

ResNet-20 (CIFAR-10, JPEG), BatchNorm folded, all layers in one format, as it is and with 80 % of its weights set to 0
by magnitude over each layer's standard deviation. Of each the codes' length by xdeploy, by lzma and bz2 (of the codes
bit-packed and of one code per byte, the shorter of the two), by nncodec (ISO/IEC 15938-17, lossless on the integers)
and by an ideal zero-order code for each layer without its table; and xdeploy's whole file.

nncodec wants an old numpy, so it lives in an environment of its own:
    python -m venv nnc && nnc/bin/pip install nncodec
Run: python benchmarks/coding.py [--shared DIR] [--nncodec nnc/bin/python]
Rows that the result file has for this commit are kept, so a killed run goes on where it ended.
"""

from __future__ import annotations

import argparse
import bz2
import json
import lzma
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.coding.file import coded_bytes, pack, same, unpack
from xdeploy.compress.apply import quantise
from xdeploy.compress.model import CompressedModel
from xdeploy.environment import commit
from xdeploy.files import write_json
from xdeploy.handover import CompressionPlan, PlanLine, quantity
from xdeploy.model.network import Network
from xdeploy.model.source import SourceModel, load_source
from xdeploy.recipe import CompressOptions, DataOptions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "coding.json"
FORMATS = ("int8", "int4", "c4s8")
ZEROS = (0.0, 0.8)
NNCODEC = """
import sys, numpy as np
from nncodec import nnc
given = {k + ".weight": v.astype(np.int32) for k, v in np.load(sys.argv[1]).items()}
sizes = []
for skipping in (False, True):
    coded = nnc.compress(given, bitstream_path=sys.argv[1] + ".nnc", use_dq=False, row_skipping=skipping,
                         return_bitstream=True)
    back = nnc.decompress(coded)
    assert all(np.array_equal(back[k], v) for k, v in given.items())
    sizes.append(len(coded))
print("BYTES", min(sizes))
"""


def pruned(network: Network, share: float) -> Network:
    """The network without the smallest weights, each measured against its layer's standard deviation."""
    if not share:
        return network
    weights = {k: p["weight"] for k, p in network.params.items()}
    limit = np.quantile(np.concatenate([np.abs(w / w.std()).ravel() for w in weights.values()]), share)
    kept = {k: np.where(np.abs(w / w.std()) < limit, 0, w).astype(np.float32) for k, w in weights.items()}
    return network.with_params({k: {**p, "weight": kept[k]} for k, p in network.params.items()})


def compressed(source: SourceModel, fmt: str, zeros: float) -> CompressedModel:
    network = pruned(source.network, zeros)
    plan = CompressionPlan(tuple(PlanLine(x.name, fmt) for x in network.weighted()))
    calibration = lambda: (x for x, _ in source.train_batches(64, limit=256))  # noqa: E731
    return quantise(network, plan, None, source.io, calibration, CompressOptions())


def peers(model: CompressedModel, nncodec: Path | None) -> dict[str, int | None]:
    """Bytes of all codes by general coders and by nncodec."""
    packed = b"".join(w.format.pack(w.codes.reshape(len(w.codes), -1)).tobytes() for w in model.weights.values())
    plain = b"".join(w.codes.tobytes() for w in model.weights.values())
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0}]
    return {
        "lzma": min(len(lzma.compress(x, lzma.FORMAT_RAW, filters=filters)) for x in (packed, plain)),
        "bz2": min(len(bz2.compress(x, 9)) for x in (packed, plain)),
        "nncodec": None if nncodec is None else by_nncodec(model, nncodec),
    }


def by_nncodec(model: CompressedModel, python: Path) -> int:
    """Bytes of the codes' distances from each layer's commonest one, so that nncodec's zero is what is common."""

    def centred(codes: np.ndarray) -> np.ndarray:
        values, seen = np.unique(codes, return_counts=True)
        return codes.astype(np.int32) - int(values[seen.argmax()])

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "codes.npz"
        np.savez(file, **{k: centred(w.codes) for k, w in model.weights.items()})
        done = subprocess.run([python, "-c", NNCODEC, file], capture_output=True, text=True, check=True, cwd=folder)
    return int(done.stdout.rsplit("BYTES", 1)[1])


def row(source: SourceModel, fmt: str, zeros: float, nncodec: Path | None) -> dict[str, Any]:
    model = compressed(source, fmt, zeros)
    start = time.perf_counter()
    data = pack(model, source.name)
    middle = time.perf_counter()
    assert same(unpack(data).model, model)
    end = time.perf_counter()
    parts = coded_bytes(model, source.name)
    assert parts["total"] == len(data)
    codes = sum(x["codes"] for x in parts["layers"])
    entropy = sum(x["entropy"] for x in parts["layers"])
    sizes = {"xdeploy": codes, "entropy": entropy, **peers(model, nncodec)}
    return {
        "network": source.name, "data": "CIFAR-10 (JPEG)", "method": f"{fmt}, {zeros:.0%} zeros",
        "codes": {k: None if v is None else quantity(round(v), "byte", "measured") for k, v in sizes.items()},
        "packed_bytes": quantity(sum(w.packed_bytes for w in model.weights.values()), "byte", "measured"),
        "coded_bytes": quantity(len(data), "byte", "measured"),
        "float_bytes": quantity(4 * source.network.parameters(), "byte", "measured"),
        "parts": {k: v for k, v in parts.items() if k != "layers"},
        "layers": parts["layers"],
        "pack": quantity(middle - start, "s", "measured"), "unpack": quantity(end - middle, "s", "measured"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--nncodec", type=Path, metavar="PYTHON", help="the Python that has nncodec")
    args = parser.parse_args()
    made_at = commit(ROOT)
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    rows = [r for r in rows if r["commit"] == made_at and (args.nncodec is None or r["codes"]["nncodec"])]
    source = load_source(
        "xdeploy.model.zoo:resnet20", args.shared / "models" / "resnet20-cifar10-jpeg.safetensors",
        args.shared / "data" / "cifar10-jpeg-train.zip", args.shared / "data" / "cifar10-jpeg-test.zip",
        replace(DataOptions(), calibration=256), 0,
    )  # fmt: skip
    for zeros in ZEROS:
        for fmt in FORMATS:
            method = f"{fmt}, {zeros:.0%} zeros"
            if any(r["method"] == method for r in rows):
                continue
            rows.append({**row(source, fmt, zeros, args.nncodec), "seed": 0, "commit": made_at})
            write_json(RESULTS, {"schema": "xdeploy.benchmark/1", "runs": rows})
            print(method, {k: v and v["value"] for k, v in rows[-1]["codes"].items()}, rows[-1]["coded_bytes"]["value"])


if __name__ == "__main__":
    main()
