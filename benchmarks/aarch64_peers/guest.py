"""Runs inside the AArch64 root: one engine on the forms of one network, with marks around its inferences.

Arguments: engine ("onnxruntime" or "ai-edge-litert"), folder (forms and inputs). For every form that its forms.json
names: `warm` inferences; then, `rounds` times, mark, 1 inference, mark, 1 + `more` inferences, mark. Outputs of all
inputs go to <form>.outputs.npy, and a line per form to standard output as JSON. A mark is getppid().
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def onnxruntime_(data: bytes, inputs: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """An inference of the first input, bound in place; and the output (1, ...) of any input (1, ...)."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    binding = session.io_binding()
    binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(inputs[:1]))
    binding.bind_output(output, "cpu")
    return lambda: session.run_with_iobinding(binding), lambda x: session.run([output], {name: x})[0]


def litert(data: bytes, inputs: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """The same of LiteRT, whose default delegate is XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    into, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def output(x: Any) -> Any:
        interpreter.set_tensor(into, x)
        interpreter.invoke()
        return interpreter.get_tensor(out)

    output(inputs[:1])
    return interpreter.invoke, output


def counted(step: Callable[[], Any], warm: int, rounds: int, more: int) -> None:
    """Mark, one, mark, 1 + more, mark."""
    mark = os.getppid
    for _ in range(warm):
        step()
    for _ in range(rounds):
        mark()
        for _ in range(1):
            step()
        mark()
        for _ in range(1 + more):
            step()
        mark()


def main() -> None:
    engine, folder = sys.argv[1], Path(sys.argv[2])
    asked = json.loads((folder / "forms.json").read_text(encoding="utf-8"))
    make = {"onnxruntime": onnxruntime_, "ai-edge-litert": litert}[engine]
    for form in asked["forms"]:
        inputs = np.ascontiguousarray(np.load(folder / f"{form}.inputs.npy"))
        try:
            step, output = make((folder / f"{form}.model").read_bytes(), inputs)
            np.save(folder / f"{form}.outputs.npy", np.concatenate([output(x[None]) for x in inputs]))
            counted(step, asked["warm"], asked["rounds"], asked["more"])
            print(json.dumps({"form": form}), flush=True)
        except Exception as error:  # each engine has its own kinds
            said = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            print(json.dumps({"form": form, "reason": said}), flush=True)


if __name__ == "__main__":
    main()
