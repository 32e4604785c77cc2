"""A journal that is small enough to be filled, for its tests."""

from journal_model import SMALL, contents
from sim_flash import Prng

from edge_agent.journal import Journal


def small(store, seed=1, **more):
    options = dict(SMALL)
    for name in more:
        options[name] = more[name]
    return Journal.open(store, Prng(seed), **options)


def fill(journal, count, size=50, priority=1, batch=4, ttl_s=0, uptime_s=0):
    """Append and sync records; seq -> frame."""
    out = {}
    for i in range(count):
        seq = journal.next_seq
        out[seq] = bytes([seq & 255, i & 255]) * (size // 2)
        journal.append(seq, out[seq], priority, ttl_s, uptime_s)
        if i % batch == batch - 1:
            journal.sync(uptime_s)
    journal.sync(uptime_s)
    return out


def frames(journal):
    return {key[1]: data for key, data in contents(journal).items()}
