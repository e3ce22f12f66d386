"""Instructions of one inference on AArch64: ours beside ONNX Runtime and LiteRT, in the same emulator, at each level.

The peers are their AArch64 wheels under Debian's Python in an arm64 root (made by `debootstrap --foreign`, unpacked
only), run by QEMU's user mode with one thread. A small plugin of QEMU counts; one inference is the difference between
1 + MORE inferences and 1, after warming up, less what the Python interpreter itself executes. Of each peer every form
of the network that agrees with ours is counted (QDQ on float, int8 and uint8 borders, float32; int8 .tflite), and the
least stands for it. Instructions are not time: emulators have no pipelines and caches.

Run: python benchmarks/aarch64_peers.py [--root DIR] [--output DIR] [--shared DIR] [--only NAME ...] [--run-folder DIR]
     [--ours]
Needs qemu-user with plugins, and debootstrap and dpkg where the root is not there yet; rows are written as they are
finished, those of an earlier run stay. --run-folder: a finished run of the (one) network with the three targets.
--ours: count ours alone, beside what an earlier run with the same network has counted of the peers.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from host import FILES, ROOT, SCHEMA, ZOO, request
from numpy.typing import NDArray

from xdeploy.bench import bench
from xdeploy.bench.compare import LEAST_AGREEMENT, agreement, source_model
from xdeploy.bench.peerfiles import forms
from xdeploy.bench.qemu import plugin_version, version
from xdeploy.bench.tflitefile import tflite
from xdeploy.builder.zig import cc
from xdeploy.console import Console
from xdeploy.environment import commit, environment
from xdeploy.errors import UnsupportedError
from xdeploy.files import read_json, write_json
from xdeploy.formats import QParams
from xdeploy.handover import Artifact, GoldenIo, quantity
from xdeploy.lir.graph import LoweredGraph
from xdeploy.pipeline import run
from xdeploy.target import load_target

LEVELS = {"cortex-a72": "v8.0", "cortex-a76": "dot product", "cortex-a710": "i8mm"}  # target -> its level
HERE = ROOT / "benchmarks" / "aarch64_peers"
RESULT = ROOT / "benchmarks" / "results" / "aarch64_peers.json"
SUITE, PYTHON = "bookworm", "3.11"
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
PEERS = ("onnxruntime", "ai-edge-litert")
WARM, ROUNDS, MORE = 2, 3, 2  # inferences before counting; repetitions; how many more in the longer stretch
INPUTS = 4  # whose outputs are compared
TIME_LIMIT = 1500  # seconds of one start of QEMU
QEMU = "qemu-aarch64"
Float32 = NDArray[np.float32]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Level:
    """A feature level: QEMU's CPU, and what /proc/cpuinfo says there (QEMU shows the peers the host's otherwise)."""

    cpu: str
    part: str
    features: str


_V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_V82 = f"{_V8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
# SVE and SME off: ours are for NEON, and an emulator's vectors would have a length of their own
CPUS = {
    "v8.0": Level("cortex-a72", "0xd08", _V8),
    "dot product": Level("cortex-a76", "0xd0b", _V82),
    "i8mm": Level("max,sve=off,sme=off", "0xd47", f"{_V82} i8mm bf16"),
}


# ------------------------------------------------------------------------------------------------------- the root
def make_root(root: Path) -> None:
    """Debian's Python for arm64 and the peers' wheels, unpacked; nothing of them is run."""
    if not (root / "usr" / "bin" / f"python{PYTHON}").exists():
        words = ["--arch=arm64", "--foreign", "--variant=minbase", "--include=python3,libstdc++6,libgomp1"]
        subprocess.run(["debootstrap", *words, SUITE, str(root.resolve())], check=True)
        for package in sorted((root / "var" / "cache" / "apt" / "archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
    if not (root / "site").exists():
        wanted = [f"{name}=={importlib.metadata.version(name)}" for name in (*PEERS, "numpy")]
        where = [w for p in PLATFORMS for w in ("--platform", p)]
        options = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", "--target"]
        part = root / "site.part"
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *where, *options, str(part), *wanted], check=True)
        part.rename(root / "site")


def show_cpu(root: Path, level: Level) -> None:
    """The files by which engines learn what the CPU is; QEMU prefers those of the root."""
    text = f"""processor\t: 0
