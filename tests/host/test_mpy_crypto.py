"""Random inputs: what MicroPython seals, hashes and opens equals what `cryptography` does."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import toolchain

from edge_agent import cose
from edge_agent.cpython.signer import HostCrypto

ROOT = Path(__file__).resolve().parents[2]
INTERPRETERS = {
    "64 bit": Path(sys.executable).with_name("micropython"),
    "32 bit": ROOT / ".cache/micropython/micropython32",  # made by `make micropython`
}
HOST = HostCrypto()

# Reads one JSON list a line: name and hex arguments; answers with hex, or an error's name.
DEVICE = """
import json, sys
sys.path.insert(0, %r)
from binascii import hexlify, unhexlify
from edge_agent import cose
from mpy_port.crypto import StockCrypto
crypto = StockCrypto()
while True:
    line = sys.stdin.readline()
    if not line:
        break
    name, args = json.loads(line)
    args = [unhexlify(a) for a in args]
    try:
        if name == "hkdf":
            result = cose.hkdf(crypto, args[0], args[1], args[2][0])
        else:
            result = getattr(crypto, name)(*args)
        print(hexlify(result).decode())
    except Exception as error:
        print(type(error).__name__)
"""


def on_device(interpreter: Path, jobs: list[tuple[str, list[bytes]]]) -> list[str]:
    lines = "".join(json.dumps([name, [a.hex() for a in args]]) + "\n" for name, args in jobs)
    done = subprocess.run(
        [interpreter, "-c", DEVICE % str(ROOT)],
        input=lines,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = done.stdout.split("\n")[:-1]
    assert len(answers) == len(jobs)
    return answers


@pytest.fixture(params=INTERPRETERS, ids=lambda name: name)
def interpreter(request: pytest.FixtureRequest) -> Path:
    return toolchain.need(INTERPRETERS[request.param])


def some(rand: random.Random, longest: int) -> bytes:
    """Lengths crowd around what AES blocks and hash blocks make special."""
    edge = rand.choice([0, 1, 14, 16, 32, 55, 56, 64, 256, 512])
    size = rand.choice([rand.randrange(longest + 1), max(0, edge + rand.randint(-2, 2))])
    return rand.randbytes(min(size, longest))


def test_equal_to_cryptography(interpreter: Path) -> None:
    rand = random.Random(20260101)
    jobs: list[tuple[str, list[bytes]]] = []
    expected: list[str] = []
    for _ in range(400):
        key, nonce = rand.randbytes(16), rand.randbytes(13)
        plain, aad = some(rand, 520), some(rand, 80)
        sealed = HOST.ccm_seal(key, nonce, plain, aad)
        jobs.append(("ccm_seal", [key, nonce, plain, aad]))
        expected.append(sealed.hex())
        jobs.append(("ccm_open", [key, nonce, sealed, aad]))
        expected.append(plain.hex())
        damaged = bytearray(sealed)
        damaged[rand.randrange(len(damaged))] ^= 1 << rand.randrange(8)
        jobs.append(("ccm_open", [key, nonce, bytes(damaged), aad]))
        expected.append("CoseError")
        mac_key, data = some(rand, 130), some(rand, 600)
        jobs.append(("hmac_sha256", [mac_key, data]))
        expected.append(HOST.hmac_sha256(mac_key, data).hex())
        jobs.append(("sha256", [data]))
        expected.append(HOST.sha256(data).hex())
        length = rand.randint(1, 32)
        jobs.append(("hkdf", [key * 2, aad, bytes([length])]))
        expected.append(cose.hkdf(HOST, key * 2, aad, length).hex())
    answers = on_device(interpreter, jobs)
    wrong = [
        (jobs[i], expected[i], answers[i]) for i in range(len(jobs)) if answers[i] != expected[i]
    ]
    assert not wrong, wrong[:3]
