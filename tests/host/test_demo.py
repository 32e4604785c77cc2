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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from examples.demo.__main__ import main

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


# A kill at one step: (who dies, which figure is then wrong; None: a control, all is well).
STEPS = {
    "before-commit": ("gateway", None),
    "after-commit": ("gateway", None),
    "ack-first": ("gateway", "lost"),
    "no-dedupe": ("gateway", "duplicates"),
    "before-sync": ("agent", None),
    "after-sync": ("agent", None),
    # The gateway holds frames that no site ever committed.
    "publish-first": ("agent", "unexplained"),
}


def demo_with_step(tmp_path: Path, order: str) -> tuple[int, dict, str]:
    """A run with one kill, of a process that waits for it at this step."""
    who, _ = STEPS[order]
    program = f"{sys.executable} {MUTANTS / (who + '_kill.py')} {order}"
    few = ["--sites", "2", "--seconds", "5", "--kills", who]
    return demo(tmp_path, *few, f"--{who}-cmd", program)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """{step: future of its run}. Two at a time: they mostly wait."""
    wanted = [
        item.callspec.params["order"]
        for item in request.session.items
        if item.path == request.path and "runs" in item.fixturenames
    ]
    with ThreadPoolExecutor(2) as pool:
        yield {
            order: pool.submit(demo_with_step, tmp_path_factory.mktemp(order), order)
            for order in wanted
        }


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
    routing = report["routing"]
    asked = {q["when"]: q for q in routing["questions"]}
    for hit in asked["all well"]["hits"]:
        assert (hit["origin"], hit["site"], hit["true"]) == ("gateway-1", 4, "pendulum")
    assert asked["router killed"]["missed"] and asked["router killed"]["hits"]
    assert asked["all back"]["origins"]["gateway-2"] == "answered"
    loop = report["loop"]
    assert {one["person"] for one in loop["devices"]} == {5, 6}
    for one in loop["devices"]:
        assert one["case_alone"] == 0 and one["case_together"] > 0.5
        assert one["head"] and one["by_head"] == one["windows"] > 40
        assert one["box_bytes"] > 7 * 100
    assert all(0 < one["fetched_bytes"] < 262_144 for one in loop["gateways"])
    tree = loop["tree"]["tree"]
    assert tree["label"] == "pendulum" and tree["alone"]["label"] != "pendulum"
    assert {one["origin"] for one in tree["parents"]} <= {"gateway-1"}
    assert "learnt at the others" in (tmp_path / "demo-report.html").read_text()
    # One site in three sees the case, and most outcomes are not worth announcing.
    assert 0 < sum(one["pointers"] for one in routing["announced"]) < 400


@pytest.mark.parametrize("order", STEPS)
def test_a_kill_at_this_step_shows_exactly_what_is_broken(runs: dict, order: str):
    code, report, said = runs[order].result()
    wrong = STEPS[order][1]
    assert report, said
    assert report["kills"][0]["met"] is True, said
    if wrong is None:
        assert code == 0, said
    else:
        assert code == 1, said
        assert report["totals"][wrong] > 0, said
    if order == "after-sync":
        # Synced and in no ledger: only the comparison at the restart can know of them.
        assert report["totals"]["from_journal"] > 0, said


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_the_demo_ends_everything(tmp_path: Path, how: signal.Signals):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "examples.demo", "--quick", "--out", str(tmp_path)]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background of a shell inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    for line in child.stderr:
        if "Replaying" in line:
            break
    time.sleep(1.0)
    assert list(temporary.iterdir())
    ours = [pid for pid in _running() if str(temporary) in _command(pid)]
    assert len(ours) >= 5
    child.send_signal(how)
    child.stderr.read()
    assert child.wait(20) == (130 if how == signal.SIGINT else -signal.SIGKILL)
    for _ in range(50):
        left = [pid for pid in ours if str(temporary) in _command(pid)]
        if not left:
            break
        time.sleep(0.1)
    assert not left
    if how == signal.SIGINT:
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
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "error" in capsys.readouterr().err


def test_a_gateway_that_does_not_start_ends_with_3(tmp_path: Path):
    code, report, said = demo(tmp_path, "--gateway-cmd", f"{sys.executable} -c 'exit(9)'")
    assert code == 3
    assert "status 9" in said
    assert not report
