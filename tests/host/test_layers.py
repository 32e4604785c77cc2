"""The arrows of DESIGN.md, read from the imports themselves."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What the shared modules may import from the standard library: all of it exists on
# stock MicroPython firmware.
MICROPYTHON_LIBRARY = {
    "array", "asyncio", "binascii", "collections", "errno", "hashlib", "io", "json", "os",
    "random", "re", "struct", "sys", "micropython", "gc",
}  # fmt: skip
SHARED = sorted(p for p in (ROOT / "edge_agent").glob("*.py") if p.name != "cli.py")

# The core is a machine without I/O: it must not reach a clock, a socket, a file or chance.
WITHOUT_IO = {
    "cbor", "cose", "core", "delivery", "domain", "effects", "errors", "features",
    "fingerprint", "frame", "outcome", "interfaces", "synthesis", "payload", "keys", "intake",
    "connection", "dialogue", "outbox", "backoff", "head", "mail",
}  # fmt: skip
IO_LIBRARY = {"asyncio", "os", "io", "random", "sys"}

# importer -> packages of ours it may import. The most specific prefix counts.
ARROWS = {
    "edge_agent": ("edge_agent",),
    "edge_agent.cli": ("edge_agent", "gateway", "mpy_port"),
    "edge_agent.cpython": ("edge_agent", "mpy_port.tflite"),
    # The chips' registers are the same there.
    "edge_agent.cpython.sensors": ("edge_agent", "mpy_port.sensors"),
    "edge_agent.tools": ("edge_agent", "mpy_port.tflite"),
    "mpy_port.tflite": ("mpy_port.tflite",),
    "mpy_port.mqtt": ("mpy_port.mqtt", "edge_agent.errors", "edge_agent.interfaces"),
    "mpy_port": ("mpy_port", "edge_agent"),
    # Reads the last layer of a model file.
    "gateway.base_head": (
        "gateway",
        "edge_agent.domain",
        "edge_agent.fingerprint",
        "mpy_port.tflite",
    ),
    "gateway": (
        "gateway",
        "edge_agent.cbor",
        "edge_agent.cose",
        "edge_agent.cpython.claim_code",
        "edge_agent.cpython.notify",
        "edge_agent.cpython.owner",
        "edge_agent.cpython.signer",
        "edge_agent.domain",
        "edge_agent.errors",
        "edge_agent.fingerprint",
        "edge_agent.frame",
        "edge_agent.head",
        "edge_agent.mail",
        "edge_agent.outcome",
        "edge_agent.payload",
        "edge_agent.synthesis",
        "edge_agent.version",
        "edge_agent.interfaces",
    ),
}


def module_name(path):
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Dotted names this file imports at run time, made absolute."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]

    def visit(nodes):
        for node in nodes:
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
                continue
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                if node.level:
                    base = package[: len(package) - node.level + 1]
                else:
                    base = []
                stem = ".".join(base + ([node.module] if node.module else []))
                for alias in node.names:
                    yield stem + "." + alias.name
            else:
                yield from visit(ast.iter_child_nodes(node))

    yield from visit(ast.parse(path.read_text()).body)


def sources():
    for top in ("edge_agent", "gateway", "mpy_port"):
        yield from sorted((ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("path", SHARED, ids=lambda p: p.name)
def test_shared_modules_import_what_micropython_has(path):
    for name in imports(path):
        top = name.split(".")[0]
        assert top == "edge_agent" or top in MICROPYTHON_LIBRARY, f"{path.name} imports {name}"
        assert not name.startswith(("edge_agent.cpython", "edge_agent.tools")), (
            f"{path.name} imports the adapter {name}"
        )


@pytest.mark.parametrize("path", SHARED, ids=lambda p: p.name)
def test_machines_do_no_io(path):
    if path.stem not in WITHOUT_IO:
        return
    for name in imports(path):
        assert name.split(".")[0] not in IO_LIBRARY, f"{path.name} imports {name}"
        assert name.split(".")[-1] not in ("journal", "agent"), f"{path.name} imports {name}"


def test_every_arrow_is_drawn():
    wrong = []
    for path in sources():
        me = module_name(path)
        rule = max((r for r in ARROWS if (me + ".").startswith(r + ".")), key=len)
        for name in imports(path):
            if name.split(".")[0] not in ("edge_agent", "gateway", "mpy_port"):
                continue
            if name in ("edge_agent.edge_agent", "edge_agent"):
                continue
            if not any((name + ".").startswith(target + ".") for target in ARROWS[rule]):
                wrong.append(f"{me} -> {name}")
    assert not wrong, "arrows that DESIGN.md does not have:\n" + "\n".join(wrong)


def test_the_reader_of_imports_sees_them(tmp_path):
    """The tests above could pass by seeing nothing."""
    found = set(imports(ROOT / "edge_agent" / "cpython" / "signer.py"))
    assert any(name.startswith("edge_agent.") for name in found)
    assert any(name.startswith("cryptography") for name in found)
