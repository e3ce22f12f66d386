"""The step of fine-tuning: rates that fit each layer, decay, the average of the weights, the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.compress.learning import NormalisedLayer, new_size
from xdeploy.compress.trainable import TrainableModule
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import RecoverOptions

LARGEST_GRADIENT = 5.0  # norm; straight-through gradients of few bits spike now and then


class Optimiser:
    """SGD with momentum or Adam over all that learns in a module.

    Layers with BatchNorm behind them are held so that usual rates fit. The others of such a network learn in the unit
    in which their weights have the size of a new network's, for the same reason: that is the training of v in
    w = unit * v, so gradients are multiplied by the unit, and so are steps.
    """

    def __init__(self, module: TrainableModule, options: RecoverOptions) -> None:
        self.module, self.options = module, options
        groups = [{"params": [p], "unit": unit} for p, unit in _units(module) if p.requires_grad]
        self.torch: torch.optim.Optimizer = (
            torch.optim.Adam(groups, lr=options.lr)
            if options.optimiser == "adam"
            else torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum)
        )

    def set_rate(self, done: float) -> None:
        """The rate of the schedule when `done` 0..1 of the training is over."""
        self.factor = 0.5 * (1.0 + math.cos(math.pi * done)) if self.options.schedule == "cosine" else 1.0
        for group in self.torch.param_groups:
            group["lr"] = self.options.lr * self.factor * group["unit"]

    def step(self) -> None:
        """One step with the gradients that are there; scales, entries and their order are kept within bounds."""
        for group in self.torch.param_groups:
            for parameter in group["params"]:
                if group["unit"] != 1.0 and parameter.grad is not None:
                    parameter.grad *= group["unit"]
        nn.utils.clip_grad_norm_(self.module.parameters(), LARGEST_GRADIENT)
        self.torch.step()
        self._decay()
        for layer in self.module.layers():
            layer.bound()

    @torch.no_grad()
    def _decay(self) -> None:
        """Weights, and no other parameters, lose a share of themselves (Loshchilov and Hutter, arXiv 1711.05101)."""
        lost = self.options.lr * self.factor * self.options.decay
        if lost:
            for layer in self.module.layers():
                layer.weight *= 1.0 - lost


def _units(module: TrainableModule) -> Iterator[tuple[nn.Parameter, float]]:
    """Every parameter once, and its weights' size over a new network's where it is of a layer without BatchNorm."""
    sizes: dict[int, float] = {}
    for layer in module.layers() if module.norms else ():
        if isinstance(layer, NormalisedLayer):
            continue
        unit = _rms(layer.weight) / new_size(layer.weight) or 1.0
        sizes |= {id(p): unit for p in (layer.weight, layer.scale, layer.entries) if p is not None}
    for parameter in module.parameters():
        yield parameter, sizes.get(id(parameter), 1.0)


def _rms(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt()) if x.numel() else 0.0


class Average:
    """Exponential moving average of the parameters; early on a plain mean, so that the start does not stay in it."""

    def __init__(self, module: nn.Module, keep: float) -> None:
        self.module, self.keep, self.taken = module, keep, 0
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def step(self) -> None:
        """Take the parameters as they are now into the average."""
        self.taken += 1
        keep = min(self.keep, (self.taken - 1) / self.taken)
        for name, parameter in self.module.named_parameters():
            self.values[name].mul_(keep).add_(parameter, alpha=1.0 - keep)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The module has the average's parameters meanwhile."""
        own = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self._set(self.values)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.module.named_parameters():
            parameter.copy_(values[name])


def loss(logits: Tensor, classes: Tensor, teacher: Tensor | None, distill: float, temperature: float) -> Tensor:
    """Cross entropy, and by the share `distill` the divergence from the teacher's softened outputs instead.

    (1 - d) CE(logits, classes) + d T^2 KL(softmax(teacher / T) || softmax(logits / T)), Hinton et al. 2015 (arXiv
    1503.02531).

    Args:
        logits: (N, classes).
        classes: (N,).
        teacher: logits of the teacher (N, classes), or None.
        distill: 0..1.
        temperature: T > 0.
    """
    hard = F.cross_entropy(logits, classes)
    if teacher is None or distill == 0.0:
        return hard
    ours, theirs = (F.log_softmax(x / temperature, dim=1) for x in (logits, teacher))
    soft = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2
    return (1.0 - distill) * hard + distill * soft


class Teacher:
    """The float network's logits."""

    def __init__(self, network: Network, bfloat16: bool) -> None:
        if squashes(network):
            network = Network(network.layers[:-1], network.params)
        self.module, self.bfloat16 = NetworkModule(network).eval(), bfloat16

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """(N, *input shape) -> (N, classes)."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            result: Tensor = self.module(x).float().flatten(1)
        return result


def squashes(network: Network) -> bool:
    """Whether the network ends in a softmax or sigmoid."""
    last = network.output
    return last.kind == "softmax" or (last.kind == "function" and last.attrs["function"] == "sigmoid")


def bfloat16_pays() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 by itself (AMX).

    AVX512_BF16 alone does not pay: a step of ResNet-20 took 0.85 s with it and 0.62 s in float32 on one thread, 0.49 s
    and 0.36 s on two (Xeon of family 6, model 207, without AMX), as channels are few and BatchNorm converts.
    """
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("amx_bf16"))
