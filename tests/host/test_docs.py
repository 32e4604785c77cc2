"""What the documents show is run as it stands there."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain, make_domain
from gateway.config import GatewayConfig, new_config
from gateway.files import write_private
from gateway.routing_config import RoutingConfig

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
ROUTING = (ROOT / "docs" / "routing.md").read_text()
YOURS = (ROOT / "docs" / "your-domain.md").read_text()
WINDOWS_OF_PERSON_4 = 226
# Background jobs of the shell are its children: it ends them, by id, however it ends itself.
TIDY = "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n"


# Merges a section into a gateway's configuration, as a reader does by hand.
MERGE = """python -c 'if True:
    import json, sys
    path = sys.argv[1] + "/gateway.json"
    fields = json.load(open(path)) | json.load(sys.stdin)
    json.dump(fields, open(path, "w"))
' {name} <<'END'
{text}END
"""
# "A few seconds later": everything that may be announced now stands there.
SETTLED = """python -c 'if True:
    import time
    from pathlib import Path
    from gateway.cli_routing import call
    def settled(name):
        try:
            found = call(Path(name), "GET", "/status", None, 5.0)
        except Exception:
            return False
        done = found["domains"] and all(d["settled"] for d in found["domains"].values())
        return done and not any(route["pending"] for route in found["routes"])
    while not (settled("north") and settled("south")):
        time.sleep(0.2)
'
"""


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def clone(tmp_path):
    """A folder as a reader has it: the models, and the commands on the path."""
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("*.key"))
    return tmp_path


def run_shell(script, folder, seconds=120):
    env = dict(os.environ, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    shell = subprocess.Popen(
        ["bash", "-euc", TIDY + script],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as late:
        pytest.fail((late.output or b"").decode())
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    assert shell.returncode == 0, output
    return output


def test_readme_walk_and_ten_lines(clone):
    walk = next(b for b in blocks("sh") if "edge-gateway init" in b)
    example = blocks("python")[0]
    code = [line for line in example.splitlines() if line.strip()]
    assert len(code) <= 11 and "import asyncio" in code[0]
    (clone / "example.py").write_text(example)
    port = free_port()
    script = walk.replace("--port 1883", f"--port {port}")
    assert str(port) in script
    # After the walk the example runs with the same file: the recording once more.
    output = run_shell(script + "\npython example.py\nedge-gateway -C gw devices --json\n", clone)
    lines = (clone / "outcomes.jsonl").read_text().splitlines()
    assert len(lines) == WINDOWS_OF_PERSON_4
    assert {"label", "confidence", "agent"} <= set(json.loads(lines[0]))
    # Behind it may stand what the background jobs say when they are ended.
    devices, _ = json.JSONDecoder().raw_decode(output, output.rindex("\n[\n {") + 1)
    assert devices[0]["outcomes"] == 2 * WINDOWS_OF_PERSON_4


def own_domain(folder):
    """A domain with the owner's key beside it, as `models.train --new-owner` makes it."""
    crypto = HostCrypto()
    watch = Domain.load((ROOT / "models" / "watch.domain").read_bytes(), crypto)
    seed = os.urandom(32)
    made = make_domain(crypto, seed, crypto.public_key(seed), "mine", 1, watch.space, watch.labels)
    (folder / "my.domain").write_bytes(made)
    write_private(folder / "owner.key", seed.hex())


