"""The tests on machines use the harness here, and brokers and gateways of the host tests."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE.parent / "tests" / "host", HERE.parent, HERE):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

TIERS = {
    "fast": "in `make test`",
    "full": "in `make hil` besides",
    "soak": "in `make hil-soak` only",
}


def pytest_configure(config):
    for name, text in TIERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")
