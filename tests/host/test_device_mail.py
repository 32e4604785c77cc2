"""Mail on devices: the same bits on every interpreter, and nothing where nobody asked for it."""

import json
import subprocess
import sys
from array import array
from pathlib import Path

import numpy as np
import pytest
import tflite_kit as kit
import toolchain
from gateway_kit import broker_running
from test_mail import Place, head
from test_own_runtime import (
    AGENT,
    KEY,
    MICROPYTHON,
    SEAL,
    UNSURE_BELOW,
    device_frames,
    some_rows,
)

from edge_agent import frame as frames
from edge_agent.config import Config
from edge_agent.cpython.model_litert import load_model
from edge_agent.cpython.signer import HostCrypto
from edge_agent.effects import Ids
from edge_agent.features import Features
from edge_agent.mail import CLEAR, CLEAR_HEAD, NEIGHBOUR, ROW, Mail, encode_clear
from edge_agent.outcome import distil
from edge_agent.synthesis import Neighbour, encode_neighbour
from gateway import heads
from gateway.opening import opened
from gateway.records import read_stored
from tests.zoo import shipped

ROOT = Path(__file__).resolve().parents[2]
PEERS = {"neighbours": 16, "rows": 16, "depth": 3, "ttl_h": 720}
KEYS = frames.DeviceKeys(HostCrypto(), AGENT, KEY, 3)


@pytest.fixture(scope="module")
def domain():
    return shipped.domain()


@pytest.fixture(params=list(MICROPYTHON))
def micropython(request):
    return toolchain.need(MICROPYTHON[request.param])


class Host:
    """What a device does with windows and boxes, on this interpreter."""

    def __init__(self, domain):
        self.domain = domain
        self.model = load_model(kit.MLP, "own", domain)
        self.features = Features(domain.features)
        self.mail = self.start(None)

    def start(self, data):
        return Mail(PEERS, Ids(), data, len(self.domain.labels))

    def take(self, number, kind, body):
        self.mail.on_box(frames.Box(1000 + number, kind, bytes.fromhex(body), number), 0)
        if number % 5 == 0:
            self.mail = self.start(self.mail.state())

    def say(self, window, unsure_below=UNSURE_BELOW):
        """(features, output, outcome)"""
        x = self.features.apply(window)
        output = self.model.run(x)

        def advise(scores, vector):
            return self.mail.decide(scores, vector, self.model.model_id, 0)

        return x, output, distil(output, self.domain, self.model.model_id, (), unsure_below, advise)

    def seal(self, row, said):
        journal, seq, boot, uptime_ms, utc_s, _, options = row
        record = frames.OutcomeRecord(
            bytes.fromhex(journal), seq, boot, uptime_ms, utc_s, self.domain.id, said,
            self.domain.fingerprint(said.vector),
        )  # fmt: skip
        encrypt, pad, small = SEAL[options]
        return frames.seal(KEYS, record, encrypt, pad, small)


def letters(domain, outcomes):
    """Boxes for the windows after these outcomes: two real heads, neighbours, one clear."""
    vectors = [o.vector for o in outcomes]
    truth = [k % len(domain.labels) for k in range(len(outcomes))]
    boxes = []
    for at, version, part in ((20, 1, slice(0, 10)), (60, 2, slice(0, 20))):
        found = heads.fit(None, heads.evidence(vectors[part], truth[part]), len(domain.labels))
        model_id = outcomes[0].model if version == 1 else b""
        rows = heads.quantise(found, version, model_id)
        boxes += [[at + i, ROW, body.hex()] for i, body in enumerate(rows)]
    for i, (vector, label) in enumerate(zip(vectors, truth, strict=True)):
        near = Neighbour(bytes([i]) * 16, vector, label, 120 + 5 * i, 2 * (i % 2), i % 5)
        boxes.append([40 + i, NEIGHBOUR, encode_neighbour(near).hex()])
    boxes.append([90, CLEAR, encode_clear(CLEAR_HEAD, 2).hex()])
    return sorted(boxes)


def test_the_same_outcomes_on_micropython(domain, micropython, tmp_path):
    """Heads and neighbours arrive between windows: features to frames, byte for byte."""
    samples = list(shipped.windows(14))[:110]
    rows = [[*row[:5], [], row[6]] for row in some_rows(len(samples))]
    host = Host(domain)
    boxes = letters(domain, [host.say(window)[2] for window in samples[:20]])
    host = Host(domain)
    wanted, said = [], []
    for k, (window, row) in enumerate(zip(samples, rows, strict=True)):
        for number, (at, kind, body) in enumerate(boxes, 1):
            if at == k:
                host.take(number, kind, body)
        x, output, outcome = host.say(window)
        said.append(outcome)
        wanted.append((x, output.scores, output.embedding, host.seal(row, outcome)))
    wanted.append((host.mail.state(),))
    _, found = device_frames(
        micropython, tmp_path, samples, rows, (AGENT, KEY, 3), unsure=UNSURE_BELOW,
        peers=PEERS, boxes=boxes,
    )  # fmt: skip
    assert found == wanted
    assert host.mail.taken == len(boxes)
    # What was compared is varied enough to tell.
    assert [o.head for o in said[:26]] == [None] * 26
    assert {o.head for o in said} == {None, 1, 2}
    assert {len(o.parents) for o in said} >= {0, 2}
    assert {o.depth for o in said} >= {0, 2, 4}
    assert sum(o.alone is not None and o.alone[0] != o.label for o in said) > 10
    assert len({o.label for o in said}) > 3


