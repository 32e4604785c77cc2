"""Many modules as one: names are kept once, and nothing is imported from one's neighbour.

What a board's program imports anyway, directly or through others, becomes the module
DEVICE, and what it imports late another one, in the order in which it would have been
imported. Every definition at the top of a module gets a short name of its own, classes keep
theirs where they can, because errors show it. Left as they are: packages, modules that are
imported late by name, and such as ask for their own name or file. Where a program, or a
module left as it is, imports something that moved, a module of the old name stays that
only passes it on.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from typing import Any

from edge_agent.tools.shrink.rename import short
from edge_agent.tools.shrink.scopes import FUNCTIONS, Modules, Scoped, bound, find, imported

DEVICE = "edge_agent.device"
_SELF = {"__name__", "__file__", "__path__", "globals"}
Names = dict[str, str]


def merge(modules: Modules, roots: "list[str]", kept: "set[str]", into: str = DEVICE) -> Names:
    """Merge in place what the roots import. Original -> new name, "module.name" each.

    kept: names that programs use; each is found where it was before. What was merged
    before stays where it is.
    """
    order = [n for n in _order(modules, roots) if n != DEVICE and _can(modules, n)]
    plan = _Plan(modules, order)
    body: list[ast.stmt] = []
    for name in order:
        body += _Move(plan, name).statements()
    for name, tree in modules.items():
        if name not in order:
            _redirect(plan, name, tree, into)
    for name in order:
        outside = set(plan.foreign.values())
        passed = [n for n, new in plan.new[name].items() if n in kept and new not in outside]
        if passed and name != into:
            aliases = [_alias(plan.new[name][n], n) for n in passed]
            modules[name] = ast.Module([ast.ImportFrom(into, aliases, 0)], [])
        else:
            del modules[name]
    modules[into] = ast.Module(body, [])
    return {f"{m}.{n}": plan.new[m][n] for m in order for n in plan.own[m]}


def _alias(name: str, local: str) -> ast.alias:
    return ast.alias(name, None if name == local else local)


def _order(modules: Modules, roots: "list[str]") -> "list[str]":
    """The modules that these import at their top, each after those it needs."""
    seen: list[str] = []
    done: list[str] = []

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.append(name)
        for _, found in _ours(modules, name):
            visit(found)
        done.append(name)

    for root in roots:
        visit(root)
    return done


def _ours(modules: Modules, name: str) -> "Iterator[tuple[str, str]]":
    """(local name or "", module of ours) for every import at the top of a module."""
    for node in modules[name].body:
        if isinstance(node, ast.ImportFrom):
            source = imported(name, node)
            for alias in node.names:
                whole = find(modules, source + "." + alias.name)
                if whole:
                    yield alias.asname or alias.name, whole
                else:
                    part = find(modules, source)
                    if part:
                        yield "", part


def _can(modules: Modules, name: str) -> bool:
    if name.endswith(".__init__"):
        return False
    nodes = ast.walk(modules[name])
    return not any(isinstance(n, ast.Name) and n.id in _SELF for n in nodes)


class _Plan:
    """What every name at the top of the merged modules will be called."""

    def __init__(self, modules: Modules, order: "list[str]") -> None:
        self.modules = modules
        self.order = order
        self.own: dict[str, list[str]] = {}  # defined there
        self.new: dict[str, Names] = {}
        self.aliases: dict[str, Names] = {}  # local name -> merged module that it is
        self.foreign: dict[tuple[str, str], str] = {}  # (module, name) -> name
        taken: set[str] = set()
        local: Counter[str] = Counter()  # bound in functions
        for tree in modules.values():
            for n in ast.walk(tree):
                if isinstance(n, ast.Name):
                    taken.add(n.id)
                elif isinstance(n, ast.arg):
                    taken.add(n.arg)
                elif isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                    taken.add(n.name)
                if isinstance(n, FUNCTIONS):
                    local.update(bound(n))
        names = ("_" + short(k) for k in range(1 << 16))
        self.fresh = (name for name in names if name not in taken)
        self.used: set[str] = set(local)
        for name in order:
            self._plan(name)

    def _plan(self, name: str) -> None:
        tree = self.modules[name]
        new: Names = {}
        aliases: Names = {}
        # Constants must have a place before those who import them are planned: order has it.
        for node in tree.body:
            if not isinstance(node, ast.ImportFrom):
                continue
            source = imported(name, node)
            for alias in node.names:
                at = alias.asname or alias.name
                whole = find(self.modules, source + "." + alias.name)
                part = find(self.modules, source)
                if whole in self.order and whole is not None:
                    aliases[at] = whole
                elif part in self.order and part is not None:
                    new[at] = self.new[part][alias.name]
        classes = {n.name for n in tree.body if isinstance(n, ast.ClassDef)}
        own = []
        for found in sorted(bound(tree) - set(new) - set(aliases)):
            source_name = _foreign(name, tree, found)
            if source_name:
                if source_name not in self.foreign:
                    keep = source_name[1] or source_name[0]
                    self.foreign[source_name] = self._name(keep, True)
                new[found] = self.foreign[source_name]
            else:
                new[found] = self._name(found, found in classes)
                own.append(found)
        self.own[name], self.new[name], self.aliases[name] = own, new, aliases

    def _name(self, name: str, keep: bool) -> str:
        if not keep or name in self.used or "." in name:
            name = next(self.fresh)
        self.used.add(name)
        return name


def _foreign(module: str, tree: ast.Module, name: str) -> "tuple[str, str] | None":
    """(module, name in it) of something imported at the very top from others."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return imported(module, node), alias.name
    return None