def test_routing_walk(clone):
    """docs/routing.md from top to bottom, in one shell."""
    text = ROUTING
    for port in ("1883", "1884", "8470", "8471", "8480", "8481", "4222"):
        assert port in text
        text = re.sub(rf"\b{port}\b", str(free_port()), text)
    script = ""
    for language, block in re.findall(r"^```(\w+ ?\w*)\n(.*?)^```", text, re.M | re.S):
        if "domain train" in block:
            continue
        if language == "sh":
            waits = "route --status" in block or "edge-agent run" in block
            script += SETTLED * waits + block
        elif language == "python":
            script += f"python - $CASE <<'END'\n{block}END\n"
        elif language != "json route":
            script += MERGE.format(name=language.removeprefix("json "), text=block)
    output = run_shell(script, clone, seconds=240)
    assert "compare it with the one its owner sees" in output
    assert re.search(r"route +folder +up, [1-9]\d* announced, 0 pending", output)
    asked = re.findall(r"^pendulum: 4 found\n((?: +0\.\d+ .*\n){4})", output, re.M)
    # South has two windows beside the one in question; the rest can only be north's.
    assert {line.split()[1] for line in asked[0].splitlines()} == {"here", "north"}
    assert re.search(r"^north 0\.\d+ \d+ 20\d\d-", output, re.M)
    assert re.search(r"^20.* south +fetch +ok ", output, re.M)
    assert "1 of 1 origins did not answer" in output
    assert output.count("noise       8\n") == 1 and "south is revoked" in output
    assert np.load(clone / "mine.npy").shape == (WINDOWS_OF_PERSON_4, 64)
    assert '"port"' in (clone / "seed.log").read_text()


def test_routing_training(clone):
    """The last command there, on vectors as the lines before it write them."""
    own_domain(clone)
    rng = np.random.default_rng(1)
    np.save(clone / "mine.npy", rng.integers(-100, 100, (300, 64)).astype(np.int8))
    script = next(b for b in re.findall(r"```sh\n(.*?)```", ROUTING, re.S) if "train" in b)
    assert re.search(r"^version +2$", run_shell(script, clone), re.M)


def test_your_domain_walk(clone):
    """docs/your-domain.md from top to bottom, in one shell."""
    shutil.copytree(ROOT / "examples", clone / "examples")
    script = ""
    for language, block in re.findall(r"^```(\w+ ?[\w/.]*)\n(.*?)^```", YOURS, re.M | re.S):
        if language == "sh":
            script += block
        elif language == "python":
            script += f"python - <<'END'\n{block}END\n"
        else:
            name = language.removeprefix("json ")
            script += f"cat > {name} <<'END'\n{block}END\n"
    assert "--port 1883" in script
    output = run_shell(script.replace("1883", str(free_port())), clone, seconds=240)
    assert re.search(r"^fan\.tflite +\d+ bytes, right in \d", output, re.M)
    assert (clone / "owner.key").stat().st_mode & 0o777 == 0o600
    said = [json.loads(line) for line in (clone / "outcomes.jsonl").read_text().splitlines()]
    # 4,500 samples, windows of 64 every 32.
    assert len(said) == (4500 - 64) // 32 + 1
    assert {row["label_name"] for row in said} == {"off", "turning", "unbalanced"}
    assert re.search(r"^fan-2 +at cellar +92 outcomes: ", output, re.M)
    found = re.search(r"^unbalanced: 2 found\n((?: +-?\d\.\d+ .*\n){2})", output, re.M)
    assert found and {line.split()[1] for line in found[1].splitlines()} == {"hall"}
    assert re.search(r"^written +fan/fan\.domain, extended$", output, re.M)


def test_routes_in_the_documents_are_routes(clone):
    """Each entry is taken by the configuration, and each kind of route is shown."""
    config = GatewayConfig(new_config(clone, "127.0.0.1", 1883, "qis/1", None).folder)
    entries = [json.loads(b) for b in re.findall(r"```json route\n(.*?)```", ROUTING, re.S)]
    config.routing = {"routes": entries}
    assert RoutingConfig(config).routes == entries
    assert {entry["kind"] for entry in entries} == {"folder", "sql", "http", "pubsub", "dht"}


def test_every_folder_and_file_in_the_readme_exists():
    for name in re.findall(r"^\| `([a-z_/]+)`", README, re.M) + re.findall(
        r"\]\((\w+\.md)\)", README
    ):
        assert (ROOT / name).exists(), name


def test_every_make_target_in_the_readme_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:^|`)make (\w+)", README, re.M))
    assert named and named <= targets, named - targets


def test_nothing_of_a_machine_is_in_the_repository():
    """Paths of someone's machine and registry hosts do not belong in what is published."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    hosts = re.compile(
        "|".join(("files.python" + "hosted", "py" + "pi.org", "registry.npm" + "js"))
    )
    for name in filter(None, listing.split("\0")):
        try:
            text = (ROOT / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        assert not hosts.search(text), name
