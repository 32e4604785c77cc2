"""Model and settings replaced while records are under way: by messages, and by hand.

The domain here names its encoder by a profile instead of a file, so that its owner may bring
out another model for it; the second model has another last layer, so other opinions.
"""

import json
import time

import pytest
from ai_edge_litert import schema_py_generated as schema
from harness.bench import Bench
from harness.deploy import MODEL, MODELS, WINDOWS
from harness.machine import RESET
from harness.sender import Operator

from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain, make_domain
from edge_agent.frame import UP, open_frame
from gateway.cli import opened

fast, full = pytest.mark.fast, pytest.mark.full
PIECE = 420
BATCH = 2
BATCH_LEFT = 4  # what was committed when it was interrupted, before the ledger heard of it
UNSURE = 255  # so that most later outcomes say that they are unsure
SETTINGS = {4: 6, 6: BATCH, 8: UNSURE}  # window, batch, unsure_below


def open_domain():
    """The watch's domain, for any model of the profile."""
    crypto = HostCrypto()
    told = Domain.load((MODELS / "watch.domain").read_bytes(), crypto)
    key = bytes(range(32))
    return make_domain(
        crypto, key, crypto.public_key(key), "watch-open", 1,
        told.space._replace(encoder="watch-profile"),
        told.labels, told.tags, told.actions, told.results,
    )  # fmt: skip


def second_model():
    """The same network, its last layer turned by one label."""
    data = bytearray((MODELS / MODEL).read_bytes())
    model = schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
    (weights,) = [t for t in tensors if t.Name() == b"weights2"]
    rows, columns = weights.ShapeAsNumpy()
    values = model.Buffers(weights.Buffer()).DataAsNumpy().tobytes()
    at = data.find(values)
    assert data.count(values) == 1 and len(values) == rows * columns
    data[at : at + len(values)] = values[columns:] + values[:columns]
    return bytes(data)


def model_id(data):
    return HostCrypto().sha256(data)[:8]


FIRST, SECOND = (MODELS / MODEL).read_bytes(), second_model()


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "open.domain").write_bytes(open_domain())
    with Bench(tmp_path / "bench", tmp_path / "open.domain") as made:
        yield made


@pytest.fixture
def world(make_world):
    made = make_world(domain="/open.domain")
    with made.machine.start(options={"main": 0}), made.machine.repl() as repl:
        repl.put("/open.domain", open_domain())
    return made


def outcomes(world):
    """Of each outcome in the database, by number: model id, label, the domain's tags."""
    with opened(world.bench.folder) as (_, store, registry):
        frames = store.run("SELECT frame FROM frames ORDER BY id").fetchall()
        records = [open_frame(bytes(f), registry, UP).message for (f,) in frames]
    return {r.seq: r.outcome for r in records}


def send_model(world, operator, data):
    """In boxes, a few at a time; pieces that a newer message overtook are sent again."""
    agent = bytes.fromhex(world.fields["agent"])
    end = time.monotonic() + 90

    def taken():
        return max([int(words[1]) for words in world.ledger.of("m")], default=0)

    while taken() < len(data):
        assert time.monotonic() < end, world.story()
        start, sent = taken(), time.monotonic()
        few = range(start, len(data), PIECE)[:6]
        for at in few:
            head = at.to_bytes(2, "big") + len(data).to_bytes(2, "big")
            operator.box(agent, 200, head + data[at : at + PIECE])
        while taken() < min(len(data), few[-1] + PIECE) and time.monotonic() < sent + 3:
            time.sleep(0.02)
    world.until(lambda ledger: ledger.events("model-replaced"))


@pytest.mark.parametrize("kind", [pytest.param("rv32", marks=fast), pytest.param("m3", marks=full)])
def test_model_and_settings_come_while_it_works(world):
    """Over MQTT, with a cut line in between and a power cut behind."""
    world.go(windows=1 << 30, gap=60, swap=1)
    world.until_committed(20)
    with Operator(world.bench.folder) as operator:
        agent = bytes.fromhex(world.fields["agent"])
        end = time.monotonic() + 30
        while not world.ledger.events("cfg-applied"):
            assert time.monotonic() < end, world.story()
            operator.configure(agent, 7, SETTINGS)
            time.sleep(0.3)
        world.box.drop()
        send_model(world, operator, SECOND)
    world.until_committed(len(world.ledger.records) + 20)
    world.machine.kill()
    last_of_first_boot = max(record.seq for record in world.ledger.records)
    world.go(windows=20, gap=5, first=5000, swap=1)
    world.finish()
    said = outcomes(world)
    verdict = world.judge("model and settings replaced", kills=1)
    assert len(said) == verdict.delivered

    assert {said[seq].model for seq in said} == {model_id(FIRST), model_id(SECOND)}
    changed = min(seq for seq in said if said[seq].model == model_id(SECOND))
    assert all(said[seq].model == model_id(SECOND) for seq in said if seq >= changed)
    # The same windows came round before and after, for both to judge.
    first, second = ({}, {})
    for seq in range(1, last_of_first_boot + 1):
        (first if seq < changed else second)[(seq - 1) % WINDOWS] = said[seq].label
    both = [window for window in first if window in second]
    assert sum(first[window] != second[window] for window in both) > len(both) // 2 > 5
    unsure = [seq for seq in sorted(said) if 0 in said[seq].tags]
    assert unsure[0] > 10
    assert all(
        (seq in unsure) == (said[seq].confidence < UNSURE) for seq in said if seq >= unsure[0]
    )
    # The hello of the last boot says what it works with.
    (stream,) = world.bench.streams()
    hello = json.loads(stream["hello"])
    assert (hello["cfg_version"], hello["model"]) == (7, model_id(SECOND).hex())


@full
def test_a_board_is_changed_by_hand(world):
    """Ctrl-C into the running agent, new files over the console, reset: nothing is lost."""
    world.box.cut()
    world.go(windows=1 << 30, gap=40)
    world.until_committed(30)
    with world.machine.repl() as repl:  # interrupts it
        before = max(record.seq for record in world.ledger.records)
        repl.put("/second.tflite", SECOND)
        changed = {**world.fields, "model": "/second.tflite", "unsure_below": UNSURE}
        repl.put("/device.json", json.dumps(changed).encode())
        repl.go("import machine; machine.reset()")
    assert world.machine.wait() == RESET
    world.box.mend()
    world.go(windows=20, gap=5, first=5000)
    world.finish()
    verdict = world.judge("changed by hand", kills=1)
    assert verdict.committed >= 50
    said = outcomes(world)
    assert all(said[seq].model == model_id(FIRST) for seq in said if seq <= before)
    later = [said[seq] for seq in said if seq > before + BATCH_LEFT]
    assert len(later) >= 20 - BATCH_LEFT
    assert {outcome.model for outcome in later} == {model_id(SECOND)}
    assert all((0 in outcome.tags) == (outcome.confidence < UNSURE) for outcome in later)
    assert any(0 in outcome.tags for outcome in later)
