"""Analogue inputs and pulses on a board's pins.

Pulses are counted by an interrupt that makes no objects. MicroPython calls it between two
instructions of its own and keeps a few calls waiting, so of a fast train of pulses some are lost
while native code of the model runs. In deep sleep nobody counts; a board that counts does not
sleep lightly. A count is of one period, from its begin to its end.
"""

from edge_agent.errors import ConfigError, SensorError
from mpy_port.clock import TicksClock
from mpy_port.sensors.i2c import period_ms
from mpy_port.sensors.sampled import Sampled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.domain import Domain
    from edge_agent.interfaces import Sensor
    from mpy_port.sensors.fields import Fields


class Analogue:
    """One ADC per axis; counts 0..32767 over the input's range."""

    def __init__(self, machine: "Any", pins: "list[int]") -> None:
        self._machine, self._pins = machine, pins
        self._inputs: list[Any] = []

    def open(self) -> None:
        kind = self._machine.ADC
        self._inputs = []
        for pin in self._pins:
            try:
                found = kind(self._machine.Pin(pin))
                if hasattr(kind, "ATTN_11DB"):
                    found.atten(kind.ATTN_11DB)  # else an ESP32 ends at 1.1 V
            except (OSError, ValueError) as error:
                raise SensorError("is no analogue input (%s)" % error, "pin %d" % pin)
            self._inputs.append(found)

    def begin(self) -> int:
        return 0

    def sample(self, out: "Any", at: int) -> None:
        for i in range(len(self._inputs)):
            try:
                out[at + i] = self._inputs[i].read_u16() >> 1
            except OSError as error:
                raise SensorError("cannot be read (%s)" % error, "pin %d" % self._pins[i])

    def close(self) -> None:
        self._inputs = []


class Pulses:
    """Rising edges per period, one pin per axis. debounce_us: an edge sooner after the last
    one is none."""

    def __init__(
        self, machine: "Any", pins: "list[int]", debounce_us: int, us: "Any", diff: "Any"
    ) -> None:
        self._machine, self._pins, self._debounce = machine, pins, debounce_us
        self._us, self._diff = us, diff
        self._counts = [0] * len(pins)
        self._taken = [0] * len(pins)
        self._lines: list[Any] = []

    def open(self) -> None:
        pin: Any = self._machine.Pin
        self._lines = []
        for i in range(len(self._pins)):
            try:
                line = pin(self._pins[i], pin.IN)
                line.irq(self._counter(i), pin.IRQ_RISING)
            except (OSError, ValueError) as error:
                self.close()
                raise SensorError("counts no pulses (%s)" % error, "pin %d" % self._pins[i])
            self._lines.append(line)
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._taken = list(self._counts)

    def _counter(self, i: int) -> "Any":
        counts, us, diff, least = self._counts, self._us, self._diff, self._debounce
        last = [us()]

        def count(line: "Any") -> None:
            now = us()
            # Negative after a silence of minutes, when the ticks have come half around.
            if not counts[i] or not 0 <= diff(now, last[0]) < least:
                counts[i] = (counts[i] + 1) & 0x3FFFFFFF
                last[0] = now

        return count

    def begin(self) -> int:
        return 0

    def sample(self, out: "Any", at: int) -> None:
        for i in range(len(self._counts)):
            count = self._counts[i]
            out[at + i] = min(32767, (count - self._taken[i]) & 0x3FFFFFFF)
            self._taken[i] = count

    def close(self) -> None:
        for line in self._lines:
            line.irq(None)
        self._lines = []


class Counted(Sampled):
    """Windows of pulses: a window that begins anew counts a whole period first."""

    def due_ms(self) -> "int | None":
        return None  # a pulse may come at any time, and a board that sleeps sees none

    def _anew(self, now: int) -> None:
        super()._anew(now)
        self._source.restart()
        self._due = now + self._period


def pin_sensor(fields: "Fields", domain: "Domain", machine: "Any") -> "Sensor":
    shape = domain.features
    kind = fields.raw("kind")
    pins = fields.integers("pins", shape.axes, 99)
    if len(set(pins)) != len(pins):
        raise ConfigError("names a pin twice", "sensor.pins")
    source: Any
    make = Sampled
    if kind == "adc":
        source, period = Analogue(machine, pins), period_ms(fields, 20, 2)
    else:
        time: Any = __import__("time")
        debounce = fields.integer("debounce_us", 0, 1000000, 0)
        source = Pulses(machine, pins, debounce, time.ticks_us, time.ticks_diff)
        make, period = Counted, period_ms(fields, 1000, 10)
    stuck = 1000 * fields.integer("stuck_s", 0, 86400, 0)
    return make(
        source,
        shape.axes,
        shape.window,
        shape.hop,
        period,
        TicksClock().uptime_ms,
        fields.tags(domain),
        stuck,
        "pins " + ", ".join(str(p) for p in pins),
    )
