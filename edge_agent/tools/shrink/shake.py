"""Definitions and imports that nothing names, left out."""

import ast
from collections import Counter
from typing import Any

from edge_agent.tools.shrink.scopes import Modules

# Methods that an interpreter calls by their names.
_PROTOCOLS = ("read", "readinto", "readline", "write", "ioctl", "close", "open", "stat", "mount")


def defined(node: ast.stmt) -> "list[str] | None":
    """Names that a statement of a module or class defines and does nothing else; or None."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return None if _effects(node.decorator_list) else [node.name]
    if isinstance(node, ast.Assign) and not _effects([node.value]):
        targets = []
        for target in node.targets:
            items = target.elts if isinstance(target, ast.Tuple) else [target]
            for item in items:
                if not isinstance(item, ast.Name):
                    return None
                targets.append(item.id)
        return targets
    return None


def _effects(nodes: "list[ast.expr]") -> bool:
    """Whether evaluating could do more than make a value."""
    for node in nodes:
        if isinstance(node, ast.Name) and node.id in ("property", "staticmethod", "classmethod"):
            continue
        for n in ast.walk(node):
            if isinstance(n, ast.Call):
                made = n.func.id if isinstance(n.func, ast.Name) else ""
                if made not in ("namedtuple", "range", "bytes", "tuple", "frozenset", "array"):
                    return True
            elif isinstance(n, (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)):
                return True
    return False


def named(node: ast.AST) -> "Counter[str]":
    """How often each name is used: read, an attribute, a keyword, or a text."""
    found: Counter[str] = Counter()
    for n in ast.walk(node):
        if isinstance(n, ast.Name):
            if isinstance(n.ctx, ast.Load):
                found[n.id] += 1
        elif isinstance(n, ast.Attribute):
            found[n.attr] += 1
        elif isinstance(n, ast.keyword) and n.arg:
            found[n.arg] += 1
        elif isinstance(n, ast.Constant) and isinstance(n.value, str):
            found[n.value] += 1
        elif isinstance(n, ast.Global):
            found.update(n.names)
    return found


class _Uses:
    """`named` of statements, remembered: while shaking, only bodies of classes change."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[ast.AST, Counter[str]]] = {}

    def of(self, node: Any) -> "Counter[str]":
        if isinstance(node, (ast.Module, ast.ClassDef)):
            total: Counter[str] = Counter()
            parts: list[ast.AST] = [*node.body]
            if isinstance(node, ast.ClassDef):
                parts += [*node.bases, *node.keywords, *node.decorator_list]
            for part in parts:
                for name, count in self.of(part).items():
                    total[name] += count
            return total
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return Counter()
        if id(node) not in self._known:
            self._known[id(node)] = node, named(node)
        return self._known[id(node)][1]


def kept_names(
    modules: Modules, scripts: "list[ast.Module]", public: "tuple[str, ...]"
) -> "set[str]":
    """Names that stay, whether or not the modules use them."""
    kept = set(_PROTOCOLS)
    for script in scripts:
        kept |= set(named(script))
        kept |= {a.name for n in ast.walk(script) if isinstance(n, ast.ImportFrom) for a in n.names}
    for name in public:
        for n in ast.walk(modules.get(name, ast.Module([], []))):
            if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                kept.add(n.name)
            elif isinstance(n, ast.Assign) and isinstance(n.value, ast.Call):
                kept |= {t.id for t in n.targets if isinstance(t, ast.Name)}
    for name, tree in modules.items():
        if name.endswith(".__init__"):
            kept |= {
                n.value
                for n in ast.walk(tree)
                if isinstance(n, ast.Constant) and isinstance(n.value, str)
            }
    return kept


def shake(modules: Modules, kept: "set[str]") -> None:
    """Leave out what is neither used nor kept, until nothing more goes."""
    uses = _Uses()
    late = [n for t in modules.values() for n in ast.walk(t) if isinstance(n, ast.ImportFrom)]
    changed = True
    while changed:
        changed = False
        used: Counter[str] = Counter(a.name for n in late for a in n.names)
        for tree in modules.values():
            own = uses.of(tree)
            changed |= drop_imports(tree, own, kept)
            for name, count in own.items():
                used[name] += count
        for tree in modules.values():
            changed |= _drop(tree, used, kept, uses)


def _drop(tree: Any, used: "Counter[str]", kept: "set[str]", uses: _Uses) -> bool:
    """Leave out definitions that nobody names but they themselves."""
    body, changed = [], False
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            changed |= _drop(node, used, kept, uses)
        names = defined(node)
        if names is not None and not any(n in kept or n.startswith("__") for n in names):
            own = uses.of(node)
            if all(used[n] <= own[n] for n in names):
                changed = True
                continue
        body.append(node)
    tree.body = body or ([ast.Pass()] if isinstance(tree, ast.ClassDef) else [])
    return changed


def drop_imports(tree: ast.Module, used: "Counter[str]", kept: "set[str]") -> bool:
    """Leave out names that a module imports and does not use."""
    changed = False
    for node in list(tree.body):
        if not isinstance(node, (ast.ImportFrom, ast.Import)):
            continue
        names = [
            a
            for a in node.names
            if used[(a.asname or a.name).split(".")[0]] or (a.asname or a.name) in kept
        ]
        if len(names) < len(node.names):
            changed = True
            node.names = names
            if not names:
                tree.body.remove(node)
    return changed
