"""Fine-tuning of a compressed model: the weights move, the formats, activation ranges and budget stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from xdeploy import ranks
from xdeploy.compress.checkpoint import (
    Checkpoint,
    below,
    model_of,
    model_tensors,
    optimiser_tensors,
    restore_optimiser,
    restore_parameters,
    under,
)
from xdeploy.compress.compact import PLAIN, Rules
from xdeploy.compress.ecq import Constraint
from xdeploy.compress.fakequant import FakeQuantModule
from xdeploy.compress.model import CompressedModel
from xdeploy.compress.normalise import Moments, moments
from xdeploy.compress.optimise import Average, Optimiser, Teacher, bfloat16_pays, loss, squashes
from xdeploy.compress.trainable import TrainableModule
from xdeploy.errors import UsageError
from xdeploy.model.network import Network
from xdeploy.model.top1 import accuracy, channels_last
from xdeploy.recipe import RecoverOptions

Batches = Iterable[tuple[Tensor, Tensor]]
Progress = Callable[[str, int, int], None]  # what, done, total
Constrain = Callable[[TrainableModule], Constraint | None]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a fine-tuning has beside its data and options.

    constrain: gives what decides about zeros and codes after every step (None: nearness does). Then the best is chosen
    among the epochs that ended under its full strength.
    rules: what the integers keep to.
    teacher: the float network, for recover.distill.
    checkpoint: where the state is kept after every epoch, and found again.
    steps: batches in an epoch; None: they are counted.
    inputs: what statistics of BatchNorm are taken of; None: the first epoch's.
    norms: what they begin with; None: those of the model's float weights.
    """

    constrain: Constrain = lambda _: None
    rules: Rules = PLAIN
    teacher: Network | None = None
    checkpoint: Checkpoint | None = None
    steps: int | None = None
    inputs: Callable[[], Iterable[Tensor]] | None = None
    norms: Moments | None = None


