"""`xdeploy::fallback`: one node in an exported graph, the part's own numbers, the right gradient."""

from __future__ import annotations

import base64

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator

from xdeploy.model.fallback import FallbackPart, _part, fallback_node
from xdeploy.model.network import Layer, Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.onnxfile import OnnxNode

RNG = np.random.default_rng(0)
SHAPE = (4, 3, 5)


def part(op: str = "InstanceNormalization", inputs: tuple[str, ...] = ("s", "b"), **attrs: object) -> FallbackPart:
    constants = {k: RNG.normal(size=4).astype(np.float32) for k in inputs}
    node = OnnxNode("odd */ name", op, ("x in", *inputs), ("y out",), attrs)
    return fallback_node([node], constants, "x in", SHAPE, 17)


def batch(n: int = 3) -> torch.Tensor:
    return torch.from_numpy(RNG.normal(size=(n, *SHAPE)).astype(np.float32))


def test_it_equals_the_evaluator_sample_by_sample() -> None:
    for made in (part(), part("Softmax", (), axis=2), part("LpNormalization", (), axis=1)):
        model = ReferenceEvaluator(onnx.load_model_from_string(base64.b64decode(made.onnx)))
        x = batch()
        want = np.concatenate([model.run(None, {"x": row[None]})[0] for row in x.numpy()])
        np.testing.assert_allclose(made(x).numpy(), want, rtol=1e-5, atol=1e-6)


def test_export_keeps_one_node() -> None:
    program = torch.export.export(part(), (batch(),), dynamic_shapes=({0: torch.export.Dim("n")},))
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    assert [str(n.target) for n in calls] == ["xdeploy.fallback.default"]
    assert tuple(calls[0].meta["val"].shape[1:]) == SHAPE


def test_gradient_is_exact_where_the_reader_knows_the_part() -> None:
    made, x = part("Softmax", (), axis=2), batch(2).requires_grad_()
    weights = batch(2)
    (given,) = torch.autograd.grad((made(x) * weights).sum(), x)
    (want,) = torch.autograd.grad((torch.softmax(x, 2) * weights).sum(), x)
    torch.testing.assert_close(given, want)


def test_gradient_passes_straight_through_an_unknown_part() -> None:
    made, x = part("LpNormalization", (), axis=1), batch(2).requires_grad_()
    grad = batch(2)
    (given,) = torch.autograd.grad(made(x), x, grad)
    if _part(made.onnx).module is None:
        torch.testing.assert_close(given, grad)
    assert given.shape == x.shape


def test_a_network_runs_it() -> None:
    made = part()
    layer = Layer("f", "fallback", ("x",), SHAPE, {"onnx": made.onnx, "ops": made.ops})
    network = Network((Layer("x", "input", (), SHAPE), layer), {})
    x = batch()
    torch.testing.assert_close(NetworkModule(network)(x), made(x))
