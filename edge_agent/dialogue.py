"""What is known of the gateway on this connection: answers, silence, its time. No I/O.

Each connection begins with a fresh nonce, sent in a hello for every journal id held. An
ack that echoes it was made after that hello. Until the first one, or for HELLO_WAIT_MS,
the journal's records wait. When nothing is heard although something is due, the hello is
repeated at doubling intervals; records are not. A first hello is repeated soon: a broker
that forgot everything may have had no subscriber for it.

Time: the gateway's time counts only in an ack with this connection's nonce, so an old
ack cannot turn the clock back, and only inside the plausible window.
"""

from edge_agent.interfaces import utc_plausible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from edge_agent.config import Config

HELLO_WAIT_MS = 5000
HELLO_AGAIN_MS = 2000
ASK_AGAIN_MS = 1000  # after an ack that answers no hello of this connection
PROBE_CAP_MS = 600000


class Dialogue:
    """nonce: of this connection.  heard_ms: uptime of the last good ack, -1 = never.
    utc_offset_ms: Unix ms less uptime, None = not known.  silent: nothing comes back."""

    def __init__(self, settings: "Config") -> None:
        self._set = settings
        self.nonce = b""
        self.heard_ms = -1
        self.utc_offset_ms: int | None = None
        self.silent = False
        self.grace_at = 0
        self.probe_at = 0
        self._probe_ms = 0
        self._answered: dict[bytes, bool] = {}

    def begin(self, nonce: bytes, now: int) -> None:
        self.nonce = nonce
        self._answered = {}
        self.silent = False
        self.grace_at = now + HELLO_WAIT_MS
        self._probe_ms = HELLO_AGAIN_MS
        self.probe_at = now + self._probe_ms

    def answered(self, journal: bytes) -> bool:
        return journal in self._answered

    def any_answer(self) -> bool:
        return bool(self._answered)

    def heard(self, journal: bytes, now: int) -> bool:
        """A good ack came; whether it is the first one for this journal id."""
        first = journal not in self._answered
        self._answered[journal] = True
        self.heard_ms = now
        self.silent = False
        self._probe_ms = 1000 * self._set.ack_timeout_s
        self.probe_at = now + self._probe_ms
        return first

    def take_time(self, utc_ms: int, now: int) -> "bool | None":
        """Before `heard`: True when the clock should be set, None when that time is absurd."""
        if not utc_plausible(utc_ms // 1000):
            return None
        offset = utc_ms - now
        if not self._answered:
            self.utc_offset_ms = offset
            return True
        if self.utc_offset_ms is None or offset > self.utc_offset_ms:
            # The ack that travelled fastest is nearest to the truth.
            self.utc_offset_ms = offset
        return False

    def ask_again(self, now: int) -> None:
        """The gateway lives but does not know our hello."""
        self.probe_at = min(self.probe_at, now + ASK_AGAIN_MS)

    def probe(self, now: int, needed: bool) -> bool:
        """Whether to greet again now. needed: an answer is due and has not come."""
        if now < self.probe_at:
            return False
        self.probe_at = now + self._probe_ms
        if needed:
            self._probe_ms = min(2 * self._probe_ms, PROBE_CAP_MS)
        return needed
