"""Branches that a board never takes, empty base classes, and comprehensions as loops.

MicroPython makes a function of every comprehension: 52 bytes of heap and more. Where one
is the whole value of an assignment or a return, or all that a function like sorted() is
given there, a loop does the same: the target gets a name that the function does not have,
and what is made is complete before anything else of the statement happens.
"""

import ast
from typing import Any

from edge_agent.tools.shrink.scopes import FUNCTIONS, Modules, bound

_ON_BOARDS = "sys.implementation.name == 'micropython'"
# Functions that take a list where they were given a comprehension.
_TAKERS = ("sorted", "sum", "tuple", "list", "min", "max", "bytes", "bytearray", "len", "frozenset")


class _Fold(ast.NodeTransformer):
    """Takes the way of a board where CPython and MicroPython part."""

    def visit_Compare(self, node: ast.Compare) -> Any:
        return ast.Constant(True) if ast.unparse(node) == _ON_BOARDS else node

    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        if isinstance(node.test, ast.Constant):
            return (node.body if node.test.value else node.orelse) or ast.Pass()
        return node

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        self.generic_visit(node)
        if isinstance(node.test, ast.Constant):
            return node.body if node.test.value else node.orelse
        return node

    def visit_FunctionDef(self, node: Any) -> Any:
        self.generic_visit(node)
        for k, statement in enumerate(node.body):
            if isinstance(statement, (ast.Return, ast.Raise)):
                del node.body[k + 1 :]
                break
        return node

    visit_AsyncFunctionDef = visit_FunctionDef


def fold(tree: ast.Module) -> None:
    """Drop what is never reached; the interpreter's name is known."""
    _Fold().visit(tree)


def no_empty_bases(modules: Modules) -> None:
    """Classes that only say what others are like are nobody's base any more."""
    empty = set()
    for tree in modules.values():
        for node in tree.body:
            if not isinstance(node, ast.ClassDef) or node.bases or node.decorator_list:
                continue
            if all(isinstance(n, ast.Pass) for n in node.body):
                empty.add(node.name)
    for tree in modules.values():
        for found in ast.walk(tree):
            if isinstance(found, ast.ClassDef):
                found.bases = [b for b in found.bases if getattr(b, "id", "") not in empty]


class Loops(ast.NodeTransformer):
    """Comprehensions of one `for` that stand alone, as loops."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []

    def visit_FunctionDef(self, node: Any) -> Any:
        taken = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        taken |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
        self.names.append(taken)
        self.generic_visit(node)
        self.names.pop()
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        kept, self.names = self.names, []
        self.generic_visit(node)
        self.names = kept
        return node

    def visit_Assign(self, node: ast.Assign) -> Any:
        return self._statement(node)

    def visit_Return(self, node: ast.Return) -> Any:
        return self._statement(node)

    def _statement(self, node: Any) -> Any:
        if not self.names or node.value is None:
            return node
        found = node.value
        call = None
        if (
            isinstance(found, ast.Call)
            and len(found.args) == 1
            and not found.keywords
            and isinstance(found.func, ast.Name)
            and found.func.id in _TAKERS
        ):
            call, found = found, found.args[0]
        if not isinstance(found, (ast.ListComp, ast.GeneratorExp) if call else ast.ListComp):
            return node
        if len(found.generators) != 1 or found.generators[0].is_async:
            return node
        if any(isinstance(n, (*FUNCTIONS, ast.Await, ast.Yield)) for n in ast.walk(found)):
            return node
        own = bound(found)
        if any(own & bound(n) for n in ast.walk(found) if n is not found and _scope(n)):
            return node  # one inside has the same name for something else
        name = self._fresh()
        loop = self._loop(found, own, name)
        made = ast.Name(name, ast.Load())
        if call:
            call.args = [made]
        else:
            node.value = made
        start = ast.Assign([ast.Name(name, ast.Store())], ast.List([], ast.Load()), lineno=0)
        return [start, loop, node]

    def _fresh(self) -> str:
        k = 0
        while f"_{k}" in self.names[-1]:
            k += 1
        name = f"_{k}"
        self.names[-1].add(name)
        return name

    def _loop(self, found: Any, own: "set[str]", name: str) -> ast.stmt:
        generator = found.generators[0]
        new = {old: self._fresh() for old in own}

        class Rename(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> Any:
                node.id = new.get(node.id, node.id)
                return node

        def renamed(node: Any) -> Any:
            return node if node is None else Rename().visit(node)

        add = ast.Expr(
            ast.Call(
                ast.Attribute(ast.Name(name, ast.Load()), "append", ast.Load()),
                [renamed(found.elt)],
                [],
            )
        )
        body: list[ast.stmt] = [add]
        if generator.ifs:
            tests = [renamed(test) for test in generator.ifs]
            test = tests[0] if len(tests) == 1 else ast.BoolOp(ast.And(), tests)
            body = [ast.If(test, body, [])]
        return ast.For(renamed(generator.target), generator.iter, body, [], lineno=0)


def _scope(node: ast.AST) -> bool:
    return isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp))