class _Move(Scoped):
    """One module's statements, with the names that they get."""

    done: "set[str]" = set()

    def __init__(self, plan: _Plan, name: str) -> None:
        super().__init__()
        self.plan = plan
        self.name = name
        self.new = plan.new[name]
        self.aliases = plan.aliases[name]

    def statements(self) -> "list[ast.stmt]":
        out: list[ast.stmt] = []
        for node in self.plan.modules[self.name].body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                out += self._imports(node)
            else:
                out.append(self.visit(node))
        return out

    def _imports(self, node: "ast.Import | ast.ImportFrom") -> "Iterator[ast.stmt]":
        """Imports of what stays outside; each once is enough, but twice does no harm."""
        for alias in node.names:
            local = alias.asname or alias.name
            if local not in self.new or local in self.aliases:
                continue
            if isinstance(node, ast.Import):
                yield ast.Import([_alias(alias.name, self.new[local])])
                continue
            source = imported(self.name, node)
            if find(self.plan.modules, source) not in self.plan.order:
                yield ast.ImportFrom(source, [_alias(alias.name, self.new[local])], 0)

    def _top(self, name: str) -> str:
        """The new name, when `name` is one of the module's top."""
        if self.owner(name) is not None or name not in self.new:
            return name
        new = self.new[name]
        if new != name and self.owner(new) is not None:
            raise ValueError(f"{self.name}: {name} would become {new}, which is taken")
        return new

    def visit_Name(self, node: ast.Name) -> Any:
        if node.id in self.aliases and self.owner(node.id) is None:
            raise ValueError(f"{self.name}: module {node.id} is used as a value")
        node.id = self._top(node.id)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        base = node.value
        if isinstance(base, ast.Name) and base.id in self.aliases and self.owner(base.id) is None:
            return ast.Name(self.plan.new[self.aliases[base.id]][node.attr], node.ctx)
        return self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> Any:
        node.names = [self.new.get(n, n) for n in node.names]
        return node

    def visit_Import(self, node: ast.Import) -> Any:
        for alias in node.names:
            alias.asname = self._top(alias.asname or alias.name)
            if alias.asname == alias.name:
                alias.asname = None
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        """Inside a function: a name that moved is near at hand."""
        source = imported(self.name, node)
        found = find(self.plan.modules, source)
        out: list[ast.stmt] = []
        for alias in node.names:
            local = self._top(alias.asname or alias.name)
            if found in self.plan.order and found is not None:
                value = ast.Name(self.plan.new[found][alias.name], ast.Load())
                out.append(ast.Assign([ast.Name(local, ast.Store())], value, lineno=0))
            else:
                out.append(ast.ImportFrom(source, [_alias(alias.name, local)], 0))
        return out

    def visit_FunctionDef(self, node: Any) -> Any:
        node.name = self._top(node.name)
        return super().visit_FunctionDef(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        node.name = self._top(node.name)
        return super().visit_ClassDef(node)


def _redirect(plan: _Plan, name: str, tree: ast.Module, into: str) -> None:
    """Imports of a module that stays, from where things are now."""

    class Redirect(ast.NodeTransformer):
        def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
            source = imported(name, node)
            found = find(plan.modules, source)
            if found not in plan.order or found is None:
                for alias in node.names:
                    whole = find(plan.modules, source + "." + alias.name)
                    if whole in plan.order:
                        raise ValueError(f"{name}: imports the module {whole}, which moved")
                return node
            new = plan.new[found]
            aliases = [_alias(new[a.name], a.asname or a.name) for a in node.names]
            return ast.ImportFrom(into, aliases, 0)

    Redirect().visit(tree)
