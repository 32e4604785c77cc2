"""docs/your-sensor.md: its programs, as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SENSOR = (ROOT / "docs" / "your-sensor.md").read_text()
INTERPRETER = Path(sys.executable).with_name("micropython")


def page(name):
    (found,) = re.findall(rf"^```python {re.escape(name)}\n(.*?)^```", SENSOR, re.M | re.S)
    return found


def test_it_is_tried_on_both_interpreters(tmp_path):
    for name in ("scale.py", "try.py"):
        (tmp_path / name).write_text(page(name))
    for interpreter in (sys.executable, INTERPRETER):
        done = subprocess.run(
            [interpreter, "try.py"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "MICROPYPATH": f"{tmp_path}:{ROOT}:.frozen"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout == "a load of -1\n", done.stderr
