"""Loop nests of TIR blocks as plain data: loops, one store, and for a sum its start and its step.

A block of `Schedule` that is not of this form (several stores, conditions on loops, sums of another type than float32)
is no nest, and stays as TVM made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

_BINARY = frozenset({
    "Add", "Sub", "Mul", "Div", "FloorDiv", "FloorMod", "Mod", "Max", "Min", "EQ", "NE", "LT", "LE", "GT", "GE", "And",
    "Or", "LShift", "RShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor",
})  # fmt: skip  # the node types with `a` and `b`


class NoNestError(Exception):
    """The block is not of the form above."""


@dataclass(frozen=True, slots=True)
class Loop:
    """An iterator from 0 to below `extent`."""

    var: Any
    extent: int


@dataclass(frozen=True, slots=True)
class Nest:
    """For every index of `spatial`: out[indices] = finish, where `running` in it is the sum over `sums`.

    A sum begins at `start`, and `step` gives the next value of `running`. Without loops in `sums` there is no sum.
    """

    spatial: tuple[Loop, ...]
    sums: tuple[Loop, ...]
    out: Any
    indices: tuple[Any, ...]
    finish: Any
    running: Any = None
    start: Any = None
    step: Any = None

    def accesses(self) -> list[tuple[Any, Sequence[Any]]]:
        """Buffers and indices of all that is read."""
        exprs = (self.finish,) if self.step is None else (self.step, self.finish)
        return [(e.source, e.indices) for x in exprs for e in walk(x) if kind(e) == "TensorLoad"]


def kind(node: Any) -> str:
    """The type's name."""
    return type(node).__name__


def walk(expr: Any) -> Iterator[Any]:
    """An expression and all below it."""
    yield expr
    for child in _children(expr):
        yield from walk(child)


def _children(e: Any) -> Sequence[Any]:
    name = kind(e)
    if name in _BINARY:
        return (e.a, e.b)
    if name == "TensorLoad":
        return tuple(e.indices)
    if name == "Call":
        return tuple(e.args)
    if name == "Select":
        return (e.condition, e.true_value, e.false_value)
    if name == "Cast":
        return (e.value,)
    if name == "Not":
        return (e.a,)
    if name in ("Var", "IntImm", "FloatImm", "StringImm"):
        return ()
    raise NoNestError(f"an expression has {name}")


def rebuild(expr: Any, change: Callable[[Any], Any]) -> Any:
    """The expression with `change(node)` in the place of every node for which it is not None, outer ones first."""
    from tvm import tirx

    changed = change(expr)
    if changed is not None:
        return changed
    children = _children(expr)
    made = [rebuild(c, change) for c in children]
    if all(a.same_as(b) for a, b in zip(children, made, strict=True)):
        return expr
    name = kind(expr)
    if name == "TensorLoad":
        return tirx.BufferLoad(expr.source, made)
    if name == "Call":
        return type(expr)(expr.op, made, expr.attrs, expr.ty_args, ret_ty=expr.ty)
    if name == "Cast":
        return type(expr)(expr.ty, *made)
    return type(expr)(*made)


def with_values(expr: Any, values: Mapping[Any, Any]) -> Any:
    """The expression with variables replaced."""
    return rebuild(expr, lambda e: values.get(e) if kind(e) == "Var" else None)


