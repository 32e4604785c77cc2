"""`edge-agent` as a person uses it: real processes, a real broker, a real gateway."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gateway_kit as kit
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models/watch_mlp_int8.tflite"
DOMAIN = ROOT / "models/watch.domain"
REPLAY = ROOT / "models/data/watch_replay.bin"
WINDOWS = 40


def agent(*arguments, **kw):
    return subprocess.run(
        [sys.executable, "-m", "edge_agent.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        **kw,
    )


def said(result, code=0):
    assert result.returncode == code, result.stdout + result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def site(tmp_path):
    """A gateway folder with one device enrolled and its agent initialised."""
    port = kit.free_port()
    folder = tmp_path / "gw"
    kit.gateway("init", folder, "--domain", DOMAIN, "--port", port)
    device = tmp_path / "pump.json"
    kit.gateway("-C", folder, "enrol", "pump", "--out", device)
    sensor = {"kind": "replay", "path": str(REPLAY), "person": 4, "speed": 0, "limit": WINDOWS}
    summary = said(
        agent(
            "init", "--config", device, "--model", MODEL, "--domain", DOMAIN,
            "--sensor", json.dumps(sensor), "--json",
        )
    )  # fmt: skip
    assert summary["labels"] == 7
    assert device.stat().st_mode & 0o777 == 0o600
    return folder, device, port


def exported(folder):
    lines = kit.gateway("-C", folder, "export", "--frames").stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_from_sensor_to_gateway_and_back(site, tmp_path):
    folder, device, port = site
    with kit.broker_running("iotcore", folder, port), kit.gateway_running(folder, tmp_path / "log"):
        status = said(agent("run", "--config", device, "--until-delivered", "--json"))
        assert status["delivery"]["counters"]["confirmed"] == WINDOWS
        rows = exported(folder)
        assert len(rows) == WINDOWS

        # A frame from the database, taken apart with the device's keys.
        frame = rows[0]["frame"]
        described = said(
            agent("frame", "-", "--hex", "--config", device, "--json", input=frame, check=False)
        )
        assert rows[0]["outcome"] in json.dumps(described)
        spoilt = frame[:-2] + ("00" if frame[-2:] != "00" else "01")
        assert agent("frame", "-", "--hex", "--config", device, input=spoilt).returncode == 1

        # Feedback while the agent is away: it goes out with the next run, once.
        ticket = said(
            agent(
                "feedback",
                rows[0]["outcome"],
                "--config",
                device,
                "--correct",
                "pendulum",
                "--json",
            )
        )
        assert ticket["result"] == "corrected"
        said(agent("run", "--config", device, "--seconds", 4, "--quiet", "--json"))
        assert not list(Path(str(device.with_suffix(".journal")) + ".feedback").glob("*.json"))
        judged = [r for r in exported(folder) if r["judged_result"] is not None]
        assert [r["outcome"] for r in judged] == [rows[0]["outcome"]]

    stats = said(agent("journal", "--config", device, "--json"))
    assert stats["pending"] == {"urgent": 0, "normal": 0, "bulk": 0}
    ledger = said(agent("journal", "--config", device, "--ledger", "--json"))
    assert ledger["outcome"]["payloads"] >= 2 * WINDOWS + 1
    assert set(ledger) == {"outcome", "hello", "state"}


def test_without_a_gateway_everything_waits_in_the_journal(site, tmp_path):
    _, device, _ = site
    said(agent("run", "--config", device, "--seconds", 3, "--quiet", "--json"))
    listed = said(agent("journal", "--config", device, "--list", "--json"))
    assert len(listed["records"]) == WINDOWS
    target = tmp_path / "unsent.jsonl"
    assert said(agent("journal", "--config", device, "--export", target, "--json"))[
        "exported"
    ] == len(target.read_text().splitlines())
    assert agent("journal", "--config", device, "--export", target).returncode == 3


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (["--model", "nowhere.tflite"], 3, "nowhere.tflite"),
        (["--model", str(DOMAIN)], 3, "no .tflite file"),
        (["--domain", str(MODEL)], 2, "no domain file"),
        (["--sensor", "{"], 2, "JSON"),
        (["--sensor", '{"kind": "smell"}'], 2, "replay, csv, audio, iio"),
        (["--sensor", '{"kind": "replay", "path": "nowhere.bin"}'], 3, "nowhere.bin"),
    ],
)
def test_init_refuses_what_would_not_run_and_changes_nothing(site, change, code, words):
    _, device, _ = site
    before = json.loads(device.read_text())
    result = agent("init", "--config", device, *change)
    assert result.returncode == code, result.stderr
    assert words in result.stderr
    assert json.loads(device.read_text()) == before


def test_a_key_file_others_can_read_is_refused(site):
    _, device, _ = site
    os.chmod(device, 0o644)
    result = agent("run", "--config", device)
    assert result.returncode == 2
    assert "chmod 600" in result.stderr


def test_two_agents_on_one_journal(site):
    _, device, _ = site
    first = subprocess.Popen(
        [sys.executable, "-m", "edge_agent.cli", "run", "--config", str(device), "--quiet"]
    )
    try:
        lock = device.with_suffix(".journal") / "lock"
        kit.wait_until(lambda: lock.exists() and lock.read_text().strip() == str(first.pid))
        second = agent("run", "--config", device)
        assert second.returncode == 3
        assert str(first.pid) in second.stderr
    finally:
        first.terminate()
        assert first.wait(20) == 0


def test_infer_keeps_shapes_and_raw_bytes(tmp_path):
    rng = np.random.default_rng(5)
    x = rng.integers(-128, 128, (9, 48), dtype=np.int8)
    np.save(tmp_path / "x.npy", x)
    for extra, kind in ((["--raw"], np.int8), ([], np.float32)):
        data = x if extra else x.astype(np.float32) / 64
        np.save(tmp_path / "in.npy", data)
        said(
            agent(
                "infer", "--model", MODEL, "--input", tmp_path / "in.npy",
                "--output", tmp_path / "y.npy", "--json", *extra,
            )
        )  # fmt: skip
        y = np.load(tmp_path / "y.npy")
        assert y.shape == (9, 7)
        assert y.dtype == kind
    np.save(tmp_path / "in.npy", x[:, :40])
    wrong = agent(
        "infer", "--model", MODEL, "--input", tmp_path / "in.npy", "--output", tmp_path / "z.npy"
    )
    assert wrong.returncode in (2, 3) and "48" in wrong.stderr


def test_help_names_every_command():
    text = agent("--help").stdout
    for name in ("init", "run", "infer", "frame", "journal", "feedback", "model", "preflight"):
        assert name in text
    shown = agent("model", "--help").stdout
    assert "tap" in shown and "plan" in shown
