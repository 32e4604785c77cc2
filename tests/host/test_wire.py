"""Agents, broker and gateway in one virtual time, with everything going wrong that can.

The machine draws moves of fate; after them everything heals, and every record that a
sync confirmed must have a good end (wire/ledger.py names them). WIRE_EXAMPLES and
WIRE_STEPS in the environment make it look longer.
"""

import os
from collections import Counter

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from wire.gateway import STEPS
from wire.world import LABELS, World

EXAMPLES = int(os.environ.get("WIRE_EXAMPLES", "400"))
STEPS_MAX = int(os.environ.get("WIRE_STEPS", "40"))

pick = st.integers(0, 7)
labels_seen = st.lists(st.integers(0, len(LABELS) - 1), min_size=1, max_size=12)
short_ms = st.integers(1, 3000)
long_ms = st.sampled_from([5_000, 30_000, 120_000, 900_000])

KINDS = {
    "plain": {},
    "every": {"journal": {"sync": "every"}},
    "sealed": {"encrypt": True},
    "small": {"small": True},
    "padded": {"pad": 512},
    "tight": {"journal": {"segment_bytes": 1024, "max_segments": 12, "reserve": [1, 1, 0]}},
    "refusing": {
        "journal": {
            "segment_bytes": 1024,
            "max_segments": 12,
            "reserve": [1, 1, 0],
            "policy": "drop-new",
        }
    },
    "resting": {"delivery": {"duty_s": 120, "duty_cap_s": 30}},
    "ageing": {"ttl_s": 300},
}


ENDS: "Counter[str]" = Counter()  # of all records of all worlds, see wire/ledger.py


