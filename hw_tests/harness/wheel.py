"""The package as a user has it: a wheel, installed into a folder, away from the clone."""

import json
import os
import subprocess
import sys
from pathlib import Path

from harness.machine import ROOT


class Installed:
    """`edge-agent` out of a wheel built from this clone, run with `run` or `popen`."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / "site"
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
        subprocess.run([*build, ROOT], check=True, capture_output=True)
        (wheel,) = folder.glob("*.whl")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
        subprocess.run([*pip, "--target", self.site, wheel], check=True, capture_output=True)
        # Packages that it needs are those of this interpreter; its own come first.
        self.env = dict(os.environ, PYTHONPATH=str(self.site), PYTHONSAFEPATH="1")
        where = "import edge_agent, mpy_port; print(edge_agent.__file__, mpy_port.__file__)"
        said = subprocess.run(
            [sys.executable, "-c", where], env=self.env, cwd=folder, capture_output=True, text=True
        ).stdout.split()
        assert len(said) == 2 and all(p.startswith(str(self.site)) for p in said), said

    def command(self, *words: object) -> "list[str]":
        return [sys.executable, str(self.site / "bin" / "edge-agent"), *map(str, words)]

    def popen(self, *words: object, cwd: Path) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(*words),
            cwd=cwd,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: object, cwd: Path, seconds: float = 240) -> "tuple[int, str, str]":
        """Exit status, standard output, standard error."""
        done = subprocess.run(
            self.command(*words),
            cwd=cwd,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        return done.returncode, done.stdout, done.stderr

    def json(self, *words: object, cwd: Path) -> "dict[str, object]":
        status, out, said = self.run(*words, "--json", cwd=cwd)
        assert status == 0, said
        return dict(json.loads(out))
