"""Weaken the conditions of pure modules: one at a time, as a mistake there would.

A mutant is named by its module, its function, and what was done to which expression: not by its line, so that a name
outlives edits elsewhere. Statements outside of functions are registries and constants; importing them checks them.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).parents[2]
#: The modules that decide what is open.
MODULES = tuple(
    str(path.relative_to(ROOT))
    for package in ("labels", "policy")
    for path in sorted((ROOT / "plugin" / package).glob("[!_]*.py"))
)
#: Each comparison, and what a mistake makes of it.
_SWAPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_BOUNDS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed expression: the `number`-th change of the function whose outermost name starts at `line`."""

    path: str
    function: str
    line: int
    number: int
    change: str
    #: The lines of the expression: a test that runs none of them does not find the mutant.
    first: int
    last: int

    @property
    def name(self) -> str:
        """The name by which `survivors` lists it."""
        return f"{self.path} {self.function}: {self.change}"


@dataclass(frozen=True, slots=True)
class _Place:
    """An expression (`field` of `parent`, at `index` if that is a list) and what replaces it."""

    parent: ast.AST
    field: str
    index: int | None
    new: ast.AST

    def old(self) -> ast.AST:
        value = getattr(self.parent, self.field)
        found: ast.AST = value if self.index is None else value[self.index]
        return found


def _children(node: ast.AST) -> Iterator[tuple[str, int | None, ast.AST]]:
    for field, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            yield field, None, value
        elif isinstance(value, list):
            yield from ((field, i, each) for i, each in enumerate(value) if isinstance(each, ast.AST))


def _conditions(node: ast.AST, field: str) -> bool:
    """True if this child of the node is a condition."""
    return (isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert) and field == "test") or (
        isinstance(node, ast.comprehension) and field == "ifs"
    )


def _replacements(parent: ast.AST, field: str, node: ast.AST) -> Iterator[ast.AST]:
    if _conditions(parent, field) and isinstance(node, ast.expr):
        endless = isinstance(parent, ast.While)
        yield from (ast.Constant(value) for value in ((False,) if endless else (True, False)))
    if isinstance(node, ast.BoolOp):
        for i in range(len(node.values)):
            left = [each for j, each in enumerate(node.values) if j != i]
            yield left[0] if len(left) == 1 else ast.BoolOp(node.op, left)
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Compare):
        yield from _comparisons(node)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool) and isinstance(parent, ast.Return):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Name) and node.id in ("any", "all") and isinstance(parent, ast.Call) and field == "func":
        yield ast.Name("any" if node.id == "all" else "all", ast.Load())


def _comparisons(node: ast.Compare) -> Iterator[ast.AST]:
    for i, operator in enumerate(node.ops):
        swapped = [*node.ops[:i], _SWAPPED[type(operator)](), *node.ops[i + 1 :]]
        yield ast.Compare(node.left, swapped, node.comparators)
        bound = node.comparators[i]
        if isinstance(operator, _BOUNDS) and isinstance(bound, ast.Constant) and isinstance(bound.value, int):
            more = [*node.comparators[:i], ast.Constant(bound.value + 1), *node.comparators[i + 1 :]]
            yield ast.Compare(node.left, node.ops, more)


def _places(node: ast.AST) -> Iterator[_Place]:
    for field, index, child in _children(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        yield from (_Place(node, field, index, new) for new in _replacements(node, field, child))
        yield from _places(child)


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{each.name}", each) for each in node.body if isinstance(each, ast.FunctionDef))


def mutants(path: str) -> list[Mutant]:
    """Return the mutants of one module of the product."""
    found = []
    for function, node in _functions(ast.parse((ROOT / path).read_text())):
        names: Counter[str] = Counter()
        line = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        for number, place in enumerate(_places(node)):
            old = place.old()
            change = f"`{_text(old)}` → `{_text(place.new)}`"
            if _conditions(place.parent, place.field) and isinstance(place.new, ast.Constant):
                change = f"if `{_text(old)}` → {place.new.value!r}"
            names[change] += 1
            more = f" ({names[change]})" if names[change] > 1 else ""
            first, last = old.lineno, old.end_lineno or old.lineno  # type: ignore[attr-defined]
            found.append(Mutant(path, function, line, number, change + more, first, last))
    return found


def _text(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 160 else f"{text[:150]}…{len(text)}"


def mutated(mutant: Mutant) -> CodeType:
    """Return the code of the function with the change."""
    tree = ast.parse((ROOT / mutant.path).read_text())
    node = next(each for name, each in _functions(tree) if name == mutant.function and _first(each) == mutant.line)
    place = list(_places(node))[mutant.number]
    new = ast.copy_location(copy.deepcopy(place.new), place.old())
    if place.index is None:
        setattr(place.parent, place.field, new)
    else:
        getattr(place.parent, place.field)[place.index] = new
    ast.fix_missing_locations(tree)
    whole = compile(tree, str(ROOT / mutant.path), "exec")
    return next(code for code in codes(whole) if code.co_qualname == mutant.function and _same(code, mutant))


def _same(code: CodeType, mutant: Mutant) -> bool:
    return code.co_firstlineno == mutant.line


def _first(node: ast.FunctionDef) -> int:
    return min([node.lineno, *(each.lineno for each in node.decorator_list)])


def codes(code: CodeType) -> Iterator[CodeType]:
    """Yield all code objects inside a module's."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from codes(each)


def all_mutants(prefix: str = "") -> list[Mutant]:
    """Return the mutants of all modules whose path begins with `prefix`."""
    return [mutant for path in MODULES if path.startswith(prefix) for mutant in mutants(path)]
