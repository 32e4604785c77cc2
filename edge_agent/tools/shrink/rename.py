"""Short names for what is private and for parameters."""

import ast
import keyword
import string
from itertools import chain
from typing import Any

from edge_agent.tools.shrink.scopes import Modules, Scoped, bound
from edge_agent.tools.shrink.shake import named
from edge_agent.tools.shrink.strip import native


def short(k: int) -> str:
    """The k-th of all words, short ones first; with an underscore when Python has it."""
    letters = string.ascii_letters
    name = letters[k % 52]
    while k := k // 52:
        k -= 1
        name += letters[k % 52]
    return name + "_" if keyword.iskeyword(name) else name


def rename(modules: Modules, scripts: "list[ast.Module]") -> None:
    trees: list[ast.AST] = list(modules.values())
    kept: set[str] = set()  # texts, keywords, and whatever scripts say
    everything: set[str] = set()
    for script in scripts:
        kept |= set(named(script)) | {n.id for n in ast.walk(script) if isinstance(n, ast.Name)}
    members: set[str] = set()  # names that others than their own module may use
    for tree in trees:
        for n in ast.walk(tree):
            if isinstance(n, ast.Constant) and isinstance(n.value, str):
                kept.add(n.value)
            elif isinstance(n, ast.keyword) and n.arg:
                kept.add(n.arg)
            elif isinstance(n, ast.Attribute):
                members.add(n.attr)
            elif isinstance(n, ast.ClassDef):
                members |= bound(n)
            elif isinstance(n, ast.alias):
                members.add(n.name)
            if isinstance(n, ast.Name):
                everything.add(n.id)
    everything |= members | kept
    keywords: set[str] = set()
    open_ = {"__init__"}  # functions that may be called with names from a mapping
    for tree in [*trees, *scripts]:
        for n in ast.walk(tree):
            if isinstance(n, ast.Call):
                keywords |= {k.arg for k in n.keywords if k.arg}
                if any(k.arg is None for k in n.keywords):
                    open_.add(getattr(n.func, "attr", getattr(n.func, "id", "")))
    private = _private(trees) - kept
    fresh = (name for name in map(short, range(1 << 16)) if name not in everything)
    shared = {name: next(fresh) for name in sorted(private & members)}
    for tree in trees:
        _Rename(shared, sorted(private - members), kept, keywords, open_).visit(tree)


def _private(trees: "list[ast.AST]") -> "set[str]":
    """Names with one underscore in front that these modules define."""
    defined: set[str] = set()
    for tree in trees:
        for n in ast.walk(tree):
            if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                defined.add(n.name)
            elif isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
                defined.add(n.id)
            elif isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store):
                defined.add(n.attr)
    return {n for n in defined if n[:1] == "_" and n[:2] != "__" and len(n) > 1}


class _Rename(Scoped):
    """Gives private names short ones, everywhere the same, and parameters those of a few."""

    """kept: parameters of functions in `open_` to leave alone; keywords: of all others."""

    def __init__(
        self,
        shared: "dict[str, str]",
        own: "list[str]",
        kept: "set[str]",
        keywords: "set[str]",
        open_: "set[str]",
    ) -> None:
        super().__init__()
        self.short = dict(shared)
        self.own = own
        self.kept = kept
        self.keywords = keywords
        self.open = open_
        self.parameters: dict[int, dict[str, str]] = {}

    def visit_Module(self, node: ast.Module) -> Any:
        """Private names that only this module uses begin again at the first short one."""
        here = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        for n in ast.walk(node):
            if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                here.add(n.name)
            elif isinstance(n, ast.arg):
                here.add(n.arg)
        # An attribute's name costs nothing more; with two letters it is no parameter's.
        again = [new for old, new in self.short.items() if len(new) > 1 and old not in here]
        fresh = chain(again, ("_" + short(k) for k in range(1 << 16)))
        for name in self.own:
            if name in here:
                self.short[name] = next(n for n in fresh if n not in here)
        return self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> Any:
        self.generic_visit(node)
        if node.name:
            node.name = self.short.get(node.name, node.name)
        return node

    def visit_Name(self, node: ast.Name) -> Any:
        owner = self.owner(node.id)
        own = self.parameters.get(id(owner), {})
        new = own.get(node.id) or self.short.get(node.id, node.id)
        if owner is None and new != node.id and self.scopes:
            scope, names = self.scopes[-1]
            if isinstance(scope, ast.ClassDef) and new in map(self.short.get, names):
                raise ValueError(f"class {scope.name}: {node.id} would become one of its own")
        node.id = new
        return node

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        self.generic_visit(node)
        node.attr = self.short.get(node.attr, node.attr)
        return node

    def visit_Global(self, node: Any) -> Any:
        node.names = [self.short.get(n, n) for n in node.names]
        return node

    def visit_alias(self, node: ast.alias) -> Any:
        node.name = self.short.get(node.name, node.name)
        if node.asname:
            node.asname = self.short.get(node.asname, node.asname)
        return node

    def visit_Nonlocal(self, node: ast.Nonlocal) -> Any:
        out = []
        for name in node.names:
            own: dict[str, str] = {}
            for scope, names in self.scopes[:-1]:
                if name in names:
                    own = self.parameters.get(id(scope), {})
            out.append(own.get(name) or self.short.get(name, name))
        node.names = out
        return node

    def visit_arg(self, node: ast.arg) -> Any:
        own = self.parameters.get(id(self.scopes[-1][0]), {})
        node.arg = own.get(node.arg) or self.short.get(node.arg, node.arg)
        return node

    def visit_FunctionDef(self, node: Any) -> Any:
        if not native(node):
            self.parameters[id(node)] = self._parameters(node)
        super().visit_FunctionDef(node)
        node.name = self.short.get(node.name, node.name)
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        super().visit_ClassDef(node)
        node.name = self.short.get(node.name, node.name)
        return node

    def _parameters(self, node: Any) -> "dict[str, str]":
        """New names for parameters that nobody passes by name."""
        a = node.args
        every = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
        every += [arg.arg for arg in (a.vararg, a.kwarg) if arg]
        here = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | set(every)
        here |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
        here |= {
            x for n in ast.walk(node) if isinstance(n, (ast.Global, ast.Nonlocal)) for x in n.names
        }
        for scope, _ in self.scopes:  # what parameters of functions around are called now
            here |= set(self.parameters.get(id(scope), {}).values())
        kept = self.kept if node.name in self.open else self.keywords
        own: dict[str, str] = {}
        k = 0
        for arg in (*a.posonlyargs, *a.args):
            if arg.arg in kept or arg.arg == "self":
                continue
            while short(k) in here or short(k) in own.values():
                k += 1
            own[arg.arg] = short(k)
            k += 1
        return own
