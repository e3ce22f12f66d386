"""Reading TVMScript quickly: a kernel's text becomes one Python function that calls TVM's builder, and runs once.

TVM's own parser evaluates every node of every expression by itself, each with a compilation and a copy of all names,
which takes longer than compiling the kernel. Generated kernels are long lists of plain statements of a line each, so
here the text is translated line by line (what an assignment means follows from the scopes), compiled by Python as a
whole, and run. A text with anything else in it, or one that fails, is left to TVM's parser: the errors are TVM's.
"""

from __future__ import annotations

import ast
import functools
import keyword
import math
import re
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any


def read(text: str) -> Any:
    """The function that TVMScript `text` (one `T.prim_func`) describes, as `tvm.script.from_source` gives it.

    Raises:
        Exception: whatever TVM says of a text that is none.
    """
    from tvm.script import from_source

    try:
        function = _quickly(text)
    except Exception:
        return from_source(text)
    return function


class _LeftToTVMError(Exception):
    """A text that this module does not read."""


def _quickly(text: str) -> Any:
    import tvm
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.parser.core.entry import _default_globals
    from tvm.tirx.script import builder as T  # noqa: N812 (its name in every text)

    lines = text.splitlines()
    (head,) = ast.parse("\n".join(lines[:2]) + " pass").body
    if not isinstance(head, ast.FunctionDef) or lines[0] != "@T.prim_func":
        raise _LeftToTVMError(lines[0])
    kinds = {a.arg: a.annotation for a in head.args.args}
    names = {**_default_globals(), **_builders(), "__builtins__": {}}  # nothing of Python's own
    body = [f"def {head.name}({', '.join(kinds)}):", *_Lines(kinds).of(lines[2:])]
    exec(compile("\n".join(body), "<kernel>", "exec"), names)
    with IRBuilder() as builder, T.prim_func(is_private=False, s_tir=False, persistent=False):
        T.func_name(head.name)
        names[head.name](*(T.arg(name, _annotated(kind, names)) for name, kind in kinds.items()))
    function = builder.get()
    tvm.tirx.analysis.verify_tirx_well_formed(function)
    return function


def _annotated(annotation: ast.expr | None, names: dict[str, Any]) -> Any:
    """The variable of an argument's type."""
    from tvm.ir import Expr

    if annotation is None:
        raise _LeftToTVMError("an argument without a type")
    value = eval(ast.unparse(annotation), names)
    return value() if callable(value) and not isinstance(value, Expr) else value


# ---------------------------------------------------------------------------------------------- what statements call
@functools.cache
def _builders() -> dict[str, Callable[..., Any]]:
    """The functions that a translated text calls, by the names it has for them: none a kernel could have."""
    return {**_plain_statements(), **_blocks()}


def _plain_statements() -> dict[str, Callable[..., Any]]:
    """Those of statements that hold no others."""
    import tvm
    from tvm.ir import Expr, TensorLoad, Var
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx import is_buffer_var
    from tvm.tirx.script import builder as T  # noqa: N812

    def bind(name: str, value: Any, known: bool) -> Any:
        """`name = value` where `name` is new: a buffer gets it, a value gets a scalar in memory."""
        if is_buffer_var(value):
            IRBuilder.name(name, value)
            return value
        if isinstance(value, bool | int | float):
            value = tvm.tirx.const(value)
        if not tvm.ir.is_prim_expr(value) or (isinstance(value, Var) and not known):
            raise _LeftToTVMError(f"{name} = {type(value)}")
        scalar = T.local_scalar(dtype=str(value.ty.dtype)).scalar
        IRBuilder.name(name, scalar.source)
        T.buffer_store(scalar.source, value, [0])
        return scalar

    def assign(name: str, value: Any, before: Any) -> None:
        """`name = value` where `name` is a scalar in memory."""
        if not isinstance(before, TensorLoad):
            raise _LeftToTVMError(f"{name} is bound again")
        T.buffer_store(before.source, value, [0])

    def let(name: str, kind: Any, value: Any) -> Any:
        """`name: T.let[type] = value`."""
        if not isinstance(kind, T.LetAnnotation) or kind.type_spec is None:
            raise _LeftToTVMError(f"{name}: {kind}")
        var = kind.as_var()
        IRBuilder.name(name, var)
        T.Bind(value if isinstance(value, Expr) else tvm.tirx.const(value), var=var)
        return var

    def call(value: Any) -> None:
        """A statement that is a call."""
        if isinstance(value, str):
            raise _LeftToTVMError("text")
        if value is not None:
            T.evaluate(value)

    return {"_bind": bind, "_assign": assign, "_let": let, "_call": call, "_store": T.buffer_store}


