"""The benchmark of 4-bit weights: its libraries are right and called in every state, its rows say what was measured."""

from __future__ import annotations

import platform
from pathlib import Path

import lowbit
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the host target is x86-64")


def test_libraries_are_called_in_every_state(tmp_path: Path) -> None:
    forms = (("int8", "direct"), ("c4s8", "packed"))
    graphs = [lowbit.network((72, 40, 12), name) for name, _ in forms]
    built = [lowbit.built(graph, form, "x86", tmp_path / form[0]) for graph, form in zip(graphs, forms, strict=True)]
    assert built[1].weights < built[0].weights
    times = lowbit.called(built, rounds=3)
    assert list(times) == ["resident", "evicted", "flushed"]
    for values in times.values():
        assert values.shape == (2, 3)
        assert values.min() > 0


def test_outputs_use_the_codes() -> None:
    """Random weights whose layers all saturated, or gave one code, would measure nothing worth comparing."""
    graph = lowbit.network((735, 512, 128, 12), "int4")
    x = np.random.default_rng(0).integers(-128, 128, (20, 735)).astype(np.int8)
    for name, codes in lowbit.ops.run(graph, x).items():
        if name != "x0":
            assert 15 < codes.std() < 60


def test_spread_is_told_with_its_median() -> None:
    told = lowbit.spread(np.arange(101.0), "s", 1e-9)
    assert (told["low"], told["value"], told["high"], told["n"]) == (1e-8, 5e-8, 9e-8, 101)
    assert told["how"] == "measured"
