"""Frames per second of the MicroPython MQTT client, beside umqtt.simple in the same run.

    python benchmarks/mqtt.py [--quick] [--json FILE] [--check] [--umqtt FILE]

Both clients run on MicroPython and publish 250-byte frames with QoS 1 through a real
mosquitto, over a proxy that delays every byte by 10 ms each way: a link with 20 ms of round
trip. They take turns; a figure is the median of the rounds. umqtt.simple sends one packet
and waits for its PUBACK; ours has a window of 1, 8 and 32. "blocking loop" is what
umqtt.simple would be if it wrote each packet at once: it writes them in pieces, and the
second piece waits until the system on the other side acknowledges the first, 40 ms on Linux.
The same happens to the PUBACKs of a mosquitto without `set_tcp_nodelay`, its default;
both settings are measured.

The second part is a broker that falls silent in the middle: for how long does the program
stand still, and does the client notice?

umqtt.simple 1.3.4 is the release on PyPI, downloaded by its SHA-256 to .cache (`--umqtt`
takes a copy). Where it cannot be had, the blocking loop takes its place, and the table
says so.

--check exits 1 below 3x the frames per second of umqtt.simple at window 8, with either
setting of mosquitto, or when a silent broker stops the
event loop for more than 500 ms or is not noticed.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "host")]

from brokers import Mosquitto  # noqa: E402

WORKER = Path(__file__).with_name("_mqtt_worker.py")
MICROPYTHON = Path(sys.executable).with_name("micropython")
CACHE = ROOT / ".cache" / "umqtt"
NAME = "micropython-umqtt.simple"
VERSION = "1.3.4"
SHA256 = "b6a2520239e3992c63a7de9370ee9b3d9d27819a90359c521f1c0f7ccab8d12f"
ONE_WAY_S = 0.010
SIZE = 250
GOAL, STALL_MS = 3.0, 500
SETTINGS = ("false", "true")
BLOCKING = "blocking loop, window 1"
HANG_S = 8  # a client that has not ended by then is taken to hang


class Link:
    """A proxy on a thread of its own: each byte arrives ONE_WAY_S later, in order.

    silent_after: bytes from the client after which nothing moves any more.
    """

    def __init__(self, target: int, silent_after: "int | None" = None) -> None:
        self.target = target
        self.silent_after = silent_after
        self.port = 0
        self.ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.ready.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        )
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        self.loop.run_forever()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    async def _serve(self, reader: Any, writer: Any) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        # The streams of asyncio complain when their task is cancelled, as `close` does.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(
                self._pump(reader, back, self.silent_after), self._pump(there, writer, None)
            )

    async def _pump(self, reader: Any, writer: Any, limit: "int | None") -> None:
        loop = asyncio.get_running_loop()
        done = 0
        with contextlib.suppress(OSError):
            while True:
                data = await reader.read(65536)
                done += len(data)
                if limit is not None and done > limit:
                    await asyncio.sleep(3600)
                if not data:
                    loop.call_later(ONE_WAY_S, writer.close)
                    return
                loop.call_later(ONE_WAY_S, writer.write, data)


def umqtt_folder(given: "str | None") -> "Path | None":
    """A folder with umqtt/simple.py, or None when it cannot be had."""
    if given is None and (CACHE / "umqtt" / "simple.py").exists():
        return CACHE
    try:
        data = Path(given).read_bytes() if given is not None else _download()
    except OSError as error:
        print(f"umqtt.simple cannot be had ({error})", file=sys.stderr)
        return None
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SystemExit(f"{NAME} {VERSION}: not the file with SHA-256 {SHA256}")
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            member = archive.extractfile(f"{NAME}-{VERSION}/umqtt/simple.py")
            if member is None:
                raise SystemExit(f"{NAME} {VERSION}: no umqtt/simple.py in it")
            (CACHE / "umqtt").mkdir(parents=True, exist_ok=True)
            (CACHE / "umqtt" / "simple.py").write_bytes(member.read())
    return CACHE


def _download() -> bytes:
    """The sdist from where pip finds it.

    It is of a time before setup.py had to be in it: pip locates it and then gives up.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    with tempfile.TemporaryDirectory() as folder:
        found = subprocess.run(
            [*command, "--dest", folder, f"{NAME}=={VERSION}"], capture_output=True, text=True
        )
    url = re.search(rf"\S+://\S+/{NAME}-{VERSION}\.tar\.gz", found.stdout + found.stderr)
    if url is None:
        raise OSError("pip does not find it")
    with urllib.request.urlopen(url[0], timeout=30) as answer:
        return bytes(answer.read())


