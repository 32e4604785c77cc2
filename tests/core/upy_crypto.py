"""Crypto for the core tests: the real adapter of whichever interpreter runs them."""

import sys

HOST = sys.implementation.name != "micropython"


def make_crypto():
    """Ed25519 is there on hosts only."""
    if HOST:
        from edge_agent.cpython.signer import HostCrypto

        return HostCrypto()
    from mpy_port.crypto import StockCrypto

    return StockCrypto()
