"""An agent core on a real journal in RAM, and a gateway that fits in a dictionary.

`Rig` performs effects at once and in order, as the driver does, except publishes: those
collect in `sent` and the test decides what becomes of them. `Gateway` keeps the frame of
each identity, so that "lost" and "twice" can be counted by comparing bytes.
"""

from array import array

from upy_crypto import make_crypto

from edge_agent import effects as fx
from edge_agent import frame
from edge_agent.config import Config
from edge_agent.core import AgentCore
from edge_agent.domain import Domain, Features, VectorSpace
from edge_agent.errors import EdgeError, StoreError
from edge_agent.interfaces import Entropy, ModelOutput, Store, Window
from edge_agent.journal import Journal
from edge_agent.twoslot import TwoSlot

CRYPTO = make_crypto()
AGENT = b"\x01\x02\x03\x04\x05\x06\x07\x08"
KEY = bytes(range(32))
UTC_MS = 1800000000000


def make_domain(labels=("rest", "walk", "run"), tags=("unsure", "left")):
    features = Features("raw", 1, 4, 4, (0,), (1,), 1)
    space = VectorSpace(64, "profile/raw4", 1, 1, features)
    return Domain(
        CRYPTO, "test", bytes(32), 1, space, labels, tags, ("stop",), ("confirmed", "corrected")
    )


def make_config(**more):
    fields = {"agent": AGENT.hex(), "key": KEY.hex(), "journal": {"batch": 1, "batch_ms": 1000}}
    for name in more:
        fields[name] = more[name]
    return Config.from_json(fields)


class Rand(Entropy):
    """Repeatable: every test names its seed."""

    def __init__(self, seed=1):
        self._x = seed

    def bytes(self, n):
        out = bytearray(n)
        for i in range(n):
            self._x = (self._x * 1103515245 + 12345) & 0x7FFFFFFF
            out[i] = (self._x >> 16) & 255
        return bytes(out)


class RamStore(Store):
    """Durable at once; `error` (a StoreError) makes every write fail, `full` those that grow."""

    def __init__(self):
        self.files = {}
        self.error = None
        self.writes = 0

    def copy(self):
        other = RamStore()
        other.files = {name: bytearray(self.files[name]) for name in self.files}
        return other

    def _check(self):
        self.writes += 1
        if self.error is not None:
            raise self.error

    def size(self, name):
        return len(self.files[name]) if name in self.files else -1

    def read(self, name, offset, length):
        if name not in self.files:
            raise StoreError("no such file", name, "", 2)
        return bytes(self.files[name][offset : offset + length])

    def append(self, name, data):
        self._check()
        self.files.setdefault(name, bytearray()).extend(data)

    def write(self, name, data):
        self._check()
        self.files[name] = bytearray(data)

    def sync(self, name):
        if self.error is not None:
            raise self.error

    def rename(self, old, new):
        self._check()
        self.files[new] = self.files.pop(old)

    def remove(self, name):
        self._check()
        if name not in self.files:
            raise StoreError("no such file", name, "", 2)
        del self.files[name]

    def sync_names(self):
        pass

    def names(self):
        return sorted(self.files)

    def close(self):
        pass


