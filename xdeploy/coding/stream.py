"""One range coder for the whole file: what is coded in order is decoded in the same order.

Probabilities are integers, k / 2^16 for a decision and counts for a table, so that encoder and decoder agree on every
machine: k / 2^16 is exact in float64, and the library turns it into its own 24-bit fixed point with single additions
and multiplications of float64, which IEEE 754 defines to the last bit. Nothing here takes a logarithm of them, but the
encoder's estimate of lengths, which only chooses between modes that the file names.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import UsageError
from xdeploy.formats import Int64

ONE = 1 << 16  # probability 1
_PIECE = 1 << 20  # decisions handed to the library at once

Bits = NDArray[np.uint8]


class Coder(Protocol):
    """What models code with: given symbols are encoded; None asks for them back. Both return the symbols."""

    def bits(self, p: Int64, given: NDArray[Any] | None) -> Bits:
        """Binary decisions (n,) that are 1 with probability p / 2^16, p in 1..2^16 - 1."""

    def table(self, counts: Int64, n: int, given: NDArray[Any] | None) -> Int64:
        """N symbols in 0..len(counts) - 1 with probabilities proportional to `counts` (> 0)."""


def cost(p: Int64, bits: Bits) -> float:
    """Ideal length in bits of decisions `bits` under the probabilities p / 2^16."""
    return float(16.0 * len(p) - np.log2(np.where(bits, p, ONE - p)).sum())


def table_cost(counts: Int64, symbols: NDArray[Any]) -> float:
    """Ideal length in bits of `symbols` under a table."""
    seen = np.bincount(symbols, minlength=len(counts))
    return float(-(seen * np.log2(counts / counts.sum())).sum())


class Encoder:
    """Keeps what is to be coded until `finish`, so that a trial can be taken back."""

    def __init__(self) -> None:
        self.length = 0.0  # ideal bits so far
        self._parts: list[tuple[Any, Any]] = []  # (decisions, probabilities) or (symbols, table)

    def bits(self, p: Int64, given: NDArray[Any] | None) -> Bits:
        """Encode decisions."""
        assert given is not None
        found = given.astype(np.uint8)
        self.length += cost(p, found)
        self._parts.append((found, p.astype(np.uint16)))
        return found

    def table(self, counts: Int64, n: int, given: NDArray[Any] | None) -> Int64:
        """Encode symbols."""
        assert given is not None
        assert len(given) == n
        self.length += table_cost(counts, given)
        self._parts.append((given.astype(np.int32), counts.astype(np.int64)))
        return given.astype(np.int64)

    def mark(self) -> tuple[int, float]:
        """Where the encoder stands, for `rewind`."""
        return len(self._parts), self.length

    def rewind(self, mark: tuple[int, float]) -> None:
        """Take back all that was coded since the mark."""
        del self._parts[mark[0] :]
        self.length = mark[1]

    def finish(self) -> bytes:
        """The coded bytes: 32-bit words, little-endian."""
        import constriction

        encoder = constriction.stream.queue.RangeEncoder()
        binary = constriction.stream.model.Bernoulli(perfect=False)
        waiting: list[tuple[Bits, NDArray[np.uint16]]] = []

        def flush() -> None:
            if waiting:
                bits, p = (np.concatenate(x) for x in zip(*waiting, strict=True))
                encoder.encode(bits.astype(np.int32), binary, p / ONE)
                waiting.clear()

        for symbols, model in self._parts:
            if model.dtype == np.uint16:
                waiting.append((symbols, model))
                if sum(map(len, (b for b, _ in waiting[-1:]))) > _PIECE or len(waiting) > 4096:
                    flush()
            else:
                flush()
                encoder.encode(symbols, _categorical(model))
        flush()
        return bytes(np.asarray(encoder.get_compressed()).astype("<u4").tobytes())


class Decoder:
    """Reads what an Encoder wrote."""

    def __init__(self, data: bytes) -> None:
        """Begin at the start of the coded bytes.

        Raises:
            UsageError: their number is no multiple of 4.
        """
        import constriction

        if len(data) % 4:
            raise damaged("the coded part has no whole number of words")
        self._decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
        self._binary = constriction.stream.model.Bernoulli(perfect=False)
        self._left = 4096 * (8 * len(data) + 4096)  # an Encoder needs 2^-11 bits for a decision at least

    def bits(self, p: Int64, given: NDArray[Any] | None) -> Bits:
        """Decode len(p) decisions."""
        if not len(p):
            return np.zeros(0, np.uint8)
        self._spend(len(p))
        try:
            return np.asarray(self._decoder.decode(self._binary, p / ONE), np.uint8)
        except (AssertionError, ValueError) as error:
            raise damaged(str(error)) from None

    def table(self, counts: Int64, n: int, given: NDArray[Any] | None) -> Int64:
        """Decode n symbols."""
        self._spend(n)
        try:
            return np.asarray(self._decoder.decode(_categorical(counts), n), np.int64)
        except (AssertionError, ValueError) as error:
            raise damaged(str(error)) from None

    def finish(self) -> None:
        """Check that the end was reached.

        Raises:
            UsageError: something follows.
        """
        if not self._decoder.maybe_exhausted():
            raise damaged("the coded part goes on after the last layer")

    def _spend(self, n: int) -> None:
        self._left -= n
        if self._left < 0:
            raise damaged("it claims more symbols than its bytes can hold")


def damaged(why: str) -> UsageError:
    """The error for a file that is not what `pack` wrote."""
    return UsageError(f"the packed model is damaged: {why}", hint="pack it again, or copy it again")


def _categorical(counts: Int64) -> Any:
    import constriction

    return constriction.stream.model.Categorical(counts.astype(np.float64), perfect=False)
