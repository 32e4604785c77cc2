"""Check the shared modules against MicroPython's own types: fails on API it lacks.

    python tools/types_micropython.py            check
    python tools/types_micropython.py --missing  ask the interpreter again what it lacks

mypy runs with `micropython-esp32-stubs` in place of its own library stubs and of every
installed package. Modules that MicroPython lacks are then simply not there. That is not
enough: for built-in types, os, asyncio and a few more those stubs are CPython's with little
changed, and would let `(5).bit_length()` pass. So each function, class and method of them
that MicroPython 1.25 (`make micropython`, with the feature level of esp32 and rp2) does not
have is marked as deprecated in a copy of the stubs, and mypy told to report uses of such. The
list of them is tools/micropython/missing.json, written by --missing.

A few things are looked for in the source itself: see `by_sight`.

Not seen by this check: most keyword arguments that only CPython takes, syntax that
MicroPython refuses, anything reached through Any. tests/core runs on MicroPython for that.
"""

import argparse
import ast
import hashlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
MISSING = ROOT / "tools" / "micropython" / "missing.json"
STUBS = ("micropython-stdlib-stubs", "micropython-esp32-stubs")
# Modules whose stubs are CPython's, more or less. asyncio gives its names from inner ones.
MODULES = (
    "builtins", "array", "binascii", "collections", "errno", "gc", "hashlib", "io", "json", "math",
    "os", "random", "re", "struct", "sys", "time",
)  # fmt: skip
# Boards have these, the interpreter asked does not.
ON_BOARDS = {"os.dupterm", "os.dupterm_notify", "os.sync", "os.uname"}
# And the other way round.
NOT_ON_BOARDS = {"os.getenv", "os.putenv", "os.system", "os.unsetenv"}
# Modules that the stubs need for themselves. Under `if TYPE_CHECKING` they do no harm.
NO_MODULES = {"__future__", "abc", "enum", "types", "typing", "typing_extensions"}

# What is right all the same: (file, what the message holds).
EXCUSED = (
    # The stubs take asyncio's TimeoutError, which MicroPython has, for the built-in one.
    ("edge_agent/agent.py", "builtins.TimeoutError"),
    ("mpy_port/mqtt/serial.py", "builtins.TimeoutError"),
    # Branches that only CPython takes, and a module that only CPython imports.
    ("mpy_port/clock.py", '"monotonic_ns"'),
    ("mpy_port/mqtt/transport.py", "builtins.ConnectionError"),
    ("mpy_port/mqtt/transport.py", "builtins.TimeoutError"),
    ("mpy_port/mqtt/secure.py", '"SSLContext" has no attribute'),
    ("mpy_port/tflite/kernels/host_numpy.py", '"numpy'),
    ("mpy_port/tflite/memory.py", "builtins.memoryview.cast"),
)
# Other errors are found by the strict run with CPython's stubs. Viper code, whose types
# are no Python types, has plenty.
CODES = ("attr-defined", "call-arg", "call-overload", "deprecated", "import-not-found")
CONFIG = """[mypy]
python_version = 3.11
custom_typeshed_dir = {stubs}
mypy_path = {stubs}
cache_dir = {cache}
no_site_packages = True
check_untyped_defs = True
enable_error_code = deprecated
"""
ASK = """
import json, sys
names = json.load(sys.stdin)
missing = []
for module in names:
    found = __import__(module)
    for name in names[module]:
        at = found
        for part in name.split("."):
            if not hasattr(at, part):
                missing.append(module + "." + name)
                break
            at = getattr(at, part)
print(json.dumps(missing))
"""


def files() -> list[str]:
    """The agent without what only hosts run, and everything for boards."""
    shared = [path for path in (ROOT / "edge_agent").glob("*.py") if path.name != "cli.py"]
    paths = shared + list((ROOT / "mpy_port").rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in paths if "natmod" not in path.parts)


def stub_files(stubs: Path) -> dict[Path, str]:
    """Stub file -> the module from which its names are taken."""
    out = {}
    for module in MODULES:
        for place in (stubs, stubs / "stdlib"):
            for name in (f"{module}.pyi", f"{module}/__init__.pyi"):
                if (place / name).exists():
                    out[place / name] = module
    for path in (stubs / "stdlib" / "asyncio").glob("*.pyi"):
        out[path] = "asyncio"
    return out


def definitions(body: list[ast.stmt], prefix: str = "") -> "list[tuple[str, ast.stmt]]":
    """Public functions, classes and methods with their dotted names; not properties."""
    found: list[tuple[str, ast.stmt]] = []
    for node in body:
        if isinstance(node, ast.If):
            found += definitions(node.body, prefix) + definitions(node.orelse, prefix)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            decorators = [ast.unparse(d) for d in node.decorator_list]
            if node.name.startswith("_") or any(
                "property" in d or ".setter" in d for d in decorators
            ):
                continue
            found.append((prefix + node.name, node))
            if isinstance(node, ast.ClassDef):
                found += definitions(node.body, prefix + node.name + ".")
    return found


