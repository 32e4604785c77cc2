"""Sensors of boards: chips on I2C, analogue inputs, counted pulses, microphones.

`open_sensor` makes one from the "sensor" section of the configuration. Window length, hop and
number of axes come from the domain. Each has `rate_hz` or `every_ms`, and `tags`.

    {"kind": "bme280", "i2c": {"scl": 9, "sda": 8}, "every_ms": 10000}
    {"kind": "mpu6050", "i2c": {"id": 0, "scl": 5, "sda": 4}, "rate_hz": 50}
    {"kind": "lsm6ds3", "i2c": {"scl": 9, "sda": 8}, "rate_hz": 50, "channels": ["accel_z"]}
        also: address, channels, stuck_s; accel_g, gyro_dps, per_g, per_rad: see chips.py
    {"kind": "adc", "pins": [34], "rate_hz": 50}           0..32767 over the input's range
    {"kind": "pulse", "pins": [27], "every_ms": 1000, "debounce_us": 500}   pulses in each period
    {"kind": "i2s", "pins": [14, 15, 32], "rate_hz": 16000, "bits": 32}     clock, word, data

Every sensor raises SensorError when it cannot be opened or has stopped, and tries again when it
is read again. Tried on recorded bus traffic and with a `machine` of the tests; never on silicon.
"""

from edge_agent.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.config import Config
    from edge_agent.domain import Domain
    from edge_agent.interfaces import Sensor

_CHIPS = ("bme280", "lsm6ds3", "mpu6050")
_PINS = ("adc", "pulse")
KINDS = _CHIPS + _PINS + ("i2s",)


def open_sensor(config: "Config", domain: "Domain", machine: "Any" = None) -> "Sensor":
    """The sensor that a configuration describes. ConfigError names a wrong field.

    machine: the module of that name, imported when absent.
    """
    from mpy_port.sensors.fields import Fields

    kind = config.sensor.get("kind")
    if kind not in KINDS:
        raise ConfigError(
            "unknown kind of sensor %r" % (kind,), "sensor.kind", "Use one of " + ", ".join(KINDS)
        )
    if machine is None:
        machine = __import__("machine")
    fields = Fields(config.sensor)
    made: Sensor
    if kind == "i2s":
        from mpy_port.sensors.audio import i2s_sensor

        made = i2s_sensor(fields, domain, machine)
    elif kind in _CHIPS:
        from mpy_port.sensors.i2c import chip_sensor

        made = chip_sensor(fields, domain, machine, config.board.get("i2c"))
    else:
        from mpy_port.sensors.pins import pin_sensor

        made = pin_sensor(fields, domain, machine)
    fields.finish()
    return made