def _blocks() -> dict[str, Callable[..., Any]]:
    """Those of loops and conditions."""
    import tvm
    from tvm.ir import Var
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.parser.core import doc
    from tvm.script.parser.core.evaluator import _eval_op
    from tvm.tirx.script import builder as T  # noqa: N812

    def count(*bounds: Any) -> Any:
        """`range`."""
        first, last = (0, *bounds) if len(bounds) == 1 else bounds
        return T.serial(first, last)

    @contextmanager
    def loop(frame: Any, *names: str) -> Any:
        """A loop, with its variables."""
        with frame as found:
            variables = [found] if isinstance(found, Var) else list(found)
            if not isinstance(frame, T.frame.ForFrame) or len(variables) != len(names):
                raise _LeftToTVMError(f"for {names}")
            for name, var in zip(names, variables, strict=True):
                IRBuilder.name(name, var)
            yield variables

    @contextmanager
    def when(test: Any) -> Any:
        """A condition that is not known yet."""
        if not tvm.ir.is_prim_expr(test) and not isinstance(test, tvm.tirx.expr.ExprOp):
            raise _LeftToTVMError("a condition known here")
        with T.If(test):
            yield

    def operate(kind: str, *values: Any) -> Any:
        """A comparison, `and` or `or` of values that are not known yet."""
        if isinstance(values[0], bool):
            raise _LeftToTVMError("a condition known here")
        return _eval_op(getattr(doc, kind)(), list(values))

    return {
        "_count": count, "_loop": loop, "_when": when, "_then": T.Then, "_else": T.Else, "_operate": operate,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- translation
_PLAIN = (
    ast.Expression, ast.Name, ast.Constant, ast.Attribute, ast.Call, ast.Subscript, ast.BinOp, ast.UnaryOp, ast.Tuple,
    ast.List, ast.keyword, ast.expr_context, ast.operator, ast.USub, ast.UAdd, ast.Invert,
)  # fmt: skip
# what Python may not evaluate to what TVM would: looked at as a tree
_OTHER = re.compile(r"(?<!<)<(?!<)|(?<!>)>(?!>)|==|!=|:|\b(?:and|or|not|if|else|for|in|is|lambda)\b")
_LOOP = re.compile(r"for (\w+(?:, \w+)*) in (range)?(.+):")


class _Lines:
    """Statements of a kernel as lines of Python that call `_builders`; names keep to the scopes that TVM gives them."""

    def __init__(self, arguments: Iterable[str]) -> None:
        self.scopes = [(0, set(arguments))]  # column where a scope's lines begin, names bound in it
        self.variables: list[str] = []  # of the loop that a line opened
        self.decided: dict[int, bool | None] = {}  # column of an `if` -> its condition, if that is constant
        self.inside = False  # what follows that is in the scope around it
        self.left_out = math.inf  # lines from this column on are what does not hold
        self.done: list[str] = []

    def of(self, lines: Iterable[str]) -> list[str]:
        """All lines of a body, translated."""
        for line in lines:
            statement = line.lstrip(" ")
            column = len(line) - len(statement)
            if statement and column < self.left_out:
                self.left_out = math.inf
                self._line(column, statement)
        self._close(0)
        return self.done

    def _line(self, column: int, statement: str) -> None:
        self._close(column)
        if column > self.scopes[-1][0]:
            self._open(column)
        target, assigned, value = statement.partition(" = ")
        if statement.startswith("for "):
            self._put(column, self._loop(statement))
        elif statement.startswith("if ") and statement.endswith(":"):
            self._test(column, statement[3:-1])
        elif statement == "else:":
            self._otherwise(column)
        elif not assigned:
            self._put(column, f"_call({_expression(statement)})")
        else:
            self._put(column, self._assignment(target, _expression(value), value.isidentifier()))

    def _put(self, column: int, line: str) -> None:
        self.done.append(" " * column + line)

    def _assignment(self, target: str, value: str, plain: bool) -> str:
        """`name = value`, `buffer[index] = value` and `name: T.let[type] = value`."""
        if target.endswith("]") and ": " not in target:
            buffer, _, index = target[:-1].partition("[")
            return f"_store({_name(buffer)}, {value}, {_expression(index)})"
        name, let, kind = target.partition(": ")
        if not let and self._known(name):
            return f"_assign({name!r}, {value}, {name})"
        self._new(_name(name))
        return f"{name} = " + (f"_let({name!r}, {kind}, {value})" if let else f"_bind({name!r}, {value}, {plain})")

    def _test(self, column: int, condition: str) -> None:
        """A condition that code tests; one of constants (`if True:`) is decided here."""
        if any(isinstance(n, ast.Name) for n in ast.walk(ast.parse(condition, mode="eval"))):
            self.decided[column] = None
            self._put(column, f"with _when({_expression(condition)}):")
            self._put(column, " with _then():")
        else:
            holds = self.decided[column] = bool(eval(condition, {"__builtins__": {}}))
            self._decide(column, holds)

    def _otherwise(self, column: int) -> None:
        held = self.decided.pop(column)
        if held is None:
            self._put(column, " with _else():")
        else:
            self._decide(column, not held)

    def _decide(self, column: int, holds: bool) -> None:
        if holds:
            self.inside = True
            self._put(column, "if True:")
        else:
            self.left_out = column + 1

    def _loop(self, statement: str) -> str:
        match = _LOOP.fullmatch(statement)
        if match is None:
            raise _LeftToTVMError(statement)
        self.variables = match[1].split(", ")
        frame = _expression(f"_count{match[3]}" if match[2] else match[3])
        return f"with _loop({frame}, {', '.join(map(repr, self.variables))}) as [{match[1]}]:"

    def _open(self, column: int) -> None:
        self.scopes.append((column, self.scopes[-1][1] if self.inside else set()))
        for name in self.variables:
            self._new(name)
        self.variables, self.inside = [], False

    def _close(self, column: int) -> None:
        """Leave the scopes that a line at `column` is not in, and forget their names."""
        while self.scopes[-1][0] > column:
            start, names = self.scopes.pop()
            if names and names is not self.scopes[-1][1]:
                self._put(start, f"del {', '.join(sorted(names))}")

    def _known(self, name: str) -> bool:
        return any(name in names for _, names in self.scopes)

    def _new(self, name: str) -> None:
        if self._known(name):
            raise _LeftToTVMError(f"{name} is bound again")
        self.scopes[-1][1].add(_name(name))


def _name(text: str) -> str:
    if not text.isidentifier() or keyword.iskeyword(text):
        raise _LeftToTVMError(text)
    return text


def _expression(text: str) -> str:
    """What Python evaluates to the value of an expression."""
    if _OTHER.search(text) is None:
        return f"({text})"
    return f"({ast.unparse(_Operations().visit(ast.parse(text, mode='eval')))})"


class _Operations(ast.NodeTransformer):
    """Comparisons, `and` and `or` as calls of `_operate`."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Only what Python evaluates to what TVM would."""
        if not isinstance(node, _PLAIN):
            raise _LeftToTVMError(type(node).__name__)
        return super().generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """One comparison."""
        if len(node.ops) > 1:
            raise _LeftToTVMError("a chain of comparisons")
        return self._operate(node.ops[0], node.left, node.comparators[0])

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        """From the left."""
        return functools.reduce(functools.partial(self._operate, node.op), node.values)

    def _operate(self, kind: ast.cmpop | ast.boolop, left: ast.expr, right: ast.expr) -> ast.expr:
        arguments = [ast.Constant(type(kind).__name__), self.visit(left), self.visit(right)]
        return ast.Call(ast.Name("_operate", ast.Load()), arguments, [])
