"""`edge-agent`: one agent on a Linux machine, and tools for models, frames and journals.

Exit status: 0 done, 1 a check failed (a frame that does not verify, a ledger that does
not add up), 2 wrong use, 3 the surroundings (missing file, full disk, no model runtime).
Every command takes --json and then prints one JSON object on standard output; messages
for people go to standard error.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from edge_agent.errors import ConfigError, EdgeError, RemoteError
from edge_agent.version import __version__

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_ENVIRONMENT = 0, 1, 2, 3


def say(text: str) -> None:
    print(text, file=sys.stderr)


def show(args: argparse.Namespace, data: dict[str, Any], lines: "list[str]") -> None:
    """One JSON object for programs, or the lines for people."""
    if args.json:
        print(json.dumps(data, indent=2, sort_keys=True))
    else:
        print("\n".join(lines))


def table(rows: "list[tuple[str, object]]") -> "list[str]":
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in rows]


# ---- commands


def cmd_init(args: argparse.Namespace) -> int:
    """Complete an enrolment file for this machine, check every part, format the journal."""
    from edge_agent.cpython.owner import become_owner
    from edge_agent.tools import site

    become_owner(os.path.dirname(os.path.abspath(args.config)))
    summary = site.initialise(
        args.config,
        model=args.model,
        domain=args.domain,
        sensor=args.sensor,
        journal=args.journal,
        runtime=args.runtime,
    )
    show(args, summary, ["Ready to run.", *table(sorted(summary.items()))])
    return EXIT_OK


def cmd_claim(args: argparse.Namespace) -> int:
    """Redeem a claim code: fetch this device's configuration from its gateway."""
    from pathlib import Path

    from edge_agent.cpython.claim import read_code, redeem
    from edge_agent.cpython.owner import become_owner

    code = read_code(args.code)
    become_owner(os.path.dirname(os.path.abspath(args.config)))
    found = redeem(code, Path(args.config))
    lines = [
        f"Agent {found['agent']}, key generation {found['generation']}.",
        *table(sorted(found.items())),
    ]
    show(args, found, lines)
    return EXIT_OK


def cmd_run(args: argparse.Namespace) -> int:
    """Run the agent until it is told to stop, or its sensor's recording ends."""
    from edge_agent.tools import site

    async def serve() -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        return await site.run(
            args.config,
            stop,
            runtime=args.runtime,
            seconds=args.seconds,
            until_delivered=args.until_delivered,
            report=None if args.quiet else say,
        )

    status = asyncio.run(serve())
    show(args, status, table(sorted(status.items())))
    return EXIT_OK


def cmd_infer(args: argparse.Namespace) -> int:
    """Run a model on a batch of inputs."""
    from edge_agent.tools.infer import infer

    summary = infer(
        args.model,
        args.input,
        args.output,
        runtime=args.runtime,
        raw=args.raw,
        tier=args.tier,
        progress=not args.json and sys.stderr.isatty(),
    )
    show(args, summary, table(sorted(summary.items())))
    return EXIT_OK


def cmd_frame(args: argparse.Namespace) -> int:
    """Take a frame apart; with the device's configuration, verify it too."""
    from edge_agent.tools import site
    from edge_agent.tools.inspect import describe

    if args.file == "-":
        data = sys.stdin.buffer.read(4096)
    else:
        with open(args.file, "rb") as file:
            data = file.read(4096)
    if args.hex:
        try:
            data = bytes.fromhex("".join(data.decode("ascii").split()))
        except ValueError as error:
            raise ConfigError(f"not hexadecimal ({error})", args.file, "Leave --hex away")
    keys = domain = None
    if args.config:
        keys, domain = site.keys_and_domain(args.config)
    elif args.domain:
        domain = site.load_domain(args.domain)
    data_out = describe(data, keys, domain)
    show(args, data_out, json.dumps(data_out, indent=2).splitlines())
    return EXIT_OK if data_out.get("ok", True) else EXIT_FAILED


def cmd_journal(args: argparse.Namespace) -> int:
    """Look into a journal without changing it; the agent may be running."""
    from edge_agent.tools import journal_cli

    return journal_cli.run(args, show)


