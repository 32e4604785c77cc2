"""Knobs and the ledger of these tests, on the emulated boards."""

import hashlib

import qemu


def option(name, otherwise):
    """A number from the emulator's command line."""
    text = qemu.option(name)
    return otherwise if text is None else int(text)


def note(*words):
    """A line in the ledger: on the host's disk when this returns."""
    qemu.note((" ".join([str(word) for word in words]) + "\n").encode())


def hexed(data):
    return "".join(["%02x" % b for b in data])


def outcome_name(frame):
    """An outcome's id."""
    return hexed(hashlib.sha256(frame).digest()[:16])
