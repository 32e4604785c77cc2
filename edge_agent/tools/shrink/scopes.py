"""Where a name is bound: what Python's compiler knows, for trees that are being rewritten."""

import ast
from typing import Any

Modules = dict[str, ast.Module]  # dotted name -> tree; a package's name ends in ".__init__"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def bound(node: Any) -> "set[str]":
    """Names that a function, comprehension or class binds in its own scope."""
    found: set[str] = set()
    free: set[str] = set()
    if isinstance(node, FUNCTIONS):
        a = node.args
        every = (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg)
        found |= {arg.arg for arg in every if arg is not None}

    def visit(n: ast.AST) -> None:
        if isinstance(n, (ast.Global, ast.Nonlocal)):
            free.update(n.names)
        elif isinstance(n, ast.Name) and isinstance(n.ctx, (ast.Store, ast.Del)):
            found.add(n.id)
        elif isinstance(n, ast.ExceptHandler) and n.name:
            found.add(n.name)
        elif isinstance(n, (ast.Import, ast.ImportFrom)):
            found.update((a.asname or a.name).split(".")[0] for a in n.names)
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(n.name)
        elif not isinstance(n, (ast.Lambda, *COMPREHENSIONS)):
            for child in ast.iter_child_nodes(n):
                visit(child)

    if isinstance(node, COMPREHENSIONS):
        for generator in node.generators:
            visit(generator.target)
    elif isinstance(node, ast.Lambda):
        visit(node.body)
    else:
        for child in node.body:
            visit(child)
    return found - free


class Scoped(ast.NodeTransformer):
    """Knows for each name where it is bound: None for the module, else the scope's node."""

    def __init__(self) -> None:
        self.scopes: list[tuple[Any, set[str]]] = []

    def owner(self, name: str) -> Any:
        for k in range(len(self.scopes) - 1, -1, -1):
            node, names = self.scopes[k]
            if isinstance(node, ast.ClassDef) and k != len(self.scopes) - 1:
                continue  # functions do not see names of the class around them
            if name in names:
                return node
        return None

    def inside(self, node: Any) -> Any:
        self.scopes.append((node, bound(node)))
        self.generic_visit(node)
        self.scopes.pop()
        return node

    def visit_Lambda(self, node: ast.Lambda) -> Any:
        return self.inside(node)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_Lambda  # type: ignore[assignment]

    def visit_FunctionDef(self, node: Any) -> Any:
        # Decorators and defaults belong to the scope around.
        node.decorator_list = [self.visit(d) for d in node.decorator_list]
        a = node.args
        a.defaults = [self.visit(d) for d in a.defaults]
        a.kw_defaults = [d and self.visit(d) for d in a.kw_defaults]
        kept = node.decorator_list, a.defaults, a.kw_defaults
        node.decorator_list, a.defaults, a.kw_defaults = [], [], []
        self.inside(node)
        node.decorator_list, a.defaults, a.kw_defaults = kept
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        node.bases = [self.visit(b) for b in node.bases]
        kept, node.bases = node.bases, []
        self.inside(node)
        node.bases = kept
        return node


def imported(module: str, node: ast.ImportFrom) -> str:
    """The module that a from-import in `module` names."""
    base = module.split(".")[:-1]
    base = base[: len(base) - node.level + 1] if node.level else []
    return ".".join([*base, *([node.module] if node.module else [])])


def find(modules: Modules, name: str) -> "str | None":
    """The key of a module or package, None when it is not one of ours."""
    for key in (name, name + ".__init__"):
        if key in modules:
            return key
    return None
