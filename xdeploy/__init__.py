"""xdeploy: trained networks to small, fast, proven integer code on CPUs and microcontrollers.

    artifact = xdeploy.build(model, data="train.zip", target="cortex-m4", output="out")

Importing this loads no torch, tvm or onnx; the functions do when they are called.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xdeploy.pipeline import build

__version__ = "0.1.0"
__all__ = ["__version__", "build"]

# ONNX Runtime's official builds report to their maker from the moment they are loaded, unless told not to before
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    if name == "build":
        from xdeploy.pipeline import build

        return build
    raise AttributeError(f"module 'xdeploy' has no attribute {name!r}")
