"""Rows of the float ONNX reader against ONNX Runtime, where the standard's own node tests do not reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.model.onnxfiles import answer, node, save
from xdeploy.model.onnxgraph import load_onnx
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.model.trace import trace

RNG = np.random.default_rng(3)
F32 = np.float32


def floats(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(F32)


W = floats(6, 4, 3, 3)
WT = floats(4, 3, 3, 2)
CASES: dict[str, tuple[list[Any], dict[str, Any], tuple[int | str, ...], int]] = {
    "conv same upper": ([node("Conv", "x w", strides=[2, 2], auto_pad="SAME_UPPER")], {"w": W}, ("N", 4, 9, 8), 17),
    "conv same lower": ([node("Conv", "x w", strides=[2, 2], auto_pad="SAME_LOWER")], {"w": W}, ("N", 4, 9, 8), 17),
    "conv asymmetric": (
        [node("Conv", "x w b", pads=[0, 1, 2, 0], dilations=[2, 1])],
        {"w": W, "b": floats(6)},
        ("N", 4, 9, 8),
        17,
    ),
    "conv grouped": ([node("Conv", "x w", group=2)], {"w": floats(6, 2, 3, 3)}, ("N", 4, 9, 8), 17),
    "conv 1-D": (
        [node("Conv", "x w b", pads=[1, 2], strides=[2])],
        {"w": floats(5, 4, 3), "b": floats(5)},
        ("N", 4, 11),
        17,
    ),
    "transposed": (
        [node("ConvTranspose", "x w b", strides=[2, 2], pads=[1, 0, 0, 1], output_padding=[1, 0])],
        {"w": WT, "b": np.zeros(3, F32)},
        ("N", 4, 5, 6),
        17,
    ),
    "transposed same": (
        [node("ConvTranspose", "x w", strides=[2, 2], auto_pad="SAME_UPPER")],
        {"w": WT},
        ("N", 4, 5, 6),
        17,
    ),
    "transposed shape": (
        [node("ConvTranspose", "x w", strides=[2, 2], output_shape=[10, 11])],
        {"w": WT},
        ("N", 4, 5, 6),
        17,
    ),
    "transposed 1-D": (
        [node("ConvTranspose", "x w", strides=[2], pads=[1, 1])],
        {"w": floats(4, 3, 4)},
        ("N", 4, 6),
        17,
    ),
    "gemm scaled": (
        [node("Gemm", "x w b", alpha=0.5, beta=2.0, transB=1)],
        {"w": floats(5, 7), "b": floats(5)},
        ("N", 7),
        17,
    ),
    "matmul add": ([node("MatMul", "x w", "a"), node("Add", "b a")], {"w": floats(7, 5), "b": floats(5)}, ("N", 7), 17),
    "max pool same": (
        [node("MaxPool", "x", kernel_shape=[3, 3], strides=[1, 2], auto_pad="SAME_UPPER")],
        {},
        ("N", 4, 8, 9),
        17,
    ),
    "max pool even kernel": (
        [node("MaxPool", "x", kernel_shape=[2, 2], auto_pad="SAME_UPPER")],
        {},
        ("N", 4, 8, 9),
        17,
    ),
    "max pool uneven": (
        [node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 0, 1])],
        {},
        ("N", 4, 8, 9),
        17,
    ),
    "max pool 1-D ceil": ([node("MaxPool", "x", kernel_shape=[3], strides=[2], ceil_mode=1)], {}, ("N", 4, 10), 17),
    "average uneven": (
        [node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])],
        {},
        ("N", 4, 8, 8),
        17,
    ),
    "average counting": (
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 0, 1, 1], count_include_pad=1)],
        {},
        ("N", 4, 8, 8),
        17,
    ),
    "clip of opset 6": ([node("Clip", "x", min=-0.5, max=0.75)], {}, ("N", 4, 3, 3), 10),
    "clip below": ([node("Clip", "x - hi")], {"hi": F32(0.25)}, ("N", 4, 3, 3), 13),
    "softmax of opset 11": ([node("Softmax", "x", axis=1)], {}, ("N", 4, 3), 11),
    "prelu per channel": ([node("PRelu", "x s")], {"s": floats(4, 1, 1)}, ("N", 4, 3, 3), 17),
    "prelu per place": ([node("PRelu", "x s")], {"s": floats(4, 3, 3)}, ("N", 4, 3, 3), 17),
    "constant minus data": (
        [node("Sub", "c x", "a"), node("Div", "a d")],
        {"c": floats(4, 1, 1), "d": F32(3)},
        ("N", 4, 3, 3),
        17,
    ),
    "pad of opset 10": ([node("Pad", "x", pads=[0, 0, 1, 2, 0, 1, 0, 3], value=0.5)], {}, ("N", 4, 3, 3), 10),
    "pad with axes": (
        [node("Pad", "x p - a")],
        {"p": np.array([1, 2, -1, 3]), "a": np.array([-1, 2])},
        ("N", 4, 5, 6),
        18,
    ),
    "pad reflecting": (
        [node("Pad", "x p", mode="reflect")],
        {"p": np.array([0, 0, 1, 2, 0, 0, 1, 0])},
        ("N", 4, 5, 6),
        17,
    ),
    "slice": (
        [node("Slice", "x s e a t")],
        {"s": np.array([1, 5]), "e": np.array([2**31, 0]), "a": np.array([1, 3]), "t": np.array([1, -2])},
        ("N", 4, 5, 6),
        13,
    ),
    "slice of opset 9": ([node("Slice", "x", axes=[2], starts=[-3], ends=[-1])], {}, ("N", 4, 5, 6), 9),
    "split": ([node("Split", "x s", "a b", axis=1), node("Sub", "b a")], {"s": np.array([2, 2])}, ("N", 4, 5, 6), 13),
    "gather": ([node("Gather", "x i", axis=1)], {"i": np.array([3, -3, 1])}, ("N", 4, 5, 6), 13),
    "zeros joined": ([node("Concat", "z x z", axis=1)], {"z": np.zeros((1, 2, 5, 6), F32)}, (1, 4, 5, 6), 13),
    "channels last": (
        [
            node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
            node("Conv", "t w", "c"),
            node("Transpose", "c", perm=[0, 2, 3, 1]),
        ],
        {"w": W},
        ("N", 9, 8, 4),
        17,
    ),
    "signal channels last": (
        [node("Transpose", "x", "t", perm=[0, 2, 1]), node("Conv", "t w")],
        {"w": floats(5, 4, 3)},
        ("N", 11, 4),
        17,
    ),
    "grey images": (
        [node("Unsqueeze", "x a", "t"), node("Conv", "t w")],
        {"a": np.array([1]), "w": floats(5, 1, 3, 3)},
        ("N", 7, 6),
        17,
    ),
    "flat images": (
        [node("Reshape", "x s", "t"), node("Conv", "t w")],
        {"s": np.array([-1, 4, 5, 6]), "w": W},
        ("N", 120),
        17,
    ),
    "squeeze and excite": (
        [node("GlobalAveragePool", "x", "p"), node("Sigmoid", "p", "g"), node("Mul", "g x")],
        {},
        ("N", 4, 5, 6),
        17,
    ),
    "bytes": (
        [node("Cast", "x", "f", to=1), node("Mul", "f c", "m"), node("Conv", "m w")],
        {"c": F32(1 / 255), "w": W},
        ("N", 4, 5, 6),
        17,
    ),
    "largest of two": (
        [node("Relu", "x", "a"), node("Neg", "x", "b"), node("Max", "a b", "m"), node("Min", "m c")],
        {"c": floats(4, 1, 1)},
        ("N", 4, 5, 6),
        17,
    ),
    "upsample 9": ([node("Upsample", "x s")], {"s": np.array([1, 1, 2, 3], F32)}, ("N", 4, 3, 4), 9),
}
MODES = [
    (c, n)
    for c in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    for n in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
]
for _c, _n in MODES:
    CASES[f"resize {_c} {_n}"] = (
        [node("Resize", "x - - s", mode="nearest", coordinate_transformation_mode=_c, nearest_mode=_n)],
        {"s": np.array([2, 4, 7, 3])},
        (2, 4, 5, 4),
        13,
    )


@pytest.mark.parametrize("name", CASES)
def test_module_equals_onnxruntime(name: str, tmp_path: Path) -> None:
    nodes, constants, shape, opset = CASES[name]
    kind = 2 if name == "bytes" else 1
    path = save(tmp_path / "m.onnx", nodes, constants, shape, opset=opset, kind=kind)
    module = load_onnx(path)  # compared once on reading; here with other data and another batch
    batch = shape[0] if isinstance(shape[0], int) else 3
    x = torch.from_numpy(RNG.normal(size=(batch, *module.input_shape)).astype(F32))
    fed = module.file_input(x).contiguous().numpy()
    if kind == 2:
        fed = RNG.integers(0, 255, fed.shape).astype(np.uint8)
        x = torch.from_numpy(fed.astype(F32))
    want = answer(path, fed)
    with torch.no_grad():
        np.testing.assert_allclose(module(x).numpy(), want, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize(
    "name",
    [
        "conv asymmetric",
        "transposed",
        "max pool uneven",
        "average uneven",
        "channels last",
        "signal channels last",
        "flat images",
        "matmul add",
        "squeeze and excite",
    ],
)
def test_network_equals_module(name: str, tmp_path: Path) -> None:
    nodes, constants, shape, opset = CASES[name]
    module = load_onnx(save(tmp_path / "m.onnx", nodes, constants, shape, opset=opset))
    network = trace(module, module.input_shape)
    x = torch.from_numpy(RNG.normal(size=(2, *module.input_shape)).astype(F32))
    with torch.no_grad():
        want = module(x)
        got = NetworkModule(network)(x).reshape(want.shape)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_layouts_are_told_from_the_graph(tmp_path: Path) -> None:
    wanted = {
        "channels last": (4, 9, 8),
        "signal channels last": (4, 1, 11),
        "grey images": (1, 7, 6),
        "flat images": (4, 5, 6),
        "conv 1-D": (4, 1, 11),
        "conv grouped": (4, 9, 8),
        "matmul add": (7,),
    }
    for name, shape in wanted.items():
        nodes, constants, given, opset = CASES[name]
        assert load_onnx(save(tmp_path / "m.onnx", nodes, constants, given, opset=opset)).input_shape == shape


GELU = [
    node("Div", "x r2", "a"),
    node("Erf", "a", "b"),
    node("Add", "b one", "c"),
    node("Mul", "x c", "d"),
    node("Mul", "d half"),
]
REGIONS: dict[str, tuple[list[Any], str]] = {
    "gelu": (GELU, "function gelu"),
    "gelu, half first": ([node("Mul", "x half", "h"), *GELU[:3], node("Mul", "h c")], "function gelu"),
    "silu": ([node("Sigmoid", "x", "s"), node("Mul", "x s")], "function silu"),
    "sigmoid": (
        [node("Neg", "x", "n"), node("Exp", "n", "e"), node("Add", "e one", "p"), node("Div", "one p")],
        "function sigmoid",
    ),
    "hard swish": (
        [node("Add", "x three", "a"), node("Clip", "a zero six", "b"), node("Div", "b six", "c"), node("Mul", "x c")],
        "function hard_swish",
    ),
    "relu6": ([node("Max", "x zero", "a"), node("Min", "a six")], "clip"),
    "leaky relu": ([node("Mul", "x slope", "a"), node("Max", "a x")], "function leaky_relu"),
    "softplus": ([node("Exp", "x", "a"), node("Add", "a one", "b"), node("Log", "b")], "function softplus"),
}


@pytest.mark.parametrize("name", REGIONS)
def test_spelt_out_functions_are_recognised(name: str, tmp_path: Path) -> None:
    nodes, kind = REGIONS[name]
    scalars = {"r2": 2**0.5, "one": 1.0, "half": 0.5, "three": 3.0, "six": 6.0, "zero": 0.0, "slope": 0.125}
    module = load_onnx(save(tmp_path / "m.onnx", nodes, {k: F32(v) for k, v in scalars.items()}, ("N", 3, 4, 4)))
    network = trace(module, module.input_shape)
    assert [f"{x.kind} {x.attrs.get('function', '')}".strip() for x in network.layers[1:]] == [kind]
