"""A board's Wi-Fi: the machine of wifi.py on MicroPython's `network`, and links that wait for it.

`Radio` calls the driver and says in wifi.py's words what it answers. `Air` keeps the machine
going. `WifiLink` is the MQTT link behind it: `connect` waits for the network and ends with
LinkError("radio") when it does not come. A link that fails never touches the radio.

Fields of "board": {"wifi": {...}} in the configuration:

    ssid, password   required (password "" = an open network). Secret: never shown
    country          two letters, where the port can be told
    hostname         default: none
    join_s           longest attempt, 5..120, default 20
    power_save       default true: the radio sleeps between beacons, where the port can
"""

import asyncio

from edge_agent.errors import ConfigError, LinkError
from edge_agent.interfaces import Link
from mpy_port.boards.wifi import (
    ABSENT,
    ADDRESS,
    BUSY,
    FAILED,
    OFF,
    PASSWORD,
    UP,
    Wifi,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from edge_agent.interfaces import Clock, Entropy

LOOK_MS = 250
WAIT_MS = 30000  # what `connect` waits for the network
_FIELDS = ("ssid", "password", "country", "hostname", "join_s", "power_save")
# Names that ports give to what wifi.py calls so; ports differ in which they have. A handshake
# that timed out is not a wrong password: a weak signal does it, too.
_NAMES = (
    ("STAT_WRONG_PASSWORD", PASSWORD),
    ("STAT_NO_AP_FOUND", ABSENT),
    ("STAT_CONNECT_FAIL", FAILED),
    ("STAT_ASSOC_FAIL", FAILED),
    ("STAT_HANDSHAKE_TIMEOUT", FAILED),
    ("STAT_BEACON_TIMEOUT", FAILED),
)
_WHY = {
    "password": "the network refuses the password",
    "absent": "no such network in reach",
    "late": "the network did not let us in in time",
    "lost": "the network was lost",
}


class Settings:
    """Checked fields of "board.wifi"; see the module. ConfigError; no message has secrets."""

    def __init__(self, fields: "Any") -> None:
        where = "board.wifi"
        if not isinstance(fields, dict):
            raise ConfigError("missing", where, 'Write {"ssid": "...", "password": "..."}')
        for name in fields:
            if name not in _FIELDS:
                raise ConfigError(
                    "unknown field", where + "." + str(name), "Known: " + ", ".join(_FIELDS)
                )
        self.ssid = _text(fields, "ssid", 1, 32)
        self.password = _text(fields, "password", 0, 63)
        if 0 < len(self.password) < 8:
            raise ConfigError("is shorter than WPA allows", where + ".password", "8..63 letters")
        self.country = _text(fields, "country", 2, 2, "")
        self.hostname = _text(fields, "hostname", 1, 32, "")
        join = fields.get("join_s", 20)
        if not isinstance(join, int) or isinstance(join, bool) or not 5 <= join <= 120:
            raise ConfigError("must be a whole number 5..120", where + ".join_s")
        self.join_ms = 1000 * join
        self.power_save = fields.get("power_save", True)
        if not isinstance(self.power_save, bool):
            raise ConfigError("must be true or false", where + ".power_save")

    def __repr__(self) -> str:
        return "Settings(%r)" % self.ssid


def _text(fields: "dict[str, Any]", name: str, low: int, high: int, default: "Any" = None) -> str:
    value = fields.get(name, default)
    if value == default == "":
        return ""
    if not isinstance(value, str) or not low <= len(value.encode()) <= high:
        raise ConfigError("must be a text of %d..%d bytes" % (low, high), "board.wifi." + name)
    return value


class Radio:
    """The driver. network: the module of that name. The radio stays off until `do("join")`."""

    def __init__(self, network: "Any", settings: Settings) -> None:
        self._network = network
        self._set = settings
        self._wlan = network.WLAN(network.STA_IF)
        self._means = {}
        for name, meaning in _NAMES:
            code = getattr(network, name, None)
            if code is not None:
                self._means[code] = meaning

    def says(self) -> str:
        """One of wifi.py's words."""
        try:
            if self._wlan.isconnected():
                return ADDRESS
            return self._means.get(self._wlan.status(), BUSY)
        except OSError:
            return FAILED

    def do(self, what: str) -> None:
        """ "join", "leave" or "off"; a driver's error is a failed attempt, `says` will tell."""
        try:
            if what == "join":
                self._join()
            else:
                self._wlan.disconnect()
                if what == "off":
                    self._wlan.active(False)
        except (OSError, RuntimeError):
            pass

    def _join(self) -> None:
        network: Any = self._network
        if not self._wlan.active():
            if self._set.country and hasattr(network, "country"):
                network.country(self._set.country)
            if self._set.hostname and hasattr(network, "hostname"):
                network.hostname(self._set.hostname)
            self._wlan.active(True)
            self._config("reconnects", 0)  # the ladder is ours
            save = getattr(network.WLAN, "PM_POWERSAVE" if self._set.power_save else "PM_NONE", -1)
            if save != -1:
                self._config("pm", save)
        if self._set.password:
            self._wlan.connect(self._set.ssid, self._set.password)
        else:
            self._wlan.connect(self._set.ssid)

    def _config(self, name: str, value: int) -> None:
        try:
            self._wlan.config(**{name: value})
        except (OSError, ValueError, TypeError):
            pass  # this port has no such setting


class Air:
    """Radio and machine together; `look` wants to be called every LOOK_MS.

    on_event(level, name, fields): "wifi-up", "wifi-down", "wifi-password".
    """

    def __init__(
        self,
        radio: Radio,
        clock: "Clock",
        entropy: "Entropy",
        join_ms: int,
        on_event: "Callable[[str, str, dict[str, Any]], None] | None" = None,
    ) -> None:
        self._entropy = entropy
        self.wifi = Wifi(self.chance, join_ms)
        self.on_event = on_event
        self.may = True  # False: `connect` waits, the radio stays off
        self._radio = radio
        self._now = clock.uptime_ms

    def chance(self, n: int) -> int:
        return int.from_bytes(self._entropy.bytes(4), "big") % n

    def start(self) -> None:
        self._do(self.wifi.start(self._now()))

    def stop(self) -> None:
        if self.wifi.state != OFF:
            self._do(self.wifi.stop(self._now()))

    def is_off(self) -> bool:
        return self.wifi.state == OFF

    def look(self) -> None:
        wifi = self.wifi
        before, wrong = wifi.state, wifi.wrong
        if before == OFF:
            return
        self._do(wifi.look(self._radio.says(), self._now()))
        if self.on_event is None:
            return
        if wifi.state == UP and before != UP:
            self.on_event("info", "wifi-up", {"joins": wifi.joins})
        elif before == UP and wifi.state != UP:
            self.on_event("warning", "wifi-down", {"losses": wifi.losses})
        elif wifi.wrong == 2 and wrong == 1:
            self.on_event("error", "wifi-password", {"why": _WHY["password"]})

    async def wait(self) -> None:
        """Until the network is there. LinkError("radio") after WAIT_MS."""
        while not self.may:
            await asyncio.sleep(LOOK_MS / 1000)
        self.start()
        until = self._now() + WAIT_MS
        while self.wifi.state != UP:
            if self._now() >= until:
                raise LinkError("radio", _WHY.get(self.wifi.told, "no network yet"))
            await asyncio.sleep(LOOK_MS / 1000)

    def _do(self, what: str) -> None:
        if what:
            self._radio.do(what)


class WifiLink(Link):
    """A link on a network that comes and goes. `rested`: the last session was ended here."""

    def __init__(self, link: Link, air: Air) -> None:
        self._link = link
        self._air = air
        self._open = False
        self._cut = False
        self.rested = False

    async def connect(self) -> bool:
        self._cut = self.rested = False
        await self._air.wait()
        if self._cut:
            raise LinkError("radio", "not wanted any more")
        present = await self._link.connect()
        self._open = True
        return present

    async def publish(
        self, topic: str, payload: "bytes | Callable[[], bytes]", qos: int = 1, retain: bool = False
    ) -> None:
        await self._link.publish(topic, payload, qos, retain)

    async def receive(self) -> "tuple[str, bytes]":
        try:
            return await self._link.receive()
        except LinkError:
            self._open = False
            raise

    async def disconnect(self) -> None:
        self._cut = True
        self.rested = self._open
        self._open = False
        await self._link.disconnect()
