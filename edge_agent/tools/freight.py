"""What one board gets: the bundle of its architecture, and its site's own files.

    /main.py                 starts what the switch names; the same for all boards
    /edge.json               the switch: which slot is in force, and what is in it
    /edge-a/  /edge-b/       a slot: device.json, which is secret, and the rest of the files,
                             unless those are in ROMFS
    /rom/                    ROMFS, when the board has a partition that is large enough
    /journal/                is the agent's; nothing here ever touches it

A site is the enrolment file that `edge-gateway enrol --out` wrote, completed by hand or by
`edge-agent init`. What it names on this machine (model, domain, certificates, a recording for
the sensor) goes along, and the paths become those of the board.
"""

import hashlib
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.config import Config
from edge_agent.errors import ConfigError
from edge_agent.tools import romfs
from edge_agent.tools.bundle import APP, MANIFEST, bundle
from edge_agent.tools.ports import known
from edge_agent.tools.preflight import find_board, make_plan
from edge_agent.tools.site import Site
from edge_agent.version import __version__

JOURNAL = "/journal"
DEVICE = "device.json"
SWITCH = "/edge.json"
SLOTS = ("a", "b")
ROM_ID = "edge-id"
_HERE = "@/"  # begins a path that is not known before the slot is
_MODEL, _PLAN, _DOMAIN = "model.tflite", "model.tflite.plan", "site.domain"

# The same program in whatever version, so that an old one can start a new slot. It says
# so and leaves the REPL when what the switch names is not all there.
MAIN = b"""# Written by `edge-agent flash`: starts the agent that /edge.json names.
import json, sys
def _path():
    try:
        with open("/edge.json") as file:
            edge = json.load(file)
        if not edge["rom"]:
            return "/edge-" + edge["slot"] + "/lib"
        with open("/rom/edge-id") as file:
            if file.read() == edge["rom"]:
                return "/rom/lib"
    except (OSError, ValueError, KeyError):
        pass
_path = _path()
if _path:
    sys.path.insert(0, _path)
    import edge_app
else:
    print('edge: half {"error": "half-flashed: run edge-agent flash again"}')
"""
# A program of one's own that names neither is a board of its own.
_ADAPTERS = (b"mpy_port.boards", b"mpy_port.sensors")
_PROGRAM = """from mpy_port.boards.{module} import make_board
from mpy_port.start import start

start(make_board)
"""


class Freight(NamedTuple):
    """Everything for one board. `files`: name below the slot -> bytes, without device.json."""

    board: str
    romfs: bool
    files: "dict[str, bytes]"
    image: bytes  # of ROMFS; then `files` is empty
    id: str  # 16 hex digits: what is in files or image
    fields: "dict[str, Any]"  # of device.json, paths relative; holds the key
    kernels: "str | None"
    version: str

    def __repr__(self) -> str:
        return f"Freight({self.board}, {self.id})"

    def base(self, slot: str) -> str:
        return "/rom" if self.romfs else "/edge-" + slot

    def device(self, slot: str) -> bytes:
        """device.json as it is to be in a slot."""
        fields = json.loads(json.dumps(self.fields))
        base = self.base(slot) + "/"
        for holder, names in (
            (fields, ("model", "domain")),
            (fields["broker"].get("tls") or {}, ("ca", "cert", "key")),
            (fields.get("sensor", {}), ("path",)),
        ):
            for name in names:
                value = holder.get(name)
                if isinstance(value, str) and value.startswith(_HERE):
                    own = holder is fields["broker"].get("tls") and name == "key"
                    holder[name] = ("/edge-" + slot + "/" if own else base) + value[len(_HERE) :]
        return json.dumps(fields, sort_keys=True).encode()

    def slot(self, slot: str) -> "dict[str, bytes]":
        """Path on the board -> content, of everything in that slot's folder."""
        out = {f"/edge-{slot}/{name}": data for name, data in self.files.items()}
        out[f"/edge-{slot}/{DEVICE}"] = self.device(slot)
        return out

    def switch(self, slot: str) -> bytes:
        about = {
            "slot": slot,
            "rom": self.id if self.romfs else "",
            "id": self.id,
            "version": self.version,
            "board": self.board,
        }
        return json.dumps(about, sort_keys=True).encode()

    @property
    def bytes(self) -> int:
        return len(self.image) + sum(map(len, self.files.values()))

    def largest(self) -> "list[tuple[str, int]]":
        """The three largest files."""
        sizes = [(name, len(data)) for name, data in self.files.items()]
        return sorted(sizes, key=lambda entry: -entry[1])[:3]


def about(board: str) -> "dict[str, Any]":
    """What boards.json and flashing.json know of a board. ConfigError lists the names."""
    found = find_board(board)
    entry = known()["boards"].get(board)
    if entry is None:
        raise ConfigError(f"{board!r} cannot be flashed", "--board")
    return {**found, **entry}


def find_site(name: str) -> Site:
    """The enrolment file that a name means: itself, NAME.json or NAME/device.json."""
    places = [Path(name), Path(name + ".json"), Path(name) / DEVICE]
    for path in places:
        if path.is_file():
            return Site(str(path))
    raise ConfigError(
        "there is no " + ", ".join(str(p) for p in places),
        "--site",
        f"On the gateway: edge-gateway enrol {Path(name).name} --out {Path(name).name}.json",
    )


