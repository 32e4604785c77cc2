"""Routing as a process: its command, its children, and what is left when one is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
from gateway_kit import gateway, running, wait_until
from routing_kit import LABELS, ROUTES, World, near, near_ints, vectors

from gateway import supervise
from gateway.cli_routing import child_router


def test_the_command_and_a_router_that_is_killed(tmp_path):
    """Three processes; one is killed with SIGKILL; the command says what is missing."""
    (case,) = vectors(1, 36)
    world = World(tmp_path, ROUTES["folder"](tmp_path))
    north, south, west = world.sites
    for number, site in enumerate(world.sites):
        site.commit("d1", [(near(case, number, 8), 1, 200)])
    like = tmp_path / "like.json"
    like.write_text(json.dumps(near_ints(case)))
    with contextlib.ExitStack() as stack:
        processes = {}
        for site in world.sites:
            processes[site.name] = stack.enter_context(routing(site))

        def ask(*more):
            return gateway(
                "-C", north.folder, "query", "--like", like, "--label", LABELS[1], *more
            ).stdout

        def origins():
            found = json.loads(ask("--json"))
            return {hit["origin"] for hit in found["labels"][0]["hits"]}

        wait_until(lambda: origins() == {"here", "south", "west"})
        text = ask()
        assert "south" in text and "from 2 origins" in text
        assert "did not answer" not in text
        processes["west"].kill()
        processes["west"].wait(10)
        wait_until(lambda: "1 of 2 origins did not answer" in ask("--deadline", "1500"))
        assert origins() == {"here", "south"}
        status = json.loads(gateway("-C", north.folder, "route", "--status", "--json").stdout)
        assert status["members"] == 3 and status["origins"]
        assert "AWAY" not in gateway("-C", north.folder, "route", "--status").stdout
        token = json.loads((north.folder / "routing" / "api.token").read_text())
        url = f"http://127.0.0.1:{token['port']}/query"
        assert httpx.post(url, json={"like": "00" * 16}).status_code == 401
        wrong = gateway("-C", north.folder, "query", "--like", "zz", check=False)
        assert wrong.returncode == 2 and "like" in wrong.stderr
    down = gateway("-C", north.folder, "query", "--like", "00" * 16, check=False)
    assert down.returncode == 3 and "not running" in down.stderr


def routing(site):
    """`edge-gateway route` as a process."""
    return running(
        sys.executable, "-m", "gateway.cli", "-C", site.folder, "route",
        log=site.folder / "route.log", ready=(site.folder / "routing" / "api.token").exists,
    )  # fmt: skip


def test_routing_that_dies_is_started_again_and_ended_with_its_parent(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "PAUSE_S", (0.1, 1.0))
    (site,) = World(tmp_path, ROUTES["folder"](tmp_path), ("north",)).sites
    token = site.folder / "routing" / "api.token"
    child = child_router(site.folder)
    try:
        wait_until(token.exists)
        first = child.pid
        twice = gateway("-C", site.folder, "route", check=False)
        assert twice.returncode == 3 and "another process" in twice.stderr
        token.unlink()
        os.kill(first, signal.SIGKILL)
        wait_until(token.exists)
        assert child.pid != first
    finally:
        child.stop()
    wait_until(lambda: not token.exists(), 5)


def test_routing_ends_when_its_parent_is_killed(tmp_path):
    (site,) = World(tmp_path, ROUTES["folder"](tmp_path), ("north",)).sites
    token = site.folder / "routing" / "api.token"
    code = f"from gateway.cli_routing import child_router as c; c({str(site.folder)!r}); input()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        wait_until(token.exists)
        child = json.loads(token.read_text())["pid"]
        parent.kill()
        parent.wait()
        wait_until(lambda: not Path(f"/proc/{child}").exists(), 10)
        assert not token.exists()
    finally:
        parent.kill()
        parent.wait()
