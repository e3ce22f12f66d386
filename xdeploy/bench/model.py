"""Modelled cycles, time and energy: executed instructions by class, times the target's published costs.

    cycles = factor * (sum over classes of count * cost + jumps * refill + reads of flash * wait states)

The factor is the only fitted number, and only boards with published benchmarks have one; `low` and `high` are then what
the model was found to be off by. On others they span what the table cannot know: whether loads overlap, how far the
pipeline refills after a jump, whether stores wait.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from xdeploy.bench.flash import Flash
from xdeploy.bench.runner import Block, Waits
from xdeploy.bench.thumb import Instruction, decode
from xdeploy.builder.elf import Elf
from xdeploy.handover import quantity

Table = Mapping[str, Any]
Decode = Callable[[bytes], Iterable[Instruction]]
# without calibration the bounds are wider by twice what the calibrated boards were off over three builds (0.975..1.168)
UNKNOWN = (0.95, 1.34)
_MEMORY = frozenset({"load", "store", "load_double", "store_double"})
_VECTORS = frozenset({"vector", "vector_memory", "vector_gather"})
_FALLBACK = {"mac_long": "multiply_long", "multiply_long": "multiply", "mac": "multiply", "multiply": "alu"}


def instruction_mix(blocks: Iterable[Block], elf: Elf, inputs: int, decode: Decode = decode) -> dict[str, float]:
    """Executed instructions per inference and class; `decode` reads the machine's code (see `disasm.decoder`)."""
    mix: dict[str, float] = {}
    for block in blocks:
        for i in decode(_bytes(elf, block)):
            mix[i.kind] = mix.get(i.kind, 0.0) + block.runs / inputs
    return dict(sorted(mix.items()))


def call_mixes(blocks: Iterable[Block], elf: Elf, inputs: int, decode: Decode = decode) -> dict[int, dict[str, float]]:
    """`instruction_mix` of each kernel call."""
    parts: defaultdict[int, list[Block]] = defaultdict(list)
    for block in blocks:
        parts[block.call].append(block)
    return {call: instruction_mix(part, elf, inputs, decode) for call, part in sorted(parts.items())}


@dataclass(frozen=True, slots=True)
class Cycles:
    """Cycles per inference by kernel call: what the instructions take, what the flash adds, with the factor in both.

    low, high: bounds of the total. calibrated: whether they are what the model was found to be off by.
    """

    issued: Mapping[int, float]
    waited: Mapping[int, float]
    low: float
    high: float
    calibrated: bool

    @property
    def calls(self) -> dict[int, float]:
        """Cycles by kernel call."""
        return {call: self.issued[call] + self.waited.get(call, 0.0) for call in self.issued}

    @property
    def total(self) -> float:
        """Cycles of one inference."""
        return sum(self.calls.values())


def cycles(blocks: Sequence[Block], elf: Elf, inputs: int, table: Table, waits: Sequence[Waits] = ()) -> Cycles | None:
    """Cycles per inference; None without a table or for other code than Thumb.

    Args:
        blocks: what ran, over all inputs.
        elf: where its code lies.
        inputs: how many there were.
        table: `cycles` of a target.
        waits: reads of flash of one input by kernel call.
    """
    if not table or not blocks or elf.machine != "EM_ARM":
        return None
    flash, fit = Flash.of(table), table.get("calibration", {})
    factor = float(fit.get("factor", 1))
    issued = {call: factor * n / inputs for call, n in issue_cycles(blocks, elf, table).items()}
    waited = {call: factor * flash.cycles(w) for call, w in enumerate(waits)} if flash else {}
    waited = {call: n for call, n in waited.items() if call in issued}
    if fit:
        total = sum(issued.values()) + sum(waited.values())
        return Cycles(issued, waited, total * float(fit["low"]), total * float(fit["high"]), True)
    low, high = (sum(issue_cycles(blocks, elf, t).values()) / inputs for t in (_best(table), _worst(table)))
    return Cycles(issued, waited, low * UNKNOWN[0], (high + 2 * sum(waited.values())) * UNKNOWN[1], False)


def modelled(
    blocks: Sequence[Block], elf: Elf, inputs: int, table: Table, energy: Table, waits: Sequence[Waits] = ()
) -> dict[str, Any]:
    """Quantities cycles, latency and energy per inference, as far as the target's tables go; arguments as `cycles`."""
    found = cycles(blocks, elf, inputs, table, waits)
    return {} if found is None else quantities(found, table, energy)


def quantities(found: Cycles, table: Table, energy: Table) -> dict[str, Any]:
    """What a measurement states of cycles: cycles, cycles_parts, and on the boards latency and energy.

    The first board of the table gives latency and energy, `boards` the energy of all.
    """
    numbers = (found.total, found.low, found.high)
    value, low, high = (round(n) for n in numbers)
    note = f"{_calibration(table)}; {table.get('source', '')}"
    result = {"cycles": quantity(value, "cycle", "modelled", low=low, high=high, note=note)}
    parts = {"instructions": found.issued, "flash": found.waited}
    result["cycles_parts"] = {k: quantity(round(sum(v.values())), "cycle", "modelled") for k, v in parts.items()}
    boards = energy.get("boards", [])
    for board in boards[:1]:
        clock = float(board["clock_hz"])
        note = f"the modelled cycles at {clock / 1e6:g} MHz, {board['name']}; {_calibration(table)}"
        v, lo, hi = (significant(n / clock) for n in numbers)
        result["latency"] = quantity(v, "s", "modelled", low=lo, high=hi, note=note)
    told = {board["name"]: q for board in boards if (q := _energy(numbers, board))}
    if boards and boards[0]["name"] in told:
        result["energy"] = told[boards[0]["name"]]
    if told:
        result["boards"] = told
    return result


