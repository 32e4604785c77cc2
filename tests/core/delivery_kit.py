"""What the tests of delivery begin with: settings without a stall, and its counters."""

from rig import make_config

QUIET = {"sensor": {"kind": "x", "stall_s": 0}}


def config(delivery=None, **more):
    fields = dict(QUIET)
    fields["delivery"] = delivery or {}
    for name in more:
        fields[name] = more[name]
    return make_config(**fields)


def counters(rig):
    return rig.core.delivery.counters