# -------------------------------------------------------------------------------------------------------- reading
def read(stmt: Any) -> Nest:
    """The nest of loops around one block.

    Raises:
        NoNestError: it has another form.
    """
    extents, variables = list[int](), list[Any]()
    while kind(stmt) == "For":
        _need(int(stmt.min) == 0 and int(stmt.kind) == 0 and stmt.thread_binding is None, "a loop with a kind")
        extents.append(int(stmt.extent))
        variables.append(stmt.loop_var)
        stmt = stmt.body
    _need(kind(stmt) == "SBlockRealize" and kind(stmt.predicate) == "IntImm", "a condition on a block")
    block, given = stmt.block, stmt.iter_values
    _need(not block.alloc_buffers and not block.match_buffers and kind(block.body) == "BufferStore", "several stores")
    _need(len(given) == len(variables), "loops that are not the iterators")
    extent = dict(zip(variables, extents, strict=True))
    spatial, sums = list[Loop](), list[Loop]()
    for iterator, value in zip(block.iter_vars, given, strict=True):
        _need(value in extent and int(iterator.iter_type) in (0, 2), "loops that are not the iterators")
        (sums if iterator.iter_type else spatial).append(Loop(iterator.var, extent[value]))
    store = block.body
    nest = Nest(tuple(spatial), tuple(sums), store.buffer, tuple(store.indices), store.value)
    if sums:
        _need(str(store.buffer.dtype) == "float32", "a sum of another type")
        _need(block.init is not None and kind(block.init) == "BufferStore", "a sum without a start")
        nest = _sum(nest, block.init)
    else:
        _need(all(not e.source.same_as(store.buffer) for e in walk(store.value) if kind(e) == "TensorLoad"), "a scan")
    return _simple(nest)


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise NoNestError(otherwise)


def _sum(nest: Nest, init: Any) -> Nest:
    """The nest with what its store adds to as `running`."""
    from tvm import tirx

    running = tirx.Var("running", "float32")
    step = rebuild(nest.finish, lambda e: running if _reads(e, nest.out) and _same(e.indices, nest.indices) else None)
    _need(not any(_reads(e, nest.out) for e in walk(step)), "a sum that reads other sums")
    _need(_same(init.indices, nest.indices), "a start elsewhere")
    return replace(nest, finish=running, running=running, start=init.value, step=step)


def _reads(e: Any, buffer: Any) -> bool:
    return kind(e) == "TensorLoad" and bool(e.source.same_as(buffer))


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    import tvm_ffi

    return len(a) == len(b) and all(tvm_ffi.structural_equal(x, y) for x, y in zip(a, b, strict=True))


def _simple(nest: Nest) -> Nest:
    """The nest without loops of one turn, its indices simplified."""
    from tvm import tirx

    keep = tuple(x for x in nest.spatial if x.extent > 1)
    zero = {x.var: tirx.IntImm(str(x.var.ty.dtype), 0) for x in (*nest.spatial, *nest.sums) if x.extent == 1}
    sums = tuple(x for x in nest.sums if x.extent > 1)
    simplify = simplifier((*keep, *sums))

    def changed(e: Any) -> Any:
        if kind(e) == "TensorLoad":
            return tirx.BufferLoad(e.source, [simplify(with_values(i, zero)) for i in e.indices])
        return zero.get(e) if kind(e) == "Var" else None

    return replace(
        nest, spatial=keep, sums=sums, indices=tuple(simplify(with_values(i, zero)) for i in nest.indices),
        finish=rebuild(nest.finish, changed), step=None if nest.step is None else rebuild(nest.step, changed),
    )  # fmt: skip


def simplifier(loops: Sequence[Loop]) -> Callable[[Any], Any]:
    """What simplifies an index, told the ranges of the loops."""
    import tvm
    from tvm import sym, tirx

    analyzer = sym.Analyzer()
    for loop in loops:
        dtype = str(loop.var.ty.dtype)
        analyzer.bind(loop.var, tvm.ir.Range(tirx.IntImm(dtype, 0), tirx.IntImm(dtype, loop.extent)))
    simplify: Callable[[Any], Any] = analyzer.simplify
    return simplify


# -------------------------------------------------------------------------------------------------------- changing
def copied(nest: Nest) -> Any:
    """The buffer that a nest copies element by element, None if it does something else."""
    same = kind(nest.finish) == "TensorLoad" and _same(nest.finish.indices, nest.indices)
    source = nest.finish.source if same else None
    return source if source is not None and [int(n) for n in source.shape] == [int(n) for n in nest.out.shape] else None