class Gateway:
    """Accepts, finds duplicates and conflicts by comparing bytes, answers like a gateway.

    `take(payload)` gives the acks due as payloads. silent, deaf_to and refuse are knobs.
    """

    def __init__(self, agent=AGENT, key=KEY):
        self.keys = frame.DeviceKeys(CRYPTO, agent, key, 0)
        self.ring = frame.Keyring(self.keys)
        self.held = {}
        self.floors = {}
        self.nonce = b""
        self.counter = UTC_MS
        self.hellos = []
        self.duplicates = 0
        self.conflicts = []
        self.refuse = {}  # seq -> reason
        self.deaf_to = []  # seqs that are neither kept nor answered

    def take(self, payload):
        opened = frame.open_frame(payload, self.ring, frame.UP, AGENT)
        m = opened.message
        if opened.kind == frame.HELLO:
            self.nonce = m.nonce
            self.counter = max(self.counter, m.counter)
            self.hellos.append(m)
            self.floors[m.journal] = max(m.floor, self.floors.get(m.journal, 0))
            seqs = sorted(s for j, s in self.held if j == m.journal and s >= m.floor)
            return [self.ack(m.journal, _ranges(seqs)[:16])]
        if m.seq in self.deaf_to:
            return []
        if m.seq in self.refuse:
            return [self.ack(m.journal, [], [(m.seq, frame.REASONS[self.refuse[m.seq]])])]
        key = (m.journal, m.seq)
        if key in self.held and self.held[key] != payload:
            self.conflicts.append(payload)
            return [self.ack(m.journal, [], [(m.seq, frame.REASONS["conflict"])])]
        if key in self.held:
            self.duplicates += 1
        elif m.seq < self.floors.get(m.journal, 0):
            return [self.ack(m.journal, [], [(m.seq, frame.REASONS["closed"])])]
        self.held[key] = payload
        return [self.ack(m.journal, [(m.seq, m.seq)])]

    def ack(self, journal, ranges, refused=(), nonce=None, utc_ms=UTC_MS, counter=None):
        self.counter += 1
        nonce = self.nonce if nonce is None else nonce
        counter = self.counter if counter is None else counter
        return frame.seal(
            self.keys, frame.Ack(journal, ranges, list(refused), nonce, utc_ms, counter)
        )

    def box(self, kind, body, number=0):
        self.counter += 1
        return frame.seal(self.keys, frame.Box(self.counter, kind, body, number))

    def cfg(self, version, settings):
        self.counter += 1
        return frame.seal(self.keys, frame.Cfg(self.counter, version, settings))


def _ranges(seqs):
    from edge_agent.delivery import to_ranges

    return to_ranges(seqs)


