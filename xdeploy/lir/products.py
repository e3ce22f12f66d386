"""`mul`: the product of two tensors of codes, or of an image and a gate of one value per channel."""

from __future__ import annotations

import numpy as np

from xdeploy.errors import UnsupportedError
from xdeploy.formats import INT32_LIMIT, Int8
from xdeploy.lir.graph import Node

Shape = tuple[int, ...]


def mul_shape(node: Node, shapes: list[Shape]) -> Shape:
    """Shape of the product: the first operand's.

    Raises:
        ValueError: the second has another shape and is no gate (1, 1, C) of an image (H, W, C).
    """
    x, gate = shapes
    if gate != x and not (len(x) == 3 and gate == (1, 1, x[2])):
        raise ValueError(f"mul takes {x} or a gate of one value per channel, got {gate}")
    return x


def run_mul(node: Node, xs: list[Int8]) -> Int8:
    """Product of the centred codes, requantised by the one rule; a gate of one value per channel comes second."""
    a = node.attrs
    product = (xs[0].astype(np.int64) - a["a_zero"]) * (xs[1].astype(np.int64) - a["b_zero"])
    return node.requant.apply(product)


def prove_product(node: Node) -> None:
    """Prove that the product of two centred codes stays inside int32 after the shift.

    Raises:
        ValueError: the multiplier breaks the rule (one, even, below 2^31). UnsupportedError: it could overflow.
    """
    multiplier, shift = node.consts["multiplier"], node.attrs["shift"]
    if multiplier.size != 1 or int(multiplier[0]) % 2 or not 0 <= int(multiplier[0]) < INT32_LIMIT:
        raise ValueError(f"{node.name}: mul wants one even multiplier in 0..2^31-2, got {multiplier.tolist()}")
    if shift < 0 or (255 * 255) << shift >= INT32_LIMIT:
        raise UnsupportedError(
            f"{node.name}: the product of two codes could overflow int32 (shifted left by {shift}, 15 is the most)",
            hint="the output scale is far smaller than the product of the input scales: quantise the output coarser",
        )
