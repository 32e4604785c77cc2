"""Backup and restore: everything, consistent, keys only when asked for, custody afterwards."""

import io
import itertools
import json
import os
import shutil
import sqlite3
import ssl
import stat
import tarfile
import threading
from pathlib import Path

import pytest
from gateway_kit import (
    Device,
    Publisher,
    broker_running,
    domain_bytes,
    enrol_device,
    free_port,
    gateway,
    gateway_running,
    wait_until,
)

from edge_agent.errors import StoreError
from gateway import backup
from gateway.config import Domains, GatewayConfig
from gateway.custody import Custody
from gateway.mailbox import Mailbox
from gateway.opening import opened

NOW = 1_800_000_000_000


@pytest.fixture
def folder(tmp_path):
    """A gateway with every kind of file."""
    domain = tmp_path / "motion.domain"
    domain.write_bytes(domain_bytes())
    made = tmp_path / "gw"
    gateway("init", made, "--domain", domain, "--tls", "--port", free_port())
    gateway("-C", made, "network", "init", "plant")
    (made / "codebooks").mkdir(exist_ok=True)
    shutil.copy(Path(__file__).parents[2] / "models" / "watch.codebook", made / "codebooks")
    Mailbox(made / "mailbox.db").close()
    with sqlite3.connect(made / "routing" / "routing.db") as db:
        db.execute("CREATE TABLE IF NOT EXISTS probe (x)")
        db.execute("INSERT INTO probe VALUES (7)")
    return made


class Bench:
    """Custody on the gateway's own folder, as its ingest process has it."""

    def __init__(self, folder):
        self.context = opened(folder, owner=True)
        config, store, self.registry = self.context.__enter__()
        self.custody = Custody(store, self.registry, Domains(config.domains), config.root)
        self.now = NOW

    def send(self, device, *frames):
        self.now += 1000
        plan = self.custody.judge([(device.topic(), frame) for frame in frames], self.now)
        self.custody.commit(plan)
        return [device.read(payload) for _, payload in self.custody.answers(plan)]

    def device(self, name):
        found = self.registry.add(os.urandom(8), name, NOW)
        return Device(found.agent, self.registry.secret(found.agent, 1))

    def close(self):
        self.context.__exit__(None, None, None)


def members(path):
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive.getmembers()}


def with_members(path, found):
    with tarfile.open(path, "w") as archive:
        for name, data in found.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def save(folder, path, *more):
    return gateway("-C", folder, "backup", path, *more)


def bring(folder, path, *more, check=True):
    return gateway("-C", folder, "restore", path, *more, "--json", check=check)


def test_every_file_of_a_gateway_is_kept_or_left_out_on_purpose(folder, tmp_path):
    gateway("-C", folder, "enrol", "pump", "--out", tmp_path / "pump.json")
    save(folder, tmp_path / "b.tar", "--keys", "--code", tmp_path / "code")
    kept = set(members(tmp_path / "b.tar")) | set(backup.SECRETS)
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and name.as_posix() not in kept:
            assert any(name.match(pattern) for pattern in backup.LEFT_OUT), name


def test_without_being_asked_no_key_leaves(folder, tmp_path):
    save(folder, tmp_path / "b.tar")
    assert stat.S_IMODE((tmp_path / "b.tar").stat().st_mode) == 0o600
    raw = (tmp_path / "b.tar").read_bytes()
    # The first line of a private key; the second is the public half, as in the certificate.
    secrets = [(folder / name).read_text().splitlines()[1] for name in backup.SECRETS[4:]]
    secrets += [(folder / "routing" / "gateway.key").read_text().splitlines()[1]]
    secrets += [(folder / "master.key").read_text().strip()]
    secrets += [json.loads((folder / "routing" / "network.json").read_text())["key"]]
    assert len(secrets) == 5 and all(len(secret) >= 32 for secret in secrets)
    for secret in secrets:
        assert secret.encode() not in raw
    assert GatewayConfig(folder).password.encode() not in raw


