"""`make demo` itself: green with the real code, red as soon as a promise is broken.

Every mutant has a control: the same kill at the same step of the unbroken code, which must
be green. So a red mutant is red because of the promise it breaks.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MUTANTS = ROOT / "tests" / "host" / "mutants"
LIMIT_S = 120


def demo(tmp_path: Path, *arguments: str) -> tuple[int, dict, str]:
    """(exit status, report, what it said) of a small run."""
    command = [sys.executable, "-m", "examples.demo", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
    )
    path = tmp_path / "demo-report.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    return done.returncode, report, done.stdout + done.stderr


def program(name: str, order: str) -> str:
    return f"{sys.executable} {MUTANTS / name} {order}"


def short(kill: str) -> list[str]:
    """Arguments for a run with one kill: less replay is enough."""
    return ["--sites", "2", "--seconds", "7", "--kills", kill]


def test_three_kills_lose_nothing_and_repeat_nothing(tmp_path: Path):
    code, report, said = demo(tmp_path)
    assert code == 0, said
    assert report["verdict"] == "pass"
    totals = report["totals"]
    assert totals["outcomes"] == totals["delivered"] == totals["windows"] == 450
    assert totals["lost"] == totals["duplicates"] == totals["unexplained"] == 0
    assert [kill["what"] for kill in report["kills"]] == ["broker", "site 5", "gateway"]
    assert all(kill["live"] and kill["in_flight"] for kill in report["kills"])
    assert 0.6 < totals["accuracy"] < 1
    assert totals["frame_bytes"] < totals["json_bytes"] < totals["raw_bytes"] == 1536
    assert (tmp_path / "demo-report.html").stat().st_size > 10_000
    assert "450" in said


@pytest.mark.parametrize("order", ["before-commit", "after-commit"])
def test_the_gateway_may_die_on_either_side_of_its_commit(tmp_path: Path, order: str):
    code, report, said = demo(
        tmp_path, *short("gateway"), "--gateway-cmd", program("gateway_kill.py", order)
    )
    assert code == 0, said
    assert report["kills"][0]["met"] is True


@pytest.mark.parametrize("order", ["before-sync", "after-sync"])
def test_an_agent_may_die_on_either_side_of_its_sync(tmp_path: Path, order: str):
    code, report, said = demo(
        tmp_path, *short("agent"), "--agent-cmd", program("agent_kill.py", order)
    )
    assert code == 0, said
    assert report["kills"][0]["met"] is True
    # Synced and in no ledger: only the comparison at the restart can know of them.
    assert (report["totals"]["from_journal"] > 0) == (order == "after-sync")


def test_acknowledging_before_the_commit_loses_records(tmp_path: Path):
    code, report, said = demo(
        tmp_path, *short("gateway"), "--gateway-cmd", program("gateway_kill.py", "ack-first")
    )
    assert code == 1, said
    assert report["kills"][0]["met"] is True
    assert report["totals"]["lost"] > 0


def test_without_dedupe_records_arrive_twice(tmp_path: Path):
    code, report, said = demo(
        tmp_path, *short("gateway"), "--gateway-cmd", program("gateway_kill.py", "no-dedupe")
    )
    assert code == 1, said
    assert report["kills"][0]["met"] is True
    assert report["totals"]["duplicates"] > 0


def test_publishing_before_the_sync_is_seen(tmp_path: Path):
    code, report, said = demo(
        tmp_path, *short("agent"), "--agent-cmd", program("agent_kill.py", "publish-first")
    )
    assert code == 1, said
    assert report["kills"][0]["met"] is True
    # The gateway holds frames that no site ever committed, and refuses those that took
    # their numbers afterwards.
    assert report["totals"]["unexplained"] > 0


def test_ctrl_c_ends_everything_and_leaves_nothing(tmp_path: Path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "examples.demo", "--quick", "--out", str(tmp_path)]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in child.stderr:
        if "Replaying" in line:
            break
    time.sleep(1.0)
    assert list(temporary.iterdir())
    ours = [pid for pid in _running() if str(temporary) in _command(pid)]
    assert len(ours) >= 5
    child.send_signal(signal.SIGINT)
    child.stderr.read()
    assert child.wait(20) == 130
    assert not [pid for pid in ours if str(temporary) in _command(pid)]
    assert not list(temporary.iterdir())
    assert not (tmp_path / "demo-report.json").exists()


def _running() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sites", "8"],
        ["--sites", "0"],
        ["--seconds", "1"],
        ["--kills", "moon"],
        ["--out", "/no/such/place"],
        ["--bogus"],
    ],
)
def test_wrong_usage_ends_with_2(tmp_path: Path, arguments: list[str]):
    code, _, said = demo(tmp_path, *arguments)
    assert code == 2
    assert "error" in said


def test_a_gateway_that_does_not_start_ends_with_3(tmp_path: Path):
    code, report, said = demo(tmp_path, "--gateway-cmd", f"{sys.executable} -c 'exit(9)'")
    assert code == 3
    assert "status 9" in said
    assert not report
