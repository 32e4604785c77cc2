"""Debian on an emulated 64-bit Arm: agent, LiteRT and gateway installed from wheels."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
from gateway_kit import enrol_device, free_port, gateway, running
from harness.bench import DOMAIN, Bench, Ledger
from pi import image
from pi.machine import Pi

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
JOB = ROOT / "hw_tests" / "pi" / "job"
pytestmark = pytest.mark.full
TIME = 240  # seconds a boot and a job may take on a busy machine
# Windows of one person's recording.
SENSOR = {"kind": "replay", "path": "watch_replay.bin", "person": 4, "speed": 0, "limit": 150}


@pytest.fixture(scope="module")
def images():
    return image.base(), image.apps()


@pytest.fixture
def pi(tmp_path, images):
    made = Pi(tmp_path / "pi", *images)
    try:
        yield made
    finally:
        made.kill()


def job(place, fields, script, **sensor):
    """What the guest gets: configuration, model, recorded motion, what to do."""
    folder = place / "job"
    shutil.copytree(JOB, folder)
    for name in ("watch.domain", "watch_mlp_int8.tflite", "data/watch_replay.bin"):
        shutil.copy(MODELS / name, folder / Path(name).name)
    fields["broker"].update(host="10.0.2.100", port=1883)
    fields["delivery"] = {"pace_per_s": 2000}
    fields["journal"] = {"path": "/state/journal", "batch": 8, "batch_ms": 500}
    (folder / "pi.json").write_text(json.dumps(fields))
    (folder / "pi.json").chmod(0o600)
    sensing = json.dumps({**SENSOR, **sensor})
    (folder / "run.sh").write_text(f"""set -e
edge-agent init --config pi.json --model watch_mlp_int8.tflite --domain watch.domain \\
    --journal /state/journal --runtime litert --sensor '{sensing}'
{script}
""")
    return folder


def test_agent_from_wheels_delivers_to_a_broker_outside(pi, tmp_path):
    with Bench(tmp_path / "bench") as bench:
        pi.start(job(tmp_path, bench.enrol("pi"), "python3 agent.py"), [bench.port])
        pi.off(TIME)
        verdict = bench.judge(Ledger(pi.ledger))
        assert "STAGE done 0" in pi.said(), pi.said()[-3000:]
        assert verdict.committed == SENSOR["limit"], pi.said()[-3000:]
        assert (verdict.delivered, verdict.lost, verdict.doubled) == (SENSOR["limit"], 0, 0)
        assert Ledger(pi.ledger).ends == [0]


def test_agent_survives_power_cuts(pi, tmp_path):
    """Three cuts while it senses and delivers; ext4 and the journal come back."""
    with Bench(tmp_path / "bench") as bench:
        folder = job(tmp_path, bench.enrol("pi"), "python3 agent.py", limit=0, loop=True)
        for _ in range(3):
            before = len(Ledger(pi.ledger).records)
            pi.start(folder, [bench.port])
            end = time.monotonic() + TIME
            while len(Ledger(pi.ledger).records) < before + 40:
                assert time.monotonic() < end, pi.said()[-3000:]
                time.sleep(0.02)
            pi.kill()
        last = json.loads((folder / "pi.json").read_text())
        shutil.rmtree(folder)
        pi.start(job(tmp_path, last, "python3 agent.py", limit=5), [bench.port])
        pi.off(TIME)
        ledger = Ledger(pi.ledger)
        verdict = bench.judge(ledger)
        assert ledger.ends == [0]
        assert [boot[0] for boot in ledger.boots] == [1, 2, 3, 4]
        assert verdict.lost == verdict.doubled == verdict.conflicts == 0
        assert verdict.committed >= 125
        assert verdict.unnoted <= 3 * 8


def test_gateway_from_wheels_commits_what_an_agent_outside_sends(pi, tmp_path):
    """The gateway runs in the guest, broker and agent outside; its database comes back."""
    folder = tmp_path / "gateway"
    port = free_port()
    gateway("init", folder, "--domain", DOMAIN, "--port", port)
    device = enrol_device(folder, "board")
    config = json.loads(device.read_text())
    config.update(domain=str(DOMAIN), model=str(MODELS / "watch_mlp_int8.tflite"))
    config["sensor"] = {**SENSOR, "path": str(MODELS / "data" / "watch_replay.bin")}
    config["journal"] = {"path": str(tmp_path / "journal")}
    config["delivery"] = {"pace_per_s": 2000}
    device.write_text(json.dumps(config))
    inside = tmp_path / "job"
    inside.mkdir()
    shutil.copytree(folder, inside / "gw")
    settings = json.loads((inside / "gw" / "gateway.json").read_text())
    settings["broker"].update(host="10.0.2.100", port=1883)
    (inside / "gw" / "gateway.json").write_text(json.dumps(settings))
    shutil.copy(JOB / "wait.py", inside)
    (inside / "run.sh").write_text(f"""
edge-gateway -C gw run &
gateway=$!
python3 wait.py gw/gateway.db {SENSOR["limit"]}
kill $gateway
wait $gateway
edge-gateway -C gw export --frames --out outcomes.jsonl && tar -cf /dev/vde outcomes.jsonl
""")
    mosquitto = ["/usr/sbin/mosquitto", "-c", folder / "mosquitto" / "mosquitto.conf"]
    with running(*mosquitto, log=tmp_path / "mosquitto.log"):
        pi.start(inside, [port])
        agent = [sys.executable, "-m", "edge_agent.cli", "run", "--config", device]
        with running(*agent, "--until-delivered", "--json", log=tmp_path / "agent.log") as process:
            assert process.wait(TIME) == 0, (tmp_path / "agent.log").read_text()[-3000:]
        pi.off(TIME)
    rows = [json.loads(line) for line in pi.results()["outcomes.jsonl"].splitlines()]
    assert len(rows) == len({r["frame"] for r in rows}) == SENSOR["limit"], pi.said()[-3000:]
