"""`python -m tests.conformance [FILE]`: the node tests of the `onnx` package, float and quantised, as one JSON table.

Passed, skipped with the reason, and failed, per operator; printed, and written to FILE where one is given.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

from tests.conformance.cases import Outcome, table
from tests.conformance.float_path import float_outcomes, network_outcomes, operators
from tests.conformance.test_quantised import results


def main() -> None:
    """Run everything and print the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    document: dict[str, Any] = {
        "schema": "xdeploy.conformance/1",
        "onnx": onnx.__version__,
        "what": "node tests of the onnx package with one node and plain tensors, per operator that the path reads",
        "float": table(float_outcomes(operators())),
        "network": table(network_outcomes(operators())),
    }
    found = results()
    document["quantised"] = table([Outcome(name, op, s, why) for op, rows in found.items() for name, s, why in rows])
    text = json.dumps(document, indent=1)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
