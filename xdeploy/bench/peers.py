"""Other engines on this machine: ONNX Runtime, OpenVINO, LiteRT and ExecuTorch (XNNPACK), each on one thread.

An engine makes an inference ready of any form it can read; its inputs then lie where it wants them, so that what is
timed is the inference alone, as it is for ours.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import UnsupportedError
from xdeploy.lir.graph import LoweredGraph

if TYPE_CHECKING:
    from xdeploy.bench.peerfiles import Form

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Ready:
    """One engine on one form. step: an inference of the first input. outputs: real values (N, ...) of real inputs."""

    configuration: str
    step: Callable[[], Any]
    outputs: Callable[[Float32], Float32]


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be run: the forms of the ONNX file (none: there is no such file), our graph, and real inputs."""

    forms: tuple[Form, ...]
    graph: LoweredGraph
    inputs: Float32


class Peer(Protocol):
    """One engine: its name, which is also that of its package, and its module."""

    name: str
    module: str

    def ready(self, work: Work) -> tuple[list[Ready], dict[str, str]]:
        """All that can be run, and why the rest cannot, by configuration."""


def version(peer: Peer) -> str | None:
    """The installed version, None if it is not installed."""
    if importlib.util.find_spec(peer.module) is None:
        return None
    try:
        return importlib.metadata.version(peer.name)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(peer.module), "__version__", "unknown"))


def _each_form(work: Work, make: Callable[[Form], Ready], configuration: str) -> tuple[list[Ready], dict[str, str]]:
    found, refused = list[Ready](), dict[str, str]()
    for form in work.forms:
        try:
            found.append(make(form))
        except Exception as error:  # each engine has its own kinds
            refused[f"{form.name}, {configuration}"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return found, refused


class OnnxRuntime:
    """ONNX Runtime's CPU provider; inputs and outputs are bound, so that nothing is copied in Python."""

    name, module = "onnxruntime", "onnxruntime"
    configuration = "CPU provider, 1 thread, all optimisations"

    def ready(self, work: Work) -> tuple[list[Ready], dict[str, str]]:
        """See Peer."""
        return _each_form(work, lambda form: self._make(form, work.inputs), self.configuration)

    def _make(self, form: Form, inputs: Float32) -> Ready:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(form.data, options, providers=["CPUExecutionProvider"])
        name, output = session.get_inputs()[0].name, session.get_outputs()[0].name
        binding = session.io_binding()
        first = onnxruntime.OrtValue.ortvalue_from_numpy(form.codes(inputs[:1]))
        binding.bind_ortvalue_input(name, first)
        binding.bind_output(output, "cpu")

        def outputs(x: Float32) -> Float32:
            rows = [session.run([output], {name: form.codes(x[i : i + 1])})[0] for i in range(len(x))]
            return form.real(np.concatenate(rows))

        def step() -> None:
            session.run_with_iobinding(binding)

        step()
        return Ready(f"{form.name}, {self.configuration}", step, outputs)


class OpenVino:
    """OpenVINO's CPU plug-in, tuned for latency."""

    name, module = "openvino", "openvino"
    configuration = "CPU plug-in, 1 thread, 1 stream"

    def ready(self, work: Work) -> tuple[list[Ready], dict[str, str]]:
        """See Peer."""
        return _each_form(work, lambda form: self._make(form, work.inputs), self.configuration)

    def _make(self, form: Form, inputs: Float32) -> Ready:
        import openvino

        core = openvino.Core()
        model = core.read_model(form.data)
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(form.codes(inputs[:1]))))
        other = core.compile_model(model, "CPU", settings)

        def outputs(x: Float32) -> Float32:
            return form.real(np.concatenate([other(form.codes(x[i : i + 1]))[0] for i in range(len(x))]))

        request.infer()
        return Ready(f"{form.name}, {self.configuration}", request.infer, outputs)


class LiteRt:
    """LiteRT (TFLite) with XNNPACK, on a flatbuffer that is written from our graph."""

    name, module = "ai-edge-litert", "ai_edge_litert"
    configuration = "int8 .tflite of the same codes, XNNPACK, 1 thread"

    def ready(self, work: Work) -> tuple[list[Ready], dict[str, str]]:
        """See Peer."""
        from xdeploy.bench.tflitefile import tflite

        try:
            return [self._make(tflite(work.graph), work)], {}
        except UnsupportedError as error:
            return [], {self.configuration: error.message}
        except (RuntimeError, ValueError) as error:
            return [], {self.configuration: f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"}

    def _make(self, data: bytes, work: Work) -> Ready:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
        into, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
        q = work.graph.tensors[work.graph.output].q

        def outputs(x: Float32) -> Float32:
            rows = []
            for codes in work.graph.io.to_codes(x):
                interpreter.set_tensor(into, codes[None])
                interpreter.invoke()
                rows.append(interpreter.get_tensor(out))
            return q.dequantise(np.concatenate(rows))

        outputs(work.inputs[:1])
        return Ready(self.configuration, interpreter.invoke, outputs)


class ExecuTorch:
    """ExecuTorch with XNNPACK, on a program that is written from our graph, with images in both layouts of memory."""

    name, module = "executorch", "executorch"
    configuration = "int8 .pte of the same codes, XNNPACK, 1 thread"

    def ready(self, work: Work) -> tuple[list[Ready], dict[str, str]]:
        """See Peer."""
        found, refused = list[Ready](), dict[str, str]()
        flat = len(work.graph.tensors[work.graph.input].shape) == 1
        for last in (True,) if flat else (True, False):
            place = "" if flat else f", channels {'last' if last else 'first'}"
            try:
                found.append(self._make(work, last, self.configuration + place))
            except Exception as error:  # it has many kinds, from many parts
                told = error.message if isinstance(error, UnsupportedError) else f"{type(error).__name__}: {error}"
                refused[self.configuration + place] = told.splitlines()[0][:200]
        return found, refused

    def _make(self, work: Work, channels_last: bool, configuration: str) -> Ready:
        from xdeploy.bench.ptecall import Program
        from xdeploy.bench.ptefile import batch, example, pte

        graph = work.graph
        into = example(graph, channels_last)
        program = Program(pte(graph, channels_last), into)
        tensor = graph.tensors[graph.output]

        def outputs(x: Float32) -> Float32:
            rows = []
            for codes in graph.io.to_codes(x):
                into.copy_(batch(codes[None], channels_last))
                program.fill()
                program.run()
                rows.append(program.output().reshape(1, *tensor.shape))
            return tensor.q.dequantise(np.concatenate(rows))

        outputs(work.inputs[:1])
        return Ready(configuration, program.run, outputs)


PEERS: dict[str, Peer] = {p.name: p for p in (OnnxRuntime(), OpenVino(), LiteRt(), ExecuTorch())}
