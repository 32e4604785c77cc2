"""docs/deploy-pi.md from top to bottom, without systemd: its services are started by hand.

With systemd, as users, on another machine: hw_tests/test_deploy.py.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_kit import free_port

from gateway.units import units

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "deploy-pi.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", TEXT, re.M | re.S)
# What stands in for this machine's own: sudo, and systemctl for the services that `install`
# would have made. They run what the units run.
STAND_IN = """
sudo() { "$@"; }
serve() { echo "== $*" >> $STATE/services.log; "$@" >> $STATE/services.log 2>&1 & }
edge-gateway() {
    case " $* " in
    *" install "*)
        mkdir -p $STATE/edge-agent/pump
        systemctl start edge-gateway-broker edge-gateway;;
    *" init "*) command edge-gateway "$@" --port $P1 --device-port $P2 --claim-port $P3 \\
        --name localhost;;
    *) command edge-gateway "$@";;
    esac
}
systemctl() {
    what=$1; shift
    for name in "$@"; do
        case $what in stop|restart) ended $name;; esac
        case $what-$name in
        stop-*|--no-pager-*|*-edge-gateway-route) ;;
        *-edge-gateway-broker) serve command edge-gateway -C $STATE/edge-gateway mosquitto; b=$!;;
        *-edge-gateway) serve command edge-gateway -C $STATE/edge-gateway run; g=$!;;
        *-edge-agent@pump)
            serve command edge-agent run --config $STATE/edge-agent/pump/device.json; a=$!;;
        esac
    done
}
ended() {
    case $1 in edge-gateway) pid=$g;; edge-agent@pump) pid=$a;; *) return 0;; esac
    kill $pid 2>/dev/null || true; wait $pid 2>/dev/null || true
}
holds() { python $STATE/wait.py $STATE/edge-gateway/gateway.db $1; }
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
"""


def walk(tmp_path, script, seconds=300):
    state = tmp_path / "state"
    state.mkdir()
    shutil.copy(ROOT / "hw_tests" / "pi" / "job" / "wait.py", state)
    for name in ("watch.domain", "watch_mlp_int8.tflite", "data/watch_replay.bin"):
        shutil.copy(ROOT / "models" / name, tmp_path / Path(name).name)
    ports = {f"P{n}": str(free_port()) for n in (1, 2, 3)}
    env = dict(
        os.environ, STATE=str(state), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **ports,
    )  # fmt: skip
    shell = subprocess.Popen(
        ["bash", "-euc", STAND_IN + script.replace("/var/lib", "$STATE")], cwd=tmp_path, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = shell.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as late:
        log = state / "services.log"
        said = (late.output or b"").decode() if late.output else ""
        pytest.fail(said + (log.read_text() if log.exists() else "")[-4000:])
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    assert shell.returncode == 0, output + (state / "services.log").read_text()[-4000:]
    return output, state


def test_the_walk(tmp_path):
    runs = 0
    script = ""
    for block in BLOCKS:
        script += block
        if re.search(r"systemctl (re)?start edge-agent@pump", block):
            runs += 40
            script += f"holds {runs}\n"
    assert runs == 80
    script += "command edge-gateway -C $STATE/edge-gateway devices --json\n"
    output, state = walk(tmp_path, script)
    devices, _ = json.JSONDecoder().raw_decode(output, output.rindex("\n[\n {") + 1)
    assert (devices[0]["outcomes"], devices[0]["generation"]) == (80, 2)
    assert devices[0]["conflicts"] == devices[0]["lost_by_restore"] == 0
    assert json.loads((tmp_path / "enrolled.json").read_text())["claimed"] is True
    assert json.loads((tmp_path / "rotated.json").read_text())["generation"] == 2
    assert "refused nothing" in output and "days left" in output
    assert list(state.glob("edge-gateway/before-restore-*/gateway.db"))
    # The code was a file of its own for a moment only.
    assert not (state / "edge-gateway" / "pump.code").exists()


def test_every_service_and_test_that_the_documents_name_exists():
    threats = (ROOT / "docs" / "threat-model.md").read_text()
    tests = "".join(p.read_text() for p in (ROOT / "tests" / "host").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", threats))
    assert len(named) > 15
    assert not [name for name in named if f"def {name}(" not in tests]
    from test_units import EXPOSURE, FACTS

    made = {name.removesuffix(".service") for name in units(FACTS)}
    rows = dict(re.findall(r"^\| `(edge-[\w@-]+)` \|.*\| ([\d.]+) \|$", TEXT, re.M))
    assert {name.replace("@NAME", "@") for name in rows} == made
    for name, figure in rows.items():
        assert EXPOSURE[name.replace("@NAME", "@") + ".service"] == float(figure), name
    for target in re.findall(r"\]\(([\w.-]+\.md)\)", TEXT + threats):
        assert (ROOT / "docs" / target).exists(), target
