"""Accelerator-class energy proxy: what the operations and memory accesses of a layer cost in 45 nm logic.

For comparing layers and formats only. On a CPU an instruction costs some 70 pJ whatever it computes, so these numbers
say nothing about a board. Energies per operation and access: M. Horowitz, "Computing's energy problem", ISSCC 2014
(45 nm, 0.9 V), in the form that is continuous in the bit width, fitted in QKeras (qtools/config_public.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xdeploy.formats import FORMATS

LABEL = "accelerator-class, for comparing layers, not this board's energy"
_PICO = 1e-12
_ACCUMULATOR = 32  # bits
_SMALLEST = 16.0  # log2 of the bits of the smallest memory that was published, 8 KB; the fit turns up below
_LARGEST = 23.0  # of the largest, 1 MB
_DRAM = 20.3125  # pJ per bit


def add_energy(bits: float) -> float:
    """Picojoules of an integer addition."""
    return 0.003125 * bits


def multiply_energy(a: float, b: float) -> float:
    """Picojoules of an integer multiplication of a by b bits; fitted for a = b, the product of both stands for it."""
    return 0.0029948 * a * b + 0.0010417 * math.sqrt(a * b)


def sram_energy(size: int) -> float:
    """Picojoules per bit of an access to an SRAM of `size` bytes; as the nearest published one beyond 8 KB to 1 MB."""
    x = min(max(math.log2(max(size, 1) * 8), _SMALLEST), _LARGEST)
    return 9.024e-4 * x**3 - 2.688e-2 * x**2 + 0.2089 * x


def weight_energy(size: int) -> float:
    """Picojoules per bit of a weight from a memory of `size` bytes: an SRAM up to 1 MB, DRAM beyond."""
    return sram_energy(size) if math.log2(max(size, 1) * 8) <= _LARGEST else _DRAM


def layer_energy(node: Mapping[str, Any], arena: int, weights: int) -> float:
    """Joules of one node of program.json.

    Each input is read once and the output written once, in an SRAM of the arena's size; each constant is read once,
    from a memory of the size of all weights; each MAC multiplies 8-bit activations by the weights' width (codebooks:
    their 8-bit entries) and adds in 32 bits.

    Args:
        node: with op, kernel, inputs, output, constants and macs.
        arena: bytes of the activations' memory.
        weights: bytes of the weights' memory.
    """
    moved = sum(int(x["bytes"]) for x in (*node["inputs"], node["output"]))
    constants = sum(int(c["bytes"]) for c in node["constants"].values())
    mac = multiply_energy(8, _weight_bits(node)) + add_energy(_ACCUMULATOR)
    memory = 8 * (moved * sram_energy(arena) + constants * weight_energy(weights))
    return (int(node["macs"]) * mac + memory) * _PICO


def _weight_bits(node: Mapping[str, Any]) -> int:
    """Bits that a multiplication takes of a weight; the kernel's name tells the format after op and activation."""
    parts = str(node["kernel"]).removeprefix(f"{node['op']}_").split("_")
    found = next((f for f in FORMATS.values() if parts[1:2] == [f.short]), None)
    return 8 if found is None or found.codebook else found.bits
