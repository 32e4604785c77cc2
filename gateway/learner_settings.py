"""The section "learner" of the section "routing" of gateway.json.

    "learner": {
      "on": true,          learn for the devices that take mail; idle while there is none
      "every_s": 600,      between lessons, when there is something new to learn from
      "fetch_kb": 256,     a day, for outcomes of other gateways and for finding them; 0: local only
      "neighbours": 12}    outcomes of others in a device's mailbox at most; 0: none

On by default, because nothing comes of it that nobody has asked for: a device takes mail only when
its own configuration says so, what is fetched comes from gateways that the owner has put on the
list, and the budget bounds the rest. Models: put the `.tflite` files of the devices into
`models/` in the gateway's folder, and fitting starts from their own last layers.
"""

from typing import Any, NamedTuple

from edge_agent.errors import ConfigError


class LearnerSettings(NamedTuple):
    on: bool = True
    every_s: int = 600
    fetch_kb: int = 256
    neighbours: int = 12

    @staticmethod
    def parse(fields: dict[str, Any], where: str) -> "LearnerSettings":
        """ConfigError names the field."""
        for name in fields:
            if name not in LearnerSettings._fields:
                known = sorted(LearnerSettings._fields)
                raise ConfigError("unknown field", f"{where}.{name}", f"Known: {known}")
        found = LearnerSettings(**fields)
        if type(found.on) is not bool:
            raise ConfigError(f"{found.on!r}", f"{where}.on", "Write true or false")
        for name, low, high in (
            ("every_s", 1, 86_400),
            ("fetch_kb", 0, 1 << 20),
            ("neighbours", 0, 23),
        ):
            value = getattr(found, name)
            if type(value) is not int or not low <= value <= high:
                fix = f"Write a whole number {low}..{high}"
                raise ConfigError(f"{value!r} is not allowed", f"{where}.{name}", fix)
        return found
