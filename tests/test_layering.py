"""Import direction: a file may import its own row or rows above it; the units of row 3 are strangers to each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS: list[tuple[str, ...]] = [
    ("errors", "registry", "formats", "files", "permission", "process", "cpu", "caches"),
    ("target", "recipe", "planoptions", "trainoptions", "manifest", "handover", "store", "quantise", "ranking"),
    ("lir", "kernel", "sharing", "ranks", "onnxwire", "onnxguard", "onnxdata", "onnxfile", "onnxshapes"),
    ("model",),
    ("relevance", "plan", "compress", "lower", "program", "memory", "pieces", "pool", "kernels"),
    ("export", "builder", "coding"),
    ("bench", "report", "gate", "explain"),
    (
        "pipeline", "stages", "compressing", "request", "accuracy", "check", "diff", "kept", "matrix", "tune", "trial",
        "together", "environment", "planning", "meter", "forecast", "beginning",
    ),
    ("sweep",),  # many runs of the pipeline
    ("console", "doctor", "machine", "commands", "cli", "__main__"),
]  # fmt: skip
ROW = {unit: row for row, units in enumerate(ROWS) for unit in units}
HEAVY = {
    # explain: what networks say of the samples that it shows; bench: what ExecuTorch, a peer, takes
    "torch": {"model", "relevance", "compress", "export", "explain", "ranks", "bench"},
    "captum": {"relevance"},
    "optuna": {"sweep"},
    "matplotlib": {"explain", "report", "sweep"},  # report: its charts, drawn from saved objects
    # lir: the reference run of a float part; kernels: TVM's importer takes one (both only where there is a float part)
    "onnx": {
        "export",
        "lower",
        "onnxwire",
        "onnxguard",
        "onnxdata",
        "onnxfile",
        "onnxshapes",
        "model",
        "lir",
        "kernels",
        "bench",
    },
    # model: every float ONNX file is held against ONNX Runtime when it is read; bench: files for peers, a peer itself
    "onnxruntime": {"export", "lower", "model", "bench"},
    # bench: the client of TVM RPC, in a process of its own
    "tvm": {"kernels", "builder", "bench"},
    "unicorn": {"bench"},
    "serial": {"bench"},
    "capstone": {"bench"},
}
STRANGERS = set(ROWS[4]) - {"program", "memory", "pieces", "pool"}
# stages is where the arrows meet; it counts accuracy with torch modules that the units hand it
ALLOWED = {("stages", "torch"), ("pipeline", "torch"), ("check", "torch"), ("diff", "torch"), ("accuracy", "torch")}


def units() -> list[tuple[str, Path]]:
    files = [(p.relative_to(ROOT / "xdeploy"), p) for p in (ROOT / "xdeploy").rglob("*.py")]
    files += [(Path("kernels") / p.name, p) for p in (ROOT / "kernels").glob("*.py")]
    return [
        (rel.parts[0].removesuffix(".py"), p)
        for rel, p in sorted(files)
        if rel.name != "__init__.py" or len(rel.parts) > 1
    ]


def imports(path: Path) -> list[str]:
    """All modules a file imports, also inside functions, but not under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for n in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"{node.module}.{a.name}" if node.module == "xdeploy" else node.module for a in node.names]
    return found


@pytest.mark.parametrize(
    ("unit", "path"), units(), ids=lambda v: str(v.relative_to(ROOT)) if isinstance(v, Path) else v
)
def test_imports_point_upwards(unit: str, path: Path) -> None:
    assert unit in ROW, f"{unit} has no row: give it one in this test and in the design"
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "xdeploy" and rest and rest[0] in ROW and rest[0] != unit:
            other = rest[0]
            assert ROW[other] <= ROW[unit], f"{path.name} ({unit}) imports {name}, which is a row below it"
            if unit in STRANGERS and other in STRANGERS:
                pytest.fail(f"{path.name}: {unit} and {other} are strangers")
        if top in HEAVY and (unit, top) not in ALLOWED:
            assert unit in HEAVY[top], f"{path.name} ({unit}) imports {top}"


def test_no_file_is_too_long() -> None:
    long = {p.name: n for _, p in units() if (n := p.read_text().count("\n")) > 350}
    assert not long, f"over 350 lines: {long}"
