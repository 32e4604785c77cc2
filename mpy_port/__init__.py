"""Parts that run on stock MicroPython firmware, and on CPython where they are useful there."""
