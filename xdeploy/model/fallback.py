"""Parts of a network that stay in float: one torch operator `xdeploy::fallback` that runs an ONNX model.

torch.export keeps the operator as one node. It computes through a torch module of the part where the ONNX reader can
make one, which also gives the exact gradient; otherwise through the evaluator of the operators' specification, with the
gradient passed straight through (equal shapes) or spread evenly over the input.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, library, nn

from xdeploy.errors import ModelError, UnsupportedError
from xdeploy.onnxfile import Constant, OnnxNode, read
from xdeploy.process.lock import scratch_folder

_IR_VERSION = 10


def fallback_node(
    nodes: Sequence[OnnxNode], constants: Mapping[str, NDArray[Any]], source: str, shape: tuple[int, ...], opset: int
) -> FallbackPart:
    """One or more ONNX nodes as a torch module that torch.export keeps as one `xdeploy::fallback` node.

    Args:
        nodes: in order; the first output of the last one is the result. Names may be any strings.
        constants: the arrays of all other operands, by name.
        source: the one operand that depends on the data.
        shape: its shape per sample, without the batch axis.
        opset: of the standard domain.

    Returns:
        a module (N, *shape) -> (N, *output shape). A front end calls it in place of the nodes.

    Raises:
        ModelError: the result's shape cannot be inferred, or is not one float tensor per sample.
    """
    names = {"": "", source: "x"}

    def named(name: str) -> str:
        return names.setdefault(name, f"t{len(names)}")

    made = [_proto(n, [named(i) for i in n.inputs], [named(o) for o in n.outputs]) for n in nodes]
    made.append(helper.make_node("Identity", [named(nodes[-1].outputs[0])], ["y"]))
    arrays = [numpy_helper.from_array(np.ascontiguousarray(a), named(k)) for k, a in constants.items()]

    def model(batch: int | str, result: Sequence[int] | None) -> Any:
        ports = (("x", (batch, *shape)), ("y", None if result is None else (batch, *result)))
        given, taken = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ports)
        graph = helper.make_graph(made, "part", [given], [taken], arrays)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR_VERSION)

    whole = model("N", _result_shape(model(1, None), nodes[-1].name))
    text = base64.b64encode(whole.SerializeToString(deterministic=True)).decode()
    return FallbackPart(text, tuple(n.op for n in nodes))


class FallbackPart(nn.Module):
    """A part in float; `onnx` is its model as base64 text, (N, *input) -> (N, *output), and `ops` its operators."""

    def __init__(self, onnx: str, ops: tuple[str, ...]) -> None:
        super().__init__()
        self.onnx, self.ops = onnx, tuple(ops)

    def forward(self, x: Tensor) -> Tensor:
        """(N, *input) -> (N, *output)."""
        result: Tensor = torch.ops.xdeploy.fallback(x, self.onnx, ",".join(self.ops))
        return result


def _proto(node: OnnxNode, inputs: list[str], outputs: list[str]) -> Any:
    attrs = {
        k: numpy_helper.from_array(np.ascontiguousarray(v.array)) if isinstance(v, Constant) else v
        for k, v in node.attrs.items()
        if not (isinstance(v, list) and not v)
    }
    return helper.make_node(node.op, inputs, outputs, **attrs)


def _result_shape(model: Any, name: str) -> tuple[int, ...]:
    try:
        found = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:  # onnx raises its own and protobuf's types
        raise ModelError(f"{name}: ONNX cannot infer the shape of its output: {error}") from None
    kind = found.graph.output[0].type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    if kind.elem_type != TensorProto.FLOAT or len(dims) < 2 or dims[0] != 1 or min(dims) < 1:
        raise ModelError(f"{name}: its output has shape {dims}; a part in float gives one float tensor per sample")
    return dims[1:]


# ------------------------------------------------------------------------------------------------ running a part
@dataclass(frozen=True, slots=True)
class _Part:
    """How a part is computed: its torch module if there is one, else its evaluator; the output's shape per sample."""

    module: nn.Module | None
    evaluator: Any
    shape: tuple[int, ...]

    def run(self, x: Tensor) -> Tensor:
        """(N, *input) -> (N, *output)."""
        if self.module is not None:
            with torch.no_grad():
                return torch.as_tensor(self.module(x)).contiguous().clone()
        rows = [self.evaluator.run(None, {"x": row[None]})[0] for row in x.detach().numpy()]
        return torch.from_numpy(np.concatenate(rows).astype(np.float32).reshape(len(x), *self.shape))


@functools.lru_cache(maxsize=64)
def _part(text: str) -> _Part:
    """The part of an ONNX model in base64.

    Raises:
        ModelError: the text holds no ONNX model of one input x and one output.
    """
    from onnx.reference import ReferenceEvaluator

    try:
        data = base64.b64decode(text, validate=True)
        model = onnx.load_model_from_string(data)
        dims = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    except Exception as error:  # neither onnx nor protobuf has a base class of its own errors
        raise ModelError(f"a part in float holds no ONNX model: {error}") from None
    return _Part(_module(data), ReferenceEvaluator(model), tuple(dims[1:]))


def _module(data: bytes) -> nn.Module | None:
    from xdeploy.model.onnxgraph.build import module_of

    with scratch_folder("build") as folder:
        path = Path(folder) / "part.onnx"
        path.write_bytes(data)
        try:
            made = module_of(read(path), "a part in float", deployable=False)
        except (ModelError, UnsupportedError):
            return None
    port = tuple(onnx.load_model_from_string(data).graph.input[0].type.tensor_type.shape.dim)
    return made.eval() if made.input_shape == tuple(d.dim_value for d in port[1:]) else None


@library.custom_op("xdeploy::fallback", mutates_args=())
def fallback(x: Tensor, onnx: str, ops: str) -> Tensor:
    """Run the part `onnx` (base64) on a batch; `ops` names its operators, for messages and reports."""
    return _part(onnx).run(x)


@fallback.register_fake
def _fake(x: Tensor, onnx: str, ops: str) -> Tensor:
    return x.new_empty((x.shape[0], *_part(onnx).shape))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.text, _ = inputs
    ctx.save_for_backward(x)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (x,) = ctx.saved_tensors
    module = _part(ctx.text).module
    if module is not None:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(module(leaf), leaf, grad)
        return found, None, None
    if grad.shape == x.shape:
        return grad, None, None
    each = grad.flatten(1).sum(1) / x[0].numel()
    return each.reshape(-1, *(1,) * (x.ndim - 1)).expand_as(x).contiguous(), None, None


fallback.register_autograd(_gradient, setup_context=_remember)
