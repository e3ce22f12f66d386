"""What the tiles for cores without DSP instructions have in common: their facts and their stack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from .armdecode import Form

PUSHED = 13 * 4  # bytes of saved registers, the first four arguments among them; stack arguments follow
# stack arguments of a tile function after x, w, bm, y in r0-r3, in order
STACK_ARGS = (
    "turns_end", "entry", "channels", "stride", "valid", "out_zero", "low", "high",
    "table", "residual", "add_a", "add_b", "add_const", "add_shift", "add_low", "add_high", "skip_x", "skip_w", "sums",
)  # fmt: skip
_POINTERS = ("turns_end", "table", "residual", "sums")
TYPES = ", ".join(["ptr"] * 4 + ["ptr" if name in _POINTERS else "i32" for name in STACK_ARGS])


@dataclass(frozen=True, slots=True)
class ThumbTile(ABC):
    """P pixels x all output channels, two at a time; `bits` of a weight.

    `form` is "lookup" (codes are indices into the codebook), "fields" (codes of less than a byte) or "wide" (bytes).
    """

    pixels: int
    bits: int
    form: Form
    shift: int  # of the accumulator before the multiplication
    bounded: bool  # low..high is not the int8 range
    residual: bool
    add_bounded: bool

    def _slot(self, name: str) -> str:
        return f"[sp, #{PUSHED + 4 * STACK_ARGS.index(name)}]"

    @property
    @abstractmethod
    def unroll(self) -> int:
        """K per turn of the multiply loop; the first turn is entered in the middle."""

    @abstractmethod
    def step(self, k: int) -> list[str]:
        """One k of all pixels and two channels; all instructions are of one size, that of `entry`."""

    @abstractmethod
    def entry(self, row: int) -> int:
        """Byte offset (and Thumb bit) of the step where the first turn begins, so that the turns sum up to `row`."""

    @abstractmethod
    def function(self) -> tuple[str, str]:
        """LLVM IR and name; parameters x, w, bm, y and STACK_ARGS."""