BogoMIPS\t: 50.00
Features\t: {level.features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: {level.part}
CPU revision\t: 0

"""
    system = root / "sys" / "devices" / "system" / "cpu"
    for folder in (root / "proc", system):
        if folder.is_symlink():  # debootstrap links the host's where it cannot mount
            folder.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(text, encoding="ascii")
    for name in ("possible", "present", "online", "kernel_max"):
        (system / name).write_text("0\n", encoding="ascii")


# ---------------------------------------------------------------------------------------------------- what is run
@dataclass(frozen=True, slots=True)
class Given:
    """A form of the network for an engine. inputs: first axis the images. q: output codes' quantisation, or real."""

    name: str
    data: bytes
    inputs: Any
    q: QParams | tuple[float, int] | None

    def real(self, outputs: Any) -> Float32:
        """Outputs as real values."""
        if self.q is None:
            return np.asarray(outputs, np.float32)
        scale, zero = (self.q.scale, self.q.zero_point) if isinstance(self.q, QParams) else self.q
        real: Float32 = (outputs.astype(np.float32) - np.float32(zero)) * np.float32(scale)
        return real


def given(engine: str, artifact: Artifact, graph: LoweredGraph, inputs: Float32) -> list[Given]:
    """Every form of the artifact's network that the engine can be given."""
    if engine == "ai-edge-litert":
        codes, q = graph.io.to_codes(inputs), graph.tensors[graph.output].q
        return [Given("int8 .tflite of the same codes, XNNPACK", tflite(graph), codes, q)]
    path = source_model(artifact)
    if path is None:
        raise UnsupportedError(f"{artifact.folder} has no ONNX file")
    return [Given(f.name, f.data, f.codes(inputs), f.output[:2] if f.output else None) for f in forms(path, graph.io)]


def plugin(folder: Path) -> Path:
    """The compiled plugin, in the folder."""
    shutil.copy(HERE / "count.c", folder)
    options = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-O2", "-fno-sanitize=all"]
    cc([*options, "-Wl,-z,lazy", f"-DXD_PLUGIN_VERSION={plugin_version(QEMU)}", "count.c", "-o", "count.so"], folder)
    return folder / "count.so"


def read_marks(path: Path) -> tuple[list[str], Counts]:
    """Names of what the plugin counts, and the counts at every mark (marks, names)."""
    head, *lines = path.read_text(encoding="ascii").splitlines()
    names = head.split()
    return names, np.array([[int(n) for n in line.split()] for line in lines], np.int64).reshape(-1, len(names))


def start(engine: str, root: Path, level: Level, rows: list[Given], folder: Path) -> list[dict[str, Any]]:
    """One start of QEMU: per form the counts by name, medians of the rounds, or the reason why there are none."""
    names = [f"form{i}" for i in range(len(rows))]
    for name, row in zip(names, rows, strict=True):
        (folder / f"{name}.model").write_bytes(row.data)
        np.save(folder / f"{name}.inputs.npy", row.inputs)
    asked = {"forms": names, "warm": WARM, "rounds": ROUNDS, "more": MORE}
    (folder / "forms.json").write_text(json.dumps(asked), encoding="utf-8")
    show_cpu(root, level)
    done = subprocess.run(
        _command(engine, root, level, folder), capture_output=True, text=True, errors="replace", timeout=TIME_LIMIT,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{engine} under {QEMU} -cpu {level.cpu} ended with {done.returncode}: {done.stderr[-800:]}")
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return columns(told, *read_marks(folder / "counts"))


def _command(engine: str, root: Path, level: Level, folder: Path) -> list[str]:
    """The guest in QEMU. What is opened by an absolute name is looked for in the root first."""
    variables = {"HOME": folder, "PYTHONHOME": root / "usr", "PYTHONDONTWRITEBYTECODE": 1, "OMP_NUM_THREADS": 1}
    code = f"import runpy, sys; sys.path.insert(0, {str(root / 'site')!r}); sys.argv = sys.argv[1:]; "
    code += f"runpy.run_path({str(HERE / 'guest.py')!r}, run_name='__main__')"
    return [
        QEMU, "-L", str(root), "-cpu", level.cpu, "-plugin", f"{plugin(folder)},out={folder / 'counts'}",
        *(word for k, v in variables.items() for word in ("-E", f"{k}={v}")),
        str(root / "usr" / "bin" / f"python{PYTHON}"), "-s", "-S", "-X", "faulthandler", "-c", code,
        "guest", engine, str(folder),
    ]  # fmt: skip


def columns(told: list[dict[str, Any]], head: list[str], marks: Counts) -> list[dict[str, Any]]:
    """What the marks say of one inference of each form: medians by name; its reason where a form could not be run.

    Raises:
        RuntimeError: not as many marks as the forms that were run make.
    """
    found, at = list[dict[str, Any]](), 0
    for form in told:
        if "reason" in form:
            found.append(form)
            continue
        part = marks[at : at + 3 * ROUNDS].reshape(ROUNDS, 3, -1)
        at += 3 * ROUNDS
        one = ((part[:, 2] - part[:, 1]) - (part[:, 1] - part[:, 0])) / MORE
        medians = {name: round(statistics.median(one[:, i].tolist())) for i, name in enumerate(head)}
        outside = one[:, head.index("outside")]
        found.append({**medians, "spread": [int(outside.min()), int(outside.max())]})
    if at != len(marks):
        raise RuntimeError(f"{len(marks)} marks were counted, {at} were expected")
    return found


# ------------------------------------------------------------------------------------------------------- figures
def peer(engine: str, root: Path, level: Level, artifact: Artifact) -> dict[str, Any]:
    """One engine at one level: the form with the fewest instructions of those whose outputs agree with ours."""
    graph = LoweredGraph.load(artifact.folder.resolve().parent / "graph.npz")
    golden = GoldenIo.load(artifact.folder / "golden.npz")
    try:
        rows = given(engine, artifact, graph, golden.inputs[:INPUTS])
    except UnsupportedError as error:
        return {"version": importlib.metadata.version(engine), "reason": error.message}
    tried = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for i, (row, found) in enumerate(zip(rows, start(engine, root, level, rows, folder), strict=True)):
            if "reason" in found:
                tried[row.name] = {"reason": found["reason"]}
                continue
            outputs = row.real(np.load(folder / f"form{i}.outputs.npy"))
            tried[row.name] = _told(found) | agreement(outputs, golden.output_codes[:INPUTS], graph.io)
    agree = {k: v for k, v in tried.items() if "top1" in v and v["top1"]["value"] >= LEAST_AGREEMENT}
    answer: dict[str, Any] = {"version": importlib.metadata.version(engine), "tried": tried}
    if agree:
        best = min(agree, key=lambda k: int(agree[k]["instructions"]["value"]))
        answer |= {"form": best, **agree[best]}
    return answer


def _told(found: dict[str, Any]) -> dict[str, Any]:
    low, high = found["spread"]
    kinds = {k: v for k, v in found.items() if k not in ("all", "outside", "spread")}
    note = "one inference, 1 thread; without the Python interpreter's own"
    return {
        "instructions": quantity(found["outside"], "instruction", "emulated", low=low, high=high, n=ROUNDS, note=note),
        "with_interpreter": found["all"],
        "kinds": {k: v for k, v in kinds.items() if v},
    }


def network(name: str, folder: Path, root: Path | None, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """One network of a finished run folder: ours, the peers and the ratio to the best of them, at every level.

    Without `root` the peers' counts are those of the row `before`.
    """
    levels = {}
    for target, level in LEVELS.items():
        artifact = Artifact.load(folder / target)
        golden = GoldenIo.load(artifact.folder / "golden.npz")
        measured = bench(artifact, golden, load_target(target), via="qemu")
        program = json.loads((artifact.folder / "program.json").read_text(encoding="utf-8"))
        if "instructions" not in measured.quantities:
            raise RuntimeError(f"{target}: {measured.verdict}, {measured.reason}")
        ours, macs = dict(measured.quantities)["instructions"], sum(n["macs"] for n in program["nodes"])
        if root is not None:
            peers = {engine: peer(engine, root, CPUS[level], artifact) for engine in PEERS}
        elif before is None or before["levels"][level]["macs"] != macs:
            raise RuntimeError(f"{name}: no earlier run has counted the peers on this network")
        else:
            peers = before["levels"][level]["peers"]
        levels[level] = {
            "cpu": CPUS[level].cpu, "target": target, "verdict": measured.verdict, "macs": macs,
            "ours": ours, **compared(ours["value"], peers),
        }  # fmt: skip
        print(told(name, level, levels[level]), flush=True)
    return {"network": name, "how": "emulated", "levels": levels}


def compared(ours: int, peers: dict[str, Any]) -> dict[str, Any]:
    """The peers with our ratio to each, and the one with the fewest instructions."""
    rows = {
        k: v | {"ratio": round(ours / v["instructions"]["value"], 4)} if "instructions" in v else v
        for k, v in peers.items()
    }
    least = {k: v["instructions"]["value"] for k, v in rows.items() if "instructions" in v}
    best = min(least, key=lambda k: int(least[k])) if least else None
    return {"peers": rows, "best_peer": best, "ratio_to_best_peer": rows[best]["ratio"] if best else None}


def told(name: str, level: str, row: dict[str, Any]) -> str:
    """A line for the terminal."""
    peers = ", ".join(
        f"{k} {v['instructions']['value']:,} ({v['ratio']})" if "ratio" in v else f"{k}: none agrees"
        for k, v in row["peers"].items()
    )
    return f"{name}, {level}: ours {row['ours']['value']:,} ({row['verdict']}); {peers}"


def made(name: str, shared: Path, output: Path) -> Path:
    """The run folder of a network, built."""
    asked = request(name, shared, output, tuple(LEVELS))
    with Console() as console:
        run(asked, until="build", progress=console)
    return Path(asked.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("out-benchmarks") / "arm64-root")
    parser.add_argument("--output", type=Path, default=Path("out-benchmarks") / "aarch64_peers")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--only", nargs="+", choices=(*FILES, *ZOO), metavar="NAME")
    parser.add_argument("--run-folder", type=Path, help="with one --only: take this finished run")
    parser.add_argument("--ours", action="store_true", help="count ours alone; the peers' counts stay")
    args = parser.parse_args()
    names = args.only or [n for n in (*FILES, *ZOO) if not n.startswith(("VGG", "ResNet-56"))]
    if args.run_folder and len(names) != 1:
        parser.error("--run-folder is of one network: name it by --only")
    if not args.ours:
        make_root(args.root)
    root = None if args.ours else args.root.resolve()
    document: dict[str, Any] = read_json(RESULT, SCHEMA) if RESULT.exists() else {"schema": SCHEMA}
    for name in names:
        folder = args.run_folder or made(name, args.shared, args.output)
        kept = {r["network"]: r for r in document.get("rows", ())}
        row = network(name, folder, root, kept.get(name))
        row |= {"commit": commit(ROOT), "emulator": f"{QEMU} {version(QEMU)}", "environment": environment()}
        if args.ours:
            row["peers_counted_at"] = kept[name].get("peers_counted_at", kept[name]["commit"])
        document["rows"] = list((kept | {name: row}).values())
        write_json(RESULT, document)


if __name__ == "__main__":
    main()
