"""Our averaging beside flwr's, on the updates of a real round."""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
from _fl_data import watch
from _fl_methods import krum, mean, median, trimmed
from _fl_runs import FEDAVG, bench
from _fl_train import train

ROOT = Path(__file__).resolve().parents[1]
OURS = {
    "fedavg": mean,
    "fedavg median": median,
    "fedavg trimmed": trimmed,
    "fedavg krum": krum,
}


def differences() -> "dict[str, float]":
    """The largest difference of any weight, by way of averaging. Makes the environment."""
    b = bench([watch(0, "skew4")])
    nets = train(b.nets, b.data, FEDAVG, b.rng())
    updates = np.concatenate([layer.reshape(b.count, -1) for layer in nets], 1)
    weights = b.data.count.astype(np.float32)
    venv = ROOT / ".cache" / "flwr-venv"
    script, packages = ROOT / "tools" / "pinned_env.sh", ROOT / "tools" / "flwr.txt"
    subprocess.run(["sh", str(script), str(packages), str(venv)], check=True)
    with tempfile.TemporaryDirectory() as folder:
        given, got = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(given, updates=updates, weights=weights)
        job = ROOT / "benchmarks" / "_fl_flwr_job.py"
        subprocess.run(
            [venv / "bin" / "python", job, given, got], check=True, stderr=subprocess.DEVNULL
        )
        with np.load(got) as theirs:
            return {
                name: float(np.abs(how(updates, weights) - theirs[name]).max())
                for name, how in OURS.items()
            }
