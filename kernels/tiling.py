"""How a convolution is cut for vectors: the contiguous runs of a window, and the tile, by counting instructions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import inf

from .conv import Shape
from .imagecopy import row_codes
from .product import Product

ROLLED = 4  # chunks of a run: more become a loop
_ROOMY = 16  # accumulators beside which two chunks may be loaded
_GROUPS = (1, 2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True)
class Runs:
    """The contiguous runs of a window: `count` rows of `columns` runs of `codes` codes."""

    rows: int
    columns: int
    codes: int
    row_step: int  # codes
    column_step: int

    @staticmethod
    def of(shape: Shape, copied: bool) -> Runs:
        """The taps of a row are one run unless they are dilated."""
        step = shape.dilation[0] * row_codes(shape, copied)
        if shape.dilation[1] > 1 and shape.kernel[1] > 1:
            return Runs(shape.kernel[0], shape.kernel[1], shape.channels, step, shape.dilation[1] * shape.channels)
        return Runs(shape.kernel[0], 1, shape.kernel[1] * shape.channels, step, 0)

    @property
    def count(self) -> int:
        """Runs of a window."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Way:
    """How tiles go over an image: along each of its `rows`, or `folded`, each over some whole rows of it."""

    rows: int
    width: int  # pixels that a line of tiles covers
    folded: bool = False
    each: int = 1  # pixels of which a tile takes a multiple


def ways(product: Product, shape: Shape) -> list[Way]:
    """All ways of a layer."""
    if shape.pointwise:
        return [Way(1, shape.pixels)]
    plain = Way(shape.out_height, shape.out_width)
    folds = product.folds and shape.out_height > 1
    return [plain, Way(1, shape.pixels, True, shape.out_width)] if folds else [plain]


@dataclass(frozen=True, slots=True)
class Tiling:
    """`blocks` of `groups` groups of channels, then one of `rest` groups; (pixels, count) of tiles for either."""

    groups: int
    blocks: int
    rest: int
    pixels: tuple[tuple[int, int], ...]
    rest_pixels: tuple[tuple[int, int], ...]
    cost: float
    way: Way


def parts_of(product: Product, codes: int) -> list[int]:
    """Lengths of the pieces of a run that are multiplied at a time."""
    whole, rest = divmod(codes, product.chunk)
    return [product.chunk] * whole + ([product.rounded(rest)] if rest else [])


def together(product: Product, chunks: int, pixels: int, groups: int) -> int:
    """Chunks of one turn of the loop over a long run: as many as leave none over, but one where registers are few."""
    most = product.unrolled if product.accumulators(pixels, groups) <= _ROOMY else 1
    return next((n for n in range(most, 1, -1) if chunks % n == 0), min(2, most))


def _window_cost(product: Product, runs: Runs, pixels: int, groups: int) -> float:
    parts = parts_of(product, runs.codes)
    turns = len(parts) / together(product, len(parts), pixels, groups) if len(parts) > ROLLED else 0.0
    overhead = 4.0 + 4.0 * turns
    return runs.count * (sum(product.cost(pixels, groups, n) for n in parts) + overhead)


def along(
    product: Product, runs: Runs, way: Way, groups: int, output: tuple[int, float]
) -> tuple[tuple[tuple[int, int], ...], float]:
    """The cheapest tiles of a line, and their instructions; none for infinitely many where no tile fits."""
    free, after = output[0], output[1] * groups

    def cost(pixels: int) -> float:
        outputs = pixels * groups * (1.0 + product.vectors * 0.5 + product.sum_cost()) + pixels * after
        return _window_cost(product, runs, pixels, groups) + outputs + 8

    best: tuple[tuple[tuple[int, int], ...], float] = ((), inf)
    for pixels in range(way.each, min(way.width, product.most_pixels) + 1, way.each):
        if product.fits(pixels, groups, free) or pixels == 1:
            whole, rest = divmod(way.width, pixels)
            tiles = ((pixels, whole),) + (((rest, 1),) if rest else ())
            total = sum(cost(p) * n for p, n in tiles)
            if total < best[1]:
                best = (tiles, total)
    return best


@cache
def tiling_of(product: Product, shape: Shape, runs: Runs, output: tuple[int, float]) -> Tiling:
    """The cheapest tiling of a layer, for an output stage that leaves so many registers and costs so much a group."""
    total = -(-shape.out_channels // product.lanes)
    found: list[Tiling] = []
    for groups in (q for q in _GROUPS if q <= total and product.fits(1, q, output[0])):
        blocks, rest = divmod(total, groups)
        if rest and not product.fits(1, rest, output[0]):
            continue
        if not rest and shape.out_channels % product.lanes:  # only the last block is not full
            blocks, rest = blocks - 1, groups
        for way in ways(product, shape):
            tiles, cost = along(product, runs, way, groups, output)
            rest_tiles, more = along(product, runs, way, rest, output) if rest else ((), 0.0)
            all_of = (cost * blocks if blocks else 0.0) + more
            found.append(Tiling(groups, blocks, rest, tiles, rest_tiles, way.rows * (all_of + 6), way))
    return min(found, key=lambda t: t.cost)
