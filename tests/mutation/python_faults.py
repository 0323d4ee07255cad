"""Faults of Python source: signs and operators, numbers, comparisons, conditions, order of arguments, statements left
out. Not in annotations, decorators, texts, assertions, what is raised or logged, nor the `strict` of a `zip`.
"""

from __future__ import annotations

import ast
import io
import tokenize
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import Any

from tests.mutation.fault import Fault

_OPERATORS: dict[type[ast.AST], tuple[str, tuple[str, ...]]] = {
    ast.Add: ("+", ("-",)),
    ast.Sub: ("-", ("+",)),
    ast.Mult: ("*", ("/",)),
    ast.Div: ("/", ("*",)),
    ast.FloorDiv: ("//", ("*",)),
    ast.Mod: ("%", ("*",)),
    ast.Pow: ("**", ("*",)),
    ast.LShift: ("<<", (">>",)),
    ast.RShift: (">>", ("<<",)),
    ast.BitOr: ("|", ("&",)),
    ast.BitAnd: ("&", ("|",)),
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<", ">=")),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">", "<=")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.And: ("and", ("or",)),
    ast.Or: ("or", ("and",)),
}
# In any order the same, or of an order that everybody knows.
_SYMMETRIC = frozenset(
    {
        "isinstance",
        "transpose",
        "swapaxes",
        "max",
        "min",
        "maximum",
        "minimum",
        "add",
        "multiply",
        "gcd",
        "lcm",
        "array_equal",
        "isclose",
    }
)
_TALKS = frozenset({"log", "logging", "logger", "warnings", "print"})
_TYPES = frozenset({"TypeVar", "NewType", "cast", "NamedTuple", "Literal"})


def faults(file: str, source: str) -> list[Fault]:
    """All of them, in the order of the file."""
    finder = _Finder(file, source)
    finder.visit(ast.parse(source))
    return sorted(finder.found, key=lambda fault: (fault.start, fault.end, fault.new))


def same_code(first: str, second: str) -> bool:
    """Whether two sources compile to the same instructions."""
    return meaning(first) == meaning(second)


def meaning(source: str) -> object:
    """Its instructions, but for where they stand in the file."""
    return _instructions(compile(source, "fault", "exec", dont_inherit=True))


def _instructions(code: CodeType) -> object:
    constants = [
        _instructions(each) if isinstance(each, CodeType) else (type(each), repr(each)) for each in code.co_consts
    ]
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_argcount, code.co_flags
    return code.co_name, code.co_code, constants, names, code.co_exceptiontable