def test_a_fresh_disk(folder, tmp_path):
    """Nothing is left but the file and the code."""
    path = enrol_device(folder, "pump")
    code = tmp_path / "code"
    save(folder, tmp_path / "b.tar", "--keys", "--code", code)
    assert stat.S_IMODE(code.stat().st_mode) == 0o600
    before = {name: (folder / name).read_bytes() for name in backup.SECRETS}
    shutil.rmtree(folder)
    found = json.loads(bring(folder, tmp_path / "b.tar", "--code", code).stdout)
    assert found["keys"] is True and found["before"] is None
    assert {name: (folder / name).read_bytes() for name in backup.SECRETS} == before
    assert all((folder / n).stat().st_mode & 0o077 == 0 for n in backup.SECRETS)
    with sqlite3.connect(folder / "routing" / "routing.db") as db:
        assert db.execute("SELECT x FROM probe").fetchone() == (7,)
    assert gateway("-C", folder, "network", "show").stdout.startswith("network      plant")
    # The device goes on with the file that it has.
    config = GatewayConfig(folder)
    with (
        broker_running("mosquitto", folder, config.port),
        gateway_running(folder, tmp_path / "log"),
    ):
        publisher = Publisher(path)
        publisher.port = config.port
        publisher.start()
        publisher.make(5)
        assert publisher.ready.wait(10)
        publisher.send()
        wait_until(lambda: not publisher.held, 10)
        publisher.stop()


def test_the_same_code_serves_every_backup(folder, tmp_path):
    code = tmp_path / "code"
    save(folder, tmp_path / "1.tar", "--keys", "--code", code)
    first = code.read_text()
    save(folder, tmp_path / "2.tar", "--keys", "--code", code)
    assert code.read_text() == first
    shutil.rmtree(folder)
    assert bring(folder, tmp_path / "1.tar", "--code", code).returncode == 0


def test_a_wrong_code_opens_nothing(folder, tmp_path):
    save(folder, tmp_path / "b.tar", "--keys", "--code", tmp_path / "code")
    other = tmp_path / "other"
    other.write_text(backup.new_code())
    other.chmod(0o600)
    shutil.rmtree(folder)
    done = bring(folder, tmp_path / "b.tar", "--code", other, check=False)
    assert done.returncode == 1 and "wrong-code" in done.stderr
    assert list(folder.iterdir()) == []
    slip = (tmp_path / "code").read_text().strip()
    slip = slip[:-1] + ("0" if slip[-1] != "0" else "4")
    other.write_text(slip)
    done = bring(folder, tmp_path / "b.tar", "--code", other, check=False)
    assert done.returncode == 2 and slip not in done.stderr + done.stdout
    for text in (done.stdout, done.stderr):
        assert (tmp_path / "code").read_text().strip() not in text


def test_without_keys_the_folder_must_have_them(folder, tmp_path):
    save(folder, tmp_path / "b.tar")
    keep = {n: (folder / n).read_bytes() for n in ("gateway.json", "master.key")}
    shutil.rmtree(folder)
    done = bring(folder, tmp_path / "b.tar", check=False)
    assert done.returncode == 2 and "master.key" in done.stderr
    for name, data in keep.items():
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
    assert bring(folder, tmp_path / "b.tar").returncode == 0


def test_custody_after_a_restore(folder, tmp_path):
    """What the device freed since is lost and said so; what it holds comes again; once."""
    bench = Bench(folder)
    device = bench.device("pump")
    frames = {seq: device.outcome(seq) for seq in range(1, 9)}
    bench.send(device, device.hello(1))
    (ack,) = bench.send(device, *(frames[s] for s in (1, 2, 3)))
    assert ack.ranges == ((1, 3),)
    bench.close()
    save(folder, tmp_path / "b.tar")
    bench = Bench(folder)
    high = bench.send(device, *(frames[s] for s in (4, 5, 6)))[0].counter
    bench.close()
    bring(folder, tmp_path / "b.tar")
    bench = Bench(folder)
    # It freed up to 5 and still holds 6, 7, 8.
    bench.now = NOW + 500  # and the clock of the new machine is behind
    hello = device.hello(9, floor=6, pending=3, counter=high)
    (ack,) = bench.send(device, hello)
    assert ack.counter > high  # or the device would take it for an old one
    assert ack.ranges == ()
    acks = bench.send(device, *(frames[s] for s in (6, 7, 8)))
    assert acks[0].ranges[0] == (6, 8)
    (twice,) = bench.send(device, frames[7])
    assert twice.ranges
    bench.custody.merge()
    bench.close()
    (found,) = json.loads(gateway("-C", folder, "devices", "--json").stdout)
    assert (found["outcomes"], found["lost_by_restore"], found["duplicates"]) == (6, 2, 1)
    assert (found["conflicts"], found["journals"][0]["lost_by_restore"]) == (0, "4-5")


