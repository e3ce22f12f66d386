"""A `Network` as a torch module: one submodule per layer, each used once, so hooks and captum see every layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.model.fallback import FallbackPart
from xdeploy.model.network import Layer, Network


class Add(nn.Module):
    """Sum of two tensors."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Sum."""
        return a + b


class Concat(nn.Module):
    """Concatenation along channels."""

    def forward(self, *xs: Tensor) -> Tensor:
        """Cat along axis 1."""
        return torch.cat(xs, dim=1)


class Pad(nn.Module):
    """Zero padding of image borders and channels."""

    def __init__(self, pads: tuple[int, ...], channels: tuple[int, int]) -> None:
        super().__init__()
        top, left, bottom, right = pads
        self.widths = (left, right, top, bottom, *channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> padded."""
        return F.pad(x, self.widths)


class Slice(nn.Module):
    """Strided slice over (C, H, W)."""

    def __init__(self, starts: tuple[int, ...], stops: tuple[int, ...], steps: tuple[int, ...]) -> None:
        super().__init__()
        self.cuts = (slice(None), *(slice(*s) for s in zip(starts, stops, steps, strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> sliced."""
        return x[self.cuts]


class Sub(nn.Module):
    """Difference of two tensors."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """First minus second."""
        return a - b


class Mul(nn.Module):
    """Product of two tensors; the second may be one value per channel."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(N, C, H, W) times (N, C, H, W) or (N, C, 1, 1)."""
        return a * b


class Function(nn.Module):
    """An element-wise function of `network.FUNCTIONS`."""

    def __init__(self, function: str, alpha: float, beta: float) -> None:
        super().__init__()
        self.function, self.alpha, self.beta = function, alpha, beta
        self._run = _functions(alpha, beta)[function]

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise."""
        return self._run(x)


def _functions(alpha: float, beta: float) -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "sigmoid": torch.sigmoid, "tanh": torch.tanh, "silu": F.silu, "softplus": F.softplus,
        "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "hard_swish": F.hardswish,
        "hard_sigmoid": lambda x: (alpha * x + beta).clamp(0.0, 1.0),
        "leaky_relu": lambda x: F.leaky_relu(x, alpha), "elu": lambda x: F.elu(x, alpha),
    }  # fmt: skip


class Resize(nn.Module):
    """Nearest-neighbour resizing: output row i is source row rows[i], columns likewise."""

    def __init__(self, rows: tuple[int, ...], cols: tuple[int, ...]) -> None:
        super().__init__()
        self.rows, self.cols = torch.tensor(rows), torch.tensor(cols)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, len(rows), len(cols))."""
        return x[:, :, self.rows][:, :, :, self.cols]


class Rearrange(nn.Module):
    """Reshape, permute, reshape, all per sample."""

    def __init__(self, view: tuple[int, ...], perm: tuple[int, ...], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.view, self.perm, self.shape = tuple(view), (0, *(p + 1 for p in perm)), tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, *shape)."""
        return x.reshape(-1, *self.view).permute(self.perm).reshape(-1, *self.shape)


class Clip(nn.Module):
    """Clamp to [low, high]; ReLU6 is Clip(0, 6)."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise clamp."""
        return x.clamp(self.low, self.high)


class MaxPool(nn.Module):
    """Max pooling with any padding (minus infinity outside)."""

    def __init__(self, kernel: tuple[int, ...], stride: tuple[int, ...], pads: tuple[int, ...]) -> None:
        super().__init__()
        self.kernel, self.stride, self.pads = kernel, stride, pads

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> pooled."""
        top, left, bottom, right = self.pads
        if any(self.pads):
            x = F.pad(x, (left, right, top, bottom), value=float("-inf"))
        return F.max_pool2d(x, self.kernel, self.stride)


class AvgPool(nn.Module):
    """Average pooling with any padding; `include_pad` counts the padded zeros."""

    def __init__(
        self, kernel: tuple[int, ...], stride: tuple[int, ...], pads: tuple[int, ...], include_pad: bool
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.pads, self.include_pad = kernel, stride, pads, include_pad

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> pooled."""
        top, left, bottom, right = self.pads
        widths = (left, right, top, bottom)
        sums = F.avg_pool2d(F.pad(x, widths), self.kernel, self.stride)
        if self.include_pad or not any(self.pads):
            return sums
        share = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), widths), self.kernel, self.stride)
        return sums / share