class _Finder(ast.NodeVisitor):
    def __init__(self, file: str, source: str) -> None:
        self.found: list[Fault] = []
        self._file = file
        self._data = source.encode()
        lines = self._data.splitlines(keepends=True)
        self._starts = [0]
        for line in lines:
            self._starts.append(self._starts[-1] + len(line))
        self._tokens = list(self._words(source))
        self._statement: ast.stmt | None = None
        self._function: ast.FunctionDef | ast.AsyncFunctionDef | None = None
        self._bound: set[str] = set()

    # Places ----------------------------------------------------------------------------------------------------------

    def _words(self, source: str) -> Iterator[tuple[int, int, str]]:
        lines = source.splitlines(keepends=True)
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in (tokenize.OP, tokenize.NAME):
                (row, column), line = token.start, lines[token.start[0] - 1]
                start = self._starts[row - 1] + len(line[:column].encode())
                yield start, start + len(token.string.encode()), token.string

    def _start(self, node: Any) -> int:
        return self._starts[int(node.lineno) - 1] + int(node.col_offset)

    def _end(self, node: Any) -> int:
        return self._starts[int(node.end_lineno) - 1] + int(node.end_col_offset)

    def _text(self, node: Any) -> str:
        return self._data[self._start(node) : self._end(node)].decode()

    def _add(self, start: int, end: int, new: str) -> None:
        statement = self._statement
        assert statement is not None
        row = bisect_right(self._starts, start) - 1
        body: list[ast.stmt] | None = getattr(statement, "body", None)
        last = (body[0].lineno - 1 if body else statement.end_lineno) or statement.lineno
        function = self._function
        line = self._data[self._starts[row] : self._starts[row + 1]]
        self.found.append(Fault(
            file=self._file, start=start, end=end, line=row + 1, column=start - self._starts[row] + 1,
            text=line.decode().strip(), within=start - self._starts[row] - (len(line) - len(line.lstrip())),
            old=self._data[start:end].decode(), new=new, first=statement.lineno, last=max(last, statement.lineno),
            function=(function.body[0].lineno, function.end_lineno or 0) if function else None,
        ))  # fmt: skip

    def _between(self, left: ast.expr, right: ast.expr, kind: type[ast.AST]) -> None:
        """The operator of two operands, in its other forms."""
        if kind not in _OPERATORS:
            return
        word, others = _OPERATORS[kind]
        parts = word.split()
        index = bisect_left(self._tokens, (self._end(left), 0, ""))
        while self._tokens[index][2] != parts[0]:
            index += 1
        last = self._tokens[index + len(parts) - 1]
        assert last[1] <= self._start(right)
        for other in others:
            self._add(self._tokens[index][0], last[1], other)

    # Statements ------------------------------------------------------------------------------------------------------

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            before, self._statement = self._statement, node
            super().visit(node)
            self._statement = before
        else:
            super().visit(node)

    def _all(self, nodes: Sequence[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._all([*node.args.defaults, *node.args.kw_defaults])
        before, bound = self._function, self._bound
        self._function = node
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        self._bound = {each.arg for each in arguments}
        self._all(node.body)
        self._function, self._bound = before, bound

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._all(node.body)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._all([node.value])
        self._binds([node.target])

    def visit_Assign(self, node: ast.Assign) -> None:
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            return
        if not self._function and isinstance(node.value, (ast.Subscript, ast.BinOp)) and _names_a_type(node.value):
            return
        if all(self._may_stay(target) for target in node.targets):
            self._drop(node)
        self._all([*node.targets, node.value])
        self._binds(node.targets)

    def _may_stay(self, target: ast.expr) -> bool:
        """Whether there is something without the assignment: it does not just make its reader fail."""
        if isinstance(target, ast.Attribute):
            return self._function is not None and self._function.name != "__init__"
        return isinstance(target, ast.Subscript) or (isinstance(target, ast.Name) and target.id in self._bound)

    def _binds(self, targets: Sequence[ast.expr]) -> None:
        for target in targets:
            self._bound |= {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._drop(node)
        word, others = _OPERATORS.get(type(node.op), ("", ()))
        index = bisect_left(self._tokens, (self._end(node.target), 0, ""))
        start, end, found = self._tokens[index]
        for other in others if found == f"{word}=" else ():
            self._add(start, end, f"{other}=")
        self._all([node.target, node.value])

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and not _talks(node.value):
            self._drop(node)
        self.visit(node.value)

    def visit_Continue(self, node: ast.Continue) -> None:
        self._drop(node)

    def visit_Break(self, node: ast.Break) -> None:
        self._drop(node)

    def _drop(self, node: ast.stmt) -> None:
        self._add(self._start(node), self._end(node), "pass")

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._negate(node.test)
        self._all([node.test, *node.body, *node.orelse])

    def visit_While(self, node: ast.While) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None: ...

    def visit_Assert(self, node: ast.Assert) -> None: ...

    def visit_Import(self, node: ast.Import) -> None: ...

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None: ...

    # Expressions -----------------------------------------------------------------------------------------------------

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def _negate(self, test: ast.expr) -> None:
        """A negation is taken away by `visit_UnaryOp`, a single comparison turned round by `visit_Compare`."""
        turned = isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(
            test.ops[0], (ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Is, ast.IsNot)
        )  # fmt: skip
        if not turned and not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
            self._add(self._start(test), self._end(test), f"(not ({self._text(test)}))")

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if not any(isinstance(side, ast.JoinedStr) or _is_text(side) for side in (node.left, node.right)):
            self._between(node.left, node.right, type(node.op))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, type(node.op))
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, right, kind in zip([node.left, *node.comparators], node.comparators, node.ops, strict=False):
            self._between(left, right, type(kind))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        start, end = self._start(node), self._start(node.operand)
        if isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
            kept = self._data[start:end].decode().lstrip("-~").removeprefix("not").lstrip()
            self._add(start, self._end(node), f"{kept}{self._data[end : self._end(node)].decode()}")
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            if isinstance(node.operand.value, int):
                for other in (1 - node.operand.value, -1 - node.operand.value):
                    self._add(start, self._end(node), str(other))
        else:
            self.visit(node.operand)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        others: tuple[object, ...] = ()
        if isinstance(value, bool):
            others = (not value,)
        elif isinstance(value, int):
            others = (value + 1, value - 1)
        elif isinstance(value, float):
            others = (value * 2 or 1.0,)
        for other in others:
            text = repr(other)
            self._add(self._start(node), self._end(node), f"({text})" if text.startswith("-") else text)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Index 0 does not become -1, the same of a list of one."""
        before = len(self.found)
        self.generic_visit(node)
        if isinstance(node.slice, ast.Constant) and node.slice.value == 0:
            at = self._start(node.slice)
            self.found[before:] = [each for each in self.found[before:] if (each.start, each.new) != (at, "(-1)")]

    def visit_Call(self, node: ast.Call) -> None:
        name = _called(node)
        if _talks(node) or name in _TYPES:
            return
        if len(node.args) > 1 and name not in _SYMMETRIC and not self._text(node.args[0]).endswith("graph"):
            self._swap(node.args[0], node.args[1])
        self.visit(node.func)
        self._all(node.args)
        self._all([each.value for each in node.keywords if each.arg != "strict"])

    def visit_Tuple(self, node: ast.Tuple) -> None:
        if isinstance(node.ctx, ast.Load) and len(node.elts) == 2:
            self._swap(*node.elts)
        self.generic_visit(node)

    def _swap(self, first: ast.expr, second: ast.expr) -> None:
        """Of the same form, such as two names: others are of different types, and any test would fail."""
        alike = type(first) is type(second) and not isinstance(first, ast.Starred)
        if not alike or self._text(first) == self._text(second):
            return
        gap = self._data[self._end(first) : self._start(second)].decode()
        self._add(self._start(first), self._end(second), f"{self._text(second)}{gap}{self._text(first)}")


def _called(node: ast.Call) -> str:
    function = node.func
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def _talks(node: ast.Call) -> bool:
    function = node.func
    owner = function.value if isinstance(function, ast.Attribute) else function
    return isinstance(owner, ast.Name) and owner.id.lower().strip("_") in _TALKS


def _names_a_type(node: ast.expr) -> bool:
    """Array = npt.NDArray[np.float32], Grid = tuple[int, int]."""
    return all(isinstance(each, (ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.List, ast.BinOp, ast.BitOr,
                                 ast.Load, ast.Constant)) for each in ast.walk(node))  # fmt: skip


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
