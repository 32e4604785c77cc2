"""Takes out what only people and type checkers read, and methods that only refuse."""

import ast
from typing import Any


def native(node: ast.AST) -> bool:
    """A function for viper, the native emitter or an assembler."""
    found = [ast.unparse(d) for d in getattr(node, "decorator_list", [])]
    return any(d.startswith("micropython.") for d in found)


class _Strip(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse
        return node

    def visit_Assign(self, node: ast.Assign) -> Any:
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id == "TYPE_CHECKING":
            return None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_Expr(self, node: ast.Expr) -> Any:
        return None if isinstance(node.value, ast.Constant) else node

    def visit_FunctionDef(self, node: Any) -> Any:
        self.generic_visit(node)
        if not native(node):
            node.returns = None
            a = node.args
            for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg):
                if arg is not None:
                    arg.annotation = None
        node.body = node.body or [ast.Pass()]
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        self.generic_visit(node)
        node.body = [n for n in node.body if not _abstract(n)] or [ast.Pass()]
        return node


def _abstract(node: ast.AST) -> bool:
    body = getattr(node, "body", None)
    return (
        isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and isinstance(body, list)
        and len(body) == 1
        and isinstance(body[0], ast.Raise)
        and isinstance(body[0].exc, ast.Name)
        and body[0].exc.id == "NotImplementedError"
    )


def strip(tree: ast.Module) -> None:
    _Strip().visit(tree)
