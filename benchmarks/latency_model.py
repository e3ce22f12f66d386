"""The cycle model against published cycles; writes results/latency_model.json and prints what it found.

MLPerf Tiny v1.0 was published for microTVM with CMSIS-NN on a Cortex-M4 and a Cortex-M33 board. The four networks'
calls of CMSIS-NN are compiled and counted in the emulator (cmsis_nn.py), the target's cost table is applied, and one
factor per board is fitted on two networks; the two others check it.

The sources must be of the time of the publication: today's CMSIS-NN does the same work in fewer instructions. Both are
compared with `--also`. They are had from github.com/ARM-software/CMSIS-NN:
    git --git-dir REPOSITORY archive 9f904911 Include Source | tar x -C DIR

Run: python benchmarks/latency_model.py --cmsis-nn DIR [--also DIR] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmsis_nn import NETWORKS, compiled, counted

from xdeploy.bench.classes import grouped
from xdeploy.bench.flash import Flash
from xdeploy.bench.model import cycles, instruction_mix
from xdeploy.target import load_target

RESULTS = Path(__file__).resolve().parent / "results" / "latency_model.json"
FITTED, CHECKED = ("ic", "kws"), ("ad", "vww")


@dataclass(frozen=True, slots=True)
class Board:
    """A board with published cycles (in millions, latency times clock) by network."""

    name: str
    core: str
    published: dict[str, float]
    flash: dict[str, Any] | None = None  # where the board is another than the target's


BOARDS = (
    Board("ST NUCLEO-L4R5ZI, 120 MHz", "cortex-m4", {"ad": 1.033, "ic": 46.747, "kws": 11.977, "vww": 36.145}),
    # Nordic's product specification, CACHE: 8 KB, two ways, lines of 128 bits, code and data; the wait states at
    # 128 MHz are not published: those of its 64 MHz flash, doubled
    Board("Nordic nRF5340-DK, 128 MHz", "cortex-m33", {"ad": 0.802, "ic": 40.468, "kws": 9.739, "vww": 29.698},
          {"wait_states": 3, "read": 16, "line": 16, "code_sets": 256, "code_ways": 2}),
)  # fmt: skip


def modelled(board: Board, sources: Path, folder: Path, optimise: str) -> dict[str, dict[str, Any]]:
    """Network -> what was counted and what the model makes of it without a factor."""
    table = {k: v for k, v in load_target(board.core).cycles.items() if k != "calibration"}
    table |= {"flash": board.flash} if board.flash else {}
    rows = {}
    for name, layers in NETWORKS.items():
        ran, elf = counted(compiled(name, sources, board.core, folder, optimise), board.core, Flash.of(table))
        found = cycles(ran.blocks, elf, 1, table, ran.waits)
        assert found is not None, "the target has a table"
        mix = grouped(instruction_mix(ran.blocks, elf, 1))
        rows[name] = {
            "macs": sum(x.macs for x in layers()),
            "instructions": sum(ran.layers),
            "mix": {k: round(v) for k, v in mix.items()},
            "jumps": sum(b.taken for b in ran.blocks),
            "reads_of_flash": {k: sum(getattr(w, k) for w in ran.waits) for k in ("jumps", "sequence", "data")},
            "issued": round(sum(found.issued.values())),
            "waited": round(sum(found.waited.values())),
            "published": round(board.published[name] * 1e6),
        }
    return rows


def fit(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The factor from the fitted networks (geometric mean) and what each network is then off by."""
    ratios = {k: r["published"] / (r["issued"] + r["waited"]) for k, r in rows.items()}
    factor = math.exp(sum(math.log(ratios[k]) for k in FITTED) / len(FITTED))
    residuals = {k: round(factor / ratio - 1, 3) for k, ratio in ratios.items()}
    return {"factor": round(factor, 3), "fitted": FITTED, "checked": CHECKED, "residuals": residuals,
            "largest": max(map(abs, residuals.values()))}  # fmt: skip


def revision(sources: Path) -> str:
    """What the sources say of themselves: version and date of the functions' header."""
    text = (sources / "Include" / "arm_nnfunctions.h").read_text(encoding="utf-8")
    lines = [line.strip(" *") for line in text.splitlines()[:40] if "$Date" in line or "$Revision" in line]
    return "; ".join(lines)


def compared(sources: Path, optimise: str) -> dict[str, Any]:
    """All boards with one tree of CMSIS-NN."""
    boards = {}
    with tempfile.TemporaryDirectory(prefix="xdeploy-latency-") as folder:
        for board in BOARDS:
            rows = modelled(board, sources.resolve(), Path(folder), optimise)
            boards[board.name] = {"core": board.core, "networks": rows, "fit": fit(rows)}
    return {"cmsis_nn": revision(sources), "optimise": optimise, "boards": boards}


def shown(found: dict[str, Any]) -> str:
    """The comparison as text."""
    lines = [f"CMSIS-NN {found['cmsis_nn']}, gcc {found['optimise']}"]
    for name, board in found["boards"].items():
        lines.append(f"  {name}: factor {board['fit']['factor']}, largest error {100 * board['fit']['largest']:.1f} %")
        for network, r in board["networks"].items():
            off = board["fit"]["residuals"][network]
            role = "fitted" if network in FITTED else "check"
            lines.append(
                f"    {network:4} {r['instructions']:>11,} insn {r['issued']:>11,} + {r['waited']:>10,} waits, "
                f"published {r['published']:>11,}: {100 * off:+5.1f} % ({role})"
            )
    return "\n".join(lines)


def main() -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cmsis-nn", type=Path, required=True, help="CMSIS-NN of the publication's time")
    parser.add_argument("--also", type=Path, action="append", default=[], help="another tree, for comparison")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    version = ["arm-none-eabi-gcc", "-dumpfullversion"]
    gcc = subprocess.run(version, capture_output=True, text=True, check=True).stdout.strip()
    first = compared(given.cmsis_nn, "-O2")
    others = [compared(given.cmsis_nn, "-O3"), *(compared(path, "-O2") for path in given.also)]
    for found in (first, *others):
        print(shown(found))
    value = {"compiler": f"arm-none-eabi-gcc {gcc}", "published": "MLPerf Tiny v1.0, closed, microTVM with CMSIS-NN",
             "calibration": first, "others": others}  # fmt: skip
    given.output.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