class Rig:
    """One boot of one device. Power off = make another Rig on the same store."""

    def __init__(self, store=None, config=None, seed=1, ledger=False, now=0):
        self.store = store if store is not None else RamStore()
        self.config = config if config is not None else make_config()
        self.rand = Rand(seed)
        self.domain = make_domain()
        self.journal = Journal.open(self.store, self.rand, segment_bytes=4096)
        keys = frame.DeviceKeys(CRYPTO, self.config.agent, self.config.key, 0)
        self.mail = TwoSlot(self.store, "mail", 16384)
        self.core = AgentCore(
            self.config,
            self.domain,
            keys,
            self.facts(),
            self.rand.bytes,
            b"modelid1",
            "0.1",
            ledger,
            None if self.config.peers is None else self.mail.load(),
        )
        self.now = now
        self.sent = []  # Publish effects not yet answered
        self.events = []
        self.committed = []
        self.handled = []
        self.connects = 0
        self.disconnects = []
        self.times = []
        self.label = 1
        self.confidence = 200
        self.model_error = None
        self.log = []  # names of effects in order

    def facts(self):
        j = self.journal
        return fx.JournalFacts(
            j.journal_id,
            j.boot,
            j.next_seq,
            j.held(),
            sum(j.stats()["pending"]),
            j.drops,
            j.gone(),
            j.oldest_generation(),
            j.down_counter,
            j.cfg_version,
            j.age_base_s,
            j.doubt,
        )

    # -- what happens to the device

    def start(self):
        self.do(self.core.start(self.now))

    def window(self, label=1, key=""):
        self.label = label
        samples = array("h", [1, 2, 3, 4])
        self.do(self.core.on_window(Window(samples, (), key), self.now))

    def tick(self, ms=0):
        self.now += ms
        self.do(self.core.on_tick(self.now))

    def run(self, ms, step_limit=20000):
        """Let time pass, waking only when the core asks for it."""
        end = self.now + ms
        for _ in range(step_limit):
            wake = self.core.next_wake()
            if wake is None or wake > end:
                self.now = end
                return
            if wake > self.now:
                self.now = wake
            before = self.now
            self.do(self.core.on_tick(self.now))
            again = self.core.next_wake()
            if again is not None and again <= before:
                raise AssertionError("next_wake %r does not move on at %d" % (again, before))
        raise AssertionError("the core never rests")

    def up(self, present=False):
        self.do(self.core.on_link(True, present, "", self.now))

    def down(self, reason="broker"):
        self.sent = []
        self.do(self.core.on_link(False, False, reason, self.now))

    def message(self, name, payload):
        self.do(self.core.on_message(self.config.topic(name), payload, self.now))

    # -- what becomes of publishes

    def puback(self, publish):
        self.sent.remove(publish)
        self.do(self.core.on_done(publish.id, None, self.now))

    def payload(self, publish):
        return publish.payload if publish.ref is None else self.journal.read(publish.ref)

    def serve(self, gateway, limit=10000):
        """Everything sent reaches broker and gateway, every answer comes back."""
        n = 0
        while self.sent and n < limit:
            n += 1
            publish = self.sent[0]
            payload = self.payload(publish)
            self.puback(publish)
            if publish.kind == "state":
                continue
            for answer in gateway.take(payload):
                self.message("ack", answer)
        return n

    def serve_readable(self, gateway):
        """Like `serve`, on flash that may have gone bad."""
        while self.sent:
            publish = self.sent[0]
            try:
                payload = self.payload(publish)
            except EdgeError as error:
                self.sent.remove(publish)
                self.do(self.core.on_error(publish.id, error, self.now))
                continue
            self.puback(publish)
            if publish.kind != "state":
                for answer in gateway.take(payload):
                    self.message("ack", answer)

    def payload_of_hello(self):
        """A hello as the core would send it now."""
        gateway = self.core.delivery.gateway
        return self.core._hello(self.facts(), self.journal.held()[0], gateway.nonce, self.now)

    def seqs(self):
        """Sequence numbers published and not yet acknowledged by the broker."""
        return [p.ref.seq for p in self.sent if p.ref is not None]

    def kinds(self):
        return [p.kind for p in self.sent]

    def named(self, name):
        return [e for e in self.events if e.name == name]

    # -- effects

    def do(self, todo):
        todo = list(todo)
        while todo:
            effect = todo.pop(0)
            self.log.append(type(effect).__name__)
            try:
                answer = self.one(effect)
            except EdgeError as error:
                follow = self.core.on_error(effect.id, error, self.now)
            else:
                if answer is None:
                    continue
                follow = self.core.on_done(effect.id, answer[0], self.now)
            todo = list(follow) + todo

    def one(self, e):
        kind = type(e)
        j = self.journal
        uptime_s = self.now // 1000
        if kind is fx.Infer:
            if self.model_error is not None:
                raise self.model_error
            scores = bytearray(3)
            scores[self.label] = self.confidence
            return (ModelOutput(bytes(scores), bytes(range(64)), 0),)
        if kind is fx.Append:
            return (
                j.append(e.seq, e.frame, e.priority, e.ttl_s, uptime_s, e.generation, e.journal),
            )
        if kind is fx.Sync:
            return (j.sync(uptime_s),)
        if kind is fx.Survey:
            if e.save:
                j.save()
            return (self.facts(),)
        if kind is fx.Fetch:
            return (j.scan(e.priority, e.after, e.limit, uptime_s),)
        if kind is fx.Free:
            return (j.free(e.journal, e.ranges),)
        if kind is fx.Quarantine:
            return (j.quarantine(e.ref, e.reason),)
        if kind is fx.Mint:
            j.mint()
            return (self.facts(),)
        if kind is fx.Persist:
            j.down_counter = e.counter
            if e.version is not None:
                j.cfg_version = e.version
            if not e.lazy:
                j.save()
            return (None,)
        if kind is fx.Keep:
            self.mail.save(e.data)
            return (None,)
        if kind is fx.Publish:
            self.sent.append(e)
        elif kind is fx.Connect:
            self.connects += 1
        elif kind is fx.Disconnect:
            self.disconnects.append(e.reason)
        elif kind is fx.SetTime:
            self.times.append(e.utc_ms)
        elif kind is fx.Handle:
            self.handled.append((e.type, e.body))
        elif kind is fx.Committed:
            self.committed.extend(e.records)
        elif kind is fx.Event:
            self.events.append(e)
        return None
