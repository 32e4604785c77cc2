"""What the sensors share: checked fields, and cutting a stream of samples into windows."""

from array import array
from typing import Any

from edge_agent.domain import Domain
from edge_agent.errors import ConfigError

_ALWAYS = {"kind", "stall_s"}


class Fields:
    """The "sensor" section, field by field; `finish` refuses fields nobody asked for."""

    def __init__(self, settings: "dict[str, Any]") -> None:
        self._settings = settings
        self._asked = set(_ALWAYS)

    def raw(self, name: str, default: Any = None) -> Any:
        self._asked.add(name)
        return self._settings.get(name, default)

    def text(self, name: str, default: str | None = None) -> str:
        value = self.raw(name, default)
        if not isinstance(value, str) or not value:
            raise ConfigError("must be a text", "sensor." + name)
        return value

    def choice(self, name: str, choices: "tuple[str, ...]", default: str) -> str:
        value = self.text(name, default)
        if value not in choices:
            raise ConfigError(f"is {value!r}", "sensor." + name, "Use " + " or ".join(choices))
        return value

    def integer(self, name: str, low: int, high: int, default: int) -> int:
        value = self.raw(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"must be a whole number {low}..{high}", "sensor." + name)
        return value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        return _number(self.raw(name, default), low, high, "sensor." + name)

    def numbers(self, name: str, count: int, default: float) -> "list[float]":
        """One number for all, or a list of `count`."""
        value = self.raw(name, default)
        if not isinstance(value, list):
            value = [value] * count
        if len(value) != count:
            raise ConfigError(f"must be one number or a list of {count}", "sensor." + name)
        return [_number(v, -1e9, 1e9, "sensor." + name) for v in value]

    def texts(self, name: str, default: "list[str]") -> "list[str]":
        value = self.raw(name, default)
        if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
            raise ConfigError("must be a list of texts", "sensor." + name)
        return list(value)

    def tags(self, domain: Domain) -> "tuple[int, ...]":
        """Numbers of the domain's tags named in "tags": true for every window."""
        return tag_numbers(domain, self.texts("tags", []))

    def finish(self) -> None:
        unknown = sorted(set(self._settings) - self._asked)
        if unknown:
            raise ConfigError(
                "unknown field", "sensor." + unknown[0], "Known: " + ", ".join(sorted(self._asked))
            )


def _number(value: Any, low: float, high: float, where: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"must be a number {low:g}..{high:g}", where)
    return float(value)


def tag_numbers(domain: Domain, names: "list[str]") -> "tuple[int, ...]":
    for name in names:
        if name not in domain.tags:
            raise ConfigError(
                f"the domain has no tag {name!r}",
                "sensor.tags",
                "It has " + (", ".join(domain.tags) or "none"),
            )
    return tuple(sorted(domain.tags.index(name) for name in names))


class Cutter:
    """Collects samples and gives windows that overlap by window - hop samples."""

    def __init__(self, axes: int, window: int, hop: int) -> None:
        self._size = window * axes
        self._step = hop * axes
        self._skip = 0  # values still to be passed over, when hop > window
        self._held = array("h")

    def add(self, values: "array[int]") -> None:
        """Whole samples only."""
        if self._skip:
            passed = min(self._skip, len(values))
            self._skip -= passed
            values = values[passed:]
        self._held.extend(values)

    def take(self) -> "array[int] | None":
        """The next complete window, or None."""
        if len(self._held) < self._size:
            return None
        window = self._held[: self._size]
        self._skip = max(0, self._step - len(self._held))
        del self._held[: self._step]
        return window

    def clear(self) -> None:
        """Forget what was collected: after a gap, samples do not belong together."""
        del self._held[:]
        self._skip = 0


def to_count(value: float) -> int:
    """A reading as int16, rounded to nearest and limited."""
    count = round(value)
    return max(-32768, min(32767, count))
