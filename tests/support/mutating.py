"""Which small changes of a source file a test should notice. Pure: text in, changed text out."""

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_COMPARED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_REVERSED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}
_CALLED: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
_TUNED: Final = ("_S", "_MS", "_BYTES", "_MAX", "_MIN")
"""Ends of the names of times, sizes and bounds. Another number is as good, and tests use the
name."""

_TELLING: Final = {"_event", "on_event"}
"""Calls that write the text log: what they say is for people."""


@dataclass(frozen=True)
class Mutant:
    """One change of a file."""

    path: str
    line: int
    what: str
    """Kind of the change, in a few words."""
    before: str
    after: str

    @property
    def diff(self) -> str:
        """As `diff -u` tells it."""
        lines = difflib.unified_diff(
            self.before.splitlines(keepends=True), self.after.splitlines(keepends=True),
            self.path, self.path, n=1,
        )  # fmt: skip
        return "".join(lines)


@dataclass(frozen=True)
class _Change:
    node: ast.AST
    what: str
    text: str


def mutants(path: str, source: str) -> list[Mutant]:
    """All mutants of a file, in the order of its lines.

    Left out are types, docstrings, texts, `assert`, tuned constants, and what only the text log
    sees.
    """
    found = []
    text, tree = _Text(source), ast.parse(source)
    first = _first_assignments(tree)
    for change in _changes(tree):
        after = text.replaced(change.node, change.text)
        if change.node not in first and after != source:
            line: int = change.node.lineno  # type: ignore[attr-defined] # of statements and more
            found.append(Mutant(path, line, change.what, source, after))
    return sorted(found, key=lambda each: (each.line, each.what, each.after))


def _first_assignments(tree: ast.Module) -> set[ast.AST]:
    """Of attributes, in `__init__`: without one the class does not work at all."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            found |= {each for each in ast.walk(node) if isinstance(each, ast.Assign)}
    return found


class _Text:
    """A source text, in which nodes can be replaced."""

    def __init__(self, source: str) -> None:
        self._source = source.encode()
        self._starts = [0]
        for line in self._source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def replaced(self, node: ast.AST, text: str) -> str:
        """The source with another text in place of a node."""
        assert isinstance(node, ast.expr | ast.stmt)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._starts[node.lineno - 1] + node.col_offset
        end = self._starts[node.end_lineno - 1] + node.end_col_offset
        return (self._source[:start] + text.encode() + self._source[end:]).decode()


def _changes(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.stmt):
        yield from _of_statement(node)
    elif isinstance(node, ast.expr):
        yield from _of_expression(node)
    for child in _looked_into(node):
        yield from _changes(child)


def _looked_into(node: ast.AST) -> Iterator[ast.AST]:
    """Children whose change would mean something."""
    if isinstance(node, ast.Assert | ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    if _tells(node) or _is_for_types(node) or _is_tuned(node):
        return
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns", "decorator_list", "bases", "type_params"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child


def _is_tuned(node: ast.AST) -> bool:
    match node:
        case ast.AnnAssign(target=ast.Name(id=name)):
            return name.isupper() and name.endswith(_TUNED)
        case _:
            return False


def _is_for_types(node: ast.AST) -> bool:
    """Protocols, and methods that others must have."""
    match node:
        case ast.ClassDef(bases=bases):
            return any(ast.unparse(base).startswith("Protocol") for base in bases)
        case ast.FunctionDef(decorator_list=decorators):
            return any(ast.unparse(each) == "abstractmethod" for each in decorators)
        case _:
            return False


def _tells(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name))):
            return name in _TELLING
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Call(func=ast.Name(id=name)):
            return name in _TELLING
        case _:
            return False


# ---------------------------------------------------------------------------- statements


def _of_statement(node: ast.stmt) -> Iterator[_Change]:
    removed = "statement removed"
    match node:
        case ast.Expr(value=ast.Call() | ast.Await() | ast.Yield() | ast.YieldFrom()):
            if not _tells(node):
                yield _Change(node, removed, "pass")
        case ast.Assign(targets=targets):
            if all(isinstance(each, ast.Attribute | ast.Subscript) for each in targets):
                yield _Change(node, removed, "pass")
        case ast.AugAssign() | ast.Delete() | ast.Continue() | ast.Break() | ast.Raise():
            yield _Change(node, removed, "pass")
        case ast.Return(value=None):
            yield _Change(node, removed, "pass")
        case ast.Return(value=ast.expr()):
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool):
                return  # it is turned round
            yield _Change(node, "nothing returned", "return None")
        case ast.If(test=test) | ast.While(test=test):
            yield _Change(test, "condition negated", f"not ({ast.unparse(test)})")
        case _:
            return


# ---------------------------------------------------------------------------- expressions


def _of_expression(node: ast.expr) -> Iterator[_Change]:
    match node:
        case ast.Compare():
            yield from _of_comparison(node)
        case ast.BoolOp():
            yield from _of_junction(node)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield _Change(node, "not left out", f"({ast.unparse(operand)})")
        case ast.IfExp(test=test):
            yield _Change(test, "condition negated", f"(not ({ast.unparse(test)}))")
        case ast.BinOp(op=ast.Add() | ast.Sub()):
            yield from _of_sum(node)
        case ast.Call(func=ast.Name(id=name)) if name in _CALLED:
            yield _Change(node.func, f"{name} -> {_CALLED[name]}", _CALLED[name])
        case ast.Constant():
            yield from _of_constant(node)
        case _:
            return


def _of_comparison(node: ast.Compare) -> Iterator[_Change]:
    for place, operator in enumerate(node.ops):
        for table in (_COMPARED, _REVERSED):
            other = table.get(type(operator))
            if other is None:
                continue
            ops = [*node.ops[:place], other(), *node.ops[place + 1 :]]
            fresh = ast.Compare(node.left, ops, node.comparators)
            what = f"{type(operator).__name__} -> {other.__name__}"
            yield _Change(node, what, ast.unparse(fresh))


def _of_junction(node: ast.BoolOp) -> Iterator[_Change]:
    other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    word = type(other).__name__.lower()
    swapped = f"({ast.unparse(ast.BoolOp(other, node.values))})"
    yield _Change(node, f"{type(node.op).__name__.lower()} -> {word}", swapped)
    for place, value in enumerate(node.values):
        left = [each for position, each in enumerate(node.values) if position != place]
        fresh = left[0] if len(left) == 1 else ast.BoolOp(node.op, left)
        what = f"without '{ast.unparse(value)}'"
        yield _Change(node, what, f"({ast.unparse(fresh)})")


def _of_sum(node: ast.BinOp) -> Iterator[_Change]:
    if any(isinstance(each, ast.Constant | ast.JoinedStr) and not _number(each)
           for each in (node.left, node.right)):  # fmt: skip
        return  # texts are joined
    other = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
    signs = {ast.Add: "+", ast.Sub: "-"}
    fresh = ast.unparse(ast.BinOp(node.left, other, node.right))
    yield _Change(node, f"{signs[type(node.op)]} -> {signs[type(other)]}", f"({fresh})")


def _number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _of_constant(node: ast.Constant) -> Iterator[_Change]:
    value = node.value
    if isinstance(value, bool):
        yield _Change(node, f"{value} -> {not value}", str(not value))
    elif isinstance(value, int):
        for near in (value + 1, value - 1):
            yield _Change(node, f"{value} -> {near}", f"({near})" if near < 0 else str(near))
    elif isinstance(value, float):
        yield _Change(node, f"{value} -> {value * 2}", str(value * 2))
