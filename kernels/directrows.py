"""How rows of direct convolution are registered, and those whose weights are expanded to int8 when they are packed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from xdeploy.formats import FORMATS, WeightFormat
from xdeploy.kernel import KERNELS, Kernel

from . import a64, x86, x86vnni
from .directconv import DirectRow

PRODUCTS = (*a64.PRODUCTS, *x86.PRODUCTS, *x86vnni.PRODUCTS)


def kernel_of(row: DirectRow, form: str, stored: int, notes: str, weights_of: str = "") -> Kernel:
    """The registered row.

    Args:
        row: what it does.
        form: of its name.
        stored: bits that a weight takes.
        notes: for the support matrix.
        weights_of: the row whose weights it reads, if it is another's.
    """
    fmt, isa = row.format, row.product.isa
    tags = ({"weights_of": weights_of} if weights_of else {}) | growth(fmt, stored)
    return Kernel(
        f"{row.op}_s8_{fmt.short}_{form}__{isa}", row.op, fmt.short, isa, row.applies, row.cost, row.workspace,
        row.pack, row.emit, in_place=row.in_place, tags=tags, notes=notes,
    )  # fmt: skip


def growth(fmt: WeightFormat, stored: int) -> dict[str, str]:
    """The tag of rows whose weights take so many bits each."""
    return {} if fmt.bits == stored else {"extra_flash": f"{stored}/{fmt.bits}"}


def expanded(row: DirectRow) -> Kernel:
    """The registered row, whose weights are expanded to int8 when they are packed."""
    return kernel_of(row, "direct", 8, "" if row.format.bits == 8 else "weights expanded to int8")


def register(kernels: Iterable[Kernel]) -> None:
    """Add rows by their names."""
    for kernel in kernels:
        KERNELS.add(kernel.name, kernel)


def _rows() -> Iterator[Kernel]:
    for product in PRODUCTS:
        for op in ("conv2d", "linear"):
            # Armv8.0 has rows that look 4-bit weights up while they multiply
            for fmt in FORMATS.values() if product.isa != "neon" else (FORMATS["int8"],):
                yield expanded(DirectRow(op, product, fmt))


register(_rows())
