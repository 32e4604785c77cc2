"""A device of the third act: the real agent, whose model cannot say one of the labels.

It takes mail. Cues on stdin:

    learn   windows of the left arm, without the label in question; every outcome is judged a
            moment later, as if somebody had looked: `Agent.feedback` with what is true
    try     windows of the right arm, with that label; nobody says anything

Each outcome becomes a line of JSON in a file: what was concluded, what would have been concluded
alone (the device says that itself), from which parents. Status lines go to stdout.

`Forgetful` stands for a model of an earlier year: the shipped one, its score for one label struck
out. The label's row is missing; what comes before the last layer has seen such windows.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import IO, Any

from edge_agent.agent import Agent
from edge_agent.config import Config
from edge_agent.cpython.board import linux_board, mqtt_link
from edge_agent.cpython.sensors.replay import label_of
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.errors import EdgeError
from edge_agent.frame import UP, DeviceKeys, Keyring, open_frame, outcome_id
from edge_agent.interfaces import Link, Model, ModelOutput, Sensor, Window
from examples.demo import replay
from examples.demo.site import say

STATUS_S = 0.1
CONFIRMED, CORRECTED = "confirmed", "corrected"


class Forgetful(Model):
    """A model that has never heard of a label."""

    def __init__(self, model: Any, label: int, crypto: HostCrypto) -> None:
        self._model = model
        self._label = label
        self.input_length, self.labels = model.input_length, model.labels
        self.model_id = crypto.sha256(model.sha256 + b"without" + bytes([label]))[:8]

    def run(self, features: bytes) -> ModelOutput:
        output = self._model.run(features)
        rest = [0 if i == self._label else score for i, score in enumerate(output.scores)]
        total = sum(rest)
        if not total:  # it was certain of what it cannot say
            rest = [int(i != self._label) for i in range(len(rest))]
            total = sum(rest)
        scores = bytes((255 * score + total // 2) // total for score in rest)
        return ModelOutput(scores, output.embedding, output.zero_point)


class Cued(Sensor):
    """Hands out windows when there are any, one every `interval_s`; never ends."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self.queue: asyncio.Queue[Window] = asyncio.Queue()

    async def read(self) -> Window | None:
        window = await self.queue.get()
        await asyncio.sleep(self.interval_s)
        return window


class Counted(Link):
    """The real link; counts the bytes of boxes that come down."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.boxes = self.bytes = 0
        self.up = False

    async def connect(self) -> bool:
        self.up = False
        held = await self._link.connect()
        self.up = True
        return held

    async def publish(self, topic: str, payload: Any, qos: int = 1, retain: bool = False) -> None:
        await self._link.publish(topic, payload, qos, retain)

    async def receive(self) -> tuple[str, bytes]:
        try:
            topic, payload = await self._link.receive()
        except EdgeError:
            self.up = False
            raise
        if topic.endswith("/box"):
            self.boxes += 1
            self.bytes += len(payload)
        return topic, payload

    async def disconnect(self) -> None:
        self.up = False
        await self._link.disconnect()


class Newcomer:
    def __init__(self, options: argparse.Namespace) -> None:
        config = Config.load(options.config)
        crypto = HostCrypto()
        self.domain = Domain.load(Path(config.domain).read_bytes(), crypto)
        self.keyring = Keyring(DeviceKeys(crypto, config.agent, config.key, config.generation))
        everything = replay.windows(Path(options.replay), self.domain, options.site)
        step, case = options.step, options.case
        self.phases = {
            "learn": [w for w in everything if _side(w) == "L" and label_of(w.key) != case][::step],
            "try": [w for w in everything if _side(w) == "R"][::step],
        }
        self.sensor = Cued(options.interval)
        self.link = Counted(mqtt_link(config))
        board = linux_board(config, sensor=self.sensor, link=self.link, domain=self.domain)
        board.model = Forgetful(board.model, case, crypto)
        self.agent = Agent(board, config, self.domain, on_committed=self._committed)
        self.out: IO[str] = Path(options.out).open("a")  # noqa: SIM115 - for its whole life
        self.phase = ""
        self.told = {"learn": 0, "try": 0}

    def _committed(self, window: str, seq: int, frame: bytes) -> None:
        if not window:
            return  # what was said about an earlier one
        outcome = open_frame(frame, self.keyring, UP).message.outcome
        id_, truth = outcome_id(frame), label_of(window)
        line = {
            "phase": self.phase, "window": window, "outcome": id_.hex(), "truth": truth,
            "label": outcome.label, "confidence": outcome.confidence,
            "alone": outcome.label if outcome.alone is None else outcome.alone[0],
            "head": outcome.head, "depth": outcome.depth,
            "parents": [parent.hex() for parent in outcome.parents], "bytes": len(frame),
        }  # fmt: skip
        self.out.write(json.dumps(line) + "\n")
        self.out.flush()
        self.told[self.phase] += 1
        if self.phase == "learn":
            result = CONFIRMED if outcome.label == truth else CORRECTED
            loop = asyncio.get_running_loop()
            loop.call_soon(self.agent.feedback, id_, result, truth)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.agent.stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        tasks = [loop.create_task(self._listen(reader)), loop.create_task(self._report())]
        await self.agent.run()
        for task in tasks:
            task.cancel()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self.phase = line.decode().strip()
            for window in self.phases[self.phase]:
                self.sensor.queue.put_nowait(window)
        os._exit(3)  # the director is gone

    async def _report(self) -> None:
        while True:
            mail = self.agent.status()["mail"]
            say(
                link=self.link.up, head=mail["head"], taken=mail["taken"],
                neighbours=mail["neighbours"], told=self.told,
                of={name: len(each) for name, each in self.phases.items()},
                drained=self.agent.core.drained(),
                boxes=self.link.boxes, box_bytes=self.link.bytes,
            )  # fmt: skip
            await asyncio.sleep(STATUS_S)


def _side(window: Window) -> str:
    return str(window.key.split("/")[1])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo.newcomer")
    for name in ("config", "replay", "out"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--site", type=int, required=True, help="person")
    parser.add_argument("--case", type=int, required=True, help="label that the model cannot say")
    parser.add_argument("--step", type=int, default=2, help="every so many windows")
    parser.add_argument("--interval", type=float, required=True)
    options = parser.parse_args(argv)
    try:
        asyncio.run(Newcomer(options).run())
    except (EdgeError, OSError) as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
