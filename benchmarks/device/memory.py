"""The device's half of memory.py: says what the heap holds, one JSON line at a time.

    micropython -m memory import FILE       a JSON list of modules
    micropython -m memory run OUTCOMES MARK_EVERY

With ROM=FILE in the environment the modules come from that image, mounted as ROMFS.
"""

import asyncio
import gc
import json
import os
import sys
import time
from array import array

import micropython


def live():
    gc.collect()
    gc.collect()  # what finalisers let go of
    return gc.mem_alloc()


def say(*values):
    print(json.dumps(values))


def mount_rom():
    """The bytes of the image stand for flash: the host takes them off every figure."""
    path = os.getenv("ROM")
    if not path:
        return
    import vfs

    with open(path, "rb") as file:
        image = file.read()
    before = live()
    vfs.mount(vfs.VfsRom(image), "/rom")
    sys.path.insert(0, "/rom")
    say("rom", len(image), live() - before)


def imports(names):
    micropython.qstr_info()
    for name in names:
        before = live()
        __import__(name)
        after = live()
        micropython.qstr_info()
        say("module", name, after - before)


def adapters():
    """The smallest adapters that work; a real board's come on top."""
    from edge_agent.errors import LinkError, StoreError
    from edge_agent.interfaces import Clock, Link, Model, ModelOutput, Sensor, Store, Window

    class Ticks(Clock):
        def __init__(self):
            self.last = time.ticks_ms()
            self.total = 0

        def uptime_ms(self):
            now = time.ticks_ms()
            self.total += time.ticks_diff(now, self.last)
            self.last = now
            return self.total

        def utc_s(self):
            return 0

    class Files(Store):
        """Plain files; durability is not what is measured here."""

        def __init__(self, directory):
            self.at = directory + "/"

        def size(self, name):
            try:
                return os.stat(self.at + name)[6]
            except OSError:
                return -1

        def read(self, name, offset, length):
            try:
                with open(self.at + name, "rb") as file:
                    file.seek(offset)
                    return file.read(length)
            except OSError as error:
                raise StoreError("cannot be read", name, "", error.errno)

        def append(self, name, data):
            with open(self.at + name, "ab") as file:
                file.write(data)

        def write(self, name, data):
            with open(self.at + name, "wb") as file:
                file.write(data)

        def sync(self, name):
            pass

        def rename(self, old, new):
            os.rename(self.at + old, self.at + new)

        def remove(self, name):
            os.remove(self.at + name)

        def sync_names(self):
            pass

        def names(self):
            return os.listdir(self.at)

        def close(self):
            pass

    class Pipe(Link):
        """Standard output and input; the other end is a gateway."""

        def __init__(self):
            self.up = False
            self.inbox = []
            self.news = None
            self.acks = 0

        async def connect(self):
            self.up = True
            self.news = asyncio.Event()
            return False

        async def publish(self, topic, payload, qos=1, retain=False):
            data = payload() if callable(payload) else payload
            if topic.endswith("/up"):
                say("up", data.hex())
                for text in json.loads(sys.stdin.readline()):
                    self.inbox.append(bytes.fromhex(text))
                    self.acks += 1
                self.news.set()
            await asyncio.sleep(0)

        async def receive(self):
            while not self.inbox:
                if not self.up:
                    raise LinkError("network", "closed")
                self.news.clear()
                await self.news.wait()
            return TOPIC, self.inbox.pop(0)

        async def disconnect(self):
            self.up = False
            if self.news is not None:
                self.news.set()

    class Fixed(Model):
        model_id = b"modelid1"
        input_length = 64
        labels = 4

        def __init__(self):
            self.output = ModelOutput(bytes((0, 250, 3, 2)), bytes(range(64)), 0)

        def run(self, features):
            return self.output

    class Windows(Sensor):
        """`count` windows, as fast as they reach custody; marks the heap now and then."""

        def __init__(self, count, every, link):
            self.count = count
            self.every = every
            self.link = link
            self.n = 0
            self.window = Window(array("h", bytes(128)), (), "")

        async def read(self):
            # The hello was answered too. A batch of 8 is synced when it is full.
            start = time.ticks_ms()
            while self.n % 8 == 0 and self.link.acks <= self.n and self.n:
                await asyncio.sleep(0)
                if time.ticks_diff(time.ticks_ms(), start) > STUCK_MS:
                    say("stuck", self.n)
                    sys.exit(1)
            if self.n % self.every == 0 or self.n == self.count:
                for _ in range(20):  # let every task come to rest
                    await asyncio.sleep(0)
                say("live", self.n, live())
            if self.n == self.count:
                return None
            self.n += 1
            return self.window

    return Ticks, Files, Pipe, Fixed, Windows


TOPIC = ""
STUCK_MS = 30000


def on_event(event):
    if event.level == "error":
        say("stuck", event.name, repr(event.fields))
        sys.exit(1)


def run(count, every):
    global TOPIC
    Ticks, Files, Pipe, Fixed, Windows = adapters()
    from mpy_port.crypto import StockCrypto, StockEntropy

    say("mark", "adapters and crypto", live())
    from edge_agent.config import Config
    from edge_agent.domain import Domain

    crypto = StockCrypto()
    with open("device.json") as file:
        config = Config.from_json(file.read())
    with open("domain.bin", "rb") as file:
        domain = Domain.load(file.read(), crypto, verify=False, lean=True)
    say("mark", "configuration and domain", live())
    from edge_agent.agent import Agent
    from edge_agent.interfaces import Board

    say("mark", "code of the agent", live())
    os.mkdir("journal")
    link = Pipe()
    TOPIC = config.topic("ack")
    board = Board(
        Ticks(),
        StockEntropy(),
        crypto,
        Files("journal"),
        link,
        Fixed(),
        Windows(count, every, link),
    )
    agent = Agent(board, config, domain, on_event=on_event)
    say("mark", "agent made, journal open", live())
    asyncio.run(agent.run(True))
    stats = agent.status()["journal_stats"]
    say("end", count, sum(stats["pending"]), live())


def main():
    # Collect early: else what lives long is laid down all over the heap, between garbage.
    gc.threshold(8192)
    say("start", live(), gc.mem_free() + gc.mem_alloc())
    mount_rom()
    if sys.argv[1] == "import":
        with open(sys.argv[2]) as file:
            imports(json.load(file))
    else:
        run(int(sys.argv[2]), int(sys.argv[3]))


main()
