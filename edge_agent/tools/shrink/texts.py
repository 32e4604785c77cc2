"""What errors say, in a file beside the modules: a text that is never shown takes no heap.

Where an error is made, its texts become `edge_agent.texts.get(number)`, which reads the
file TEXTS when the error is made and not before. The words stay the same. On a heap that is
full, or without the file, the number is shown instead ("#17").
"""

import ast
from typing import Any

from edge_agent.tools.shrink.scopes import Modules

MODULE = "edge_agent.texts"
TEXTS = "texts.txt"  # one text a line, in UTF-8; beside the module
_LEAST = 12  # shorter ones are not worth the call
# Functions that make errors, besides the classes themselves.
_MAKERS = ("fail", "bad", "_bad", "_refuse")
_GET = "_text_of_error"

SOURCE = """
_AT = __file__.rpartition("/")[0] + "/texts.txt"

def get(number):
    try:
        with open(_AT, "rb") as file:
            for _ in range(number):
                file.readline()
            return str(file.readline(), "utf-8").rstrip("\\n")
    except (OSError, MemoryError):
        return "#%d" % number
"""


def outsource(modules: Modules) -> "list[str]":
    """Take the texts out of these modules; the lines of TEXTS. Adds MODULE when there are any."""
    errors = {
        n.name
        for tree in modules.values()
        for n in ast.walk(tree)
        if isinstance(n, ast.ClassDef) and n.name.endswith("Error")
    }
    numbers: dict[str, int] = {}
    for tree in modules.values():
        found = _Out(errors, numbers)
        found.visit(tree)
        if found.used:
            tree.body.insert(0, ast.parse(f"from {MODULE} import get as {_GET}").body[0])
    if numbers:
        modules[MODULE] = ast.parse(SOURCE)
    return list(numbers)


class _Out(ast.NodeTransformer):
    def __init__(self, errors: "set[str]", numbers: "dict[str, int]") -> None:
        self.errors = errors
        self.numbers = numbers
        self.used = False

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in self.errors or name in _MAKERS:
            node.args = [self._text(arg) for arg in node.args]
        return node

    def _text(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mod, ast.Add)):
            node.left, node.right = self._text(node.left), node.right
            if isinstance(node.op, ast.Add):
                node.right = self._text(node.right)
            return node
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            return node
        if len(node.value) < _LEAST or "\n" in node.value or " " not in node.value:
            return node
        number = self.numbers.setdefault(node.value, len(self.numbers))
        self.used = True
        return ast.Call(ast.Name(_GET, ast.Load()), [ast.Constant(number)], [])
