"""A few kernels in one image, each on inputs of its own: built like any package, run by the target's own runner.

Every job is one call of the image's executor, so the runners count it by itself. Its inputs and its output are pieces
of the image's one input and one output, which is how outputs come back from every runner.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.bench.model import instruction_mix, modelled
from xdeploy.bench.runner import Block, Ran
from xdeploy.bench.via import runner_for
from xdeploy.builder.elf import Elf, read_elf
from xdeploy.builder.link import BOARDS, compile_weights, link_bare, link_board, link_program
from xdeploy.builder.package import Package
from xdeploy.builder.tir import compile_tir
from xdeploy.formats import Int8, QParams
from xdeploy.handover import Artifact, GoldenIo, IoSpec
from xdeploy.kernel import Code
from xdeploy.lir.graph import LoweredGraph, Tensor
from xdeploy.memory import Place
from xdeploy.process.lock import scratch_folder
from xdeploy.program import Call, Program
from xdeploy.target import Target
from xdeploy.tune.jobs import Figures, Job

MODEL = "tune"
PAGE = 4096  # bytes
_HELPER = re.compile(r"\.weak (\w+)")


class Batch:
    """Jobs laid out in one image."""

    def __init__(self, jobs: Sequence[Job], target: Target) -> None:
        self.jobs, self.target = jobs, target
        self.places: dict[str, Place] = {}
        self.values: dict[str, Int8] = {}  # tensor -> codes (2, bytes)
        sizes = {"input": 0, "output": 0}
        for i, job in enumerate(jobs):
            pieces = {f"x{i}_{k}": x for k, x in enumerate(job.inputs())} | {f"y{i}": job.expected()}
            for name, value in pieces.items():
                kind = "output" if name.startswith("y") else "input"
                self.values[name] = flat = np.ascontiguousarray(value).reshape(len(value), -1)
                self.places[name] = Place(kind, sizes[kind], flat.shape[1])  # type: ignore[arg-type]
                sizes[kind] += self._rounded(flat.shape[1])
        self.sizes = sizes
        self.program = self._program()

    def _rounded(self, size: int) -> int:
        return -(-size // self.target.align) * self.target.align

    def _program(self) -> Program:
        calls = [
            Call(f"job{i}", j.node.op, j.kernel, f"xd_{MODEL}_k{i}", j.code.args,
                 tuple(f"x{i}_{k}" for k in range(len(j.shapes))), f"y{i}",
                 {name: f"xd_{MODEL}_c{i}_{name}" for name in j.constants}, j.workspace, 0, 0, 0.0)
            for i, j in enumerate(self.jobs)
        ]  # fmt: skip
        constants = {
            f"xd_{MODEL}_c{i}_{name}": np.ascontiguousarray(array).reshape(-1)
            for i, j in enumerate(self.jobs) for name, array in j.constants.items()
        }  # fmt: skip
        arena = self._rounded(max((j.workspace for j in self.jobs), default=0))
        # one function per job, even where two are equal, so that blocks can be told apart
        functions = {c.symbol: _renamed(j.code, i) for i, (c, j) in enumerate(zip(calls, self.jobs, strict=True))}
        return Program(MODEL, self.target.name, "tuned", self.target.align, tuple(calls), (), functions, constants,
                       self.places, (), arena, arena, "one at a time", {})  # fmt: skip

    def codes(self) -> Int8:
        """The image's inputs (2, bytes)."""
        whole = np.zeros((2, max(1, self.sizes["input"])), np.int8)
        for name, place in self.places.items():
            if place.kind == "input":
                whole[:, place.offset : place.offset + place.size] = self.values[name]
        return whole

    def package(self) -> Package:
        """What the builder prints."""
        q, codes = QParams(1.0, 0), self.codes()
        shapes = {"x": (codes.shape[1],), "y": (max(1, self.sizes["output"]),)}
        io = IoSpec("x", shapes["x"], "y", shapes["y"])
        graph = LoweredGraph((), {k: Tensor(s, q) for k, s in shapes.items()}, "x", "y", io)
        golden = GoldenIo(codes[:1, :1].astype(np.float32), codes[:1, :1], codes[:1, :1])  # no self-test is built
        tir = {s: c for s, c in self.program.functions.items() if c.language == "tir"}
        assembly = _paged(compile_tir(tir, self.target).assembly()) if tir else ""
        compiler = self.target.compiler
        flags = [*compiler.get("flags", ()), f"-falign-functions={PAGE}"]
        target = replace(self.target, compiler={**compiler, "flags": flags})
        return Package(self.program, graph, golden, target, {"model": {"name": MODEL}}, assembly)

    def differing(self, outputs: Int8) -> list[int]:
        """Output codes of each job that are not the reference's, over outputs (2, bytes)."""
        found = []
        for i in range(len(self.jobs)):
            place = self.places[f"y{i}"]
            given = outputs[:, place.offset : place.offset + place.size]
            found.append(int((given != self.values[f"y{i}"]).sum()))
        return found


