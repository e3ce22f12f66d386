"""Reading TVMScript quickly: TVM's own parser, which is handed expressions as Python text instead of as trees.

TVM evaluates every node of an expression by itself, each with a compilation and a copy of all names. Generated kernels
are long lists of plain expressions, so here an expression is evaluated as a whole, by Python, to the same objects.
What Python does not overload or turns round (`and`, `or`, `not`, `if`, comparisons, slices) goes the usual way, and so
does any text that fails here: its error is TVM's.
"""

from __future__ import annotations

import ast
from typing import Any

_LEFT_TO_TVM = (ast.BoolOp, ast.Compare, ast.Not, ast.IfExp, ast.Slice, ast.Lambda, ast.comprehension)


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


def _quickly(text: str) -> Any:
    import tvm
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.parser.core.diagnostics import Source
    from tvm.script.parser.core.doc import to_doc
    from tvm.script.parser.core.entry import _default_globals
    from tvm.script.parser.core.parser import Parser

    lines = text.splitlines()
    whole: dict[tuple[int, int, int], Any] = {}  # place of an expression -> its code

    class Text(Source):  # type: ignore[misc]
        """The text, whose plain expressions are places only."""

        def as_ast(self) -> Any:
            return to_doc(_Places(lines, whole).visit(ast.parse(text)))

    class Reader(Parser):  # type: ignore[misc]
        """Evaluates those at once."""

        def eval_expr(self, node: Any, extra_vars: dict[str, Any] | None = None) -> Any:
            code = whole.get((node.lineno, node.col_offset, node.end_col_offset))
            if code is None:
                return super().eval_expr(node, extra_vars)
            return eval(code, {**self.var_table.get(), **(extra_vars or {})})

    with IRBuilder() as builder:
        Reader(Text(text), {}).parse(extra_vars=_default_globals())
    function = builder.get()
    tvm.tirx.analysis.verify_tirx_well_formed(function)
    return function


class _Places(ast.NodeTransformer):
    """Puts a constant in the place of every plain expression of a statement, and keeps its code."""

    def __init__(self, lines: list[str], whole: dict[tuple[int, int, int], Any]) -> None:
        self.lines, self.whole = lines, whole

    def _place(self, node: ast.expr) -> ast.expr:
        if node.lineno != node.end_lineno or any(isinstance(n, _LEFT_TO_TVM) for n in ast.walk(node)):
            return node
        assert node.end_col_offset is not None
        key = (node.lineno, node.col_offset, node.end_col_offset)
        segment = self.lines[node.lineno - 1][node.col_offset : node.end_col_offset]  # generated text is ASCII
        self.whole[key] = compile(segment, "<kernel>", "eval")
        return ast.copy_location(ast.Constant(None), node)

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        """`name = value` and `buffer[index] = value`."""
        node.value = self._place(node.value)
        for target in node.targets:
            if isinstance(target, ast.Subscript) and not isinstance(target.slice, ast.Tuple):
                target.slice = self._place(target.slice)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        """`name: T.let[...] = value`."""
        if node.value is not None:
            node.value = self._place(node.value)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        """A call."""
        node.value = self._place(node.value)
        return node

    def visit_If(self, node: ast.If) -> ast.If:
        """The condition, then what it holds."""
        node.test = self._place(node.test)
        self.generic_visit(node)
        return node

    def visit_For(self, node: ast.For) -> ast.For:
        """What is looped over, then what it holds; TVM looks at the bounds of a `range`."""
        if isinstance(node.iter, ast.Call) and isinstance(node.iter.func, ast.Name):
            node.iter.args = [self._place(arg) for arg in node.iter.args]
        else:
            node.iter = self._place(node.iter)
        self.generic_visit(node)
        return node
