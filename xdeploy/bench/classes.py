"""What a mix of instructions is told in: five classes and the rest, each a sum of the decoders' finer ones."""

from __future__ import annotations

from collections.abc import Mapping

from xdeploy.bench.thumb import Kind

CLASSES: dict[str, tuple[Kind, ...]] = {
    "load": ("load", "load_double", "load_multiple"),
    "store": ("store", "store_double", "store_multiple"),
    "mac": ("mac", "mac_long"),
    "branch": ("branch",),
    "vector": ("vector", "vector_memory", "vector_gather"),
    "other": ("alu", "multiply", "multiply_long", "divide", "other"),
}


def grouped(mix: Mapping[str, float]) -> dict[str, float]:
    """A mix by kind, added up by class; every class is there."""
    return {name: sum(mix.get(kind, 0.0) for kind in kinds) for name, kinds in CLASSES.items()}