def test_the_comparison_is_sharp(domain):
    """One bias or one weight of a head more shows in the scores."""
    host = Host(domain)
    vectors = np.frombuffer(
        b"".join(host.say(window)[2].vector for window in list(shipped.windows(40))[:30]), np.int8
    ).reshape(-1, 64)
    truth = np.arange(30) % 7
    rows = heads.quantise(heads.fit(None, heads.evidence(vectors, truth), 7), 1, b"")
    head = heads.compiled(rows)
    before = [head.scores(v.tobytes()) for v in vectors]
    for change in ({"bias": head.rows[0].bias + 2000}, {"multiplier": head.rows[0].multiplier + 9}):
        head.rows[0] = head.rows[0]._replace(**change)
        assert [head.scores(v.tobytes()) for v in vectors] != before


IMPORTED = """
import sys
sys.path[:0] = [ROOT + "/tests/core", ROOT + "/tests/core/upy", ROOT]
from rig import Rig, make_config
r = Rig(config=make_config(**MORE))
r.start(); r.up(); r.window()
print([n in sys.modules for n in ("edge_agent.mail", "edge_agent.synthesis", "edge_agent.head")])
"""


@pytest.mark.parametrize("python", [sys.executable, Path(sys.executable).with_name("micropython")])
def test_without_peers_nothing_more_is_imported(python):
    for more, wanted in (({}, [False] * 3), ({"peers": {}}, [True] * 3)):
        text = f"ROOT = {str(ROOT)!r}\nMORE = {more!r}\n" + IMPORTED
        done = subprocess.run(
            [python, "-c", text], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.strip() == str(wanted)


def window_of(number, length):
    """What agent_job.py's sensor gives."""
    state = number * 2654435761 & 0xFFFFFFFF
    samples = array("h", [0] * length)
    for i in range(length):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        samples[i] = (state >> 18) - 8192
    return samples


def test_a_board_and_this_host_seal_the_same_frames(tmp_path, domain):
    """A head comes by mosquitto from a gateway to the agent on MicroPython; every frame that
    arrives is made again here, from the raw window on, and compared byte for byte."""
    place = Place(tmp_path, "micropython")
    host = Host(domain)
    spec = domain.features
    guesses = [host.say(window_of(n, spec.window * spec.axes))[2] for n in range(1, 40)]
    truth = [(o.label + 1) % len(domain.labels) for o in guesses]
    known = heads.evidence([o.vector for o in guesses], truth)
    rows = heads.quantise(heads.fit(None, known, len(domain.labels)), 5, guesses[0].model)
    with broker_running("mosquitto", place.folder, place.port), place.gateway_running():
        with place.agent_running():
            place.until(lambda: len(place.outcomes()) > 5)
            place.mailbox.put_head(place.agent, 5, rows, 0)
            place.until(lambda: place.in_force() == 5)
            enough = len(place.outcomes()) + 15
            place.until(lambda: len(place.outcomes()) >= enough)
        with opened(place.folder) as (_, store, registry):
            found = [store.frame(row) for row in store.arrivals(0, 100_000)]
            stored = [(read_stored(one, registry.secret).record, bytes(one)) for one in found]
    place.mailbox.close()
    config = Config.load(str(place.device))
    keys = frames.DeviceKeys(HostCrypto(), config.agent, config.key, config.generation)
    stored.sort(key=lambda pair: pair[0].seq)
    assert [record.seq for record, _ in stored] == list(range(1, len(stored) + 1))
    fitted = heads.compiled(rows)
    by_head = 0
    for record, frame in stored:
        host.mail.head = fitted if record.outcome.head == 5 else None
        said = host.say(window_of(record.seq, spec.window * spec.axes), config.unsure_below)[2]
        assert said == record.outcome
        assert frames.seal(keys, record._replace(outcome=said)) == frame
        by_head += said.head == 5 and said.alone is not None and said.alone[0] != said.label
    assert by_head >= 10


def test_what_was_taken_is_shown(tmp_path, domain):
    """`edge-agent journal --mail`, while the agent runs and after."""
    place = Place(tmp_path, "cpython")
    near = Neighbour(bytes(range(16)), bytes(range(64)), 3, 90, 1, 2)
    show = [sys.executable, "-m", "edge_agent.cli", "journal", "--config", place.device, "--mail"]

    def said(*more):
        return subprocess.run([*show, *more], capture_output=True, text=True, check=True).stdout

    with (
        broker_running("mosquitto", place.folder, place.port),
        place.gateway_running(),
        place.agent_running(),
    ):
        place.mailbox.put_head(place.agent, 7, head(7, 2), 0)
        place.mailbox.put(place.agent, NEIGHBOUR, encode_neighbour(near), 2, 0)
        place.until(lambda: place.in_force() == 7 and place.done())
        running = json.loads(said("--json"))
    place.mailbox.close()
    assert json.loads(said("--json")) == running
    assert running["taken"] == len(domain.labels) + 1 and running["head"] == 7
    (shown,) = running["neighbours"]
    assert shown["label"] == domain.labels[3] and shown["confirmed"] and shown["depth"] == 2
    text = said()
    assert "version 7" in text and f"{bytes(range(16)).hex()}  {domain.labels[3]}" in text
