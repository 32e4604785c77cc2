"""Sensors of Linux machines: a recording, lines of text, sound, an IIO device, a chip on I2C.

`open_sensor` makes one from the "sensor" section of the configuration:

    {"kind": "replay", "path": "watch_replay.bin", "person": 4, ...}   see replay.py
    {"kind": "csv", "path": "-", ...}                                  see csv_lines.py
    {"kind": "audio", "path": "sound.wav", ...}                  see audio.py
    {"kind": "iio", "device": "bmi160", ...}                           see iio.py
    {"kind": "bme280", "bus": 1, "every_ms": 10000}                    see i2c.py

Window length, hop and number of axes come from the domain, so that sensor and model
always agree. Every sensor raises SensorError when it cannot be opened or has stopped, and
may be read again afterwards: it then tries to go on.
"""

from pathlib import Path
from typing import Any

from edge_agent.config import Config
from edge_agent.cpython.sensors.audio import AudioSensor
from edge_agent.cpython.sensors.common import Fields
from edge_agent.cpython.sensors.csv_lines import CsvSensor
from edge_agent.cpython.sensors.i2c import KINDS as CHIPS
from edge_agent.cpython.sensors.i2c import open_chip
from edge_agent.cpython.sensors.iio import IioSensor
from edge_agent.cpython.sensors.replay import ReplaySensor
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.errors import ConfigError
from edge_agent.interfaces import Sensor

__all__ = ["AudioSensor", "CsvSensor", "IioSensor", "ReplaySensor", "open_sensor"]

_KINDS = {"replay": ReplaySensor, "csv": CsvSensor, "audio": AudioSensor, "iio": IioSensor}


def open_sensor(settings: "Config | dict[str, Any]", domain: Domain | None = None) -> Sensor:
    """The sensor that a configuration, or its "sensor" section, describes.

    domain: gives window, hop, axes and the numbers of tags; with a Config it is read from
    the file named there when absent. ConfigError names a wrong field, SensorError says
    what the sensor lacks.
    """
    if isinstance(settings, Config):
        if domain is None and settings.domain:
            domain = Domain.load(Path(settings.domain).read_bytes(), HostCrypto())
        settings = settings.sensor
    if domain is None:
        raise ConfigError(
            "the sensor needs the domain's window length",
            "domain",
            "Name the domain file in the configuration",
        )
    kind = settings.get("kind")
    if kind in CHIPS:
        return open_chip(settings, domain)
    make = _KINDS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise ConfigError(
            f"unknown kind of sensor {kind!r}",
            "sensor.kind",
            "Use one of " + ", ".join([*_KINDS, *CHIPS]),
        )
    fields = Fields(settings)
    sensor: Sensor = make(fields, domain)
    fields.finish()
    return sensor
