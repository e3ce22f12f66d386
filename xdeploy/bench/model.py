"""Modelled cycles, time and energy: executed instructions by class, times the target's published costs.

The value is the table's; `low` and `high` span what the table cannot know: whether loads overlap, how far the
pipeline refills after a jump, whether stores wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from xdeploy.bench.runner import Block
from xdeploy.bench.thumb import Instruction, decode
from xdeploy.builder.elf import Elf
from xdeploy.handover import quantity

Table = Mapping[str, Any]
_MEMORY = frozenset({"load", "store", "load_double", "store_double"})


def instruction_mix(blocks: Iterable[Block], elf: Elf, inputs: int) -> dict[str, float]:
    """Executed Thumb instructions per inference and class."""
    mix: dict[str, float] = {}
    for block in blocks:
        for i in decode(_bytes(elf, block)):
            mix[i.kind] = mix.get(i.kind, 0.0) + block.runs / inputs
    return dict(sorted(mix.items()))


def modelled(blocks: tuple[Block, ...], elf: Elf, inputs: int, cycles: Table, energy: Table) -> dict[str, Any]:
    """Quantities cycles, latency and energy per inference, as far as the target's tables go."""
    if not cycles or not blocks or elf.machine != "EM_ARM":
        return {}
    value, low, high = (_total(blocks, elf, table) / inputs for table in (cycles, _best(cycles), _worst(cycles)))
    source = str(cycles.get("source", ""))
    result = {"cycles": quantity(round(value), "cycle", "modelled", low=round(low), high=round(high), note=source)}
    if "clock_hz" in energy:
        clock = float(energy["clock_hz"])
        note = f"the modelled cycles at {clock / 1e6:g} MHz"
        v, lo, hi = (significant(c / clock) for c in (value, low, high))
        result["latency"] = quantity(v, "s", "modelled", low=lo, high=hi, note=note)
    if "pj_per_cycle" in energy:
        pj = float(energy["pj_per_cycle"])
        picojoules = (value * pj, low * float(energy.get("low", pj)), high * float(energy.get("high", pj)))
        note = f"{pj:g} pJ per modelled cycle on {energy.get('board', 'the board')}; {energy.get('source', '')}"
        v, lo, hi = (significant(x * 1e-12) for x in picojoules)
        result["energy"] = quantity(v, "J", "modelled", low=lo, high=hi, note=note)
    return result


def significant(value: float) -> float:
    """Rounded to five significant digits."""
    return float(f"{value:.5g}")


def _bytes(elf: Elf, block: Block) -> bytes:
    for s in elf.segments:
        if s.address <= block.address < s.address + len(s.data):
            start = block.address - s.address
            return s.data[start : start + block.size]
    return b""


def _total(blocks: Iterable[Block], elf: Elf, table: Table) -> float:
    total = 0.0
    for block in blocks:
        before: Instruction | None = None
        for now in decode(_bytes(elf, block)):
            total += block.runs * _cost(now, before, table)
            before = now
        if before is not None and before.jumps:
            extra = float(table["branch_taken"]) - float(table["branch_not_taken"])
            total += block.taken * extra
    return total * float(table.get("issue", 1))


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
    if kind in ("vector", "vector_memory"):
        overlaps = before is not None and before.kind != kind and before.kind in ("vector", "vector_memory")
        return float(table.get("vector", 1)) * (float(table.get("vector_overlap", 1)) if overlaps else 1.0)
    fallback = {"mac_long": "multiply_long", "multiply_long": "multiply", "mac": "multiply", "multiply": "alu"}
    name: str = kind
    while name not in table and name in fallback:
        name = fallback[name]
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
