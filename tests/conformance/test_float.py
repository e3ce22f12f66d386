"""The standard's node tests through the float path: none may fail, and no fewer than now may pass."""

from __future__ import annotations

import pytest

from tests.conformance.cases import table
from tests.conformance.float_path import float_outcomes, network_outcomes, operators

# operators whose tests cannot be run: integers and doubles only, or axes that a network does not have
WITHOUT = {"Pad", "CastLike", "Cast", "Silu"}
SAMPLED = [
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "Gemm",
    "HardSwish",
    "Gelu",
    "SpaceToDepth",
    "BatchNormalization",
]


def test_node_tests_as_torch_modules() -> None:
    found = table(float_outcomes(operators()))
    assert found["failed"] == 0, {op: row["failed"] for op, row in found["operators"].items() if row["failed"]}
    assert found["passed"] >= 275
    silent = {op for op in operators() if not found["operators"].get(op, {}).get("passed")}
    assert silent <= WITHOUT, f"no test of {sorted(silent - WITHOUT)} ran"
    assert all(reason for row in found["operators"].values() for reason in row["skipped"])


def test_node_tests_as_networks() -> None:
    found = table(network_outcomes(SAMPLED))
    assert found["failed"] == 0, {op: row["failed"] for op, row in found["operators"].items() if row["failed"]}
    assert found["passed"] >= 45


@pytest.mark.slow
def test_all_node_tests_as_networks() -> None:
    found = table(network_outcomes(operators()))
    assert found["failed"] == 0, {op: row["failed"] for op, row in found["operators"].items() if row["failed"]}
    assert found["passed"] >= 215
