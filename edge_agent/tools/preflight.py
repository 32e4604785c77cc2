"""Will a model run on a board? Answered before anything is flashed.

The model is loaded here by the library that would run it there, with its plain kernels, so
what would be refused there is refused here, in the same words. Then four questions:

arena           the memory of all activations: greedy as placed on the device, planned
                (`edge-agent model plan`), and the bound that no placement can beat. It is
                one allocation, so it must fit the board's largest free block.
heap            arena, what each operator holds (biases, multipliers, views: added up in
                blocks of 16 bytes as a 32-bit MicroPython allocates them), the library's
                own code, and room to load in (SPARE). The model itself comes on top when
                it is read from a file; in ROMFS or frozen into the firmware it stays in
                flash. The agent, its network and whatever else runs come on top, too.
flash           model and plan as files.
instructions    multiply-accumulates, counted with padding, times instructions measured
                for each kind of layer, kernel tier and architecture. Where nothing was
                measured the answer is "not measured", not a guess.

Figures come from two files beside this one: footprint.json, written by
benchmarks/preflight.py, and instructions.json, written by benchmarks/kernels.py:
{"source": text, "per_mac": {arch: {tier: {layer: number}}}}, the layers being those of
LAYERS. Boards are in boards.json.
"""

import json
import os
from pathlib import Path
from typing import Any

from edge_agent.cpython.model_own import translated
from edge_agent.cpython.runtime import read_model
from edge_agent.errors import ConfigError, ModelError
from mpy_port import tflite
from mpy_port.tflite import flatbuffer, kernels, op_resolver, planner

HERE = Path(__file__).parent
# conv_1x1: CONV_2D with a 1x1 filter; conv: any other.
LAYERS = ("conv_1x1", "conv", "depthwise", "fully_connected")
NOT_MEASURED = "not measured"
# Heap that loading needs for a while: garbage between two collections, and what
# fragmentation takes. A bound on what benchmarks/preflight.py measures: bytes, and a
# percentage of what the model holds.
SPARE, SPARE_PERCENT = 21 * 1024, 12
_GC_BLOCK = 16
_WORD = 4
_PLAN_TRIES = 20000
_DISPATCH = {
    "conv_2d": "conv",
    "depthwise_conv_2d": "depthwise",
    "fully_connected": "fully_connected",
}


def table(name: str) -> "dict[str, Any]":
    """A JSON file beside this one; empty when there is none."""
    try:
        return dict(json.loads((HERE / name).read_text()))
    except FileNotFoundError:
        return {}


def find_board(name: str) -> "dict[str, Any]":
    boards = table("boards.json")["boards"]
    if name not in boards:
        raise ConfigError(f"unknown board {name!r}", "--board", "Known: " + ", ".join(boards))
    return dict(boards[name])


def make_plan(model: "str | os.PathLike[str]", output: str | None = None) -> "dict[str, Any]":
    """Write `<model>.plan`, complete or not at all; a summary. ModelError."""
    data = read_model(model)
    with translated(str(model)):
        plan, total, greedy, bound = planner.make_plan(data, _PLAN_TRIES)
    target = Path(output or f"{model}.plan")
    part = target.with_name(target.name + ".part")
    try:
        part.write_bytes(plan)
        os.replace(part, target)
    except OSError as error:
        raise ModelError(error.strerror or "cannot be written", str(target)) from None
    return {
        "written": str(target),
        "bytes": len(plan),
        "arena": total,
        "greedy": greedy,
        "bound": bound,
    }