class Fate(RuleBasedStateMachine):
    """One world. `d` picks a device, whichever there are."""

    @initialize(
        seed=st.integers(0, 1 << 30),
        devices=st.integers(1, 2),
        kind=st.sampled_from(sorted(KINDS)),
        rough=st.booleans(),
        labels=labels_seen,
    )
    def begin(self, seed, devices, kind, rough, labels):
        # Either messages overtake each other, or flashes are copied. Both at once is more
        # than is promised: an old frame of one copy, delivered late, is acknowledged to
        # the other.
        self.rough = rough
        self.world = World(seed, devices, **KINDS[kind])
        self.images = []
        self.cfg_version = 0
        self.world.run(1000)
        self.observe(0, labels)

    def observe(self, d, labels):
        for label in labels:
            self.device(d).observe(label)
            self.world.run(50)

    def device(self, d):
        return self.world.devices[d % len(self.world.devices)]

    # -- what devices do

    @rule(d=pick, labels=labels_seen)
    def outcomes(self, d, labels):
        self.observe(d, labels)

    @rule(d=pick, which=pick, result=st.integers(0, 1))
    def feedback(self, d, which, result):
        self.world.feedback(self.device(d), which, result, 1)

    @rule(ms=short_ms, labels=labels_seen)
    def moments(self, ms, labels):
        for d in range(len(self.world.devices)):
            self.observe(d, labels)
        self.world.run(ms)

    @rule(ms=long_ms)
    def a_while(self, ms):
        self.world.run(ms)

    # -- the network

    @rule(d=pick)
    def break_connection(self, d):
        self.world.cut(self.device(d))

    @rule(d=pick, up=st.booleans())
    def radio(self, d, up):
        device = self.device(d)
        device.link.up = up
        if not up:
            self.world.cut(device, "radio")

    @precondition(lambda self: self.rough)
    @rule(
        d=pick,
        loss=st.sampled_from([0.0, 0.1, 0.4]),
        repeat=st.sampled_from([0.0, 0.3]),
        reorder=st.sampled_from([0, 400]),
    )
    def bad_line(self, d, loss, repeat, reorder):
        self.world.bad_line(self.device(d), loss, repeat, reorder)

    @rule(amnesia=st.booleans(), off=st.booleans())
    def broker_restarts(self, amnesia, off):
        self.world.broker.restart(amnesia)
        self.world.broker.up = not off

    @rule()
    def broker_back(self):
        self.world.broker.up = True

    @rule(chance=st.sampled_from([0.0, 0.3]))
    def broker_repeats(self, chance):
        self.world.broker.repeat = chance

    @precondition(lambda self: self.rough)
    @rule(d=pick)
    def queues_shuffled(self, d):
        self.world.shuffle(self.device(d))

    @precondition(lambda self: self.rough)
    @rule(which=st.integers(0, 200))
    def old_frame_replayed(self, which):
        self.world.replay_up(which)

    @rule(d=pick, which=st.integers(0, 200))
    def old_ack_replayed(self, d, which):
        self.world.replay_down(self.device(d), which)

    # -- flash and power

    @rule(d=pick, writes=st.integers(0, 12), labels=labels_seen)
    def power_cut_at_a_write(self, d, writes, labels):
        self.device(d).cut_power_at(writes)
        self.observe(d, labels)

    @rule(d=pick)
    def power_cut_now(self, d):
        self.world.power_cut(self.device(d))

    @rule(d=pick, blocks=st.sampled_from([0, 6, 12]))
    def flash_full(self, d, blocks):
        self.device(d).flash.capacity = blocks

    @rule(d=pick, which=pick, where=st.integers(0, 4095))
    def bit_rot(self, d, which, where):
        self.world.bit_rot(self.device(d), which, where)

    @rule(d=pick, utc_s=st.sampled_from([0, 1, 1_800_000_000, 4_100_000_000]))
    def clock(self, d, utc_s):
        """Not set, 1970, about right, 2099."""
        self.device(d).clock_says = lambda: utc_s

    @rule(d=pick)
    def reflash(self, d):
        self.world.reflash(self.device(d))

    @precondition(lambda self: not self.rough)
    @rule(d=pick)
    def take_image(self, d):
        device = self.device(d)
        self.images.append((device.agent, self.world.image(device)))

    @precondition(lambda self: self.images)
    @rule(d=pick, which=pick)
    def write_image(self, d, which):
        device = self.device(d)
        agent, image = self.images[which % len(self.images)]
        if agent == device.agent:
            self.world.write_image(device, image)

    @precondition(lambda self: not self.rough and len(self.world.devices) < 4)
    @rule(d=pick)
    def clone(self, d):
        self.world.clone(self.device(d))

    # -- the gateway

    @rule(step=st.sampled_from(STEPS))
    def gateway_will_crash(self, step):
        self.world.gateway.crash_at = step

    @rule(off=st.booleans())
    def gateway_killed(self, off):
        self.world.gateway.crash(None if off else 3000)

    @rule()
    def gateway_started(self):
        self.world.gateway.start()

    @rule(full=st.booleans())
    def gateway_disk(self, full):
        self.world.gateway.disk_full = full

    @rule()
    def gateway_idle(self):
        self.world.gateway.merge()

    @rule()
    def backup(self):
        self.world.gateway.backup()

    @precondition(lambda self: self.world.gateway.backups)
    @rule(which=pick)
    def restore(self, which):
        self.world.gateway.restore(which % len(self.world.gateway.backups))

    @rule(d=pick)
    def rotate(self, d):
        self.world.rotate(self.device(d))

    @precondition(lambda self: len(self.world.devices) > 1)
    @rule(d=st.integers(0, 30))
    def revoke(self, d):
        if d < 2:  # seldom: it ends the story of that device
            self.world.revoke(self.device(d))

    @rule(d=pick, window=st.integers(1, 8), batch=st.integers(1, 8))
    def cfg(self, d, window, batch):
        self.cfg_version += 1
        self.world.gateway.send_cfg(self.device(d).agent, self.cfg_version, {4: window, 6: batch})

    @rule(d=pick)
    def box(self, d):
        self.world.gateway.send_box(self.device(d).agent, 1, b"hello")

    @rule()
    def settle(self):
        self.world.settle()

    def teardown(self):
        world = getattr(self, "world", None)
        if world is None:
            return
        try:
            if world.ledger.failed is not None:
                raise world.ledger.failed
            ENDS.update(world.settle())
        finally:
            world.close()


# Shrinking a failure takes minutes: WIRE_SHRINK=1 asks for it.
PHASES = [Phase.generate, Phase.shrink] if "WIRE_SHRINK" in os.environ else [Phase.generate]
PROFILE = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS_MAX,
    derandomize="WIRE_RANDOM" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=PHASES,
    print_blob=True,
)


def test_every_record_has_a_good_end():
    ENDS.clear()
    run_state_machine_as_test(Fate, settings=PROFILE)
    print(dict(ENDS))
    # It would prove little if nothing had happened.
    assert ENDS["delivered"] > 10 * EXAMPLES
    if EXAMPLES >= 200:
        assert set(ENDS) >= {"delivered", "conflict", "dropped", "destroyed", "lost"}