def reading(nest: Nest, old: Any, new: Any) -> Nest:
    """The nest with another buffer of the same shape in the place of one that it reads."""
    from tvm import tirx

    def change(e: Any) -> Any:
        return tirx.BufferLoad(new, e.indices) if _reads(e, old) else None

    step = None if nest.step is None else rebuild(nest.step, change)
    return replace(nest, finish=rebuild(nest.finish, change), step=step)


def divided(nest: Nest) -> Nest:
    """Loops whose variable is divided by one number become two loops: groups of channels, rows of a flat index."""
    from tvm import tirx

    for loop in (*nest.spatial, *nest.sums):
        exprs = [i for _, indices in nest.accesses() for i in indices] + list(nest.indices)
        by = {int(e.b) for x in exprs for e in walk(x) if kind(e) in ("FloorDiv", "FloorMod")
              and kind(e.b) == "IntImm" and any(v.same_as(loop.var) for v in walk(e.a))}  # fmt: skip
        if len(by) != 1 or loop.extent % (size := by.pop()) or not 1 < size < loop.extent:
            continue
        dtype, name = loop.var.ty.dtype, loop.var.name
        pair = Loop(tirx.Var(f"{name}_o", dtype), loop.extent // size), Loop(tirx.Var(f"{name}_i", dtype), size)
        value = pair[0].var * tirx.IntImm(str(dtype), size) + pair[1].var

        def parted(loops: tuple[Loop, ...], whole: Loop = loop, parts: tuple[Loop, ...] = pair) -> tuple[Loop, ...]:
            return tuple(p for x in loops for p in (parts if x is whole else (x,)))

        values = {loop.var: value}
        nest = _simple(replace(
            nest, spatial=parted(nest.spatial), sums=parted(nest.sums),
            indices=tuple(with_values(i, values) for i in nest.indices), finish=with_values(nest.finish, values),
            step=None if nest.step is None else with_values(nest.step, values),
        ))  # fmt: skip
    return nest


def joined(first: Nest, second: Nest) -> Nest:
    """The sum `first` and the function `second` of it as one nest: its result never lies in memory.

    Raises:
        NoNestError: they do not go through the sum's elements in step.
    """
    loads = [indices for buffer, indices in second.accesses() if buffer.same_as(first.out)]
    _need(bool(first.sums) and not second.sums and bool(loads), "no sum and its reader")
    _need(all(_same(loads[0], other) for other in loads[1:]), "a sum that is read twice")
    own, extents = {x.var: x.extent for x in first.spatial}, {x.var: x.extent for x in second.spatial}
    values = dict[Any, Any]()
    for mine, theirs in zip(first.indices, loads[0], strict=True):
        if kind(mine) == kind(theirs) == "IntImm":
            continue
        _need(own.get(mine, 0) == extents.get(theirs, -1) and mine not in values, "another order")
        values[mine] = theirs
    _need(len(values) == len(own) == len(extents) == len(set(values.values())), "other loops")
    finish = rebuild(second.finish, lambda e: first.running if _reads(e, first.out) else None)
    return replace(
        second, sums=first.sums, finish=finish, running=first.running, start=first.start,
        step=with_values(first.step, values),
    )  # fmt: skip


def strides(nest: Nest, buffer: Any, indices: Sequence[Any]) -> dict[Any, int | None]:
    """By variable of a loop: how many elements further the next turn accesses; None where that is not constant."""
    from tvm import sym, tirx

    offset, step = tirx.IntImm("int64", 0), 1
    for index, size in reversed(list(zip(indices, buffer.shape, strict=True))):
        offset = offset + index * step
        step *= int(size)
    found = dict[Any, int | None]()
    for loop in (*nest.spatial, *nest.sums):
        factors = sym.detect_linear_equation(offset, [loop.var])
        found[loop.var] = int(factors[0]) if factors and kind(factors[0]) == "IntImm" else None
    return found