def preflight(
    model: "str | os.PathLike[str]",
    board: str,
    heap: int | None = None,
    block: int | None = None,
    instructions: "dict[str, Any] | None" = None,
) -> "dict[str, Any]":
    """What is to be known of a model on a board; JSON-ready.

    heap, block: bytes measured on one's own board, instead of the table's.
    instructions: instead of instructions.json. ModelError when the file is no sound model.
    """
    about = find_board(board)
    about["heap"] = heap or about["heap"]
    about["block"] = min(block or about["block"], about["heap"])
    figures = table("instructions.json") if instructions is None else instructions
    data = read_model(model)
    report: dict[str, Any] = {"model": str(model), "board": board, "chip": about["chip"]}
    report["board_basis"] = about["basis"] if heap is None else "heap as given"
    change: list[str] = []
    problems: list[str] = []
    with translated(str(model)):
        graph = flatbuffer.Graph(data)
        report["missing_operators"] = op_resolver.missing(graph)
        arena, plan_size, blocked = _arena(graph, str(model), about, change)
    report["arena"] = arena
    problems += blocked
    for name in report["missing_operators"]:
        problems.append(f"operator {name} is not supported")
        change.append(f"replace the {name} layer by supported operators, or run it elsewhere")
    net = None
    if not report["missing_operators"]:
        try:
            net = tflite.Interpreter(data, "python", arena_limit=max(arena["greedy"], 1))
        except tflite.ModelError as error:
            problems.append(f"{error.where}: {error.what}" if error.where else error.what)
            change.append(error.fix or "convert the model anew")
    report["heap"] = _heap(net, arena["used"], len(data), about)
    report["flash"] = {"model": len(data), "plan": plan_size, "files": about["files"]}
    if net is not None:
        report["instructions"] = _instructions(net, about["arch"], figures)
        problems += _judge_heap(report["heap"], change)
    in_file = report["heap"].get("fits_from_file", False)
    if about["files"] and len(data) + plan_size > about["files"]:
        in_file = False
        problems_text = f"the file system has {about['files']} bytes, the model {len(data)}"
        report["flash"]["note"] = problems_text
        change.append("put the model into the firmware image (frozen), or take more flash")
    if not about["files"]:
        in_file = False
    report["problems"] = problems
    report["fits"] = not problems
    if problems:
        report["verdict"] = "does not fit"
    elif in_file:
        report["verdict"] = "fits"
    else:
        report["verdict"] = "fits only with the model in flash (ROMFS or frozen)"
    report["change"] = change
    return report


def _arena(
    graph: "flatbuffer.Graph", path: str, about: "dict[str, Any]", change: "list[str]"
) -> "tuple[dict[str, Any], int, list[str]]":
    """(figures, size of the plan file, problems)."""
    layout = planner.layout(graph)
    greedy = planner.greedy(layout.blocks)[1]
    bound = planner.lower_bound(layout.blocks)
    planned = greedy if greedy == bound else planner.search(layout.blocks, _PLAN_TRIES)[1]
    used, plan_size, source = greedy, 0, "greedy"
    try:
        plan = Path(path + ".plan").read_bytes()
    except OSError:
        plan = b""
    if plan:
        used = planner.apply(graph, layout, plan)[1]
        plan_size, source = len(plan), "plan file"
    figures = {
        "greedy": greedy,
        "plan": planned,
        "bound": bound,
        "used": used,
        "source": source,
        "block": about["block"],
    }
    problems = []
    if used > about["block"]:
        problems.append(f"the arena of {used} bytes is above the largest block, {about['block']}")
    if planned < used:
        change.append(f"`edge-agent model plan {path}` takes {used - planned} bytes off the arena")
    if bound > about["block"]:
        change.append(
            f"no placement can do with less than {bound} bytes: smaller input or fewer channels "
            "in the layers with the largest activations, or another board"
        )
    return figures, plan_size, problems


def _heap(
    net: "tflite.Interpreter | None", arena: int, size: int, about: "dict[str, Any]"
) -> "dict[str, Any]":
    library = table("footprint.json")
    out: dict[str, Any] = {"board": about["heap"], "arena": arena}
    if net is None:
        return out
    code = library.get("library", {})
    out["operators"] = held(net)
    out["library"] = code.get("ram", NOT_MEASURED)
    out["library_basis"] = library.get("source", NOT_MEASURED)
    live = arena + out["operators"]
    out["spare"] = spare(live)
    out["in_flash"] = live + out["spare"] + code.get("rom", 0)
    out["from_file"] = live + out["spare"] + code.get("ram", 0) + _rounded(size)
    out["fits_in_flash"] = out["in_flash"] <= about["heap"]
    out["fits_from_file"] = out["from_file"] <= about["heap"]
    return out


def _judge_heap(heap: "dict[str, Any]", change: "list[str]") -> "list[str]":
    if heap["fits_from_file"]:
        return []
    if heap["fits_in_flash"]:
        spared = heap["from_file"] - heap["in_flash"]
        change.append(f"put model and library into ROMFS or the firmware: spares {spared} bytes")
        return []
    change.append("fewer channels or layers, or a board with more memory")
    return [f"the heap of {heap['board']} bytes is below the {heap['in_flash']} needed"]


def spare(live: int) -> int:
    """Bytes to have free for loading a model that will hold `live`."""
    return SPARE + live * SPARE_PERCENT // 100


def held(net: "tflite.Interpreter") -> int:
    """Bytes that a loaded model holds besides its arena, on a 32-bit MicroPython."""
    total = 16 * _GC_BLOCK  # the interpreter, its lists, what it tells of inputs and outputs
    total += 6 * _GC_BLOCK * (len(net.inputs) + len(net.outputs))
    total += _list(len(net.steps()))
    for _, _, args in net.steps():
        total += _tuple(3) + _tuple(len(args))
        for value in args:
            total += _argument(value)
    return total


