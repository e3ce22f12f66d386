"""QDQ patterns: DequantizeLinear .. operator .. (Relu, Clip) .. QuantizeLinear become one node each.

The ONNX nodes are visited in order. DequantizeLinear opens a float value, operators wrap it, QuantizeLinear closes it:
only then the scales of both sides are known and the integer node is written (`emit`). This is the table of the
operators that compute; those that only move data stand in `movement.MOVEMENT`.
"""

from __future__ import annotations

from xdeploy.lower.arithmetic import ARITHMETIC
from xdeploy.lower.operands import Mover
from xdeploy.lower.pooling import POOLING
from xdeploy.lower.tables import TABLES
from xdeploy.lower.weighted import WEIGHTED

PATTERNS: dict[str, Mover] = {**WEIGHTED, **POOLING, **TABLES, **ARITHMETIC}
