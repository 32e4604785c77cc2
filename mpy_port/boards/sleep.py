"""When a board sleeps, how deep and for how long; and what it remembers meanwhile. No I/O.

Theory of operation. Two ways to sleep:

light   RAM is kept. Between two samples the processor stops for as long as nobody wants
        anything: the sensor, the agent's next deadline, the duty cycle. Only while the radio is
        off, which it loses.
deep    RAM is lost. A *wake* senses some windows, delivers if its turn has come or something
        urgent waits, and ends:

            state       event     next
            SENSING     sensed    DELIVERING  a turn is due, or something is urgent
            SENSING     enough    ENDING      sensed, and nothing to deliver yet
            SENSING     cap       ENDING
            DELIVERING  served    ENDING      connected, nothing left, and hung up again
            DELIVERING  cap       ENDING      broker or network away: the journal waits
            ENDING      ended     ASLEEP      all is on flash

A wake from deep sleep is **the same boot** as long as RTC memory says so: boot number, the boots'
total before it, and uptime go on; so records of many wakes share one time base at the gateway.
RTC memory is emptied as soon as it was read, so that what it says counts for one wake
only; a reset for another reason, a bad checksum or another journal begin a new boot. So
does the first wake after MAX_BOOT_MS: RTCs count on oscillators that are off by percents.

The turn to deliver comes every `turn_s`, up to an eighth earlier by chance, as in
edge_agent/connection.py; its time is kept, too. A turn that failed is over: the next comes
when it comes, unless something urgent waits, for which each wake tries again.

Record, little-endian, 48 bytes: magic "EAS1", boot u32, base s u32, uptime ms u64, RTC ms u64,
asked ms u32, turn (uptime ms) u64, wakes u32, CRC-32.
"""

import struct
from binascii import crc32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

SENSING, DELIVERING, ENDING, ASLEEP = "sensing", "delivering", "ending", "asleep"

TABLE = {
    (SENSING, "sensed"): DELIVERING,
    (SENSING, "enough"): ENDING,
    (SENSING, "cap"): ENDING,
    (DELIVERING, "served"): ENDING,
    (DELIVERING, "cap"): ENDING,
    (ENDING, "ended"): ASLEEP,
}

MAX_BOOT_MS = 86400000
LEAST_MS = 1000  # shorter deep sleeps cost more than they save
LIGHT_LEAST_MS = 50
LIGHT_MOST_MS = 60000
_MAGIC = b"EAS1"
_FORMAT = "<4sIIQQIQI"
RECORD_BYTES = struct.calcsize(_FORMAT) + 4
_SLACK_MS = 3600000  # a sleep that seems to have lasted longer than asked by this did not


class Kept:
    """What outlives a deep sleep. boot, base_s: see journal.py; uptime_ms: at the wake;
    turn_ms: uptime at which to deliver next; wakes: of this boot."""

    def __init__(self, boot: int, base_s: int, uptime_ms: int, turn_ms: int, wakes: int) -> None:
        self.boot = boot
        self.base_s = base_s
        self.uptime_ms = uptime_ms
        self.turn_ms = turn_ms
        self.wakes = wakes


def pack(kept: Kept, rtc_ms: int, asked_ms: int) -> bytes:
    """For RTC memory, just before the sleep; kept.uptime_ms is now's."""
    body = struct.pack(
        _FORMAT,
        _MAGIC,
        kept.boot,
        kept.base_s,
        kept.uptime_ms,
        max(0, rtc_ms),
        asked_ms,
        kept.turn_ms,
        kept.wakes,
    )
    return body + struct.pack("<I", crc32(body) & 0xFFFFFFFF)


def restore(data: bytes, rtc_ms: int) -> "Kept | None":
    """What `pack` made, moved on to now; None when it does not count."""
    if len(data) != RECORD_BYTES:
        return None
    body = data[:-4]
    if struct.unpack("<I", data[-4:])[0] != crc32(body) & 0xFFFFFFFF:
        return None
    magic, boot, base_s, uptime_ms, slept_at, asked, turn_ms, wakes = struct.unpack(_FORMAT, body)
    if magic != _MAGIC or not boot:
        return None
    slept = rtc_ms - slept_at
    if not 0 <= slept <= asked + _SLACK_MS:
        slept = asked  # the RTC did not count, or was set meanwhile
    uptime_ms += slept
    if uptime_ms > MAX_BOOT_MS:
        return None
    return Kept(boot, base_s, uptime_ms, turn_ms, wakes + 1)


class Wake:
    """One wake of a board that sleeps deep.

    every_ms: from wake to wake. windows: to sense in each. turn_ms: from delivery to
    delivery. cap_ms: longest time awake. kept: what `restore` gave. now: uptime.
    Attributes: state; reason (why it ended); turn_ms (uptime of the next turn).
    """

    def __init__(
        self,
        every_ms: int,
        windows: int,
        turn_ms: int,
        cap_ms: int,
        kept: "Kept | None",
        now: int,
        chance: "Callable[[int], int]",
    ) -> None:
        self._every, self._windows, self._cap = every_ms, windows, cap_ms
        self._turn = turn_ms
        self._chance = chance
        self._began = now
        self.state = SENSING
        self.reason = ""
        self.turn_ms = now if kept is None else kept.turn_ms

    def may_connect(self) -> bool:
        """Whether the link is wanted: before that its radio stays off."""
        return self.state == DELIVERING

    def look(self, sensed: int, urgent: bool, served: bool, now: int) -> bool:
        """What has happened in this wake; True: let the agent end now.

        sensed: windows. urgent: an urgent record waits. served: the link was up, delivered
        what there was, and is down again.
        """
        if self.state == SENSING:
            if sensed >= self._windows:
                if urgent or now >= self.turn_ms:
                    self._go("sensed")
                else:
                    self._end("enough")
            elif now - self._began >= self._cap:
                self._end("cap")
        if self.state == DELIVERING:
            if served:
                self._end("served")
            elif now - self._began >= self._cap:
                self._end("cap")
        return self.state == ENDING

    def ended(self, now: int) -> int:
        """All is on flash: how long to sleep, ms."""
        if self.state != ENDING:
            self._end("cap")
        self._go("ended")
        if self.turn_ms <= now and self.reason != "enough":
            self.turn_ms = now + self._turn - self._chance(self._turn // 8 + 1)
        return max(LEAST_MS, self._every - (now - self._began))

    def _end(self, why: str) -> None:
        self._go(why)
        self.reason = why

    def _go(self, event: str) -> None:
        self.state = TABLE[(self.state, event)]


def light_ms(
    radio_on: bool, sensor_ms: "int | None", wake_ms: "int | None", most_ms: int = LIGHT_MOST_MS
) -> int:
    """How long to sleep lightly, 0 = not now.

    sensor_ms: until the sensor wants to be read, None when it cannot say, or is busy.
    wake_ms: until the agent's next deadline, None without one.
    """
    if radio_on or sensor_ms is None:
        return 0
    ms = min(sensor_ms, most_ms)
    if wake_ms is not None:
        ms = min(ms, wake_ms)
    return ms if ms >= LIGHT_LEAST_MS else 0