def _argument(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return _tuple(len(value)) + sum(_argument(v) for v in value)
    if isinstance(value, memoryview):
        return _GC_BLOCK
    if isinstance(value, (int, float)):
        return 0
    return _GC_BLOCK + _rounded(value.itemsize * len(value))  # array


def _tuple(n: int) -> int:
    return _rounded(_WORD * (2 + n))


def _list(n: int) -> int:
    room = 4
    while room < n:
        room *= 2
    return _GC_BLOCK + _rounded(_WORD * room)


def _rounded(n: int) -> int:
    return (n + _GC_BLOCK - 1) // _GC_BLOCK * _GC_BLOCK


def macs(net: "tflite.Interpreter") -> "dict[str, int]":
    """Multiply-accumulates by kind of layer, padding counted."""
    out = dict.fromkeys(LAYERS, 0)
    for name, _, args in net.steps():
        layer = _DISPATCH.get(name)
        if layer is None:
            continue
        p = args[-1]
        taps = p[kernels.KH] * p[kernels.KW]
        if layer == "conv" and taps == 1:
            layer = "conv_1x1"
        each = {"depthwise": taps, "fully_connected": p[kernels.FC]}.get(
            layer, taps * p[kernels.FC]
        )
        out[layer] += len(args[0]) * each
    return out


def _instructions(
    net: "tflite.Interpreter", arch: str, figures: "dict[str, Any]"
) -> "dict[str, Any]":
    counted = macs(net)
    others = sorted({name for name, _, _ in net.steps()} - set(_DISPATCH))
    out: dict[str, Any] = {"macs": counted, "not_counted": others, "arch": arch}
    measured = figures.get("per_mac", {}).get(arch, {})
    tiers: dict[str, Any] = {}
    for tier in measured:
        costs = measured[tier]
        lacking = [layer for layer in LAYERS if counted[layer] and layer not in costs]
        if lacking:
            tiers[tier] = f"{NOT_MEASURED} for {', '.join(lacking)}"
        else:
            tiers[tier] = round(sum(counted[layer] * costs.get(layer, 0) for layer in LAYERS))
    out["estimate"] = tiers or NOT_MEASURED
    if tiers:
        out["basis"] = (
            f"multiply-accumulates x instructions per multiply-accumulate on {arch}, "
            f"{figures.get('source', 'source not given')}; without " + (", ".join(others) or "none")
        )
    else:
        out["basis"] = (
            f"no figures for {arch} in instructions.json; benchmarks/kernels.py makes them"
        )
    return out


def _parts(heap: "dict[str, Any]") -> str:
    return (
        f"of that arena {heap['arena']}, operators {heap['operators']}, room to load "
        f"{heap['spare']}, library {heap['library']} in RAM; the agent comes on top"
    )


def lines(report: "dict[str, Any]") -> "list[str]":
    """The report for people."""
    arena, heap, flash = report["arena"], report["heap"], report["flash"]
    rows = [
        ("board", f"{report['board']} ({report['chip']})"),
        ("operators", "all supported"),
        (
            "arena",
            f"{arena['used']} bytes ({arena['source']}); greedy {arena['greedy']}, "
            f"plan {arena['plan']}, bound {arena['bound']}; largest block {arena['block']}",
        ),
    ]
    if report["missing_operators"]:
        rows[1] = ("operators", "missing: " + ", ".join(report["missing_operators"]))
    if "operators" in heap:
        rows.append(
            (
                "heap",
                f"{heap['from_file']} bytes with model and library read into RAM, "
                f"{heap['in_flash']} with both in flash; the board has {heap['board']}",
            )
        )
        rows.append(("", _parts(heap)))
    rows.append(
        ("flash", f"model {flash['model']}, plan {flash['plan']}; files may take {flash['files']}")
    )
    if "instructions" in report:
        found = report["instructions"]
        total = sum(found["macs"].values())
        said = found["estimate"]
        if isinstance(said, dict):
            said = ", ".join(
                f"{t} {n:,}" if isinstance(n, int) else f"{t} {n}" for t, n in said.items()
            )
        rows.append(("instructions", f"{total:,} multiply-accumulates; {said}"))
        rows.append(("", found["basis"]))
    rows.append(("figures", report["board_basis"]))
    rows.append(("verdict", report["verdict"]))
    rows += [("", text) for text in report["problems"]]
    rows += [("to change" if k == 0 else "", text) for k, text in enumerate(report["change"])]
    return [f"  {name:<12}  {text}" for name, text in rows]
