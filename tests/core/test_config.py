import json
import os
import unittest

from edge_agent.config import REMOTE, Config
from edge_agent.errors import ConfigError

GOOD = {"agent": "0102030405060708", "key": "ab" * 32}
SECRET = "ab" * 32


def made(**more):
    fields = dict(GOOD)
    fields.update(more)
    return Config.from_json(fields)


def refused(**more):
    try:
        made(**more)
    except ConfigError as error:
        return error
    raise AssertionError("accepted: %r" % (more,))


class TestConfig(unittest.TestCase):
    def test_defaults(self):
        c = Config.from_json(json.dumps(GOOD))
        self.assertEqual(c.agent, bytes(range(1, 9)))
        self.assertEqual(c.key, b"\xab" * 32)
        self.assertEqual((c.batch, c.window, c.custody, c.duty_s), (8, 8, 32, 0))
        self.assertEqual(c.topic("up"), "qis/1/0102030405060708/up")
        self.assertEqual((c.broker.host, c.broker.port), ("localhost", 1883))
        self.assertIsNone(c.broker.tls)
        self.assertIsNone(c.peers)
        known = {"neighbours": 16, "rows": 16, "depth": 3, "ttl_h": 720}
        self.assertEqual(made(peers={}).peers, known)

    def test_every_error_names_field_value_and_what_to_write(self):
        cases = (
            ("agent", "zz", {"agent": "zz"}),
            ("generation", "256", {"generation": 256}),
            ("generation", "True", {"generation": True}),
            ("root", "'a/+'", {"root": "a/+"}),
            ("root", "'/a'", {"root": "/a"}),
            ("broker.port", "0", {"broker": {"port": 0}}),
            ("broker.host", "7", {"broker": {"host": 7}}),
            ("broker", "[]", {"broker": []}),
            ("journal.batch", "65", {"journal": {"batch": 65}}),
            ("journal.sync", "'never'", {"journal": {"sync": "never"}}),
            ("journal.policy", "'drop'", {"journal": {"policy": "drop"}}),
            ("journal.reserve", "[1, 2]", {"journal": {"reserve": [1, 2]}}),
            ("journal.reserve", "[60, 8, 0]", {"journal": {"reserve": [60, 8, 0]}}),
            ("delivery.window", "0", {"delivery": {"window": 0}}),
            ("delivery.pace_per_s", "1.5", {"delivery": {"pace_per_s": 1.5}}),
            ("priorities.walk", "3", {"priorities": {"walk": 3}}),
            ("coalesce", "'walk'", {"coalesce": "walk"}),
            ("ttl_s", "-1", {"ttl_s": -1}),
            ("encrypt", "1", {"encrypt": 1}),
            ("pad", "100", {"pad": 100}),
            ("pad", "513", {"pad": 513}),
            ("pad", "222", {"pad": 222}),
            ("unsure_below", "256", {"unsure_below": 256}),
            ("peers", "True", {"peers": True}),
            ("peers.neighbours", "24", {"peers": {"neighbours": 24}}),
            ("peers.rows", "65", {"peers": {"rows": 65}}),
            ("peers.depth", "-1", {"peers": {"depth": -1}}),
            ("peers.ttl_h", "0", {"peers": {"ttl_h": 0}}),
            ("sensor.stall_s", "-1", {"sensor": {"kind": "x", "stall_s": -1}}),
        )
        for field, value, fields in cases:
            error = refused(**fields)
            self.assertEqual(error.where, field)
            self.assertIn(value, error.what)
            self.assertTrue(error.fix, field)

    def test_unknown_fields_are_errors(self):
        for where, fields in (
            ("colour", {"colour": 1}),
            ("broker.hots", {"broker": {"hots": "x"}}),
            ("broker.tls.pin", {"broker": {"tls": {"pin": "x"}}}),
            ("journal.size", {"journal": {"size": 1}}),
            ("delivery.pace", {"delivery": {"pace": 1}}),
            ("peers.rings", {"peers": {"rings": 1}}),
        ):
            error = refused(**fields)
            self.assertEqual(error.where, where)
            self.assertIn("Known here", error.fix)

    def test_missing_and_malformed(self):
        for source in ("{", "[]", "3", '{"key": "%s"}' % SECRET, '{"agent": "0102030405060708"}'):
            with self.assertRaises(ConfigError):
                Config.from_json(source)

    def test_secrets_are_never_shown(self):
        c = made(broker={"password": "hunter2"})
        for shown in (repr(c), str(c), repr(c.broker), str(c.broker)):
            self.assertNotIn(SECRET, shown)
            self.assertNotIn("hunter2", shown)
        for fields in ({"key": SECRET[:-1] + "x"}, {"key": SECRET + "00"}, {"key": 7}):
            self.assertNotIn(SECRET[:20], str(refused(**fields)))
        self.assertNotIn("12345", str(refused(broker={"password": 12345})))

    def test_tls_needs_something_to_trust(self):
        error = refused(broker={"tls": {}})
        self.assertEqual(error.where, "broker.tls")
        error = refused(broker={"tls": {"ca": "x.pem", "cert": "c.pem"}})
        self.assertIn("cert and key", error.what)
        c = made(broker={"tls": {"fingerprint": "cd" * 32}})
        self.assertEqual(c.broker.tls.fingerprint, b"\xcd" * 32)
        self.assertEqual(c.broker.port, 8883)

    def test_remote_settings_are_applied_together_or_not_at_all(self):
        c = made()
        names = sorted(REMOTE[n][0] for n in REMOTE)
        self.assertEqual(c.apply({1: 600, 3: 5}), ["duty_s", "pace_per_s"])
        self.assertEqual((c.duty_s, c.pace_per_s), (600, 5))
        with self.assertRaises(ConfigError):
            c.apply({1: 0, 4: 1000})
        self.assertEqual(c.duty_s, 600)
        self.assertEqual(c.apply({200: 1}), [])
        self.assertEqual(c.apply({1: 600}), [])
        for number in REMOTE:
            name, low, high = REMOTE[number]
            self.assertTrue(hasattr(c, name))
            for value in (low, high):
                c.apply({number: value})
                self.assertEqual(getattr(c, name), value)
            for value in (low - 1, high + 1, True, None):
                with self.assertRaises(ConfigError):
                    c.apply({number: value})
        self.assertEqual(len(names), len(set(names)))

    def test_file_must_be_private(self):
        if not hasattr(os, "chmod"):
            return  # MicroPython cannot make the file; the next test covers reading there
        path = "config-test-%d.json" % os.getpid()
        with open(path, "w") as file:
            file.write(json.dumps(GOOD))
        try:
            os.chmod(path, 0o644)
            with self.assertRaises(ConfigError) as caught:
                Config.load(path)
            self.assertIn("chmod 600", caught.exception.fix)
            os.chmod(path, 0o600)
            self.assertEqual(Config.load(path).agent, bytes(range(1, 9)))
            with open(path, "w") as file:
                file.write('{"agent": 1}')
            with self.assertRaises(ConfigError) as caught:
                Config.load(path)
            self.assertIn(path, str(caught.exception))
            self.assertIn("agent", str(caught.exception))
        finally:
            os.remove(path)

    def test_missing_file(self):
        with self.assertRaises(ConfigError) as caught:
            Config.load("/nowhere/device.json")
        self.assertIn("/nowhere/device.json", str(caught.exception))