def test_what_the_folder_knows_of_devices_is_kept(folder, tmp_path):
    """A backup must not let a thief in again, nor an honest device out."""
    names = ("stolen", "rotated", "plain")
    for name in names:
        gateway("-C", folder, "enrol", name, "--out", tmp_path / f"{name}.json")
    save(folder, tmp_path / "b.tar")
    gateway("-C", folder, "revoke", "stolen")
    gateway("-C", folder, "rotate", "rotated", "--out", tmp_path / "rotated2.json")
    gateway("-C", folder, "enrol", "new", "--out", tmp_path / "new.json")
    found = json.loads(bring(folder, tmp_path / "b.tar").stdout)
    assert sorted(found["kept"]) == ["new", "rotated", "stolen"]
    devices = {d["name"]: d for d in json.loads(gateway("-C", folder, "devices", "--json").stdout)}
    assert devices["stolen"]["revoked"] and not devices["plain"]["revoked"]
    assert [devices[n]["generation"] for n in ("rotated", "new", "plain")] == [2, 1, 1]
    with opened(folder) as (_, _, registry):
        agent = bytes.fromhex(devices["rotated"]["agent"])
        assert registry(agent, 1) is not None and registry(agent, 2) is not None
    passwd = (folder / "mosquitto" / "passwd").read_text()
    assert devices["stolen"]["agent"] not in passwd and devices["new"]["agent"] in passwd


def test_what_was_there_is_moved_aside(folder, tmp_path):
    save(folder, tmp_path / "b.tar")
    gateway("-C", folder, "enrol", "later", "--out", tmp_path / "later.json")
    found = json.loads(bring(folder, tmp_path / "b.tar").stdout)
    with sqlite3.connect(Path(found["before"]) / "gateway.db") as db:
        assert db.execute("SELECT name FROM devices").fetchall() == [("later",)]


def test_a_damaged_database_is_replaced(folder, tmp_path):
    """The reason why people restore."""
    save(folder, tmp_path / "b.tar")
    raw = bytearray((folder / "gateway.db").read_bytes())
    raw[100:600] = os.urandom(500)
    (folder / "gateway.db").write_bytes(raw)
    (folder / "gateway.db-wal").unlink(missing_ok=True)
    bring(folder, tmp_path / "b.tar")
    assert "ok" in gateway("-C", folder, "status", "--check").stdout


def test_a_running_gateway_is_not_restored_under_its_feet(folder, tmp_path):
    save(folder, tmp_path / "b.tar")
    with opened(folder, owner=True):
        done = bring(folder, tmp_path / "b.tar", check=False)
    assert done.returncode == 3 and "Stop it first" in done.stderr


def test_a_backup_while_frames_arrive_is_consistent(folder, tmp_path):
    bench = Bench(folder)
    device = bench.device("pump")
    stop = threading.Event()
    counts = []

    def make():
        for number in range(4):
            save(folder, tmp_path / f"{number}.tar")
        stop.set()

    thread = threading.Thread(target=make)
    thread.start()
    seq = 0
    while not stop.is_set() and seq < 5000:
        bench.send(device, *(device.outcome(seq + n) for n in (1, 2, 3)))
        seq += 3
    thread.join()
    bench.close()
    for number in range(4):
        data = members(tmp_path / f"{number}.tar")["gateway.db"]
        (tmp_path / "copy.db").write_bytes(data)
        with sqlite3.connect(tmp_path / "copy.db") as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            (count,) = db.execute("SELECT count(*) FROM outcomes").fetchone()
            (blocks,) = db.execute("SELECT coalesce(sum(count), 0) FROM blocks").fetchone()
        assert count % 3 == 0 and count == blocks
        counts.append(count)
    assert counts == sorted(counts) and counts[-1] > 0