def overlay(
    site: Site, model: "str | None", domain: "str | None", sensor: "str | None"
) -> "dict[str, Any]":
    """The site's fields with what the command line says instead; paths made absolute."""
    fields: dict[str, Any] = json.loads(json.dumps(site.fields))
    base = site.path.resolve().parent
    for name, given in (("model", model), ("domain", domain)):
        if given is not None:
            fields[name] = os.path.abspath(given)
        elif not fields.get(name):
            raise ConfigError("missing", name, f"--{name} FILE, or write it into {site.path}")
        else:
            fields[name] = str(base / fields[name])
        if not os.path.isfile(fields[name]):
            raise ConfigError("no such file", f"{name} {fields[name]}", f"--{name} FILE names it")
    if sensor is not None:
        try:
            fields["sensor"] = json.loads(sensor)
        except ValueError as error:
            raise ConfigError(f"not JSON ({error})", "--sensor", 'Like {"kind": "..."}')
        base = Path.cwd()
    if not isinstance(fields.get("sensor"), dict) or "kind" not in fields["sensor"]:
        raise ConfigError("missing", "sensor", "The board's sensor, as --sensor '{\"kind\": ..}'")
    path = fields["sensor"].get("path")
    if isinstance(path, str) and (base / path).is_file():
        fields["sensor"]["path"] = str(base / path)
    tls = fields["broker"].get("tls") or {}
    for name in ("ca", "cert", "key"):
        if tls.get(name):
            tls[name] = str(site.path.resolve().parent / tls[name])
            if not os.path.isfile(tls[name]):
                raise ConfigError("no such file", f"broker.tls.{name} {tls[name]}")
    fields["journal"] = {**fields.get("journal", {}), "path": JOURNAL}
    Config.from_json(fields)
    return fields


def make_bundle(
    board: str, arch: str, out: "str | os.PathLike[str]", program: "str | None" = None
) -> "dict[str, Any]":
    """The bundle of a board, with its program; see bundle.py. ConfigError, StoreError."""
    module = about(board)["module"]
    adapter = _adapter(module)
    if program is None and adapter is None:
        raise ConfigError(
            f"this version has no adapter mpy_port/boards/{module}.py",
            "--board",
            "Give a program of your own with --main",
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (APP + ".py")
        if program is None:
            path.write_text(_PROGRAM.format(module=module))
        else:
            try:
                path.write_bytes(Path(program).read_bytes())
                compile(path.read_bytes(), program, "exec")
                if not any(name in path.read_bytes() for name in _ADAPTERS):
                    adapter = None
            except OSError as error:
                raise ConfigError(error.strerror or str(error), f"--main {program}")
            except (SyntaxError, ValueError) as error:
                raise ConfigError(f"is no Python ({error})", f"--main {program}")
        return bundle(arch, out, adapter, scripts=(path,), app=path)


def _adapter(module: str) -> "str | None":
    """The module, if there is one of that name in mpy_port/boards."""
    spec = importlib.util.find_spec("mpy_port")
    assert spec is not None and spec.origin is not None
    return module if (Path(spec.origin).parent / "boards" / f"{module}.py").is_file() else None


def check_bundle(folder: Path, board: str, arch: str) -> "dict[str, Any]":
    """The manifest of a bundle made before. ConfigError when it is not for this board."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError):
        raise ConfigError("is no bundle", f"--bundle {folder}", "edge-agent bundle makes one")
    if f"lib/{APP}.mpy" not in files:
        raise ConfigError("has no program", f"--bundle {folder}", "edge-agent bundle makes one")
    if manifest.get("arch") != arch:
        raise ConfigError(
            f"is for {manifest.get('arch')}, the board runs {arch}",
            f"--bundle {folder}",
            f"edge-agent bundle --board {board}",
        )
    if manifest.get("board") not in (None, about(board)["module"]):
        raise ConfigError(
            f"has the adapter of other boards ({manifest['board']})",
            f"--bundle {folder}",
            f"edge-agent bundle --board {board}",
        )
    for name, entry in files.items():
        try:
            data = (folder / name).read_bytes()
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise ConfigError(f"{name} is damaged or missing", f"--bundle {folder}", "Make it anew")
    return manifest


def load(board: str, fields: "dict[str, Any]", folder: Path, in_rom: bool) -> Freight:
    """Join a bundle and a site's files. `fields` as of `overlay`."""
    manifest = json.loads((folder / MANIFEST).read_text())
    files = {name: (folder / name).read_bytes() for name in manifest["files"]}
    fields = json.loads(json.dumps(fields))
    files[_MODEL] = Path(fields["model"]).read_bytes()
    files[_DOMAIN] = Path(fields["domain"]).read_bytes()
    files[_PLAN] = _plan(fields["model"])
    fields["model"], fields["domain"] = _HERE + _MODEL, _HERE + _DOMAIN
    secret: dict[str, bytes] = {}
    tls = fields["broker"].get("tls") or {}
    for name in ("ca", "cert", "key"):
        if tls.get(name):
            own = secret if name == "key" else files
            own[name + ".pem"] = Path(tls[name]).read_bytes()
            tls[name] = f"{_HERE}{name}.pem"
    path = fields["sensor"].get("path")
    if isinstance(path, str) and os.path.isfile(path):
        files["sensor.bin"] = Path(path).read_bytes()
        fields["sensor"]["path"] = _HERE + "sensor.bin"
    table = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    about_files = json.dumps([table, in_rom], sort_keys=True).encode()
    name = hashlib.sha256(about_files).hexdigest()[:16]
    image = b""
    if in_rom:
        image = _image({**files, ROM_ID: name.encode()})
        files = {}
    return Freight(
        board,
        in_rom,
        {**files, **secret},
        image,
        name,
        fields,
        manifest["kernels"],
        manifest.get("version", __version__),
    )


def _plan(model: str) -> bytes:
    """The plan beside the model, or one made now."""
    beside = Path(model + ".plan")
    if beside.is_file():
        return beside.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan"
        make_plan(model, str(out))
        return out.read_bytes()


def _image(files: "dict[str, bytes]") -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return romfs.image(Path(folder))