def fine_tune(
    model: CompressedModel,
    train: Callable[[int], Batches],
    validation: Callable[[], Batches] | None,
    options: RecoverOptions,
    seed: int,
    progress: Progress | None = None,
    setting: Setting | None = None,
) -> CompressedModel:
    """Train the float weights behind the codes with the loss of the fake-quantised network.

    The final integers of every epoch are measured on the validation data and the best are kept (the start included;
    of equals the later). Without validation data the last epoch is kept. A run that was killed and is started again
    with the same checkpoint ends with the same bytes.

    Args:
        model: where to start; its network holds the float weights. Not changed.
        train: epoch number -> batches of inputs and classes; the same ones whenever it is asked for an epoch.
        validation: gives batches to select with.
        options: epochs, optimiser, learning rate, schedule and so on; batchnorm as told, not set is without.
        seed: of torch's generator while training.
        progress: told ("recover", steps done, steps in all).
        setting: see there.

    Raises:
        UsageError: the training data are empty, or there is no teacher to distill from.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Tuning(model, train, validation, options, setting or Setting(), progress).run()


def assign_once(model: CompressedModel, constrain: Constrain, rules: Rules = PLAIN) -> CompressedModel:
    """The model with its zeros and codes decided at full strength, without training."""
    module = TrainableModule(model, rules)
    constraint = constrain(module)
    if constraint is None:
        return model
    constraint.settle()
    return module.freeze()


class _Tuning:
    def __init__(
        self,
        model: CompressedModel,
        train: Callable[[int], Batches],
        validation: Callable[[], Batches] | None,
        options: RecoverOptions,
        setting: Setting,
        progress: Progress | None,
    ) -> None:
        self.train, self.validation, self.options, self.progress = train, validation, options, progress
        self.start, self.checkpoint, self.inputs = model, setting.checkpoint, setting.inputs
        self.bfloat16 = bfloat16_pays() if options.precision == "auto" else options.precision == "bfloat16"
        self.steps = setting.steps or _count(train(0))
        norms = None
        if options.batchnorm:
            norms = moments(model.network, self._sample()) if setting.norms is None else setting.norms
        self.module = TrainableModule(model, setting.rules, self.bfloat16, norms)
        self.optimiser = Optimiser(self.module, options)
        self.constraint = setting.constrain(self.module)
        self.average = Average(self.module, options.average) if options.average > 0 else None
        self.teacher = self._teacher(setting.teacher)
        self.best, self.top = model, -1.0
        self.epoch = 0

    def _sample(self) -> Iterator[Tensor]:
        """Inputs that statistics of BatchNorm are taken of."""
        found = (x for x, _ in self.train(0)) if self.inputs is None else self.inputs()
        return (channels_last(x) for x in found)

    def _teacher(self, network: Network | None) -> Teacher | None:
        if self.options.distill == 0.0:
            return None
        if network is None:
            raise UsageError("recover.distill > 0 needs the float network", hint="set recover.distill = 0")
        return Teacher(network, self.bfloat16)

    def run(self) -> CompressedModel:
        if not self._resume() and self.constraint is None:
            self.top = self._measure(self.start)
        for epoch in range(self.epoch, self.options.epochs):
            self._epoch(epoch)
            ranks.insist_same("fine-tuned weights", list(self.module.parameters()))
            self._select((epoch + 1) / self.options.epochs)
            self.epoch = epoch + 1
            self._save()
        return self.best

    def _epoch(self, epoch: int) -> None:
        total = self.options.epochs * self.steps
        for step, (x, y) in enumerate(self.train(epoch), 1):
            done = epoch * self.steps + min(step, self.steps)
            self._step(x, y, (done - 1) / total, done / total)
            if self.progress is not None:
                self.progress("recover", done, total)

    def _step(self, x: Tensor, y: Tensor, before: float, after: float) -> None:
        module, options = self.module, self.options
        self.optimiser.set_rate(before)
        self.optimiser.torch.zero_grad()
        x = channels_last(x) if options.precision != "float32" else x
        with ranks.parted(x, y) as (x, y, share):
            hints = None if self.teacher is None else self.teacher(x)
            value = loss(_logits(module, x), y, hints, options.distill, options.temperature)
            (value if share == 1.0 else value * share).backward()  # type: ignore[no-untyped-call]
            ranks.add_up_gradients(module.parameters())
        for layer in module.layers():
            layer.balance_gradients()
        if self.constraint is not None:
            self.constraint.gradients()
        self.optimiser.step()
        if self.constraint is not None:
            self.constraint.step(after)
        if self.average is not None:
            self.average.step()

    def _select(self, done: float) -> None:
        if self.constraint is not None and not self.constraint.is_full(done):
            return
        frozen = self._frozen()
        reached = self._measure(frozen)
        if reached >= self.top:
            self.best, self.top = frozen, reached

    def _frozen(self) -> CompressedModel:
        """The integers as they are, of the averaged weights where there are such."""
        codes = [layer.assigned for layer in self.module.layers()]
        with self.average.in_force() if self.average is not None else nullcontext():
            self._follow_parameters()
            if self.constraint is not None and self.average is not None:
                self.constraint.assign()
            self.module.settle(self._sample())
            frozen = self.module.freeze()
        self._follow_parameters()
        for layer, assigned in zip(self.module.layers(), codes, strict=True):
            layer.assigned = assigned
        return frozen

    def _follow_parameters(self) -> None:
        for layer in self.module.layers():
            if layer.entries is not None:
                layer.find_zero()

    def _measure(self, model: CompressedModel) -> float:
        return 0.0 if self.validation is None else accuracy(FakeQuantModule(model), self.validation())[0]

    # -------------------------------------------------------------------------------------------- checkpoints
    def _save(self) -> None:
        if self.checkpoint is None:
            return
        tensors = under("module", {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())})
        tensors |= under("optimiser", optimiser_tensors(self.optimiser.torch))
        tensors |= under("best", model_tensors(self.best)) | {"random": torch.get_rng_state()}
        if self.constraint is not None:
            tensors |= under("constraint", self.constraint.state())
        if self.average is not None:
            tensors |= under("average", self.average.values)
        taken = 0 if self.average is None else self.average.taken
        self.checkpoint.save(tensors, {"epoch": self.epoch, "top": self.top, "averaged": taken})

    def _resume(self) -> bool:
        """Take up the state of a run that was stopped; False: there is none."""
        found = None if self.checkpoint is None else self.checkpoint.load()
        if found is None:
            return False
        tensors, head = found
        restore_parameters(self.module, below("module", tensors))
        restore_optimiser(self.optimiser.torch, below("optimiser", tensors))
        self._follow_parameters()
        if self.constraint is not None:
            self.constraint.restore(below("constraint", tensors))
        if self.average is not None:
            self.average.values, self.average.taken = below("average", tensors), head["averaged"]
        self.best, self.top, self.epoch = model_of(self.start, below("best", tensors)), head["top"], head["epoch"]
        torch.set_rng_state(tensors["random"])
        return True


def _count(batches: Batches) -> int:
    count = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
    if count == 0:
        raise UsageError("recover.epochs > 0 needs training data, got none", hint="set recover.epochs = 0")
    return count


def _logits(module: TrainableModule, x: Tensor) -> Tensor:
    """The class scores (N, classes), before a final softmax or sigmoid."""
    output = module.network.output
    name = output.inputs[0] if squashes(module.network) else output.name
    return module.values(x, [name])[name].flatten(1)
