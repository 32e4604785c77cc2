"""Fixed numbers and short texts of modules, written where they are used."""

import ast
from collections import Counter
from collections.abc import Iterator
from typing import Any

from edge_agent.tools.shrink.scopes import Modules, Scoped, find, imported

_TEXT_MAX = 40  # characters of a text that is written where it is used
_MISSING = object()


class Constants:
    """Finds fixed values of modules and writes them where they are used."""

    def __init__(self, modules: Modules) -> None:
        self.modules = modules
        self.values: dict[str, dict[str, Any]] = {name: {} for name in modules}
        self.names: dict[str, dict[str, str]] = {}  # module -> local name -> module it is
        self.written = {name: _written(tree) for name, tree in modules.items()}
        before = -1
        while before != (before := sum(map(len, self.values.values()))):
            for name, tree in modules.items():
                self._collect(name, tree)

    def write(self) -> None:
        for name, tree in self.modules.items():
            tree.body = [s for node in tree.body for s in self._parts(node, self.values[name])]
            _Inline(self.values[name], self.names[name], self).visit(tree)

    def _parts(self, node: ast.stmt, values: "dict[str, Any]") -> "list[ast.stmt]":
        """Names that are given constants together, each by itself; so that each can go."""
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            names = [n.id for n in node.targets[0].elts if isinstance(n, ast.Name)]
            if len(names) == len(node.targets[0].elts) and all(n in values for n in names):
                return [
                    ast.Assign([ast.Name(n, ast.Store())], _literal(values[n]), lineno=0)
                    for n in names
                ]
        return [node]

    def _collect(self, name: str, tree: ast.Module) -> None:
        values = self.values[name]
        names = self.names.setdefault(name, {})
        written = self.written[name]
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                source = imported(name, node)
                for alias in node.names:
                    local = alias.asname or alias.name
                    as_module = find(self.modules, source + "." + alias.name)
                    if as_module:
                        names[local] = as_module
                    found = find(self.modules, source)
                    if found and alias.name in self.values[found]:
                        values[local] = self.values[found][alias.name]
            elif isinstance(node, ast.Assign) and len(node.targets) == 1:
                for target, value in self._pairs(node.targets[0], node.value, values):
                    if written[target] == 1 and _fixed(value):
                        values[target] = value

    def _pairs(
        self, target: ast.expr, value: ast.expr, known: "dict[str, Any]"
    ) -> "Iterator[tuple[str, Any]]":
        found = _value(value, known)
        if isinstance(target, ast.Name):
            yield target.id, found
        elif isinstance(target, ast.Tuple) and isinstance(found, (tuple, range)):
            for name, item in zip(target.elts, found, strict=True):
                if isinstance(name, ast.Name):
                    yield name.id, item


def _written(tree: ast.Module) -> "Counter[str]":
    """How often a module gives each name a value, in any scope."""
    found: Counter[str] = Counter()
    for n in ast.walk(tree):
        if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load):
            found[n.id] += 1
        elif isinstance(n, ast.Global):
            found.update(n.names)
    return found


def _fixed(value: Any) -> bool:
    if isinstance(value, (str, bytes)):
        return len(value) <= _TEXT_MAX
    return value is None or isinstance(value, (int, bool))


def _value(node: ast.expr, known: "dict[str, Any]") -> Any:
    """What an expression of constants comes to, or _MISSING."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id, _MISSING)
    if isinstance(node, ast.Tuple):
        items = tuple(_value(n, known) for n in node.elts)
        return _MISSING if _MISSING in items else items
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand, known)
        return -value if isinstance(value, int) else _MISSING
    if isinstance(node, ast.BinOp):
        a, b = _value(node.left, known), _value(node.right, known)
        if type(a) is int and type(b) is int:
            work = _WORK.get(type(node.op))
            return _MISSING if work is None else work(a, b)
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "range"
        and len(node.args) == 1
    ):
        count = _value(node.args[0], known)
        return range(count) if isinstance(count, int) else _MISSING
    return _MISSING


_WORK: "dict[type, Any]" = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.LShift: lambda a, b: a << b,
    ast.BitOr: lambda a, b: a | b,
}


class _Inline(Scoped):
    def __init__(self, values: "dict[str, Any]", names: "dict[str, str]", all_: Constants) -> None:
        super().__init__()
        self.values = values
        self.names = names
        self.all = all_

    def visit_Name(self, node: ast.Name) -> Any:
        if (
            isinstance(node.ctx, ast.Load)
            and node.id in self.values
            and self.owner(node.id) is None
        ):
            return _literal(self.values[node.id])
        return node

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load) and isinstance(node.value, ast.Name):
            module = self.names.get(node.value.id)
            if module and self.owner(node.value.id) is None:
                value = self.all.values[module].get(node.attr, _MISSING)
                if value is not _MISSING:
                    return _literal(value)
        return node


def _literal(value: Any) -> ast.expr:
    if type(value) is int and value < 0:
        return ast.UnaryOp(ast.USub(), ast.Constant(-value))
    return ast.Constant(value)
