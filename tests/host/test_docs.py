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

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
WINDOWS_OF_PERSON_4 = 226
# Background jobs of the shell are its children: it ends them, by id, however it ends itself.
TIDY = "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n"


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
    devices = json.loads(output[output.rindex("\n[") :])
    assert devices[0]["outcomes"] == 2 * WINDOWS_OF_PERSON_4


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
