"""The C package: header, executor, weights, self-test and the build files of the common ecosystems, as text."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from xdeploy import __version__
from xdeploy.builder.cores import guarded
from xdeploy.builder.ctext import banner, c_type, comment, numbers, string
from xdeploy.builder.ecosystems import build_files
from xdeploy.builder.executor import (
    c99_source,
    executor_source,
    internal_header,
    placed_assembly,
    prototypes,
    weight_parts,
)
from xdeploy.builder.levels import level_files, with_levels
from xdeploy.builder.zig import tool_versions
from xdeploy.files import write_text
from xdeploy.handover import GoldenIo, IoSpec
from xdeploy.lir.graph import LoweredGraph
from xdeploy.program import Program
from xdeploy.target import Target

_THREADS = """
/* An inference has its caller's thread alone until {name}_set_threads(2) starts a second one, which may compute one
 * half of large layers where that is faster; 1 ends it, as unloading the library does. It serves one inference at a
 * time: another one at the same time has its caller's thread alone, and so has a forked child until it calls this
 * itself. Returns 0, or -1 where there are no such threads: not 1 to {upper}_THREADS, no Linux, one CPU. Re-entrant. */
#define {upper}_THREADS {most} /* 1: no layer is large enough to be shared */
{upper}_API int {name}_set_threads(int threads);

