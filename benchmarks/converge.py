"""Train a float network on, so that no loss is measured against one that was not done: the baseline of compression.py.

The module is trained as it was written, its BatchNorm included: SGD with Nesterov momentum 0.9 and weight decay 5e-4,
one rise and fall of the learning rate. The state is kept after every epoch; a killed run goes on where it ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from xdeploy.console import Console
from xdeploy.files import replacing

RISE = 0.1  # share of the training in which the learning rate rises
Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a float network is trained. `fresh`: from weights drawn with the seed, not from given ones."""

    epochs: int = 15
    lr: float = 0.05
    decay: float = 5e-4
    smoothing: float = 0.0  # of the labels
    noise: float = 0.0  # deviation of what is added to the inputs
    fresh: bool = False

    def rate(self, done: float) -> float:
        """Learning rate when `done` 0..1 of the training is over: up along a line, down along a cosine."""
        if done < RISE:
            return self.lr * max(done / RISE, 0.02)
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * (done - RISE) / (1.0 - RISE)))


def converge(
    module: nn.Module, weights: Path | None, train: Batches, steps: int, schedule: Schedule, seed: int, target: Path
) -> Path:
    """Train a module and write its weights.

    Args:
        module: of the network as written; changed.
        weights: where it starts; None: as it is.
        train: epoch -> batches.
        steps: batches in an epoch.
        schedule: rates and epochs.
        seed: of dropout, noise and the like.
        target: file of the weights; there already: nothing is done.
    """
    if target.exists():
        return target
    if weights is not None:
        module.load_state_dict(load_file(weights))
    module.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(module.parameters(), schedule.lr, 0.9, nesterov=True, weight_decay=schedule.decay)
    state = target.with_suffix(".checkpoint")
    first = 0
    if state.exists():
        found = torch.load(state, weights_only=True)
        assert found["schedule"] == asdict(schedule), f"{state} is of another schedule"
        module.load_state_dict(found["module"])
        optimiser.load_state_dict(found["optimiser"])
        first = found["epoch"]
    with Console() as console:
        for epoch in range(first, schedule.epochs):
            torch.manual_seed(1000 * seed + epoch)
            for k, (x, y) in enumerate(train(epoch)):
                done = (epoch + k / steps) / schedule.epochs
                for group in optimiser.param_groups:
                    group["lr"] = schedule.rate(done)
                _step(module, optimiser, x, y, schedule)
                console(f"float network {target.stem}", epoch * steps + k + 1, schedule.epochs * steps)
            kept = {"module": module.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch + 1}
            with replacing(state) as part:
                torch.save(kept | {"schedule": asdict(schedule)}, part)
    with replacing(target) as part:
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, part)
    state.unlink(missing_ok=True)
    return target


def _step(module: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, schedule: Schedule) -> None:
    module.train()
    if len(x) < 2:  # BatchNorm has no deviation of one sample
        return
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if schedule.noise:
        x = x + schedule.noise * torch.randn_like(x)
    optimiser.zero_grad()
    F.cross_entropy(module(x), y, label_smoothing=schedule.smoothing).backward()
    optimiser.step()
