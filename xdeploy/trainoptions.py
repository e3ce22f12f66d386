"""The recipe's sections [recover] and [ecq]: how a compressed model is fine-tuned, and how its codes are assigned."""

from __future__ import annotations

from dataclasses import dataclass

from xdeploy.errors import UsageError, choose_from


@dataclass(frozen=True, slots=True)
class RecoverOptions:
    """[recover] Fine-tuning of the compressed model; 0 epochs: none."""

    epochs: int = 0
    lr: float = 0.001
    schedule: str = "cosine"  # cosine | constant
    batch: int = 128
    momentum: float = 0.9
    optimiser: str = "sgd"  # sgd (with momentum) | adam
    decay: float = 0.0  # share of the weights that is lost per step, in units of lr (its schedule included)
    average: float = 0.0  # moving average of all that learns, which is what is kept: share of the past; 0: none
    distill: float = 0.0  # share of the loss that is the divergence from the float model's outputs, 0..1
    temperature: float = 4.0  # of distill, what softens both outputs
    # of convolutions and products: auto (bfloat16 on CPUs with AMX, channels last) | float32 | bfloat16
    precision: str = "auto"
    # behind each hidden layer while training, folded into its scales and bias after; not set: where weights become zero
    batchnorm: bool | None = None
    augment: bool = True  # random crop (pad 4) and flip for images of 16 pixels and more

    def __post_init__(self) -> None:
        _one_of("recover.schedule", self.schedule, ("cosine", "constant"))
        _one_of("recover.optimiser", self.optimiser, ("sgd", "adam"))
        _one_of("recover.precision", self.precision, ("auto", "float32", "bfloat16"))
        _within("recover.epochs", self.epochs, 0, 10**6)
        _within("recover.batch", self.batch, 1, 10**6)
        _within("recover.lr", self.lr, 0.0, 1000.0)
        _within("recover.momentum", self.momentum, 0.0, 0.9999)
        _within("recover.decay", self.decay, 0.0, 1000.0)
        _within("recover.average", self.average, 0.0, 0.99999)
        _within("recover.distill", self.distill, 0.0, 1.0)
        _within("recover.temperature", self.temperature, 0.01, 1000.0)


@dataclass(frozen=True, slots=True)
class EcqOptions:
    """[ecq] Entropy-constrained assignment while fine-tuning, in layers whose plan line has a density."""

    method: str = "off"  # off | ecq: entropy alone | ecqx: relevance has a say in what becomes zero
    # how much bits count between levels that are not zero, 0..1: 1 as much as between them and zero (all of lambda)
    entropy: float = 0.1
    rho: float = 2.0  # of ecqx: factor of zero's cost for the most relevant weight
    tolerance: float = 0.1  # of ecqx: share of a layer's weights that relevance may bring back from zero
    memory: float = 0.9  # of ecqx: share of the relevance so far in its moving average
    refresh: int = 50  # of ecqx: steps between two scorings
    samples: int = 64  # of ecqx: training samples in each scoring
    # share of the training over which the zeros grow to the plan's; of pruning without ecq too
    ramp: float = 0.5
    gradient: str = "straight"  # of the weights behind the codes: straight | scaled: times |level| where that is not 0

    def __post_init__(self) -> None:
        _one_of("ecq.method", self.method, ("off", "ecq", "ecqx"))
        _one_of("ecq.gradient", self.gradient, ("straight", "scaled"))
        _within("ecq.entropy", self.entropy, 0.0, 1.0)
        _within("ecq.rho", self.rho, 1.0, 1000.0)
        _within("ecq.tolerance", self.tolerance, 0.0, 1.0)
        _within("ecq.memory", self.memory, 0.0, 0.9999)
        _within("ecq.refresh", self.refresh, 1, 10**9)
        _within("ecq.samples", self.samples, 1, 10**9)
        _within("ecq.ramp", self.ramp, 0.0, 1.0)


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise choose_from(f"value of {key}", value, allowed)


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is not either
        raise UsageError(f"recipe key {key!r} must be in {low}..{high}, got {value}")