def cmd_feedback(args: argparse.Namespace) -> int:
    """Say how an outcome turned out; works while the agent runs and while it does not."""
    from edge_agent.cpython.owner import become_owner
    from edge_agent.tools import feedback

    become_owner(os.path.dirname(os.path.abspath(args.config)))
    result = "confirmed" if args.confirm is not None else "corrected"
    ticket = feedback.put(args.config, args.outcome, result, args.confirm or args.correct)
    show(
        args,
        ticket,
        [f"Noted as {ticket['ticket']}; the agent sends it with its next outcomes."],
    )
    return EXIT_OK


def cmd_tap(args: argparse.Namespace) -> int:
    """Give a classifier an embedding output, weights unchanged."""
    from edge_agent.tools.tap import tap_file

    summary = tap_file(args.model, args.output)
    show(args, summary, table(sorted(summary.items())))
    return EXIT_OK


def cmd_plan(args: argparse.Namespace) -> int:
    """Place a model's activations as tightly as can be, for the device to load."""
    from edge_agent.tools.preflight import make_plan

    summary = make_plan(args.model, args.output)
    show(args, summary, table(sorted(summary.items())))
    return EXIT_OK


def cmd_preflight(args: argparse.Namespace) -> int:
    """Say whether a model will run on a board, and what to change if not."""
    from edge_agent.tools import preflight

    report = preflight.preflight(args.model, args.board, args.heap, args.block)
    show(args, report, preflight.lines(report))
    return EXIT_OK if report["fits"] else EXIT_FAILED


def cmd_bundle(args: argparse.Namespace) -> int:
    """Compile what a kind of board gets, for `flash --bundle`."""
    from edge_agent.tools.flash_cli import run_bundle

    return run_bundle(args, show)


def cmd_flash(args: argparse.Namespace) -> int:
    """Bring an agent onto a board with MicroPython, and wait for its first ack."""
    from edge_agent.tools.flash_cli import run_flash

    return run_flash(args, show)


