"""Examples that are files alone run through real agents, brokers and gateways."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.errors import ConfigError
from examples.run import Example

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize(("name", "made"), [("motion", 359), ("health", 360)])
def test_an_example_runs(name, made, tmp_path):
    command = [sys.executable, "-m", "examples.run", str(EXAMPLES / name), "--keep"]
    done = subprocess.run(
        [*command, str(tmp_path / "work")], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{made} outcomes, none lost" in done.stdout
    # What south asks for, it hears from north.
    hits = re.findall(r"^ +-?\d\.\d{3}  (\w+) ", done.stdout, re.M)
    assert "north" in hits


def test_the_folders_hold_no_code():
    for name in ("motion", "health"):
        assert not list((EXAMPLES / name).glob("**/*.py"))


def test_what_is_wrong_is_named(tmp_path):
    good = json.loads((EXAMPLES / "health" / "example.json").read_text())
    file = tmp_path / "example.json"
    for change, said in (
        ({"domain": "none.domain"}, "none.domain"),
        ({"gateways": ["north"]}, "not listed"),
        ({"devices": None}, "example.json"),
    ):
        file.write_text(json.dumps(good | change))
        for path in (EXAMPLES / "health").iterdir():
            if path.name != "example.json":
                (tmp_path / path.name).write_bytes(path.read_bytes())
        with pytest.raises(ConfigError, match=said):
            Example(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        Example(tmp_path / "nowhere")
