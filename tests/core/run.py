"""Run the core tests on whichever interpreter executes this file.

    python tests/core/run.py [test_name ...]
    micropython tests/core/run.py [test_name ...]

The same files run on both. MicroPython has no unittest, so a small one of our own
stands in there (`tests/core/upy/unittest.py`). Exit status 1 when a test failed or
none was found.
"""

import os
import sys

HERE = __file__.rpartition("/")[0] or "."
ROOT = HERE + "/../.."
sys.path.insert(0, ROOT)
sys.path.insert(0, HERE)
if sys.implementation.name == "micropython":
    sys.path.insert(0, HERE + "/upy")

import unittest  # noqa: E402


def wanted():
    names = [n for n in sys.argv[1:] if not n.startswith("-")]
    if names:
        return [n.rpartition("/")[2].replace(".py", "") for n in names]
    return sorted(n[:-3] for n in os.listdir(HERE) if n.startswith("test_") and n.endswith(".py"))


def main():
    if sys.implementation.name == "micropython":
        return unittest.run_modules(wanted())
    suite = unittest.defaultTestLoader.loadTestsFromNames(wanted())
    result = unittest.TextTestRunner(verbosity=1).run(suite)
    return 0 if result.wasSuccessful() and result.testsRun else 1


if __name__ == "__main__":
    sys.exit(main())
