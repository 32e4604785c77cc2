"""Lets a kill hit exactly between two steps; see World.moment in examples/demo/world.py."""

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent.parent
sys.path.insert(0, str(ROOT))

WAIT_S = 20.0


class Moment:
    """One place in the code where this process can be made to wait for its end."""

    def __init__(self) -> None:
        self._path = Path(os.environ["DEMO_MOMENTS"]) / os.environ["DEMO_MOMENT"]
        self._path.with_suffix(".known").touch()

    def asked(self) -> bool:
        """Whether the director waits for this process to get here."""
        return self._path.with_suffix(".asked").exists()

    def reach(self) -> None:
        """Called at the moment itself: when asked for, does not come back."""
        if self.asked():
            self._path.with_suffix(".here").touch()
            time.sleep(WAIT_S)
            sys.exit("the kill did not come")
