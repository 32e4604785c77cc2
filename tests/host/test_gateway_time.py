"""Device time to UTC: the cases that real clocks bring."""

import random

import pytest
from gateway_kit import NOW, Bench, Device

from gateway.config import Domains
from gateway.reports import outcomes
from gateway.timebase import CLOCK_ERROR_MS, UNBOUNDED_MS, Boot, plausible, repair, settle

S = 1000
H = 3600 * S


@pytest.mark.parametrize(
    ("utc_s", "good"),
    [
        (0, False),  # 1970
        (946_684_800, False),  # 2000, the ESP32's epoch
        (1_700_000_000, False),  # 2023, before this protocol
        (NOW // S, True),
        (NOW // S - 40 * 86_400, True),  # a long backlog
        (NOW // S + 30, True),  # a little fast
        (NOW // S + 7200, False),
        (4_070_908_800, False),  # 2099
    ],
)
def test_which_device_clocks_count(utc_s, good):
    assert plausible(utc_s, NOW) is good


def test_a_good_clock_of_its_own_is_taken():
    when = repair(Boot(1), 5000, NOW // S - 3, NOW)
    assert (when.utc_ms, when.uncertainty_ms, when.source) == (NOW - 2500, CLOCK_ERROR_MS, "clock")


def test_with_nothing_known_arrival_is_the_latest_moment():
    boot = Boot(1)
    boot.observe(5000, 0, NOW)
    settle([boot])
    assert repair(boot, 5000, 0, NOW) == (NOW, UNBOUNDED_MS, "arrival")
    assert repair(None, 5000, 0, NOW) == (NOW, UNBOUNDED_MS, "arrival")


def test_a_clock_learnt_later_in_the_boot_repairs_what_came_before():
    boot = Boot(1)
    boot.observe(5 * S, 0, NOW)  # no clock yet
    boot.observe(65 * S, NOW // S, NOW)
    settle([boot])
    when = repair(boot, 5 * S, 0, NOW)
    assert when.source == "boot"
    assert abs(when.utc_ms - (NOW + 500 - 60 * S)) <= 1
    assert when.uncertainty_ms <= CLOCK_ERROR_MS


@pytest.mark.parametrize("lie", [1, 946_684_800, 4_070_908_800])
def test_an_implausible_clock_changes_nothing(lie):
    told, silent = Boot(1), Boot(1)
    told.observe(5 * S, lie, NOW)
    silent.observe(5 * S, 0, NOW)
    settle([told])
    settle([silent])
    assert repair(told, 5 * S, lie, NOW) == repair(silent, 5 * S, 0, NOW)


def test_a_boot_without_a_clock_lies_between_its_neighbours():
    first, lost, last = Boot(1), Boot(2), Boot(3)
    first.observe(10 * S, (NOW - 10 * H) // S, NOW)
    lost.observe(2 * H, 0, NOW)
    last.observe(60 * S, (NOW - 1 * H) // S, NOW)
    settle([last, first, lost])  # any order
    when = repair(lost, 1 * H, 0, NOW)
    assert when.source == "neighbours"
    low, high = when.utc_ms - when.uncertainty_ms, when.utc_ms + when.uncertainty_ms
    # After boot 1 was last seen plus an hour; an hour before boot 3 began at the latest.
    assert abs(low - (NOW - 10 * H + 1 * H)) < 2 * CLOCK_ERROR_MS
    assert abs(high - (NOW - 1 * H - 60 * S - 1 * H)) < 2 * CLOCK_ERROR_MS


def test_a_chain_of_boots_without_clocks():
    """Thirty days offline, rebooting every hour: bounded by the two clocks at the ends."""
    start = NOW - 720 * H
    chain = [Boot(n) for n in range(722)]
    chain[0].observe(0, start // S, NOW)
    for n in range(1, 721):
        chain[n].observe(1 * H - S, 0, NOW)
    chain[721].observe(5 * S, (NOW - 1000) // S, NOW)
    settle(chain)
    for n in (1, 360, 720):
        when = repair(chain[n], 0, 0, NOW)
        truth = start + (n - 1) * (H - 10)
        assert abs(when.utc_ms - truth) <= when.uncertainty_ms
        # 720 pauses of a second are all that is unknown.
        assert when.uncertainty_ms <= 720 * S / 2 + 2 * CLOCK_ERROR_MS


def test_a_clock_that_is_set_again_widens_the_answer():
    boot = Boot(1)
    boot.observe(10 * S, NOW // S - 600, NOW)
    boot.observe(20 * S, NOW // S, NOW)
    settle([boot])
    when = repair(boot, 15 * S, 0, NOW)
    for reading, uptime in ((NOW - 600 * S, 10 * S), (NOW, 20 * S)):
        truth = reading - uptime + 15 * S + 500
        assert abs(when.utc_ms - truth) <= when.uncertainty_ms + S or when.utc_ms <= NOW


def test_nothing_happens_after_it_arrived():
    rng = random.Random(3)
    for _ in range(2000):
        boots = [Boot(n) for n in range(4)]
        arrival = NOW
        for boot in boots:
            for _ in range(3):
                arrival += rng.randrange(10 * S)
                utc = arrival // S + rng.randrange(-9999, 90) if rng.random() < 0.4 else 0
                boot.observe(rng.randrange(3 * H), utc, arrival)
        settle(boots)
        boot = rng.choice(boots)
        utc = rng.choice([0, 0, 1, arrival // S, arrival // S + 50])
        when = repair(boot, rng.randrange(3 * H), utc, arrival)
        assert when.utc_ms <= arrival
        assert when.uncertainty_ms >= 0


def test_truth_is_within_the_uncertainty_when_nobody_lies():
    """Random lives of a device: boots, pauses, clocks known now and then."""
    rng = random.Random(17)
    for _ in range(300):
        boots, records = [], []
        base = NOW - 100 * H
        for n in range(8):
            base += rng.randrange(1, 2 * H)
            boot = Boot(n + 1)
            uptime = 0
            for _ in range(5):
                uptime += rng.randrange(20 * 60 * S)
                truth = base + uptime
                utc_s = truth // S if rng.random() < 0.2 else 0
                boot.observe(uptime, utc_s, NOW)
                records.append((boot, uptime, utc_s, truth))
            boots.append(boot)
            base += uptime
        settle(boots)
        for boot, uptime, utc_s, truth in records:
            when = repair(boot, uptime, utc_s, NOW)
            assert abs(when.utc_ms - truth) <= when.uncertainty_ms


# -- through the database ---------------------------------------------------------------


def export(bench):
    return list(outcomes(bench.store, Domains(bench.path.parent / "none"), {}))


def test_the_database_keeps_what_was_sent_and_repairs_the_rest(tmp_path):
    bench = Bench(tmp_path)
    device = bench.device()
    bench.send(device, device.outcome(1, uptime_ms=10 * S))
    bench.send(device, device.outcome(2, uptime_ms=20 * S, utc_s=4_070_908_800))
    (early, wild) = export(bench)
    assert early["time_source"] == wild["time_source"] == "arrival"
    assert wild["device_utc_s"] is None
    # Then the device learns the time, and both are repaired.
    bench.send(device, device.outcome(3, uptime_ms=30 * S, utc_s=bench.now // S))
    bench.custody.merge()
    early, wild, good = export(bench)
    assert (early["time_source"], wild["time_source"], good["time_source"]) == (
        "boot", "boot", "clock",
    )  # fmt: skip
    assert wild["utc_ms"] - early["utc_ms"] == 10 * S
    assert [row["uptime_ms"] for row in (early, wild, good)] == [10 * S, 20 * S, 30 * S]
    bench.crash()
    assert export(bench) == [early, wild, good]
    bench.close()


def test_boots_bound_each_other_through_the_database(tmp_path):
    bench = Bench(tmp_path)
    device = bench.device()
    early, late = (bench.now - 5 * H) // S, bench.now // S - 60
    bench.send(
        device,
        device.outcome(1, boot=1, uptime_ms=S, utc_s=early),
        device.outcome(2, boot=2, uptime_ms=1 * H),
        device.outcome(3, boot=3, uptime_ms=S, utc_s=late),
    )
    bench.custody.merge()
    middle = export(bench)[1]
    assert middle["time_source"] == "neighbours"
    assert early * S < middle["utc_ms"] < late * S
    assert abs(middle["uncertainty_ms"] - (5 * H - 1 * H) / 2) < 60 * S
    # Each device has its own boots.
    other = bench.device()
    assert isinstance(other, Device)
    bench.send(other, other.outcome(1, boot=2, uptime_ms=1 * H))
    bench.custody.merge()
    assert export(bench)[-1]["time_source"] == "arrival"
    bench.close()