def _energy(numbers: Iterable[float], board: Table) -> dict[str, Any] | None:
    """The energy of cycles, their low and high on a board; None where nothing is known of it."""
    if "pj_per_cycle" not in board:
        return None
    pj = [float(board.get(key, board["pj_per_cycle"])) for key in ("pj_per_cycle", "low", "high")]
    v, lo, hi = (significant(n * p * 1e-12) for n, p in zip(numbers, pj, strict=True))
    note = f"{pj[0]:g} pJ per modelled cycle on {board['name']}; {board['source']}"
    return quantity(v, "J", "modelled", low=lo, high=hi, note=note)


def energy_per_cycle(energy: Table) -> float | None:
    """Joules per cycle of the first board, None where nothing is known of it."""
    pj = energy["boards"][0].get("pj_per_cycle") if energy.get("boards") else None
    return None if pj is None else float(pj) * 1e-12


def _calibration(table: Table) -> str:
    fit = table.get("calibration")
    if not fit:
        return "uncalibrated: no published benchmark of known code on this core"
    low, high = (f"{100 * (float(fit[k]) - 1):+.0f}" for k in ("low", "high"))
    fitted, checked = (", ".join(fit[k]) for k in ("fitted", "checked"))
    return f"calibrated on {fit['board']} (fitted on {fitted}, checked on {checked}), {low}..{high} %"


def significant(value: float) -> float:
    """Rounded to five significant digits."""
    return float(f"{value:.5g}")


def _bytes(elf: Elf, block: Block) -> bytes:
    for s in elf.segments:
        if s.address <= block.address < s.address + len(s.data):
            start = block.address - s.address
            return s.data[start : start + block.size]
    return b""


def issue_cycles(blocks: Iterable[Block], elf: Elf, table: Table) -> dict[int, float]:
    """Cycles of all runs by kernel call, without waits for flash and without the factor."""
    code = {block: list(decode(_bytes(elf, block))) for block in blocks}
    entered = _entered(code)
    refill = float(table["branch_taken"]) - float(table["branch_not_taken"])
    sums: defaultdict[int, float] = defaultdict(float)
    for block, instructions in code.items():
        if not instructions:
            continue
        befores = entered[block.call, block.address]
        total = sum(befores.values()) or 1
        first = sum(n * _cost(instructions[0], before, table) for before, n in befores.items()) / total
        rest = sum(_cost(now, before, table) for before, now in pairwise(instructions))
        jumps = block.taken * refill if instructions[-1].jumps else 0.0
        sums[block.call] += (block.runs * (first + rest) + jumps) * float(table.get("issue", 1))
    return dict(sums)


def _entered(code: Mapping[Block, list[Instruction]]) -> dict[tuple[int, int], dict[Instruction | None, int]]:
    """How often a place was reached, by the instruction before it where the code ran straight on.

    Emulators end blocks where pages end too, which must not part a pair of loads.
    """
    reached: defaultdict[tuple[int, int], dict[Instruction | None, int]] = defaultdict(dict)
    for block in code:
        place = reached[block.call, block.address]
        place[None] = place.get(None, 0) + block.runs
    for block, instructions in code.items():
        key = (block.call, block.address + block.size)
        if instructions and not instructions[-1].jumps and key in reached:
            place = reached[key]
            straight = min(place[None], block.runs - block.taken)
            place[instructions[-1]] = place.get(instructions[-1], 0) + straight
            place[None] -= straight
    return reached


def _cost(now: Instruction, before: Instruction | None, table: Table) -> float:
    """Cycles of one instruction, a jump's refill excluded."""
    load = float(table["load"])
    kind = now.kind
    if kind == "branch":
        return float(table["branch_not_taken"])
    if kind in ("load_multiple", "store_multiple"):
        return 1.0 + now.registers
    if kind in ("load_double", "store_double"):
        return float(table.get("load_double", 1.0 + load))
    if kind == "load":
        pipelined = before is not None and before.kind in _MEMORY
        return float(table.get("load_pipelined", load)) if pipelined else load
    if kind in _VECTORS:
        overlaps = before is not None and before.kind != kind and before.kind in _VECTORS
        cost = float(table.get("vector", 1)) * (float(table.get("vector_overlap", 1)) if overlaps else 1.0)
        return cost + (float(table.get("gather", 0)) if kind == "vector_gather" else 0.0)
    name: str = kind
    while name not in table and name in _FALLBACK:
        name = _FALLBACK[name]
    return float(table.get(name, table["alu"]))


def _best(table: Table) -> dict[str, Any]:
    """Every load overlaps, jumps refill in the shortest time."""
    taken = max(float(table["branch_not_taken"]), float(table["branch_taken"]) - 1.0)
    return {**table, "load": table.get("load_pipelined", table["load"]), "branch_taken": taken}


def _worst(table: Table) -> dict[str, Any]:
    """No load overlaps, stores take as long as loads, jumps refill in the longest time, one issue per cycle."""
    store = max(float(table.get("store", 1)), float(table["load"]))
    taken = float(table["branch_taken"]) + 1.0
    issue = min(1.0, float(table.get("issue", 1)) * 1.25)
    return {**table, "load_pipelined": table["load"], "store": store, "branch_taken": taken, "vector_overlap": 1,
            "issue": issue}  # fmt: skip