def run(who: str, port: int, count: int, window: int, folder: "Path | None") -> "dict[str, Any]":
    """One client process; {"hangs": True} when it had to be ended."""
    command = [MICROPYTHON, WORKER, who, port, count, SIZE, window, folder or "-"]
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True)
    try:
        out, _ = process.communicate(timeout=max(HANG_S, count * 0.2))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"hangs": True}
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    if process.returncode or len(lines) < 2:
        raise SystemExit(f"{who} failed:\n{out}")
    result: dict[str, Any] = lines[-1]
    return result


def measure(
    port: int,
    cases: "list[tuple[str, str, int]]",
    rounds: int,
    quick: bool,
    folder: "Path | None",
) -> "dict[str, list[float]]":
    """Frames per second of each case, one figure a round; the cases take turns."""
    rates: dict[str, list[float]] = {name: [] for name, _, _ in cases}
    link = Link(port)
    for _ in range(rounds):
        for name, who, window in cases:
            count = (60 if window == 1 else 1000) // (2 if quick else 1)
            result = run(who, link.port, count, window, folder)
            if result.get("hangs") or result["error"]:
                raise SystemExit(f"{name}: {result}")
            rates[name].append(1000 * count / result["ms"])
    link.close()
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--umqtt", metavar="FILE", help="the sdist of umqtt.simple")
    options = parser.parse_args()
    folder = umqtt_folder(options.umqtt)
    peer_name = f"umqtt.simple {VERSION}" if folder is not None else BLOCKING
    cases = [(BLOCKING, "blocking", 1), *[(f"ours, window {w}", "ours", w) for w in (1, 8, 32)]]
    if folder is not None:
        cases.insert(0, (peer_name, "umqtt", 1))
    rounds = 1 if options.quick else 3
    rates: dict[str, dict[str, list[float]]] = {}
    silence: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        for setting in SETTINGS:
            broker = Mosquitto(Path(place), "allow_anonymous true", f"set_tcp_nodelay {setting}")
            broker.start()
            try:
                rates[setting] = measure(broker.port, cases, rounds, options.quick, folder)
                if setting == SETTINGS[0]:
                    for name, who, window in cases:
                        if name in (peer_name, "ours, window 8"):
                            link = Link(broker.port, silent_after=10 * SIZE)
                            silence[name] = run(who, link.port, 30, window, folder)
                            link.close()
            finally:
                broker.kill()

    print(f"{SIZE}-byte frames, QoS 1, 20 ms round trip, on MicroPython; frames/s")
    print(f"{'':28}{'mosquitto as it is':>22}{'set_tcp_nodelay true':>24}")
    median = {
        setting: {name: statistics.median(found) for name, found in rates[setting].items()}
        for setting in SETTINGS
    }
    for name, _, _ in cases:
        row = f"  {name:26}"
        for setting in SETTINGS:
            rate = median[setting][name]
            row += f"{rate:13.1f} {rate / median[setting][peer_name]:6.1f}x  "
        print(row.rstrip())
    print("a broker that falls silent after ten frames")
    for name, result in silence.items():
        if result.get("hangs"):
            print(f"  {name:26} stands still; ended by us after {HANG_S} s")
        else:
            print(
                f"  {name:26} loop stands still {result['stall_ms']} ms at most; "
                f"noticed after {result['ms']} ms: {result['error']}"
            )
    ratio = min(m["ours, window 8"] / m[peer_name] for m in median.values())
    ours = silence["ours, window 8"]
    met = ratio >= GOAL and not ours.get("hangs") and bool(ours["error"])
    met = met and ours["stall_ms"] <= STALL_MS
    verdict = f"goal {GOAL:.0f}x at window 8, never blocked: {'met' if met else 'NOT met'}"
    print(f"{verdict} ({ratio:.1f}x {peer_name})")
    if options.json:
        content = {"peer": peer_name, "rates": rates, "silence": silence, "met": met}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")
    return 0 if met or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
