"""Agents, a broker and a gateway wired together in memory, under virtual time.

What is real: AgentCore, Delivery, the driver's way of performing effects, the Journal on
a simulated flash, frames and their keys, the broker edge of the gateway, custody, ingest,
the registry and a SQLite file. What is simulated: time, the sensor and the model (their
outputs are drawn at random), the network, the broker.

    timeline.py  virtual milliseconds
    link.py      connections that lose, repeat, delay and reorder
    broker.py    MQTT sessions, QoS 1, retained messages, will, amnesia
    ledger.py    what was committed on which flash: written by nobody else, judges all
    board.py     what a device is made of besides its flash
    session.py   its end of the connection
    device.py    one device: flash, journal, agent; power cuts, reflash, copies
    gateway.py   one gateway: crashes at each step, backup, full disk
    world.py     all of it, with moves, `settle` and the judgement
"""

import sys
from pathlib import Path

_CORE = str(Path(__file__).resolve().parents[2] / "core")
if _CORE not in sys.path:
    sys.path.append(_CORE)  # sim_flash
