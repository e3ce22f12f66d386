"""The onnx package's node tests through the quantised path, against ONNX Runtime: at most 1 code apart.

`quantised.md` is the published result, per operator: passed, skipped with the reasons, failed. After a wanted change
write it anew with `python -m tests.conformance.test_quantised`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest

from tests.conformance.quantising import ON_CODES, NodeTest, Unfit, node_tests, on_codes, quantised
from xdeploy.errors import ModelError
from xdeploy.lower import SUPPORTED, ObstacleError, lower
from xdeploy.lower.compare import compare_with_onnx

PUBLISHED = Path(__file__).with_name("quantised.md")
# Acosh is not defined at the 0 that every quantised range holds; Cast's tests are all of types that are no tensors
# here; Identity alone computes nothing; ONNX Runtime no longer has Upsample where QuantizeLinear is
NOTHING_PASSES = {"Acosh", "Cast", "Identity", "Upsample"}


def ops() -> set[str]:
    return {op for op in SUPPORTED if op[:1].isupper()} | set(ON_CODES)


def outcome(test: NodeTest, folder: Path) -> tuple[str, str]:
    """("passed", ""), or ("skipped" or "failed", why)."""
    try:
        model, x = (on_codes if test.op in ON_CODES else quantised)(test)
    except Unfit as why:
        return "skipped", str(why)
    path = folder / "net.onnx"
    onnx.save(model, path)
    try:
        graph = lower(path, fuse=False)
    except ObstacleError as refusal:
        return "skipped", refusal.obstacles[0].reason
    except ModelError as refusal:
        return "skipped", refusal.message.removeprefix(f"{path}: ")
    assert graph.io.input_q is not None
    inputs = [x]
    if x.dtype == np.float32:  # and the corners of the codes, on which nothing was tuned
        codes = np.random.default_rng(len(test.name)).choice([-128, -127, 0, 126, 127], x.shape).astype(np.int8)
        inputs.append(graph.io.input_q.dequantise(codes))
    worst = 0
    for batch in inputs:
        codes = batch if batch.dtype != np.uint8 else (batch.astype(np.int16) - 128).astype(np.int8)
        try:
            worst = max(worst, *(r["max_code_difference"] for r in compare_with_onnx(path, graph, codes)))
        except ModelError as refusal:
            if "ONNX Runtime" not in refusal.message:
                raise
            return "skipped", "ONNX Runtime itself does not run it"
    return ("passed", "") if worst <= 1 else ("failed", f"{worst} codes apart")


def results() -> dict[str, list[tuple[str, str, str]]]:
    """Operator -> (test, outcome, reason) of all its node tests."""
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        for test in node_tests(ops()):
            found[test.op].append((test.name, *outcome(test, Path(folder))))
    return dict(found)


def table(found: dict[str, list[tuple[str, str, str]]]) -> str:
    """The published text."""
    lines = [
        "# Node tests of the onnx package, quantised", "",
        f"onnx {onnx.__version__}; lowered and compared with ONNX Runtime, at most 1 code apart.", "",
        "| operator | passed | skipped | failed | why skipped |", "|---|---|---|---|---|",
    ]  # fmt: skip
    total: Counter[str] = Counter()
    for op, rows in sorted(found.items()):
        count = Counter(r[1] for r in rows)
        total += count
        why = Counter(_short(r[2]) for r in rows if r[1] == "skipped")
        reasons = "; ".join(f"{text} ({n})" for text, n in sorted(why.items()))
        lines.append(f"| {op} | {count['passed']} | {count['skipped']} | {count['failed']} | {reasons} |")
    lines.append(f"| all | {total['passed']} | {total['skipped']} | {total['failed']} | |")
    return "\n".join(lines) + "\n"


def _short(reason: str) -> str:
    return re.sub(r"\s+", " ", reason).replace("|", "/")[:100]


@pytest.fixture(scope="module")
def found() -> dict[str, list[tuple[str, str, str]]]:
    return results()


def test_no_node_test_fails(found: dict[str, list[tuple[str, str, str]]]) -> None:
    failed = [row for rows in found.values() for row in rows if row[1] == "failed"]
    assert not failed


def test_every_operator_passes_some(found: dict[str, list[tuple[str, str, str]]]) -> None:
    passing = {op for op, rows in found.items() if any(r[1] == "passed" for r in rows)}
    assert set(found) - passing <= NOTHING_PASSES


def test_the_published_table_is_this_one(found: dict[str, list[tuple[str, str, str]]]) -> None:
    published = PUBLISHED.read_text()
    if f"onnx {onnx.__version__};" not in published:
        pytest.skip(f"{PUBLISHED.name} was written with another release of onnx than {onnx.__version__}")
    assert published == table(found)


if __name__ == "__main__":
    PUBLISHED.write_text(table(results()))
