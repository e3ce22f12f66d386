"""Zero-heavy weights as streams: only what is not zero is stored, with the distance to the entry before it.

A row of K values becomes entries (gap, value): gap is the distance in k from the entry before (of the first: from 0).
A distance beyond the largest gap is bridged by entries of value 0; a row ends with entries (0, 0) up to a whole word.
Two codings: `gap_bits` = 8 takes two bytes per entry (gap, then the int8 value, of whatever format); below 8 an entry
is one byte, the gap in its lowest bits and the value as a signed integer of 8 - gap_bits bits above.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Int8, UInt8, WeightFormat
from xdeploy.lir.graph import Node

from .snippets import channel_consts

WORD = 4  # bytes; entries of a row fill words
MOST = (1 << 16) - 1  # words of a row, counted in uint16


@dataclass(frozen=True, slots=True)
class Stream:
    """Entries of all rows, one row after the other, and how many words each row has."""

    data: UInt8
    counts: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Bytes in flash: entries, and two per row for its count."""
        return self.data.nbytes + 2 * len(self.counts)


def entries_per_word(gap_bits: int) -> int:
    """Entries in four bytes."""
    return 2 if gap_bits == 8 else 4


def gaps_and_values(
    values: Int8, gap_bits: int, whole: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Gaps, values, and entries per row (a multiple of `whole`) of values (rows, K)."""
    row, k = np.nonzero(values)
    largest = 2**gap_bits - 1
    before = np.where(np.diff(row, prepend=-1) != 0, 0, np.concatenate([[0], k[:-1]])) if len(k) else k
    distance = k - before
    bridges = np.maximum(distance - 1, 0) // largest
    used = np.bincount(row, weights=bridges + 1, minlength=len(values)).astype(np.int64)
    counts = -(-used // whole) * whole
    starts = np.cumsum(counts) - counts
    # place of a value: where its row starts, and the entries of the row up to it
    upto = np.cumsum(bridges + 1)
    place = starts[row] + upto - 1 - (np.cumsum(used) - used)[row]
    gaps, found = np.zeros((2, int(counts.sum())), np.int64)
    gaps[place] = distance - bridges * largest
    found[place] = values[row, k]
    bridged = np.cumsum(bridges) - bridges
    gaps[np.repeat(place - bridges - bridged, bridges) + np.arange(bridges.sum())] = largest
    return gaps, found, counts


def _pack(gaps: NDArray[np.int64], values: NDArray[np.int64], gap_bits: int) -> UInt8:
    if gap_bits == 8:
        return np.stack([gaps, values & 255], axis=1).reshape(-1).astype(np.uint8)
    return (((values << gap_bits) | gaps) & 255).astype(np.uint8)


@lru_cache(maxsize=16)
def _encoded(codes: bytes, rows: int, gap_bits: int) -> Stream:
    values = np.frombuffer(codes, np.int8).reshape(rows, -1)
    gaps, found, counts = gaps_and_values(values, gap_bits, entries_per_word(gap_bits))
    return Stream(_pack(gaps, found, gap_bits), counts // entries_per_word(gap_bits))


def encode(values: Int8, gap_bits: int) -> Stream:
    """Encode rows (rows, ...); all dimensions after the first make up k."""
    return _encoded(np.ascontiguousarray(values).tobytes(), len(values), gap_bits)


def decode(stream: Stream, gap_bits: int, row: int) -> Int8:
    """Invert `encode`: int8 values (rows, row)."""
    values = np.zeros((len(stream.counts), row), np.int8)
    step = WORD * (stream.counts.cumsum() - stream.counts)
    for r, (start, count) in enumerate(zip(step, stream.counts, strict=True)):
        data = stream.data[start : start + WORD * count]
        if gap_bits == 8:
            gaps, found = data[0::2].astype(np.int64), data[1::2].view(np.int8)
        else:
            gaps, found = (data & (2**gap_bits - 1)).astype(np.int64), data.view(np.int8) >> gap_bits
        np.add.at(values[r], gaps.cumsum(), found)
    return values


def plain(node: Node, fmt: WeightFormat) -> bool:
    """Whether a node has weights of this format and no groups."""
    return node.format == fmt and node.attrs.get("groups", 1) == 1


def dense_bytes(node: Node) -> int:
    """Bytes of the node's packed weights with their codebook, nothing left out."""
    fmt, codes = node.format, node.consts["codes"]
    assert fmt is not None
    return fmt.packed_bytes(len(codes), codes[0].size)


def smaller(node: Node, gap_bits: int) -> bool:
    """Whether the stream is smaller than the packed weights, and its rows can be counted."""
    values = node.values
    per_entry = 2 if gap_bits == 8 else 1
    if np.count_nonzero(values) * per_entry + 2 * len(values) >= dense_bytes(node):  # spares the encoding
        return False
    stream = encode(values, gap_bits)
    return stream.nbytes < dense_bytes(node) and int(stream.counts.max(initial=0)) <= MOST


def gap_widths(fmt: WeightFormat) -> tuple[int, ...]:
    """Codings a format can take: two bytes per entry, and one where gaps of 3 bits or more fit beside the value."""
    return (8,) if fmt.codebook or fmt.bits > 5 else (8, 8 - fmt.bits)


def sparse_consts(node: Node, gap_bits: int, scale: int = 0) -> Mapping[str, NDArray[Any]]:
    """Stream, words per row, and (bias, multiplier) per row; the bias 2^scale times too large."""
    stream, consts = encode(node.values, gap_bits), channel_consts(node)
    table = np.stack([consts["bias"] << scale, consts["multiplier"]], axis=1)
    # a stream without entries is never read, but no array is empty
    data = stream.data if stream.data.size else np.zeros(WORD, np.uint8)
    return {"weights": data, "counts": stream.counts.astype(np.uint16), "bias_multiplier": table}
