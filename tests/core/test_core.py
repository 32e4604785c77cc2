"""AgentCore: windows to records, messages from the gateway, trouble of every kind."""

import json
import unittest
from array import array

from rig import AGENT, CRYPTO, KEY, Gateway, RamStore, Rig, make_config

from edge_agent import effects as fx
from edge_agent import frame
from edge_agent.connection import UP
from edge_agent.errors import ConfigError, JournalError, JournalFull, ModelError, StoreError
from edge_agent.intake import QUEUE_MAX
from edge_agent.interfaces import ModelOutput, Window

OUTPUT = ModelOutput(bytes([0, 200, 0]), bytes(range(64)), 0)
WINDOW = Window(array("h", [1, 2, 3, 4]), (), "w1")
DISK_FULL = StoreError("no space left", "n000001", "Free some space", 28)


def config(**more):
    fields = {"sensor": {"kind": "x", "stall_s": 0}}
    for name in more:
        fields[name] = more[name]
    return make_config(**fields)


def batch(n, ms=5000, **more):
    return config(journal={"batch": n, "batch_ms": ms}, **more)


def linked(settings=None, **more):
    r, g = Rig(config=settings or config(), **more), Gateway()
    r.start()
    r.up()
    r.serve(g)
    r.log = []
    return r, g


def opened(rig, data):
    keys = frame.Keyring(frame.DeviceKeys(CRYPTO, AGENT, KEY, 0))
    return frame.open_frame(data, keys, frame.UP, AGENT).message


