"""A PostgreSQL cluster of its own for tests: loopback, a free port, gone afterwards."""

import glob
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from brokers import free_port

PASSWORD = "only for this test"
SETTINGS = (
    "listen_addresses = '127.0.0.1'", "unix_socket_directories = ''", "shared_buffers = 16MB",
    "max_connections = 80", "max_wal_size = 64MB", "logging_collector = off",
    "autovacuum = off", "max_parallel_workers = 0",
)  # fmt: skip


def programs():
    """The folder with initdb and pg_ctl; Debian keeps them off the path."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if not found:
        pytest.fail("PostgreSQL is not installed: sh tools/debian.sh postgresql")
    return Path(found[-1]).parent


class Cluster:
    """`start` and `stop` may be repeated; `dsn(database)` is for psycopg."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = free_port()
        self.bin = programs()
        # PostgreSQL refuses to run as root.
        self.user = "postgres" if os.getuid() == 0 else None
        if self.user:
            shutil.chown(folder, self.user)
        self.data = folder / "data"
        secret = folder / "password"
        secret.write_text(PASSWORD)
        self._do("initdb", "-D", self.data, "-U", "admin", "--auth=scram-sha-256",
                 "--pwfile", secret, "--no-sync", "--locale=C", "-E", "UTF8")  # fmt: skip
        conf = self.data / "postgresql.conf"
        with conf.open("a") as file:
            file.write("\n".join((f"port = {self.port}", *SETTINGS)) + "\n")

    def _do(self, program, *arguments):
        done = subprocess.run(
            [self.bin / program, *map(str, arguments)],
            user=self.user, cwd=self.folder, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout + self.log()

    def log(self):
        log = self.folder / "log"
        return log.read_text() if log.exists() else ""

    def start(self):
        self._do("pg_ctl", "-D", self.data, "-l", self.folder / "log", "-w", "start")
        return self

    def stop(self, mode="immediate"):
        """ "immediate" is a crash: the next start recovers from the log."""
        self._do("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")

    def dsn(self, database="postgres", port=None, user="admin", password=PASSWORD):
        return (
            f"host=127.0.0.1 port={port or self.port} dbname={database} user={user}"
            f" password='{password}'"
        )

    def run(self, statement, database="postgres"):
        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else None


@contextmanager
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    made = None
    try:
        made = Cluster(folder)
        yield made.start()
    finally:
        if made is not None and (made.data / "postmaster.pid").exists():
            made.stop()
        shutil.rmtree(folder)
