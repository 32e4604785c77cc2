"""docs/your-model.md from top to bottom, in one shell."""

import re
from pathlib import Path

from test_docs import clone, free_port, run_shell

ROOT = Path(__file__).resolve().parents[2]
MODEL = (ROOT / "docs" / "your-model.md").read_text()

__all__ = ["clone"]


def test_your_model_walk(clone):
    script = ""
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", MODEL, re.M | re.S):
        script += f"python - <<'END'\n{block}END\n" if language == "python" else block
    assert "--port 1883" in script
    output = run_shell(script.replace("1883", str(free_port())), clone, seconds=300)
    assert (clone / "tapped.tflite").stat().st_size > (clone / "mine.tflite").stat().st_size
    assert (clone / "tapped.tflite.plan").is_file()
    assert re.search(r"^domain [0-9a-f]{16}$", output, re.M)
    # The gateway holds each window that the device sensed.
    assert re.search(r"^mine-1 +[0-9a-f]{16} +1 \S+ +20 +0 +0 +0 ", output, re.M), output