def ask(stubs: Path) -> list[str]:
    """What the stubs promise and the interpreter does not have."""
    wanted: dict[str, list[str]] = {}
    for path, module in stub_files(stubs).items():
        names = [name for name, _ in definitions(ast.parse(path.read_text()).body)]
        wanted[module] = sorted({*wanted.get(module, []), *names})
    done = subprocess.run(  # noqa: S603
        [CACHE / "micropython" / "micropython32", "-X", "heapsize=8M", "-c", ASK],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(set(json.loads(done.stdout)) - ON_BOARDS | NOT_ON_BOARDS)


def mark(stubs: Path, missing: set[str]) -> None:
    """Write `@_deprecated(...)` above everything of the list."""
    for path, module in stub_files(stubs).items():
        lines = path.read_text().split("\n")
        tree = ast.parse("\n".join(lines))
        for name, node in sorted(definitions(tree.body), key=lambda pair: -pair[1].lineno):
            if f"{module}.{name}" in missing:
                assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
                at = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
                text = f'{" " * node.col_offset}@_deprecated("MicroPython has no {module}.{name}")'
                lines.insert(at, text)
        lines.append("from typing_extensions import deprecated as _deprecated")
        path.write_text("\n".join(lines) + "\n")


def copy(target: Path) -> None:
    for name in STUBS:
        for file in distribution(name).files or []:
            if file.suffix == ".pyi" or file.name == "VERSIONS":
                to = target / str(file)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), to)


def versions() -> dict[str, str]:
    return {name: distribution(name).version for name in STUBS}


def marked() -> Path:
    """The marked copy of the stubs, made once per list and version."""
    content = MISSING.read_bytes() + json.dumps(versions()).encode() + Path(__file__).read_bytes()
    stubs = CACHE / ("micropython-stubs-" + hashlib.sha256(content).hexdigest()[:16])
    if not stubs.exists():
        partly = CACHE / "micropython-stubs.partly"
        shutil.rmtree(partly, ignore_errors=True)
        copy(partly)
        mark(partly, set(json.loads(MISSING.read_text())["missing"]))
        partly.rename(stubs)
    return stubs


def by_sight(root: Path, name: str) -> list[str]:
    """What the stubs wrongly allow: some modules, keywords of integers, hexdigest."""
    found = []
    waiting: list[ast.AST] = [ast.parse((root / name).read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        wrong = ""
        if isinstance(node, ast.Import):
            wrong = ", ".join(sorted(NO_MODULES & {alias.name for alias in node.names}))
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module in NO_MODULES:
            wrong = node.module or ""
        elif isinstance(node, ast.Attribute) and node.attr == "hexdigest":
            wrong = "hexdigest"
        elif isinstance(node, ast.Call) and node.keywords:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            if called in ("to_bytes", "from_bytes"):
                wrong = f"keyword of int.{called}"
        if wrong:
            line = getattr(node, "lineno", 0)
            found.append(f"{name}:{line}: error: MicroPython has no {wrong}  [by-sight]")
    return found


def update() -> int:
    build = ["sh", str(ROOT / "tools" / "micropython.sh"), "micropython32"]
    if done := subprocess.run(build, check=False).returncode:  # noqa: S603
        return done
    plain = CACHE / "micropython-stubs.plain"
    shutil.rmtree(plain, ignore_errors=True)
    copy(plain)
    found = {"stubs": versions(), "missing": ask(plain)}
    shutil.rmtree(plain)
    MISSING.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(found['missing'])} names")
    return 0


def errors_in(root: Path, names: list[str]) -> list[str]:
    """What mypy and `by_sight` say about these files below `root`. OSError when mypy fails."""
    stubs = marked()
    config = CACHE / "micropython-mypy.ini"
    config.write_text(CONFIG.format(stubs=stubs, cache=CACHE / "micropython-mypy"))
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "mypy", "--config-file", str(config), *names],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise OSError(done.stdout + done.stderr)
    # Errors in the stubs themselves are not ours.
    return [
        line
        for line in done.stdout.split("\n")
        if line.startswith(tuple(name + ":" for name in names))
        and line.endswith(tuple(f"[{code}]" for code in CODES))
    ] + [line for name in names for line in by_sight(root, name)]


def check() -> int:
    if json.loads(MISSING.read_text())["stubs"] != versions():
        print(
            "The stubs are others than those of missing.json: run with --missing", file=sys.stderr
        )
        return 3
    errors = errors_in(ROOT, files())
    for place, part in EXCUSED:
        excused = [line for line in errors if line.startswith(place + ":") and part in line]
        if not excused and (ROOT / place).exists():
            errors.append(f"{place}: error: nothing to excuse for {part}; shorten EXCUSED")
        errors = [line for line in errors if line not in excused]
    for line in errors:
        print(line)
    print(
        f"Found {len(errors)} errors"
        if errors
        else f"Success: {len(files())} files for MicroPython"
    )
    return 1 if errors else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--missing", action="store_true", help="write missing.json again")
    options = parser.parse_args()
    return update() if options.missing else check()


if __name__ == "__main__":
    sys.exit(main())
