"""A TIR function whose loop nests are tiled; what is no nest stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .nest import Nest, NoNestError, copied, divided, joined, kind, read, reading
from .nestcode import Constants, emit
from .nesttiles import Machine, cut


def tiled(function: Any, machine: Machine, constants: Constants) -> Any:
    """The function over the same buffers, each nest cut for the machine; constants it packed are further parameters.

    Args:
        function: a function of `Schedule`'s blocks, one behind the other.
        machine: for which sizes are chosen.
        constants: what may be packed.
    """
    from tvm import tirx
    from tvm.s_tir import SBlock, SBlockRealize

    root = function.body.block
    parts = [_read(s) for s in (root.body.seq if kind(root.body) == "SeqStmt" else [root.body])]
    if all(isinstance(p, Nest) for p in parts):
        parts = _joined(_without_copies(parts, root.alloc_buffers))
    body = list[Any]()
    for part in parts:
        body += emit(part, cut(part, machine), constants) if isinstance(part, Nest) else [part]
    used = _used(parts)
    kept = [b for b in root.alloc_buffers if used is None or any(b.same_as(u) for u in used)]
    block = SBlock([], [], [], "root", tirx.SeqStmt(body) if len(body) > 1 else body[0], None, kept)
    return tirx.PrimFunc(function.params, SBlockRealize([], True, block), function.ret_type, function.attrs)


def _read(stmt: Any) -> Any:
    try:
        return divided(read(stmt))
    except NoNestError:
        return stmt


def _used(parts: Sequence[Any]) -> list[Any] | None:
    """The buffers that the nests touch; None where a part is none."""
    if not all(isinstance(p, Nest) for p in parts):
        return None
    return [b for p in parts for b in (p.out, *(buffer for buffer, _ in p.accesses()))]


def _without_copies(parts: list[Nest], inner: Sequence[Any]) -> list[Nest]:
    """Readers of a copy, as the padding of a convolution without any, read what was copied."""
    for part in parts:
        source = copied(part)
        if source is not None and any(part.out.same_as(b) for b in inner):
            parts = [reading(p, part.out, source) for p in parts if not p.out.same_as(part.out)]
    return parts


def _joined(parts: list[Nest]) -> list[Nest]:
    """Sums whose only reader is a function of them become one nest, at the reader's place."""
    for first in [p for p in parts if p.sums]:
        readers = [p for p in parts if any(b.same_as(first.out) for b, _ in p.accesses())]
        if len(readers) == 1 and first in parts:
            try:
                whole = joined(first, readers[0])
            except NoNestError:
                continue
            parts = [whole if p is readers[0] else p for p in parts if p is not first]
    return parts
