"""Fine-tuning of a compressed model: the weights move, the formats, activation ranges and budget stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.compress.fakequant import FakeQuantModule, accuracy
from xdeploy.compress.model import CompressedModel
from xdeploy.compress.trainable import TrainableModule
from xdeploy.errors import UsageError
from xdeploy.recipe import RecoverOptions

Batches = Iterable[tuple[Tensor, Tensor]]
Progress = Callable[[str, int, int], None]  # what, done, total

LARGEST_GRADIENT = 5.0  # norm; straight-through gradients of few bits spike now and then


def fine_tune(
    model: CompressedModel,
    train: Callable[[int], Batches],
    validation: Callable[[], Batches] | None,
    options: RecoverOptions,
    seed: int,
    progress: Progress | None = None,
) -> CompressedModel:
    """Train the float weights behind the codes with the cross entropy of the fake-quantised network.

    SGD with momentum; the final integers of every epoch are measured on the validation data and the best are kept (the
    start included; of equals the later). Without validation data the last epoch is kept.

    Args:
        model: where to start; its network holds the float weights. Not changed.
        train: epoch number -> batches of inputs and classes.
        validation: gives batches to select with.
        options: epochs, learning rate, schedule, momentum.
        seed: of torch's generator while training.
        progress: told ("recover", epochs done, epochs).

    Raises:
        UsageError: the training data are empty.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = TrainableModule(model)
        optimiser = _optimiser(module, options)
        best, top = model, _measure(model, validation)
        steps = 0
        for epoch in range(options.epochs):
            steps = _epoch(module, optimiser, train(epoch), epoch, steps, options)
            frozen = module.freeze()
            reached = _measure(frozen, validation)
            if reached >= top:
                best, top = frozen, reached
            if progress is not None:
                progress("recover", epoch + 1, options.epochs)
    return best


def _measure(model: CompressedModel, validation: Callable[[], Batches] | None) -> float:
    return 0.0 if validation is None else accuracy(FakeQuantModule(model), validation())[0]


def _optimiser(module: TrainableModule, options: RecoverOptions) -> torch.optim.SGD:
    return torch.optim.SGD(
        [p for p in module.parameters() if p.requires_grad], lr=options.lr, momentum=options.momentum
    )


def _epoch(
    module: TrainableModule,
    optimiser: torch.optim.SGD,
    batches: Batches,
    epoch: int,
    expected: int,
    options: RecoverOptions,
) -> int:
    """Train one epoch; `expected` is the number of steps of the epoch before (0: unknown). Returns this epoch's."""
    step = 0
    for x, y in batches:
        done = (epoch + min(step / expected, 1.0) if expected else epoch) / options.epochs
        _set_rate(optimiser, options, done)
        optimiser.zero_grad()
        F.cross_entropy(_logits(module, x), y).backward()  # type: ignore[no-untyped-call]
        for layer in module.layers():
            layer.balance_gradients()
        torch.nn.utils.clip_grad_norm_(module.parameters(), LARGEST_GRADIENT)
        optimiser.step()
        for layer in module.layers():
            layer.bound()
        step += 1
    if step == 0:
        raise UsageError("recover.epochs > 0 needs training data, got none", hint="set recover.epochs = 0")
    return step


def _set_rate(optimiser: torch.optim.SGD, options: RecoverOptions, done: float) -> None:
    factor = 0.5 * (1.0 + math.cos(math.pi * done)) if options.schedule == "cosine" else 1.0
    for group in optimiser.param_groups:
        group["lr"] = options.lr * factor


def _logits(module: TrainableModule, x: Tensor) -> Tensor:
    """The class scores (N, classes), before a final softmax or sigmoid."""
    output = module.network.output
    squashed = output.kind == "softmax" or (output.kind == "function" and output.attrs["function"] == "sigmoid")
    name = output.inputs[0] if squashed else output.name
    return module.values(x, [name])[name].flatten(1)
