"""The recipe's section [plan]: what the plan may choose from, what it must respect, and who decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xdeploy.errors import UsageError, choose_from
from xdeploy.formats import FORMATS
from xdeploy.ranking import ORDERS, SCOPES

RULES = ("ilp", "hawq", "memory-driven", "uniform", "greedy", "quantile")
DENSITY_BY = ("relevance", "magnitude", "lamp", "uniform", "row", "positive")
PLAN_ORDERS = tuple(x for x in ORDERS if x != "wanda")  # its scores come as relevance.method = "wanda"


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """[plan] What the plan may choose from and what it must respect."""

    formats: tuple[str, ...] = ("int8", "int4", "int2", "c4s8")
    flash: int | None = None  # bytes of weights, scales, biases and codebooks
    ram: int | None = None  # bytes of arena, on every target; channels go where streaming and formats are not enough
    max_drop: float = 1.0  # points of validation accuracy, one standard error included; without a flash budget
    fixed: Mapping[str, str] = field(default_factory=dict)  # layer -> weight format
    rule: str = "ilp"  # ilp | hawq | memory-driven | uniform | greedy | quantile
    coded: int | None = None  # bytes after entropy coding, by the zero-order entropy of each layer's codes
    bops: int | None = None  # MACs times weight bits times activation bits
    instructions: int | None = None  # of one inference, counted on the first emulated target
    instruction_table: str = ""  # JSON file {layer: {weight format: instructions}} to take instead of counting
    # share of all weights that are not zero in the end; several: each layer has one of them, as the budgets decide
    density: float | tuple[float, ...] | None = None
    density_by: str = "relevance"  # share of each layer: relevance | magnitude | lamp | uniform | row | positive
    least_density: float = 0.01  # share of its weights that every layer keeps
    zeros: str = "magnitude"  # which weights of a layer become zero: magnitude | relevance | negative-first | lamp
    zeros_per: str = "layer"  # what has its own share of zeros: layer | row, each output channel
    channels: float | None = None  # share of the channels (or MACs) that can go which is kept
    channels_of: str = "channels"  # what `channels` counts: channels | macs
    # ranked over the whole network by shares of the layer's sum: network | of its L2 norm: network-l2 | layer: every
    # layer keeps the same share (which was best without fine-tuning on ResNet-20)
    channels_by: str = "network"
    least_channels: float = 0.1  # share of its channels that every layer keeps, one at least
    whole: tuple[str, ...] = ()  # layers that keep all their channels
    rounds: int = 1  # in which channels go; between them the rest is scored anew

    def __post_init__(self) -> None:
        _check_names(self)
        _check_ranges(self)

    @property
    def densities(self) -> tuple[float, ...]:
        """The candidates for the density of the whole network, rising; empty: no weights become zero on purpose."""
        if self.density is None:
            return (1.0,) if self.density_by == "positive" else ()
        return tuple(sorted(self.density)) if isinstance(self.density, tuple) else (self.density,)


def _check_names(o: PlanOptions) -> None:
    for name in (*o.formats, *o.fixed.values()):
        if name not in FORMATS:
            raise choose_from("weight format in plan", name, FORMATS)
    for key, value, allowed in (
        ("rule", o.rule, RULES), ("density_by", o.density_by, DENSITY_BY), ("zeros", o.zeros, PLAN_ORDERS),
        ("zeros_per", o.zeros_per, SCOPES), ("channels_of", o.channels_of, ("channels", "macs")),
        ("channels_by", o.channels_by, ("network", "network-l2", "layer")),
    ):  # fmt: skip
        if value not in allowed:
            raise choose_from(f"value of plan.{key}", value, allowed)


def _check_ranges(o: PlanOptions) -> None:
    for key in ("least_density", "least_channels"):
        if not 0.0 <= getattr(o, key) <= 1.0:
            raise UsageError(f"recipe key 'plan.{key}' must be in 0..1, got {getattr(o, key)}")
    for value in (o.channels,) if o.channels is not None else ():
        if not 0.0 < value <= 1.0:
            raise UsageError(f"recipe key 'plan.channels' must be above 0 and at most 1, got {value}")
    for value in o.densities:
        if not 0.0 < value <= 1.0:
            raise UsageError(f"recipe key 'plan.density' must be above 0 and at most 1, got {value}")
    if o.density is not None and o.densities == ():
        raise UsageError("recipe key 'plan.density' is an empty list", hint="give a share such as 0.3, or leave it out")
    if len(set(o.densities)) < len(o.densities):
        raise UsageError(f"recipe key 'plan.density' names a share twice: {', '.join(map(str, o.densities))}")
    if not 1 <= o.rounds <= 1000:
        raise UsageError(f"recipe key 'plan.rounds' must be in 1..1000, got {o.rounds}")
    for key in ("flash", "ram", "coded", "bops", "instructions"):
        value = getattr(o, key)
        if value is not None and value < 0:
            raise UsageError(f"recipe key 'plan.{key}' must not be negative, got {value}")
