"""Knobs and the ledger of these tests.

On an emulated board they are the emulator's: words of its command line, a file of the host.
On a board behind a serial port, which has /hil.json, knobs are there and notes go to the
console, each a line that begins with "@ "; the board says "@ ?" until somebody listens.
"""

import hashlib
import json
import sys

try:
    with open("/hil.json") as _file:
        KNOBS = json.load(_file)
except OSError:
    KNOBS = None
    import qemu


def word(name):
    """A knob, None when it is not set."""
    return qemu.option(name) if KNOBS is None else KNOBS.get(name)


def option(name, otherwise):
    """A number from the knobs."""
    text = word(name)
    return otherwise if text is None else int(text)


def note(*words):
    """A line in the ledger: on the host's disk, or on its way there, when this returns."""
    text = " ".join([str(word) for word in words]) + "\n"
    if KNOBS is None:
        qemu.note(text.encode())
    else:
        sys.stdout.write("@ " + text)


def note_flash():
    """What flash operations there were, where that is counted."""
    if KNOBS is None:
        note("s", *qemu.stats())


def hexed(data):
    return "".join(["%02x" % b for b in data])


def outcome_name(frame):
    """An outcome's id."""
    return hexed(hashlib.sha256(frame).digest()[:16])


def wait_for_listener():
    import select

    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN)
    while not poll.poll(100):
        sys.stdout.write("@ ?\n")
    sys.stdin.read(1)


if KNOBS is not None:
    wait_for_listener()
