"""What the machines ask of the driver.

A machine (`core.AgentCore`, `delivery.Delivery`) never touches a clock, a file or a
socket. It returns effects; the driver performs them in the order given and reports
each one that has an answer with `on_done(id, result, now_ms)` or
`on_error(id, error, now_ms)`. Ids are never used twice within one boot, so an answer
that comes late is recognised and ignored.

    effect       answered with                 what the driver does
    Infer        interfaces.ModelOutput        runs the model
    Append       journal.Ref                   journal.append: not yet durable
    Sync         [journal.Ref]                 journal.sync: durable
    Survey       JournalFacts                  says what the journal holds
    Fetch        [journal.Ref]                 journal.scan
    Free         number freed                  journal.free
    Quarantine   None                          journal.quarantine
    Mint         JournalFacts                  gives the journal a new id
    Persist      None                          stores the down counter, settings
    Keep         None                          stores what the mailbox brought, old or new
    Publish      None, when acknowledged       link.publish; a payload of None means: read `ref`
    Connect      core.on_link                  link.connect
    Disconnect   core.on_link(False)           link.disconnect
    SetTime      -                             sets the clock, where it can be set
    Handle       -                             hands a box to the handler of its type
    Committed    -                             tells whoever keeps a ledger
    Event        -                             logs, counts, shows
"""

from collections import namedtuple

# features: int8 values as bytes.
Infer = namedtuple("Infer", ("id", "features"))

# journal: the id that the frame was sealed under.  ttl_s: 0 = never expires.
Append = namedtuple("Append", ("id", "journal", "seq", "frame", "priority", "ttl_s", "generation"))
Sync = namedtuple("Sync", ("id",))

# save: save the journal's state first.
Survey = namedtuple("Survey", ("id", "save"))

# after: the Ref to start behind, None = from the oldest.
Fetch = namedtuple("Fetch", ("id", "priority", "after", "limit"))

# ranges: [(first, last)], both included.
Free = namedtuple("Free", ("id", "journal", "ranges"))
Quarantine = namedtuple("Quarantine", ("id", "ref", "reason"))
Mint = namedtuple("Mint", ("id",))

# counter: highest down counter seen.  version, settings: of a cfg message, else None.
# lazy: may wait for the next time the journal's state is saved anyway.
Persist = namedtuple("Persist", ("id", "counter", "version", "settings", "lazy"))

# data: mail.Mail.state().
Keep = namedtuple("Keep", ("id", "data"))

# kind: "outcome", "hello" or "state".  Exactly one of payload and ref is set.
Publish = namedtuple("Publish", ("id", "kind", "topic", "payload", "ref", "qos", "retain"))
Connect = namedtuple("Connect", ("id",))
Disconnect = namedtuple("Disconnect", ("id", "reason"))
SetTime = namedtuple("SetTime", ("id", "utc_ms"))
Handle = namedtuple("Handle", ("id", "type", "body"))

# records: [(window key, seq, frame)], durable now.
Committed = namedtuple("Committed", ("id", "journal", "records"))

# level: "debug", "info", "warning" or "error".  name: a short token.  fields: dict.
Event = namedtuple("Event", ("id", "level", "name", "fields"))

# What a journal holds, for hellos and at start-up.
#   journal bytes4, boot, next_seq: of the current id.  held: [(journal, floor, next_seq)].
#   pending: records not yet in custody of the gateway.  drops: {reason u8: count}.
#   gone: [(first, last)].  generation: oldest key generation held, None when empty.
#   counter, cfg_version: persisted extras.  age_base_s: uptime of the boots before.
#   doubt: damage was found, the current id should be given up.
JournalFacts = namedtuple(
    "JournalFacts",
    (
        "journal",
        "boot",
        "next_seq",
        "held",
        "pending",
        "drops",
        "gone",
        "generation",
        "counter",
        "cfg_version",
        "age_base_s",
        "doubt",
    ),
)


class Ids:
    """Hands out effect ids: 1, 2, 3 ... One object is shared by the machines of an agent."""

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> int:
        self.last += 1
        return self.last