class Conv(nn.Conv2d):
    """Convolution with asymmetric zero padding (top, left, bottom, right)."""

    def __init__(self, layer: Layer, weight: Tensor, bias: Tensor) -> None:
        a = layer.attrs
        out, per, kh, kw = weight.shape
        super().__init__(
            per * a["groups"],
            out,
            (kh, kw),
            stride=a["stride"],
            dilation=a["dilation"],
            groups=a["groups"],
            device="meta",
        )
        self.pads = tuple(a["pads"])
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, OH, OW)."""
        return self.run(x, self.weight, self.bias)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same convolution with other parameters."""
        top, left, bottom, right = self.pads
        padding: tuple[int, int] = (0, 0)
        if (top, left) == (bottom, right):
            padding = (top, left)
        elif any(self.pads):
            x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)


class Dense(nn.Linear):
    """Linear layer."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], device="meta")
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same product with other parameters."""
        return F.linear(x, weight, bias)


def _build(layer: Layer, network: Network) -> nn.Module:
    a = layer.attrs
    if layer.kind in ("conv2d", "linear"):
        params = network.params[layer.name]
        weight, bias = (torch.from_numpy(params[k].copy()) for k in ("weight", "bias"))
        return Conv(layer, weight, bias) if layer.kind == "conv2d" else Dense(weight, bias)
    if layer.kind == "avg_pool2d":
        return AvgPool(a["kernel"], a["stride"], a["pads"], bool(a["include_pad"]))
    if layer.kind == "rearrange":
        return Rearrange(a["view"], a["perm"], layer.shape)
    simple: dict[str, Callable[..., nn.Module]] = {
        "relu": nn.ReLU, "add": Add, "concat": Concat, "flatten": nn.Flatten, "softmax": lambda: nn.Softmax(dim=-1),
        "clip": Clip, "max_pool2d": MaxPool, "pad": Pad, "slice": Slice,
        "fallback": FallbackPart, "sub": Sub, "mul": Mul, "function": Function, "resize": Resize,
    }  # fmt: skip
    return simple[layer.kind](**a)


class NetworkModule(nn.Module):
    """Runs a Network layer by layer; `modules_by_name[layer]` is the submodule of each layer but the input."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.steps = nn.ModuleList(_build(x, network) for x in network.layers[1:])
        last = {i: k for k, x in enumerate(network.layers) for i in x.inputs}
        self._drop = {k: [i for i, at in last.items() if at == k] for k in range(len(network.layers))}

    @property
    def modules_by_name(self) -> dict[str, nn.Module]:
        """Layer name -> its module."""
        return {x.name: m for x, m in zip(self.network.layers[1:], self.steps, strict=True)}

    def forward(self, x: Tensor) -> Tensor:
        """(N, *input shape) -> (N, *output shape)."""
        values = {self.network.input.name: x}
        for k, (layer, module) in enumerate(zip(self.network.layers[1:], self.steps, strict=True), 1):
            values[layer.name] = module(*(values[i] for i in layer.inputs))
            for name in self._drop[k]:
                del values[name]
        return values[self.network.output.name]

    def to_network(self) -> Network:
        """The network with the module's current parameters."""
        params = {
            n: {k: getattr(m, k).detach().numpy().copy() for k in ("weight", "bias")}
            for n, m in self.modules_by_name.items()
            if isinstance(m, Conv | Dense)
        }
        return self.network.with_params(params)