def measured(jobs: Sequence[Job], target: Target) -> list[Figures]:
    """Compile, run and count the jobs on an emulated target; figures in order.

    Raises:
        ToolchainError: they do not compile. DeviceError: they do not run.
    """
    batch = Batch(jobs, target)
    with scratch_folder("tune") as scratch:
        folder = Path(scratch)
        artifact = _linked(batch, folder)
        bare = replace(
            batch.target, cycles={}
        )  # wait states depend on where in an image code lies: not of a kernel alone
        runner, codes = runner_for(artifact, bare, None), batch.codes()
        ran, extremes = runner.run(codes[:1]), runner.run(codes[1:])  # the extremes may take rare paths: not counted
        (image,) = artifact.manifest["products"].values()
        elf = read_elf(folder / image)
    return list(_figures(batch, ran, np.concatenate([ran.outputs, extremes.outputs]), elf))


def _linked(batch: Batch, folder: Path) -> Artifact:
    package = batch.package()
    package.write(folder, None)
    weights = compile_weights(package, folder, folder)
    board = batch.target.runner.get("machine")
    qemu = batch.target.runner.get("emulator") == "qemu"
    if qemu and board in BOARDS:
        products = {"board": link_board(package, folder, weights, str(board))}
    elif qemu and batch.target.kind == "linux":
        (folder / "bin").mkdir()
        products = {"program": link_program(package, folder, weights)}
    else:
        products = {"bare": link_bare(package, folder, weights)}
    p, sizes = batch.program, {k: t.size for k, t in package.graph.tensors.items()}
    manifest = {
        "target": batch.target.name, "isa": batch.target.isa, "kind": batch.target.kind,
        "machine": str(batch.target.compiler["triple"]).partition("-")[0],
        "input": {"bytes": sizes["x"], "shape": [sizes["x"]]}, "output": {"bytes": sizes["y"], "shape": [sizes["y"]]},
        "arena": {"bytes": p.arena, "align": p.align},
        "symbols": {"run": f"{package.name}_run", "calls": [c.symbol for c in p.calls]},
        "products": {role: str(path.relative_to(folder)) for role, path in products.items()},
    }  # fmt: skip
    return Artifact(folder, manifest)


def _figures(batch: Batch, ran: Ran, outputs: Int8, elf: Elf) -> Iterator[Figures]:
    """Split what ran by job: counts by call, blocks by the function they lie in."""
    names = [[c.symbol, *(f"{n}_j{i}" for n in helpers(batch.jobs[i].code))] for i, c in enumerate(batch.program.calls)]
    own = [[b for name in group for b in _within(ran.blocks, elf, name)] for group in names]
    taken = {b for blocks in (*own, _within(ran.blocks, elf, f"xd_{MODEL}_run")) for b in blocks}
    shared = [b for b in ran.blocks if b not in taken]
    table = batch.target.cycles if elf.machine == "EM_ARM" else {}
    rate = _cycles(shared, elf, table) / max(1.0, _count(shared, elf)) if table else 0.0
    wrong = batch.differing(outputs.reshape(len(outputs), -1))
    for blocks, group, instructions, bad in zip(own, names, ran.layers, wrong, strict=False):
        cycles = None
        if table:
            others = max(0.0, instructions - _count(blocks, elf))  # in the compiler's runtime, called from the kernel
            cycles = round(_cycles(blocks, elf, table) + rate * others)
        yield Figures(instructions, cycles, None, *sizes_of(elf, group), bad)


def sizes_of(elf: Elf, names: Sequence[str]) -> tuple[int, dict[str, int]]:
    """Bytes of a job's function (the first name), and of its helpers under the names that kernels know them by."""
    sizes = [-(-elf.symbols[name][1] // 4) * 4 if name in elf.symbols else 0 for name in names]
    return sizes[0], {name.rpartition("_j")[0]: size for name, size in zip(names[1:], sizes[1:], strict=True) if size}


def helpers(code: Code) -> list[str]:
    """Assembly functions that a kernel brings along and shares with every kernel that brings the same."""
    return list(dict.fromkeys(_HELPER.findall(code.llvm_ir)))


def _renamed(code: Code, job: int) -> Code:
    """The kernel with helpers of its own, so that what runs in them can be told apart too."""
    text, ir = code.text, code.llvm_ir
    for name in helpers(code):
        text, ir = (re.sub(rf"\b{name}\b", f"{name}_j{job}", t) for t in (text, ir))
    return replace(code, text=text, llvm_ir=ir)


def _paged(assembly: str) -> str:
    """Every function at the beginning of a page, as the compiler is told for those in C.

    Emulators end a block where a page ends, and a pair of loads that such an end parts counts as two lone ones: cycles
    would depend on what else is in the image.
    """
    return re.sub(r'^(\s*\.section\s+"?\.text\.[^\n]*\n)', rf"\1\t.balign\t{PAGE}\n", assembly, flags=re.MULTILINE)


def _within(blocks: Sequence[Block], elf: Elf, name: str) -> list[Block]:
    start, size = elf.symbols.get(name, (0, 0))
    return [b for b in blocks if start <= b.address < start + size]


def _count(blocks: Sequence[Block], elf: Elf) -> float:
    return sum(instruction_mix(blocks, elf, 1).values())


def _cycles(blocks: Sequence[Block], elf: Elf, table: Mapping[str, Any]) -> float:
    found = modelled(tuple(blocks), elf, 1, table, {})
    return float(found["cycles"]["value"]) if found else 0.0