class TestIntake(unittest.TestCase):
    def test_each_step_starts_the_next_and_publishing_is_last(self):
        r, _ = linked()
        (infer,) = r.core.on_window(WINDOW, 10)
        self.assertTrue(isinstance(infer, fx.Infer))
        (append,) = r.core.on_done(infer.id, OUTPUT, 20)
        self.assertTrue(isinstance(append, fx.Append))
        self.assertEqual((append.seq, append.journal), (1, r.journal.journal_id))
        ref = r.journal.append(append.seq, append.frame)
        (sync,) = r.core.on_done(append.id, ref, 30)
        self.assertTrue(isinstance(sync, fx.Sync))
        out = r.core.on_done(sync.id, r.journal.sync(), 40)
        published = [e for e in out if isinstance(e, fx.Publish)]
        self.assertEqual([p.ref.seq for p in published], [1])
        m = opened(r, append.frame)
        self.assertEqual((m.uptime_ms, m.boot, m.outcome.label), (10, 1, 1))
        self.assertEqual(m.fingerprint, r.domain.fingerprint(m.outcome.vector))

    def test_nothing_is_published_while_sync_fails_and_all_of_it_after(self):
        r, g = linked()
        r.store.error = DISK_FULL
        for _ in range(5):
            r.window()
        r.run(30000)
        self.assertEqual(r.seqs(), [])
        self.assertEqual(r.core.status()["unsynced"], 5)
        failed = r.core.counters["sync-failed"]
        self.assertLess(failed, 10, "the pause grows")
        self.assertLess(len(r.named("sync-failed")), failed + 1)
        r.store.error = None
        r.run(60000)
        r.serve(g)
        self.assertEqual(sorted(s for _, s in g.held), [1, 2, 3, 4, 5])
        self.assertTrue(r.core.drained())

    def test_a_full_journal_is_counted_and_numbers_stay_whole(self):
        r, g = linked()
        r.store.error = DISK_FULL
        for _ in range(70):
            r.window()
        self.assertEqual(r.core.counters["journal-full"], 6)
        self.assertEqual(r.journal.drops, {2: 6})
        r.store.error = None
        for _ in range(170):
            r.run(1000)
            r.serve(g)
        self.assertEqual(sorted(s for _, s in g.held), list(range(1, 65)))
        r.window()
        r.serve(g)
        self.assertTrue((r.journal.journal_id, 65) in g.held)

    def test_other_append_errors_are_tried_again(self):
        r, g = linked()
        (infer,) = r.core.on_window(WINDOW, r.now)
        (append,) = r.core.on_done(infer.id, OUTPUT, r.now)
        out = r.core.on_error(append.id, JournalError("cannot", "journal"), r.now)
        self.assertIn("Survey", [type(e).__name__ for e in out])
        r.do(out)
        self.assertEqual(len(g.held), 0)
        r.run(3000)
        r.serve(g)
        self.assertEqual(len(g.held), 1)

    def test_the_queue_is_bounded(self):
        r, _ = linked()
        appends = []
        for _ in range(QUEUE_MAX + 5):
            (infer,) = r.core.on_window(WINDOW, r.now)
            appends += [
                e for e in r.core.on_done(infer.id, OUTPUT, r.now) if isinstance(e, fx.Append)
            ]
        self.assertEqual(len(appends), 1, "one at a time")
        self.assertEqual(r.core.counters["queue-full"], 4)

    def test_batch_is_synced_when_full_or_old_or_urgent(self):
        r, _ = linked(batch(3, 4000, priorities={"run": 0}))
        r.window()
        r.window()
        self.assertEqual(r.core.status()["unsynced"], 2)
        r.run(3999)
        self.assertEqual(r.core.status()["unsynced"], 2)
        r.run(1)
        self.assertEqual(r.core.status()["unsynced"], 0)
        for _ in range(3):
            r.window()
        self.assertEqual(r.core.status()["unsynced"], 0)
        r.window(1)
        r.window(2)
        self.assertEqual(r.core.status()["unsynced"], 0)
        self.assertEqual(r.log.count("Sync"), 3)

    def test_sync_every(self):
        r, _ = linked(config(journal={"batch": 8, "sync": "every"}))
        for _ in range(3):
            r.window()
        self.assertEqual(r.log.count("Sync"), 3)

    def test_coalescing_keeps_the_latest_of_a_label_until_it_is_synced(self):
        r, g = linked(batch(4, 5000, coalesce=["walk"]), ledger=True)
        keys = []
        for label, key in ((1, "a"), (0, "b"), (1, "c"), (0, "d"), (1, "e")):
            r.window(label, key)
        self.assertEqual(r.core.status()["coalesced"], 2)
        self.assertEqual(r.core.status()["unsynced"], 3)
        r.run(5000)
        keys = [k for k, _, _ in r.committed]
        self.assertEqual(sorted(keys), ["b", "d", "e"])
        self.assertEqual([s for _, s, _ in r.committed], [1, 2, 3])
        r.window(1, "f")
        self.assertEqual(r.core.intake.next_seq, 5, "what was synced is never replaced")
        r.run(5000)
        r.serve(g)
        self.assertEqual(len(g.held), 4)
        self.assertEqual(r.journal.drops, {4: 2})

    def test_priorities_and_ttl_reach_the_journal(self):
        r, _ = linked(config(priorities={"run": 0, "*": 2}, ttl_s=60))
        for label in (0, 1, 2):
            self.assertEqual(r.core._priority[label], 0 if label == 2 else 2)
        r.down()
        r.window(0)
        r.window(2)
        self.assertEqual(r.journal.stats()["pending"], [1, 0, 1])
        r.now += 61000
        self.assertEqual(r.journal.scan(2, None, 8, r.now // 1000), [])

    def test_labels_the_domain_has_not_are_refused_by_name(self):
        for settings, where in (
            (config(priorities={"fly": 0}), "priorities.fly"),
            (config(coalesce=["fly"]), "coalesce"),
        ):
            with self.assertRaises(ConfigError) as caught:
                Rig(config=settings)
            self.assertEqual(caught.exception.where, where)
            self.assertIn("rest, walk, run", caught.exception.fix)

    def test_ledger_is_told_after_sync_and_before_publishing(self):
        r, g = linked(batch(2), ledger=True)
        r.log = []
        r.window(1, "k1")
        self.assertEqual(r.committed, [])
        r.window(1, "k2")
        self.assertEqual([(k, s) for k, s, _ in r.committed], [("k1", 1), ("k2", 2)])
        order = [name for name in r.log if name in ("Sync", "Committed", "Publish")]
        self.assertEqual(order[:3], ["Sync", "Committed", "Publish"])
        r.serve(g)
        self.assertEqual(sorted(bytes(f) for _, _, f in r.committed), sorted(g.held.values()))

    def test_options_of_the_frame(self):
        for settings, size in (
            (config(pad=512), 512),
            (config(small=True, pad=222), 222),
            (config(encrypt=True, pad=400), 400),
        ):
            r, g = linked(settings, ledger=True)
            r.window()
            r.serve(g)
            self.assertEqual([len(f) for _, _, f in r.committed], [size])
            self.assertEqual(len(g.held), 1)


class TestSensorAndModel(unittest.TestCase):
    def test_model_errors_are_counted_and_told_ever_less_often(self):
        r, g = linked()
        r.model_error = ModelError("operator 99", "model.tflite")
        for _ in range(20):
            r.window()
        self.assertEqual(r.core.counters["model-error"], 20)
        self.assertEqual([e.fields["count"] for e in r.named("model-error")], [1, 2, 4, 8, 16])
        r.model_error = None
        r.window()
        r.serve(g)
        self.assertEqual(len(g.held), 1)

    def test_a_model_of_another_domain(self):
        r, _ = linked()
        (infer,) = r.core.on_window(WINDOW, 0)
        out = r.core.on_done(infer.id, ModelOutput(bytes(9), bytes(64), 0), 0)
        self.assertEqual(r.core.counters["model-error"], 1)
        self.assertIn("9 scores", out[0].fields["error"])

    def test_windows_that_do_not_fit(self):
        r, _ = linked()
        r.do(r.core.on_window(Window(array("h", [1, 2]), (), ""), 0))
        self.assertEqual(r.core.counters["bad-window"], 1)

    def test_a_sensor_that_stops_is_reported_once_and_again_when_back(self):
        r = Rig(config=make_config(sensor={"kind": "x", "stall_s": 10}))
        r.start()
        r.run(9999)
        self.assertEqual(r.named("sensor-stalled"), [])
        r.run(100000)
        self.assertEqual(len(r.named("sensor-stalled")), 1)
        self.assertTrue(r.core.status()["sensor_stalled"])
        r.window()
        self.assertEqual(len(r.named("sensor-back")), 1)
        r.do(r.core.on_sensor_end(r.now))
        r.run(1000000)
        self.assertEqual(len(r.named("sensor-stalled")), 1, "an ended source is not a stalled one")

    def test_unsure_tag(self):
        r, _ = linked(config(unsure_below=201), ledger=True)
        r.window()
        r.confidence = 201
        r.window()
        tags = [opened(r, f).outcome.tags for _, _, f in r.committed]
        self.assertEqual(tags, [(0,), ()])

    def test_clock_of_1970_or_2099_is_unknown(self):
        r, _ = linked(ledger=True)
        r.core.delivery.gateway.utc_offset_ms = None
        for utc_s, told in ((0, 0), (86400, 0), (4092599349, 0), (1800000000, 1800000000)):
            r.core.on_clock(utc_s, r.now)
            r.window()
            self.assertEqual(opened(r, r.committed[-1][2]).utc_s, told)


class TestMessages(unittest.TestCase):
    def test_box_is_handed_over_after_its_counter_is_stored_and_once(self):
        r, g = linked()
        box = g.box(7, b"body")
        r.message("box", box)
        self.assertEqual(r.handled, [(7, b"body")])
        self.assertLess(r.log.index("Persist"), r.log.index("Handle"))
        r.message("box", box)
        self.assertEqual(len(r.handled), 1)
        self.assertEqual(r.core.counters["stale-box"], 1)
        self.assertEqual(r.core.status()["boxes"], {7: 1})
        again = Rig(r.store, config(), seed=9)
        again.message("box", box)
        self.assertEqual(again.handled, [], "the counter outlives a boot")

    def test_a_box_that_could_not_be_stored_may_come_again(self):
        r, g = linked()
        box = g.box(7, b"body")
        r.store.error = DISK_FULL
        r.message("box", box)
        self.assertEqual(r.handled, [])
        r.store.error = None
        r.message("box", box)
        self.assertEqual(r.handled, [(7, b"body")])

    def test_settings_are_checked_stored_and_applied(self):
        r, g = linked()
        r.message("cfg", g.cfg(3, {1: 900, 3: 50, 99: 1}))
        self.assertEqual((r.config.duty_s, r.config.pace_per_s), (900, 50))
        self.assertEqual((r.core.cfg_version, r.journal.cfg_version), (3, 3))
        self.assertEqual(r.named("cfg-applied")[0].fields["changed"], "duty_s pace_per_s")
        r.message("cfg", g.cfg(4, {1: 5, 4: 0}))
        self.assertEqual((r.config.duty_s, r.core.cfg_version), (900, 3))
        self.assertEqual(r.core.counters["cfg-refused"], 1)

    def test_nonsense_is_counted_by_reason_and_changes_nothing(self):
        r, g = linked()
        r.window()
        jid = r.journal.journal_id
        stranger = Gateway(key=bytes(32))
        stranger.nonce = g.nonce
        other = Gateway(agent=b"\x09" * 8)
        good = g.ack(jid, [(1, 1)])
        cases = (
            ("ack", b"", "not-cbor"),
            ("ack", b"\x00" * 513, "too-long"),
            ("ack", good[:-1], "not-cbor"),
            ("ack", stranger.ack(jid, [(1, 1)]), "bad-tag"),
            ("ack", other.ack(jid, [(1, 1)]), "wrong-agent"),
            ("box", good, "bad-kind"),
            ("cfg", g.box(1, b""), "bad-kind"),
        )
        for topic, payload, reason in cases:
            before = r.core.counters.get("rejected-" + reason, 0)
            r.message(topic, payload)
            self.assertEqual(r.core.counters.get("rejected-" + reason, 0), before + 1, reason)
        for i in range(len(good)):
            bad = bytearray(good)
            bad[i] ^= 0x10
            r.message("ack", bytes(bad))
        self.assertEqual(sum(r.journal.stats()["pending"]), 1)
        self.assertEqual((r.handled, r.times[1:]), ([], []))
        r.message("ack", good)
        self.assertEqual(sum(r.journal.stats()["pending"]), 0)

    def test_topics_of_others(self):
        r, g = linked()
        for topic in (
            "",
            "ack",
            "qis/1/ffffffffffffffff/ack",
            "qis/1/0102030405060708/up",
            "x/" * 99,
        ):
            r.do(r.core.on_message(topic, g.box(1, b""), r.now))
        self.assertEqual(r.core.counters["unknown-topic"], 5)
        self.assertEqual(r.handled, [])


class TestRest(unittest.TestCase):
    def test_feedback_names_the_outcome_it_judges(self):
        r, g = linked(ledger=True)
        r.window()
        about = frame.outcome_id(r.committed[0][2])
        r.do(r.core.feedback(about, 1, 2, r.now, "fb1"))
        r.serve(g)
        m = opened(r, r.committed[1][2])
        self.assertEqual((m.outcome.about, m.outcome.result, m.outcome.label), (about, 1, 2))
        self.assertEqual(r.committed[1][0], "fb1")
        self.assertEqual(len(g.held), 2)
        for bad in ((about[:15], 0, 0), (about, 2, 0), (about, 0, 3), (about, -1, 0)):
            with self.assertRaises(ValueError):
                r.core.feedback(bad[0], bad[1], bad[2], r.now)

    def test_status_is_plain(self):
        r, g = linked()
        r.window()
        r.serve(g)
        status = r.core.status()
        json.dumps(status)
        self.assertEqual(status["last_label"], "walk")
        self.assertEqual(status["delivery"]["counters"]["confirmed"], 1)
        self.assertEqual(status["delivery"]["link"], UP)

    def test_ids_are_never_used_twice(self):
        r = Rig(config=config())
        seen = []
        one = r.one
        r.one = lambda effect: (seen.append(effect.id), one(effect))[1]
        g = Gateway()
        r.start()
        r.up()
        for _ in range(20):
            r.window()
            r.serve(g)
        r.down()
        r.run(5000)
        self.assertEqual(len(seen), len(set(seen)))

    def test_a_record_gone_bad_is_given_up_and_the_others_arrive(self):
        r, g = linked()
        r.down()
        for _ in range(3):
            r.window()
        for name in r.store.names():
            data = r.store.files[name]
            if bytes(data[:4]) == b"QJS1":
                data[len(data) - 30] ^= 0xFF  # in the last record
        r.run(5000)
        r.up()
        r.window()
        for _ in range(20):
            r.serve_readable(g)
            r.run(1000)
        self.assertEqual(sorted(s for _, s in g.held), [1, 2, 4])
        self.assertTrue(r.core.drained())
        self.assertEqual(sum(r.journal.drops[reason] for reason in r.journal.drops), 1)

    def test_a_journal_in_doubt_goes_on_under_a_new_id(self):
        r, g = linked()
        old = r.journal.journal_id
        r.journal.free(old, [(1, 99)])  # numbers this flash never gave out
        self.assertTrue(r.journal.doubt)
        r.down()
        r.run(5000)
        r.up()
        r.serve(g)
        r.window()
        r.serve(g)
        self.assertNotEqual(r.journal.journal_id, old)
        self.assertEqual([j for j, _ in g.held], [r.journal.journal_id])
        self.assertEqual(len(r.named("new-journal-id")), 1)
        self.assertTrue(r.core.drained())

    def test_stopping_makes_durable_what_is_there(self):
        r, g = linked(batch(8, 60000))
        r.window()
        r.window()
        r.do(r.core.stop(r.now))
        self.assertEqual(r.core.status()["unsynced"], 0)
        again = Rig(r.store, config(), seed=4)
        self.assertEqual(sum(again.journal.stats()["pending"]), 2)

    def test_journal_full_error_class_is_what_the_core_expects(self):
        self.assertTrue(issubclass(JournalFull, JournalError))
        self.assertTrue(RamStore().size("x") < 0)
