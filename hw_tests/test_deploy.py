"""docs/deploy-pi.md as it stands there, on an emulated 64-bit Arm machine under systemd.

From wheels, as root at a terminal would: gateway and agent are set up, enrolled by a code,
given another key, backed up and restored. Then the power is cut under the running services,
and what starts by itself at the next boot goes on.
"""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from pi import deploy_image, image
from pi.machine import Pi

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
JOB = ROOT / "hw_tests" / "pi" / "job"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "deploy-pi.md").read_text(), re.M | re.S)
SERVICES = ("edge-gateway-broker", "edge-gateway", "edge-gateway-route", "edge-agent@pump")
WORST = {"edge-agent@pump": 1.5, **dict.fromkeys(SERVICES[:3], 1.1)}
TIME = 1800  # seconds a boot and a job may take on a busy machine
WINDOWS = 40  # of one run of the agent in the walk
GATEWAY = "/var/lib/edge-gateway"
pytestmark = pytest.mark.full

PRELUDE = f"""set -e
sudo() {{ "$@"; }}
holds() {{ python3 /job/wait.py {GATEWAY}/gateway.db $1; }}
note() {{ echo "$@" > /dev/ledger; }}
failed() {{ journalctl --no-pager -n 150; systemctl --no-pager --failed; }}
trap '[ $? = 0 ] || failed' EXIT
"""
LOOK = f"""
edge-gateway -C {GATEWAY} devices --json > devices.json
edge-gateway -C {GATEWAY} status --json > status.json
edge-gateway -C {GATEWAY} export > outcomes.jsonl
for unit in {" ".join(SERVICES)}; do
    systemctl show -p Id,User,Type,ActiveState,NRestarts,Result,StatusText $unit.service
    systemd-analyze security --no-pager $unit.service | tail -1
done > units.txt
journalctl --no-pager -o short-monotonic > journal.txt
tar -cf /dev/vde devices.json status.json outcomes.jsonl units.txt journal.txt
"""


@pytest.fixture(scope="module")
def images():
    return deploy_image.base(), image.apps()


@pytest.fixture
def pi(tmp_path, images):
    folder = tmp_path / "pi"
    folder.mkdir()
    deploy_image.state(folder / "state.ext4")
    made = Pi(folder, *images)
    try:
        yield made
    finally:
        made.kill()


def job(place, name, script):
    """What the guest does after it booted, with the files of the walk beside it."""
    folder = place / name
    shutil.copytree(JOB, folder)
    for file in ("watch.domain", "watch_mlp_int8.tflite", "data/watch_replay.bin"):
        shutil.copy(MODELS / file, folder / Path(file).name)
    (folder / "run.sh").write_text(PRELUDE + script)
    return folder


def the_walk():
    script, runs = "", 0
    for block in BLOCKS:
        script += block
        if re.search(r"systemctl (re)?start edge-agent@pump", block):
            runs += WINDOWS
            script += f"holds {runs}\n"
    return script + LOOK, runs


def done(pi):
    pi.off(TIME)
    assert "STAGE done 0" in pi.said(), pi.said()[-6000:]
    return {name: data.decode(errors="replace") for name, data in pi.results().items()}


def shown(results):
    """{service: properties and exposure}."""
    found, entry = {}, {}
    for line in results["units.txt"].splitlines():
        if "exposure level" in line:
            entry["exposure"] = float(re.search(r": ([\d.]+)", line)[1])
            found[entry["Id"].removesuffix(".service")] = entry
            entry = {}
        else:
            key, _, value = line.partition("=")
            entry[key] = value
    return found


def check_walk(results, runs):
    """What the first boot left behind."""
    (device,) = json.loads(results["devices.json"])
    assert (device["outcomes"], device["generation"]) == (runs, 2)
    assert device["conflicts"] == device["lost_by_restore"] == 0
    status = json.loads(results["status.json"])
    assert status["broker"]["refused"]["publish"] == status["broker"]["refused"]["subscribe"] == 0
    units = shown(results)
    for name in SERVICES:
        print(f"  {name:22} exposure {units[name]['exposure']}")
        assert units[name]["exposure"] <= WORST[name]
        assert units[name]["Type"] == "notify"
        assert units[name]["User"] == ("edge-agent" if "agent@" in name else "edge-gateway")
        assert units[name]["Result"] == "success", results["journal.txt"][-4000:]
    for name in SERVICES[:2]:
        assert (units[name]["ActiveState"], units[name]["NRestarts"]) == ("active", "0")
    assert units["edge-gateway"]["StatusText"] == "connected"
    secrets = re.findall(r"\b[0-9a-f]{64}\b", results["journal.txt"])
    assert not secrets, "the journal shows what looks like keys"


def test_from_the_box_to_the_first_outcome_and_through_a_power_cut(pi, tmp_path):
    script, runs = the_walk()
    assert runs == 2 * WINDOWS
    began = time.monotonic()
    pi.start(job(tmp_path, "first", script), [])
    results = done(pi)
    print(f"\nwalk in {time.monotonic() - began:.0f} s")
    check_walk(results, runs)
    check_power_cut(pi, tmp_path, runs)


def check_power_cut(pi, tmp_path, runs):
    """The power goes while everything works; nobody starts anything afterwards."""
    # At the start of this boot the agent plays its windows once more; then without end.
    runs += WINDOWS
    loop = r"""
holds %d
python3 - <<'END'
import json
path = "/var/lib/edge-agent/pump/device.json"
fields = json.load(open(path))
fields["sensor"].update(limit=0, loop=True, speed=4)
json.dump(fields, open(path, "w"))
END
systemctl restart edge-agent@pump
holds %d
note running
sleep 600
"""
    pi.console.unlink()
    pi.start(job(tmp_path, "second", loop % (runs, runs + 15)), [])
    end = time.monotonic() + TIME
    while "running" not in pi.written():
        assert time.monotonic() < end and "STAGE done" not in pi.said(), pi.said()[-6000:]
        time.sleep(0.05)
    time.sleep(2)
    pi.kill()
    after = f"holds {runs + 60}\nsystemctl stop edge-agent@pump\nsleep 3\n" + LOOK
    pi.console.unlink()
    pi.start(job(tmp_path, "third", after), [])
    results = done(pi)
    rows = [json.loads(line) for line in results["outcomes.jsonl"].splitlines()]
    (device,) = json.loads(results["devices.json"])
    assert len(rows) == device["outcomes"] >= runs + 60
    assert len({(row["journal"], row["seq"]) for row in rows}) == len(rows)
    assert device["conflicts"] == device["lost_by_restore"] == device["refused"] == 0
    # No number is missing between the first and the last: nothing that was durable is lost.
    for journal in {row["journal"] for row in rows}:
        seqs = sorted(row["seq"] for row in rows if row["journal"] == journal)
        assert seqs == list(range(seqs[0], seqs[-1] + 1))
    assert len({row["boot"] for row in rows}) >= 4
    print(f"{len(rows)} outcomes over {len({row['boot'] for row in rows})} boots of the agent")