/* How many threads an inference may have now: 1 or 2. Re-entrant. */
{upper}_API int {name}_threads(void);
"""
SELFTEST_SAMPLES = 2
FLOAT_SLACK = 2  # codes that the self-test lets outputs differ by where a part runs in float and rounds differently


@dataclass(frozen=True, slots=True)
class Package:
    """What is printed: the program, what goes in and out, and the assembly of the tuned kernels ("" if none)."""

    program: Program
    graph: LoweredGraph
    golden: GoldenIo
    target: Target
    provenance: Mapping[str, Any]
    assembly: str
    levels: tuple[Package, ...] = ()  # of the same network for further feature levels of the target, in their order

    @property
    def name(self) -> str:
        """Stem of all names: <prefix>_<model>."""
        return self.program.name

    @property
    def sources(self) -> list[str]:
        """Files to compile, relative to the package."""
        n = self.name
        kinds = [f"src/{n}.c", f"src/{n}_weights.c", f"src/{n}_verify.c", f"src/{n}_selftest.c"]
        if any(c.language == "c99" for c in self.program.functions.values()):
            kinds.append(f"src/{n}_kernels.c")
        kinds += [f"src/{n}_kernels.S"] if self.assembly else []
        kinds += [f"src/{n}_threads.c"] if self.has_worker else []
        kinds += [f"src/{n}_tiles.c"] if self.has_tiles else []
        further = [s for level in self.levels for s in level.sources]
        # a level has no self-test of its own: the network's runs on the level that was chosen
        kept = [s for s in further if not s.endswith("_selftest.c")]
        return kinds + ([*kept, f"src/{n}_levels.c"] if self.levels else [])

    @property
    def weights(self) -> str:
        """The one of the sources that holds data only."""
        return f"src/{self.name}_weights.c"

    @property
    def weights_crc(self) -> int:
        """CRC-32 (IEEE 802.3) of all packed constants, one behind the other."""
        crc = 0
        for array in self.program.constants.values():
            crc = zlib.crc32(array.tobytes(), crc)
        return crc

    @property
    def recipe_sha256(self) -> str:
        """Hash of the recipe with all defaults resolved, as canonical JSON; "unknown" without one."""
        recipe = self.provenance.get("recipe")
        if not recipe:
            return "unknown"
        text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def has_worker(self) -> bool:
        """Whether the second thread's code is here; a level uses that of its network."""
        return self.program.worker == self.name

    @property
    def has_tiles(self) -> bool:
        """Whether kernels may use tile registers, which Linux wants to be asked for."""
        return "amx" in self.target.features

    @property
    def threads(self) -> int:
        """How many threads an inference may have: 2 where some layer, at some level, is computed as two halves."""
        return 2 if any(p.program.halved for p in (self, *self.levels)) else 1

    @property
    def has_float(self) -> bool:
        """Whether a part stays in float."""
        return any(call.op == "float" for call in self.program.calls)

    def write(self, folder: Path, stack: int | None) -> None:
        """Write all files below `folder`; `stack` is the bound in bytes, None while it is not known."""
        for path, text in self.files(stack).items():
            write_text(folder / path, text)

    def files(self, stack: int | None = None) -> dict[str, str]:
        """Text by relative path."""
        n, heads = self.name, prototypes(self.program)
        texts = {
            f"include/{n}.h": self.fill("header.h", self.header(stack)),
            f"src/{n}.h": f"{self._banner()}/* For build systems that take headers from src/ only. */\n"
            f'#include "../include/{n}.h"\n',
            f"src/{n}_internal.h": self._banner() + internal_header(self.program, heads),
            f"src/{n}.c": self._banner() + self._executor(),
            f"src/{n}_weights.c": self._banner() + self._weights(),
            f"src/{n}_verify.c": self.fill("verify.c", weight_parts(self.program)),
            f"src/{n}_selftest.c": self.fill("selftest.c", self._selftest()),
        }
        if self.has_worker:
            texts |= {f"src/{n}_threads.{kind}": self.fill(f"threads.{kind}") for kind in ("h", "c")}
        if self.has_tiles:
            texts[f"src/{n}_tiles.c"] = self.fill("tiles.c")
        portable = c99_source(self.program)
        if portable:
            texts[f"src/{n}_kernels.c"] = self._banner() + portable
        if self.assembly:
            kernels = guarded(self.target, placed_assembly(self.program, self.assembly))
            texts[f"src/{n}_kernels.S"] = self._banner() + kernels
        if self.levels:
            texts |= {path: text if text.startswith("/*") else self._banner() + text
                      for path, text in level_files(self).items() if not path.endswith("_selftest.c")}  # fmt: skip
        counted = {path: text for path, text in texts.items() if "_threads." not in path}
        return texts | build_files(self, stack, counted)

    def _executor(self) -> str:
        text = executor_source(self.program)
        return with_levels(self, text) if self.levels else text

    def fill(self, template: str, values: Mapping[str, Any] | None = None) -> str:
        """Text of a template, with the names and `values` put in."""
        text = files("xdeploy.builder.templates").joinpath(template).read_text(encoding="utf-8")
        prefix = self.program.prefix
        names = {"name": self.name, "upper": self.name.upper(), "model": self.program.model, "banner": self._banner(),
                 "prefix": prefix, "prefix_upper": prefix.upper(),
                 # of the CMake target: two models of one name and two prefixes may meet in one project
                 "namespace": "xdeploy" if prefix == "xd" else prefix}  # fmt: skip
        return Template(text).substitute({**names, **(values or {})})

    def lines(self) -> list[str]:
        """Where the package comes from, for the first lines of its files."""
        model = self.provenance.get("model", {})
        tools = ", ".join(f"{name} {version}" for name, version in tool_versions().items())
        command = self.provenance.get("command", f"xdeploy build --target {self.program.target}")
        return [
            f"Made by xdeploy {__version__} ({comment(str(command))}) with {tools}; not to be edited.",
            f"Model {comment(str(model.get('name', self.program.model)))}, "
            f"SHA-256 {comment(str(model.get('sha256', 'unknown')))}; "
            f"target {self.target.name}, {self.program.form} form.",
            f"Recipe SHA-256 {self.recipe_sha256}.",
        ]

    def _banner(self) -> str:
        lines = self.lines()
        return banner(lines[0], lines[1:])

    def header(self, stack: int | None) -> dict[str, Any]:
        """What the templates say of sizes, shapes and provenance."""
        p, io = self.program, self.graph.io
        model = self.provenance.get("model", {})
        title = str(model.get("name", p.model))
        return {
            "version": __version__, "model_name": string(title), "title": comment(title), "target": self.target.name,
            "sha256": comment(str(model.get("sha256", "unknown"))), "align": p.align,
            "arena": max(p.arena, 1), "arena_used": p.arena, "weight_bytes": p.weight_bytes, "macs": p.macs,
            "crc": f"0x{self.weights_crc:08X}", "recipe_sha256": self.recipe_sha256, "layer_names": self._layer_names(),
            "stack": stack or 0, "layers": len(p.calls),
            "stack_note": "at most, by the stack frames that clang -O2 makes" if stack else "not determined",
            "threads": _THREADS.format(name=self.name, upper=self.name.upper(), most=self.threads)
            if self.has_worker else "",
            **_io(io, self.graph), **_labels(self.name.upper(), io),
        }  # fmt: skip

    def _layer_names(self) -> str:
        """The macro of the layers' names, "" without layers."""
        names = [string(call.node) for call in self.program.calls]
        lines = "".join(f" \\\n    {name}," for name in names)
        return f"#define {self.name.upper()}_LAYER_NAMES {{{lines} \\\n}}\n" if names else ""

    def _weights(self) -> str:
        """Text of src/xd_<m>_weights.c."""
        upper = self.name.upper()
        lines = [f'#include "{self.name}.h"\n#include "{self.name}_internal.h"']
        owners: dict[str, list[str]] = {}
        for call in self.program.calls:
            for key, symbol in call.constants.items():
                owners.setdefault(symbol, []).append(f"{call.node}: {key}")
        for symbol, array in self.program.constants.items():
            note = comment("; ".join(owners[symbol]), 110)
            declared = f"const {c_type(array.dtype)} {symbol}[{array.size}]"
            lines.append(f"\n/* {note} */\n{upper}_SECTION {upper}_ALIGNED {declared} = {{\n{numbers(array)}\n}};")
        return "\n".join(lines) + "\n\ntypedef int " + f"{self.name}_weights_may_be_none;\n"

    def _selftest(self) -> dict[str, Any]:
        samples = min(SELFTEST_SAMPLES, len(self.golden.input_codes))
        size = self.golden.input_codes[0].size
        slot = -(-size // self.program.align) * self.program.align
        inputs = np.zeros((samples, slot), np.int8)
        inputs[:, :size] = self.golden.input_codes[:samples].reshape(samples, -1)
        return {
            "count": samples, "input_slot": slot, "inputs": _rows(inputs),
            "outputs": _rows(self.golden.output_codes[:samples].reshape(samples, -1)),
            "tolerance": FLOAT_SLACK if self.has_float else 0,
        }  # fmt: skip


def _rows(values: Any) -> str:
    return ",\n".join("    {\n" + numbers(row) + "\n    }" for row in values)


def _io(io: IoSpec, graph: LoweredGraph) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for way, tensor, name in (("input", graph.input, io.input_name), ("output", graph.output, io.output_name)):
        t = graph.tensors[tensor]
        values |= {
            f"{way}_name": string(name), f"{way}_bytes": t.size, f"{way}_dims": len(t.shape),
            f"{way}_shape": ", ".join(map(str, t.shape)), f"{way}_product": " * ".join(map(str, t.shape)) or "1",
            f"{way}_layout": "HWC"[-len(t.shape) :], f"{way}_scale": str(np.float32(t.q.scale)),
            f"{way}_zero": t.q.zero_point,
        }  # fmt: skip
    return values


def _labels(upper: str, io: IoSpec) -> dict[str, Any]:
    words = ", ".join(string(label) for label in io.labels)
    line = f"#define {upper}_LABELS {{ {words} }}\n" if io.labels else ""
    return {"labels_count": len(io.labels), "labels": line}