# ---- arguments


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="edge-agent",
        description="Reads a sensor, runs a model on the spot, and delivers what it "
        "concluded exactly once.",
        epilog="Exit status: 0 done, 1 a check failed, 2 wrong use, 3 the surroundings.",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str,
        run: Callable[[argparse.Namespace], int],
        group: "argparse._SubParsersAction[argparse.ArgumentParser]" = commands,
    ) -> argparse.ArgumentParser:
        text = (run.__doc__ or "").strip().splitlines()[0]
        sub = group.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.set_defaults(run=run)
        return sub

    runtimes = ("auto", "litert", "tflite-runtime", "own")

    sub = command("init", cmd_init)
    sub.add_argument("--config", required=True, help="file from `edge-gateway enrol --out`")
    sub.add_argument("--model", help="the .tflite file")
    sub.add_argument("--domain", help="the signed domain file")
    sub.add_argument(
        "--sensor",
        help='JSON, for example \'{"kind": "csv", "path": "-"}\'; kinds: replay, csv, iio',
    )
    sub.add_argument("--journal", help="directory of the journal (default: beside the file)")
    sub.add_argument("--runtime", choices=runtimes, default="auto")

    sub = command("claim", cmd_claim)
    sub.add_argument("--config", required=True, help="file to write, or of a device with a new key")
    sub.add_argument(
        "--code", metavar="FILE", help="with the code; default: ask, or standard input"
    )

    sub = command("run", cmd_run)
    sub.add_argument("--config", required=True, help="file written by `edge-agent init`")
    sub.add_argument("--seconds", type=float, default=0, help="stop after this long")
    sub.add_argument(
        "--until-delivered",
        action="store_true",
        help="stop when the sensor has ended and the gateway has everything",
    )
    sub.add_argument("--runtime", choices=runtimes, default="auto")
    sub.add_argument("--quiet", action="store_true", help="no events on standard error")

    sub = command("infer", cmd_infer)
    sub.add_argument("--model", required=True, help="any int8 or float .tflite file")
    sub.add_argument("--input", required=True, help=".npy of shape (n, *model input)")
    sub.add_argument("--output", required=True, help=".npy to write, (n, *first output)")
    sub.add_argument("--runtime", choices=(*runtimes, "micropython"), default="auto")
    sub.add_argument(
        "--tier", help="kernels of own and micropython: python, viper, native ...; default: best"
    )
    sub.add_argument("--raw", action="store_true", help="keep int8 in and out")

    sub = command("frame", cmd_frame)
    sub.add_argument("file", help="file with one frame, - for standard input")
    sub.add_argument("--hex", action="store_true", help="the file holds hexadecimal text")
    sub.add_argument("--config", help="device configuration: verifies, decrypts, names labels")
    sub.add_argument("--domain", help="domain file: names labels")

    sub = command("journal", cmd_journal)
    where = sub.add_mutually_exclusive_group(required=True)
    where.add_argument("--config", help="device configuration")
    where.add_argument("--path", help="directory of the journal")
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="every record that is held")
    what.add_argument("--quarantine", action="store_true", help="what the gateway refused")
    what.add_argument("--export", metavar="FILE", help="write unsent frames as JSON lines")
    what.add_argument(
        "--ledger", action="store_true", help="what left this machine, by kind of frame"
    )
    what.add_argument("--mail", action="store_true", help="head and outcomes of others in force")

    sub = command("feedback", cmd_feedback)
    sub.add_argument("outcome", help="outcome id, 32 hexadecimal digits")
    sub.add_argument("--config", required=True, help="device configuration")
    verdict = sub.add_mutually_exclusive_group(required=True)
    verdict.add_argument("--confirm", metavar="LABEL", help="it was right to say LABEL")
    verdict.add_argument("--correct", metavar="LABEL", help="it was LABEL instead")

    model = commands.add_parser("model", help="Tools for models.", description="Tools for models.")
    models = model.add_subparsers(dest="model_command", required=True, metavar="COMMAND")
    sub = command("tap", cmd_tap, models)
    sub.add_argument("model", help="a .tflite classifier")
    sub.add_argument("output", help="the .tflite file to write")
    sub = command("plan", cmd_plan, models)
    sub.add_argument("model", help="an int8 .tflite file")
    sub.add_argument("--output", help="file to write; default: the model's name and .plan")

    sub = command("preflight", cmd_preflight)
    sub.add_argument("model", help="an int8 .tflite file")
    sub.add_argument("--board", required=True, help="like esp32, pico; a wrong name lists them")
    sub.add_argument("--heap", type=_size, help="bytes free on your own board: gc.mem_free()")
    sub.add_argument("--block", type=_size, help="bytes of its largest free block")
    board = "like esp32-c3, pico; a wrong name lists them"
    sub = command("bundle", cmd_bundle)
    sub.add_argument("--board", required=True, help=board)
    sub.add_argument("--out", required=True, metavar="DIR")
    sub.add_argument("--arch", help="other than the board's usual one")
    sub.add_argument("--main", metavar="FILE", help="a program of your own, see docs")

    sub = command("flash", cmd_flash)
    sub.add_argument("--board", required=True, help=board)
    sub.add_argument("--port", default="auto", help="serial port; default: the only one there is")
    sub.add_argument("--site", required=True, metavar="NAME", help="enrolment file, or its stem")
    sub.add_argument("--model", help="the .tflite file, if the enrolment file names none")
    sub.add_argument("--domain", help="the signed domain file, likewise")
    sub.add_argument("--sensor", help="JSON of the board's sensor, likewise")
    sub.add_argument("--main", metavar="FILE", help="a program of your own, see docs")
    sub.add_argument("--bundle", metavar="DIR", help="made by `edge-agent bundle`")
    sub.add_argument("--place", choices=("auto", "romfs", "files"), default="auto")
    sub.add_argument("--firmware", metavar="FILE", help="write this MicroPython first")
    sub.add_argument("--baud", type=int, default=115200, help="default: 115200")
    sub.add_argument("--wait", type=float, default=180, help="seconds for an ack; 0: do not wait")
    sub.add_argument("--dry-run", action="store_true", help="look and compare, change nothing")
    return top


def _size(text: str) -> int:
    value = int(text)
    if not 0 < value < 1 << 31:
        raise argparse.ArgumentTypeError("must be 1 to 2147483647")
    return value


def exit_status(error: BaseException) -> int:
    if isinstance(error, ConfigError):
        return EXIT_USAGE
    return EXIT_FAILED if isinstance(error, RemoteError) else EXIT_ENVIRONMENT


def main(argv: "list[str] | None" = None) -> int:
    args = parser().parse_args(argv)
    try:
        return int(args.run(args))
    except EdgeError as error:
        say(f"edge-agent: {error}")
        return exit_status(error)
    except BrokenPipeError:
        # Whoever read our output has gone; say nothing more, and let nothing flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        say(f"edge-agent: {error.filename or 'system'}: {error.strerror or error}")
        return EXIT_ENVIRONMENT
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
