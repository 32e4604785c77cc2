"""The software version. The wire has a version of its own (SPEC.md, frame.VERSION)."""

__version__ = "0.1.0"
