"""The "sensor" section of a configuration, field by field. ConfigError names what is wrong."""

from edge_agent.errors import ConfigError
from mpy_port.sensors.chips import CHIPS, Inertial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mpy_port.sensors.chips import Chip

_ALWAYS = ["kind", "stall_s"]


class Fields:
    """`finish` refuses fields that nobody asked for."""

    def __init__(self, settings: "dict[str, Any]") -> None:
        self._settings = settings
        self._asked = list(_ALWAYS)

    def raw(self, name: str, default: "Any" = None) -> "Any":
        self._asked.append(name)
        return self._settings.get(name, default)

    def integer(self, name: str, low: int, high: int, default: "int | None" = None) -> int:
        value = self.raw(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError("must be a whole number %d..%d" % (low, high), "sensor." + name)
        return value

    def one_of(self, name: str, choices: "tuple[Any, ...]", default: "Any") -> "Any":
        value = self.raw(name, default)
        if value not in choices:
            raise ConfigError(
                "is %r" % (value,), "sensor." + name, "Use " + " or ".join(str(c) for c in choices)
            )
        return value

    def integers(self, name: str, count: int, high: int) -> "list[int]":
        value = self.raw(name)
        if not isinstance(value, list) or len(value) != count:
            raise ConfigError("must be a list of %d numbers" % count, "sensor." + name)
        for v in value:
            if not isinstance(v, int) or isinstance(v, bool) or not 0 <= v <= high:
                raise ConfigError("must hold numbers 0..%d" % high, "sensor." + name)
        return list(value)

    def channels(self, names: "tuple[str, ...]", axes: int) -> "tuple[str, ...]":
        """As many as the domain has axes; by default the first ones."""
        value = self.raw("channels", list(names[:axes]))
        if not isinstance(value, list) or any(v not in names for v in value):
            raise ConfigError("is %r" % (value,), "sensor.channels", "Known: " + ", ".join(names))
        if len(value) != axes:
            raise ConfigError(
                "%d channels for a domain of %d axes" % (len(value), axes), "sensor.channels"
            )
        return tuple(value)

    def tags(self, domain: "Any") -> "tuple[int, ...]":
        """Numbers of the domain's tags named in "tags": true for every window."""
        value = self.raw("tags", [])
        if not isinstance(value, list):
            raise ConfigError("must be a list of texts", "sensor.tags")
        for name in value:
            if name not in domain.tags:
                raise ConfigError(
                    "the domain has no tag %r" % (name,),
                    "sensor.tags",
                    "It has " + (", ".join(domain.tags) or "none"),
                )
        return tuple(sorted(list(domain.tags).index(name) for name in value))

    def finish(self) -> None:
        for name in sorted(self._settings):
            if name not in self._asked:
                raise ConfigError(
                    "unknown field", "sensor." + name, "Known: " + ", ".join(sorted(self._asked))
                )


def chip_of(fields: Fields, kind: str, bus: "Any", axes: int) -> "Chip":
    """The chip that the fields describe, not opened yet."""
    for made in CHIPS:
        if made.kind == kind:
            break
    else:
        raise ConfigError("unknown chip %r" % kind, "sensor.kind")
    address = fields.integer("address", 8, 0x77, made.addresses[0])
    channels = fields.channels(made.names, axes)
    make: Any = made
    if not issubclass(made, Inertial):
        return make(bus, address, channels)  # type: ignore[no-any-return]
    return make(  # type: ignore[no-any-return]
        bus,
        address,
        channels,
        fields.one_of("accel_g", tuple(sorted(make.accel)), 8),
        fields.one_of("gyro_dps", tuple(sorted(make.gyro)), 2000),
        fields.integer("per_g", 1, 1 << 20, 4096),
        fields.integer("per_rad", 1, 1 << 20, 940),
    )
