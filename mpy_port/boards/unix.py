"""The unix port of MicroPython as a board: what an ESP32 gets, on the host's file system.

    board = unix_board(config, domain, sensor)
    asyncio.run(Agent(board, config, domain).run())

Everything but radio, sleep and watchdog is the code that boards run: clock from wrapping
ticks, crypto from hashlib and cryptolib, journal on MicroPython's files, our MQTT link,
our interpreter for the model. Runs on CPython too, where `flush` does not reach the disk:
use edge_agent.cpython.board there.
"""

import sys

from edge_agent.errors import ConfigError
from edge_agent.interfaces import Board
from mpy_port.clock import TicksClock
from mpy_port.crypto import StockCrypto, StockEntropy
from mpy_port.flash_store import FlashStore
from mpy_port.unload import unload
from mpy_port.wiring import TfliteModel, check_model, mqtt_link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from edge_agent.config import Config
    from edge_agent.domain import Domain
    from edge_agent.interfaces import Link, Model, Sensor


def unix_board(
    config: "Config",
    domain: "Domain",
    sensor: "Sensor",
    model: "Model | None" = None,
    link: "Link | None" = None,
) -> Board:
    """A Board from a configuration. ConfigError, StoreError or ModelError when a part fails."""
    clock, crypto = TicksClock(), StockCrypto()
    if model is None:
        if not config.model:
            raise ConfigError("no model is named", "model", "Write the path of a .tflite file")
        found = TfliteModel(config.model)
        check_model(found, domain, config.model)
        model = found
        if sys.implementation.name == "micropython":
            unload()
    return Board(
        clock,
        StockEntropy(),
        crypto,
        FlashStore(config.journal_path),
        link if link is not None else mqtt_link(config, crypto, clock),
        model,
        sensor,
    )
