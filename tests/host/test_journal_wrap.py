"""A 2 MB partition, written over and over."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))

from journal_model import contents
from sim_flash import Prng, SimFlash

from edge_agent import segment
from edge_agent.journal import Journal


def test_a_2_mb_partition_wrapped_100_times():
    store = SimFlash(1, capacity=512)
    j = Journal.open(store, Prng(1), max_segments=60)
    written = 0
    frame = bytes(range(256)) * 2
    while written < 100 * (2 << 20):
        for _ in range(64):
            j.append(j.next_seq, frame, 1)
        refs = j.sync()
        written += 64 * (len(frame) + segment.RECORD_BYTES)
        if refs[0].seq % 3:  # two thirds of the time the gateway keeps up
            j.free(j.journal_id, [(refs[0].seq, refs[-1].seq)])
    there = contents(j)
    total = j.next_seq - 1
    assert set(there.values()) == {frame}
    assert len(there) == sum(j.stats()["pending"])
    assert len(store.names()) <= 62
    after = Journal.open(store.power_cycle(), Prng(2), max_segments=60)
    assert after.next_seq == total + 1
    assert len(contents(after)) == len(there)
    assert after.drops == j.drops
