"""Chips on a board's I2C: `machine.I2C`, or `machine.SoftI2C` where no number is given."""

from edge_agent.errors import ConfigError, SensorError
from mpy_port.clock import TicksClock
from mpy_port.sensors.fields import chip_of
from mpy_port.sensors.sampled import Sampled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.domain import Domain
    from edge_agent.interfaces import Sensor
    from mpy_port.sensors.fields import Fields

_FIELDS = ("id", "scl", "sda", "freq")


class Bus:
    """What chips.py wants, on machine's I2C."""

    def __init__(self, i2c: "Any") -> None:
        self._i2c = i2c

    def read(self, address: int, register: int, count: int) -> bytes:
        data: bytes = self._i2c.readfrom_mem(address, register, count)
        return data

    def write(self, address: int, register: int, data: bytes) -> None:
        self._i2c.writeto_mem(address, register, data)


def open_bus(about: "Any", machine: "Any") -> Bus:
    """about: {"scl": pin, "sda": pin, "id": number, "freq": 400000}. ConfigError, SensorError."""
    where = "sensor.i2c"
    if not isinstance(about, dict):
        raise ConfigError("missing", where, 'Write {"scl": PIN, "sda": PIN}')
    for name in about:
        if name not in _FIELDS:
            raise ConfigError("unknown field", where + "." + str(name), ", ".join(_FIELDS))
    pins = {}
    for name in ("scl", "sda"):
        if not isinstance(about.get(name), int) or isinstance(about[name], bool):
            raise ConfigError("must be the number of a pin", where + "." + name)
        pins[name] = machine.Pin(about[name])
    freq = about.get("freq", 400000)
    if not isinstance(freq, int) or not 10000 <= freq <= 1000000:
        raise ConfigError("must be 10000..1000000", where + ".freq")
    number = about.get("id")
    try:
        if number is None:
            return Bus(machine.SoftI2C(freq=freq, **pins))
        return Bus(machine.I2C(number, freq=freq, **pins))
    except (OSError, ValueError, TypeError) as error:
        raise SensorError(
            "cannot be opened (%s)" % error, where, "Do these pins belong to that bus?"
        )


def chip_sensor(fields: "Fields", domain: "Domain", machine: "Any", shared: "Any") -> "Sensor":
    """shared: "board.i2c", for a chip without an "i2c" of its own."""
    shape = domain.features
    bus = open_bus(fields.raw("i2c", shared), machine)
    kind = fields.raw("kind")
    climate = kind == "bme280"
    chip = chip_of(fields, kind, bus, shape.axes)
    period = period_ms(fields, 1000 if climate else 20, 20 if climate else 2)
    stuck = 1000 * fields.integer("stuck_s", 0, 86400, 0 if climate else 60)
    return Sampled(
        chip,
        shape.axes,
        shape.window,
        shape.hop,
        period,
        TicksClock().uptime_ms,
        fields.tags(domain),
        stuck,
        chip.where,
    )


def period_ms(fields: "Fields", default: int, least: int) -> int:
    """From "every_ms", or from "rate_hz" where that is given."""
    rate = fields.raw("rate_hz")
    if rate is None:
        return fields.integer("every_ms", least, 86400000, default)
    if fields.raw("every_ms") is not None:
        raise ConfigError("give either this or every_ms", "sensor.rate_hz")
    return 1000 // fields.integer("rate_hz", 1, 1000 // least)