@pytest.mark.parametrize(
    "fault", ["cut", "flip", "other db", "extra", "link", "no mac", "forged", "format", "not tar"]
)
def test_a_backup_that_is_not_whole_changes_nothing(folder, tmp_path, fault):
    path = tmp_path / "b.tar"
    save(folder, path)
    before = {p: p.read_bytes() for p in folder.rglob("*.db")}
    found = members(path)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif fault == "flip":
        at = found["gateway.db"].index(b"SQLite format 3") + 200
        found["gateway.db"] = found["gateway.db"][:at] + b"\xff" + found["gateway.db"][at + 1 :]
        with_members(path, found)
    elif fault == "other db":
        del found["gateway.db"]
        with_members(path, found)
    elif fault == "extra":
        with_members(path, found | {"../../evil": b"x"})
    elif fault == "link":
        with tarfile.open(path, "w") as archive:
            info = tarfile.TarInfo("gateway.db")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    elif fault == "no mac":
        del found["manifest.mac"]
        with_members(path, found)
    elif fault == "forged":
        manifest = json.loads(found["manifest.json"])
        found["manifest.json"] = json.dumps(manifest | {"made_ms": 5}).encode()
        with_members(path, found)
    elif fault == "format":
        manifest = json.loads(found["manifest.json"])
        found["manifest.json"] = json.dumps(manifest | {"format": 2}).encode()
        with_members(path, found)
    else:
        path.write_bytes(b"hello" * 1000)
    done = bring(folder, path, check=False)
    assert done.returncode == 1, done.stderr
    assert not (tmp_path / "evil").exists()
    assert {p: p.read_bytes() for p in folder.rglob("*.db")} == before
    assert gateway("-C", folder, "status").returncode == 0


def cut_everywhere(folder, path, code, monkeypatch):
    """A restore that is cut off at the first step of its swap, the next at the second, until
    one comes to its end; yields after each cut."""
    real = Path.rename

    class Cut(Exception):
        pass

    for steps in itertools.count():
        left = [steps]

        def rename(self, target, left=left):
            if left[0] == 0 and ".restore" in str(self):
                raise Cut
            left[0] -= ".restore" in str(self)
            return real(self, target)

        monkeypatch.setattr(Path, "rename", rename)
        try:
            backup.restore(folder, path, lambda: code)
        except Cut:
            monkeypatch.setattr(Path, "rename", real)
            yield steps
        else:
            monkeypatch.setattr(Path, "rename", real)
            return


def test_a_restore_that_was_cut_off_is_seen_and_finished(folder, tmp_path, monkeypatch):
    """At every step of the swap; what the folder knew of devices is not forgotten meanwhile."""
    gateway("-C", folder, "enrol", "stolen", "--out", tmp_path / "stolen.json")
    save(folder, tmp_path / "b.tar")
    gateway("-C", folder, "revoke", "stolen")
    cuts = 0
    for _ in cut_everywhere(folder, tmp_path / "b.tar", "", monkeypatch):
        with pytest.raises(StoreError, match="cut off"), opened(folder):
            pass
        cuts += 1
    assert cuts >= 5
    (device,) = json.loads(gateway("-C", folder, "devices", "--json").stdout)
    assert device["revoked"]
    bring(folder, tmp_path / "b.tar")
    assert "ok" in gateway("-C", folder, "status", "--check").stdout


def test_a_fresh_disk_that_was_cut_off_gets_every_key(folder, tmp_path, monkeypatch):
    save(folder, tmp_path / "b.tar", "--keys", "--code", tmp_path / "code")
    before = {name: (folder / name).read_bytes() for name in backup.SECRETS}
    shutil.rmtree(folder)
    code = (tmp_path / "code").read_text()
    assert len(list(cut_everywhere(folder, tmp_path / "b.tar", code, monkeypatch))) >= 10
    assert {name: (folder / name).read_bytes() for name in backup.SECRETS} == before
    gateway("-C", folder, "status")


def test_a_certificate_made_since_stays_with_its_key(folder, tmp_path):
    """The folder keeps its keys, so an older certificate would fit none."""
    save(folder, tmp_path / "b.tar", "--keys", "--code", tmp_path / "code")
    gateway("-C", folder, "tls", "--renew")
    renewed = (folder / "tls" / "server.crt").read_bytes()
    bring(folder, tmp_path / "b.tar")
    assert (folder / "tls" / "server.crt").read_bytes() == renewed
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
        folder / "tls" / "server.crt", folder / "tls" / "server.key"
    )


def test_two_restores_at_once_keep_both_that_went(folder, tmp_path):
    """Within a second: the folder's first database is not lost under the second's name."""
    gateway("-C", folder, "enrol", "first", "--out", tmp_path / "first.json")
    save(folder, tmp_path / "b.tar")
    done = [backup.restore(folder, tmp_path / "b.tar", lambda: "") for _ in range(3)]
    assert len({one.aside for one in done}) == 3
    assert all((one.aside / "gateway.db").exists() for one in done)


def test_another_gateways_backup_is_refused(folder, tmp_path):
    save(folder, tmp_path / "b.tar")
    gateway("init", tmp_path / "other")
    done = bring(tmp_path / "other", tmp_path / "b.tar", check=False)
    assert done.returncode == 2 and GatewayConfig(folder).gateway.hex() in done.stderr
