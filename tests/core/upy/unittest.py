"""The part of unittest that the core tests use, for MicroPython."""

import gc
import sys
import time


class _Raises:
    def __init__(self, expected):
        self.expected = expected
        self.exception = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            raise AssertionError("%s not raised" % (self.expected,))
        if issubclass(kind, self.expected):
            self.exception = error
            return True
        return False


class TestCase:
    def setUp(self):
        pass

    def tearDown(self):
        pass

    def fail(self, msg=None):
        raise AssertionError(msg or "failed")

    def _check(self, ok, text, values, msg):
        # Values are formatted only when needed: large ones would fill a small heap.
        if not ok:
            text = text % values
            raise AssertionError(text if msg is None else "%s: %s" % (text, msg))

    def assertTrue(self, a, msg=None):
        self._check(a, "%r is not true", (a,), msg)

    def assertFalse(self, a, msg=None):
        self._check(not a, "%r is not false", (a,), msg)

    def assertEqual(self, a, b, msg=None):
        self._check(a == b, "%r != %r", (a, b), msg)

    def assertNotEqual(self, a, b, msg=None):
        self._check(a != b, "%r == %r", (a, b), msg)

    def assertIs(self, a, b, msg=None):
        self._check(a is b, "%r is not %r", (a, b), msg)

    def assertIsNone(self, a, msg=None):
        self._check(a is None, "%r is not None", (a,), msg)

    def assertIsNotNone(self, a, msg=None):
        self._check(a is not None, "unexpectedly None", (), msg)

    def assertIn(self, a, b, msg=None):
        self._check(a in b, "%r not in %r", (a, b), msg)

    def assertNotIn(self, a, b, msg=None):
        self._check(a not in b, "%r in %r", (a, b), msg)

    def assertIsInstance(self, a, b, msg=None):
        self._check(isinstance(a, b), "%r is no %s", (a, b), msg)

    def assertLess(self, a, b, msg=None):
        self._check(a < b, "%r >= %r", (a, b), msg)

    def assertLessEqual(self, a, b, msg=None):
        self._check(a <= b, "%r > %r", (a, b), msg)

    def assertGreater(self, a, b, msg=None):
        self._check(a > b, "%r <= %r", (a, b), msg)

    def assertGreaterEqual(self, a, b, msg=None):
        self._check(a >= b, "%r < %r", (a, b), msg)

    def assertRaises(self, expected, func=None, *args):
        raises = _Raises(expected)
        if func is None:
            return raises
        with raises:
            func(*args)
        return None


def run_modules(names):
    """Run every test of the named modules; the number to exit with."""
    ran, bad = 0, 0
    start = time.ticks_ms()
    for name in names:
        module = __import__(name)
        for attr in sorted(dir(module)):
            case = getattr(module, attr)
            if not (isinstance(case, type) and issubclass(case, TestCase)) or case is TestCase:
                continue
            for test in sorted(dir(case)):
                if not test.startswith("test"):
                    continue
                gc.collect()
                ran += 1
                one = case()
                try:
                    one.setUp()
                    try:
                        getattr(one, test)()
                    finally:
                        one.tearDown()
                except Exception as error:
                    bad += 1
                    print("FAIL %s.%s.%s" % (name, attr, test))
                    sys.print_exception(error)
    took = time.ticks_diff(time.ticks_ms(), start) / 1000
    print("%d passed, %d failed  (%.1f s, MicroPython)" % (ran - bad, bad, took))
    return 1 if bad or not ran else 0
