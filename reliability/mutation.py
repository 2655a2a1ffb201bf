"""Mutants of a module: its source with one small fault each, made on the syntax tree.

A comparison is turned or moved by its boundary, an operator, a constant, a boolean or a function such as `min` swapped for its counterpart,
a condition negated, a returned value replaced by None, a statement removed. Annotations, docstrings, decorators and the texts of messages
stay as they are.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
PAIRS = [("min", "max"), ("any", "all"), ("floor", "ceil"), ("startswith", "endswith"), ("partition", "rpartition"), ("argmax", "argmin")]
COUNTERPARTS = dict(PAIRS) | {second: first for first, second in PAIRS}
#: An expression is shown with what is around it until it has so many characters.
SHOWN = 24


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        file: the module's path in the repository.
        function: where in it, such as "Plan.shrink"; empty at the module's level.
        before, after: the expression or statement, and what it becomes.
        number: among those of the same words in one function.
        lines: first and last of the statement, or of its head.
        node, variant: which place of the tree, and which of its changes.
    """

    file: str
    function: str
    before: str
    after: str
    number: int
    lines: tuple[int, int]
    node: int
    variant: int

    @property
    def key(self) -> str:
        """What names it as long as its function is not changed, wherever in the file that stands."""
        return f"{self.file}::{self.function}::{self.before} -> {self.after}" + (f" #{self.number}" if self.number else "")


def find_mutants(path: Path, root: Path) -> list[Mutant]:
    """All mutants of the module at `path`, a file below `root`, in the order of the tree."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    fixed = set(_find_fixed(tree))
    found: list[Mutant] = []
    counted: dict[tuple[str, str, str], int] = {}
    for index, node in enumerate(ast.walk(tree)):
        if node in fixed:
            continue
        for variant, changed in enumerate(_propose(node)):
            function = ".".join(reversed(list(_list_names(node, parents))))
            words = (function, *_show(node, changed, parents))
            number = counted[words] = counted.get(words, -1) + 1
            lines = _find_lines(node, parents)
            found.append(Mutant(path.relative_to(root).as_posix(), *words, number, lines, index, variant))
    return found


def compile_module(file: str, root: Path) -> CodeType:
    """The code of a module as it is."""
    path = root / file
    return compile(ast.parse(path.read_text(encoding="utf-8")), str(path), "exec", dont_inherit=True)


def compile_mutant(mutant: Mutant, root: Path) -> CodeType:
    """The code of the mutant's module, which believes to come from the module's own file."""
    path = root / mutant.file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = list(ast.walk(tree))[mutant.node]
    parents = {child: each for each in ast.walk(tree) for child in ast.iter_child_nodes(each)}
    changed = list(_propose(node))[mutant.variant]
    _replace(parents[node], node, changed)
    return compile(ast.fix_missing_locations(tree), str(path), "exec", dont_inherit=True)


def _find_fixed(tree: ast.AST) -> Iterator[ast.AST]:
    """What is not mutated: annotations, decorators, docstrings and texts that stand alone, f-strings, messages, imports for types."""
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            parts += node.decorator_list
        if isinstance(node, ast.FunctionDef):
            parts.append(node.returns)
        elif isinstance(node, ast.arg | ast.AnnAssign):
            parts.append(node.annotation)
        elif (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) or _is_for_types(node):
            parts.append(node)
        elif isinstance(node, ast.Raise) and node.exc is not None:
            parts.append(node.exc)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "notices.append", "cast"):
            parts += node.args if ast.unparse(node.func) != "cast" else node.args[:1]
        elif isinstance(node, ast.JoinedStr):
            parts += [part for part in node.values if isinstance(part, ast.Constant)]
            parts += [part.format_spec for part in node.values if isinstance(part, ast.FormattedValue)]
        for part in parts:
            if part is not None:
                yield from ast.walk(part)


def _propose(node: ast.AST) -> Iterator[ast.AST]:
    """What a node may become."""
    yield from _propose_statements(node)
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                changed = copy.deepcopy(node)
                changed.ops[place] = other()
                yield changed
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        if len(node.values) > 2:
            yield from (ast.BoolOp(node.op, node.values[:place] + node.values[place + 1 :]) for place in range(len(node.values)))
        else:
            yield from node.values
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from _propose_constants(node)
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name in COUNTERPARTS:
            changed_call = copy.deepcopy(node)
            if isinstance(changed_call.func, ast.Name):
                changed_call.func.id = COUNTERPARTS[name]
            elif isinstance(changed_call.func, ast.Attribute):
                changed_call.func.attr = COUNTERPARTS[name]
            yield changed_call


def _propose_statements(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Return) and node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
        yield ast.Return(ast.Constant(None))
    elif _is_removable(node):
        yield ast.Pass()
    elif isinstance(node, ast.Continue):
        yield ast.Break()
    elif isinstance(node, ast.Break):
        yield ast.Continue()
    if isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield ast.AugAssign(node.target, OPERATORS[type(node.op)](), node.value)
    if isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Compare | ast.BoolOp | ast.Constant):
        changed = copy.copy(node)
        changed.test = ast.UnaryOp(ast.Not(), node.test)
        yield changed


def _propose_constants(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(value * 2 if value else 1.0)
    elif isinstance(value, str):
        yield ast.Constant(value + "X")
    elif isinstance(value, bytes):
        yield ast.Constant(value + b"X")


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _is_removable(node: ast.AST) -> bool:
    """Whether the module would still be one without a statement: names that are assigned, and places that give way, stay."""
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    if any(isinstance(part, ast.Yield | ast.YieldFrom) for part in ast.walk(node)):
        return False
    return isinstance(node, ast.Expr | ast.Raise | ast.AugAssign | ast.Delete)


def _replace(parent: ast.AST, node: ast.AST, changed: ast.AST) -> None:
    for name, value in ast.iter_fields(parent):
        if value is node:
            setattr(parent, name, changed)
        elif isinstance(value, list):
            value[:] = [changed if part is node else part for part in value]
    if isinstance(changed, ast.stmt | ast.expr) and not hasattr(changed, "lineno"):
        ast.copy_location(changed, node)


def _list_names(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[str]:
    """Functions and classes around a node, from the inside."""
    while node in parents:
        node = parents[node]
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def _find_lines(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> tuple[int, int]:
    """First and last line of the simple statement that a node is in; in the head of a compound one, those of the node."""
    inner = node
    while not isinstance(inner, ast.stmt):
        inner = parents[inner]
    if hasattr(inner, "body"):
        if inner is node or not isinstance(node, ast.expr):
            return inner.lineno, inner.lineno
        return node.lineno, node.end_lineno or node.lineno
    return inner.lineno, inner.end_lineno or inner.lineno


def _show(node: ast.AST, changed: ast.AST, parents: dict[ast.AST, ast.AST]) -> tuple[str, str]:
    """The smallest part of the source that tells a reader what was changed, before and after."""
    around = node
    while (
        not isinstance(around, ast.stmt)
        and (len(ast.unparse(around)) < SHOWN or not isinstance(around, ast.expr))
        and not hasattr(parents[around], "body")
    ):
        around = parents[around]
    if around is node:
        return _trim(node), _trim(changed)
    before, parent = _trim(around), parents[node]
    _replace(parent, node, changed)
    after = _trim(around)
    _replace(parent, changed, node)
    return before, after


def _trim(node: ast.AST) -> str:
    """On one line; of a compound statement, its head."""
    text = ast.unparse(ast.fix_missing_locations(node))
    if isinstance(node, ast.stmt) and hasattr(node, "body"):
        text = text.split("\n", 1)[0]
    return " ".join(text.split())
