"""The codebook file, its training, the command, and the one shipped for the watch domain."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from codebook_kit import (
    CRYPTO,
    OWNER,
    PUBLIC,
    SPACE,
    clustered,
    codebook,
    codebook_file,
    decoder,
    domain,
)

from edge_agent import cbor, cose
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain, make_domain
from edge_agent.errors import ConfigError
from gateway import cells
from gateway.cli import main
from gateway.codebook import Codebook, CodebookError, in_use
from gateway.sketch import INT4, INT8, KINDS, SIGN, Sketcher
from gateway.train import order, train
from models import make_codebook

ROOT = Path(__file__).resolve().parents[2]


def reason(data, known=None, verify=True):
    with pytest.raises(CodebookError) as caught:
        Codebook.load(data, CRYPTO, known, verify)
    return caught.value.reason


def changed(**change):
    """The test codebook with some labels replaced (None removes), unsigned."""
    parsed = cose.parse(codebook_file())
    content = cbor.decode(parsed.payload)
    for label, value in change.items():
        number = int(label[1:])
        if value is None:
            del content[number]
        else:
            content[number] = value
    return cbor.encode(cbor.Tag(18, [parsed.protected_raw, {}, cbor.encode(content), bytes(64)]))


def test_a_codebook_is_what_it_says():
    book = codebook()
    assert book.id == hashlib.sha256(codebook_file()).digest()[:8]
    assert (book.k1, book.k2, book.levels1, book.levels2) == (16, 4, 4, 2)
    assert (book.domain_id, book.owner, book.version) == (domain().id, PUBLIC, 1)
    assert book.similarity == "cosine" and book.kind == INT4
    assert "int4x64" in repr(book)


@pytest.mark.parametrize(
    "change, wanted",
    [
        ({"_1": bytes(7)}, "bad-field"),
        ({"_1": None}, "missing-field"),
        ({"_2": 65536}, "bad-field"),
        ({"_2": True}, "bad-field"),
        ({"_3": 4}, "bad-field"),
        ({"_3": 3}, "bad-field"),  # int8 has no steps
        ({"_4": bytes(64)}, "bad-field"),  # a step of 0
        ({"_4": bytes([128] * 64)}, "bad-field"),
        ({"_4": 5}, "bad-field"),
        ({"_5": bytes(63)}, "bad-field"),
        ({"_6": 1024}, "bad-field"),
        ({"_7": bytes(64 * 15)}, "bad-field"),  # no power of two
        ({"_7": b""}, "bad-field"),
        ({"_7": bytes(64)}, "bad-field"),
        ({"_8": bytes(64 * 16 * 3)}, "bad-field"),
        ({"_8": bytes(100)}, "bad-field"),
        ({"_9": "x" * 65}, "bad-field"),
        ({"_10": -1}, "bad-field"),
        ({"_11": None}, "missing-field"),
        ({"_12": bytes(31)}, "bad-field"),
        ({"_13": bytes(16)}, "bad-field"),
        ({"_11": "another note"}, "bad-signature"),
    ],
)
def test_fields(change, wanted):
    assert reason(changed(**change)) == wanted


def test_what_is_no_codebook():
    assert reason(bytes(400_001)) == "too-long"
    assert reason(b"junk") == "not-cbor"
    assert reason(cbor.encode([1, 2])) == "not-cose"
    assert reason(cbor.encode(cbor.Tag(18, [b"", {}, cbor.encode([1]), bytes(64)]))) == "bad-field"
    data = bytearray(codebook_file())
    data[-1] ^= 1
    assert reason(bytes(data)) == "bad-signature"
    assert Codebook.load(bytes(data), CRYPTO, domain(), verify=False).version == 1
    assert reason(codebook_file(), domain("another")) == "wrong-domain"
    # A signature for another purpose, and another owner's domain of the same id.
    parsed = cose.parse(codebook_file())
    header = {1: cose.ALG_EDDSA, 16: 65010}
    assert reason(cose.sign1(CRYPTO, OWNER, header, parsed.payload, b"qis codebook")) == (
        "bad-signature"
    )
    stranger = Domain(CRYPTO, "routing test", bytes(32), 1, SPACE, ["a"], [], [], [])
    stranger.id = domain().id
    assert reason(codebook_file(), stranger) == "wrong-owner"


def test_versions_in_use():
    one, two, three = (codebook(version=v) for v in (1, 2, 3))
    held = [(one, 0), (three, 5000), (two, 1000)]
    assert in_use([], 0, 600) == []
    assert in_use([(one, 0)], 10, 600) == [one]
    assert in_use(held, 900, 600) == [one]  # newer ones not yet
    assert in_use(held, 1599, 600) == [two, one]
    assert in_use(held, 1600, 600) == [two]
    assert in_use(held, 5001, 600) == [three, two]
    assert in_use([(two, 1000)], 10, 600) == [two]  # a clock that went back


def similar(name):
    file = make_domain(CRYPTO, OWNER, PUBLIC, f"{name} world", 1, SPACE, ["a"], similarity=name)
    return Domain.load(file, CRYPTO)


@pytest.mark.parametrize(
    "kind, name", [(INT4, "cosine"), (SIGN, "cosine"), (INT8, "l2"), (INT4, "dot")]
)
def test_training_keeps_neighbours_together(kind, name):
    vectors, which = clustered(3000, 7, clusters=30)
    data = train(similar(name), vectors, OWNER, kind, 3, "test", k1=32, k2=4)
    assert data == train(similar(name), vectors, OWNER, kind, 3, "test", k1=32, k2=4)
    book = Codebook.load(data, CRYPTO, similar(name))
    assert (book.version, book.kind, book.trained_on, book.similarity) == (3, kind, 3000, name)
    assert bool(book.radius) == (name == "cosine")
    fresh, cluster = clustered(600, 8, clusters=30)
    decoded = book.sketcher.decode_many(book.sketcher.encode_many(fresh))
    paths = cells.assign(book, decoded)
    # Members of one cluster share their region; the tree keeps regions of equal size.
    regions = {}
    for path, own in zip(paths, cluster, strict=True):
        regions.setdefault(path[:5], []).append(own)
    pure = sum(np.bincount(members).max() for members in regions.values())
    assert pure / 600 > 0.9
    assert len(regions) > 20


def test_the_decoder_of_signs_is_fitted():
    """Against adding up the matrix's own rows, at the best gain."""
    vectors = clustered(3000, 7, clusters=30)[0]
    data = train(similar("l2"), vectors, OWNER, SIGN, k1=16, k2=4)
    book = Codebook.load(data, CRYPTO, similar("l2"))
    fresh = clustered(500, 8, clusters=30)[0]
    sketches = book.sketcher.encode_many(fresh)

    def error(sketcher):
        return ((sketcher.decode_many(sketches).astype(float) - fresh) ** 2).sum()

    offset = book.sketcher.offset.astype(np.int8).tobytes()
    plain = [
        Sketcher(SIGN, book.domain_id, decoder(book.domain_id, gain, offset), offset)
        for gain in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
    ]
    assert error(book.sketcher) < 0.7 * min(map(error, plain))


def test_order_is_a_tree():
    """Neighbours share the first bits: 64 points on a line come out in order, one way or other."""
    line = np.zeros((64, 64), np.int8)
    line[:, 3] = np.random.default_rng(1).permutation(64)
    found = line[order(line, np.ones(64, np.int64))][:, 3]
    for size in (32, 16, 8, 4, 2):
        for part in found.reshape(-1, size):
            assert part.max() - part.min() == size - 1


def test_training_with_little_variety():
    """A few hundred equal vectors: regions repeat, and everything has its place."""
    vectors = np.repeat(clustered(3, 5)[0], 100, axis=0)
    book = Codebook.load(train(domain(), vectors, OWNER, INT4, k1=16, k2=4), CRYPTO)
    decoded = book.sketcher.decode_many(book.sketcher.encode_many(vectors[::100]))
    assert len({path[:6] for path in cells.assign(book, decoded)}) == 3
    for bad in (vectors[:100], vectors[:, :32], vectors.astype(np.int16)):
        with pytest.raises(ConfigError):
            train(domain(), bad, OWNER, INT4)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "test.domain").write_bytes(
        make_domain(CRYPTO, OWNER, PUBLIC, "routing test", 1, SPACE, ["a", "b"])
    )
    key = tmp_path / "owner.key"
    key.write_text(OWNER.hex() + "\n")
    key.chmod(0o600)
    np.save(tmp_path / "v.npy", clustered(1500, 3)[0])
    return tmp_path


def test_commands(files, capsys):
    arguments = ["domain", "train", str(files / "test.domain"), "--json"]
    arguments += ["--vectors", str(files / "v.npy"), "--vectors", str(files / "v.npy")]
    arguments += ["--key", str(files / "owner.key"), "--out", str(files / "a.codebook")]
    assert main([*arguments, "--note", "made up"]) == 0
    made = json.loads(capsys.readouterr().out)
    data = (files / "a.codebook").read_bytes()
    assert made["sha256"] == hashlib.sha256(data).hexdigest()
    assert made["trained_on"] == 3000 and made["regions"] == [256, 16] and made["note"] == "made up"
    assert main(arguments) == 2  # never over another without --force
    assert "--force" in capsys.readouterr().err
    show = ["domain", "show", str(files / "test.domain")]
    assert main([*show, "--json", "--codebook", str(files / "a.codebook")]) == 0
    assert json.loads(capsys.readouterr().out) == made
    assert main(show) == 0
    assert "routing test" in capsys.readouterr().out


def test_commands_with_bad_input(files, capsys):
    np.save(files / "w.npy", np.zeros((300, 64), np.float32))
    (files / "junk.npy").write_bytes(b"junk")
    (files / "open.key").write_text(OWNER.hex())
    (files / "open.key").chmod(0o644)
    (files / "other.key").write_text(bytes(32).hex())
    (files / "other.key").chmod(0o600)
    good = {"--vectors": "v.npy", "--key": "owner.key", "--out": "b.codebook"}
    for change, status, hint in (
        ({"--vectors": "w.npy"}, 2, "int8"),
        ({"--vectors": "junk.npy"}, 2, "int8"),
        ({"--vectors": "none.npy"}, 2, "none.npy"),
        ({"--key": "open.key"}, 2, "chmod"),
        ({"--key": "v.npy"}, 2, "key"),
        ({"--key": "other.key"}, 1, "wrong-owner"),
    ):
        (files / "v.npy").chmod(0o600)
        arguments = ["domain", "train", str(files / "test.domain")]
        for name, value in {**good, **change}.items():
            arguments += [name, str(files / value)]
        assert main(arguments) == status, change
        assert hint in capsys.readouterr().err
        assert not (files / "b.codebook").exists()
    not_one = ["--codebook", str(files / "v.npy")]
    assert main(["domain", "show", str(files / "v.npy")]) == 1
    assert main(["domain", "show", str(files / "none.domain")]) == 2
    assert main(["domain", "show", str(files / "test.domain"), *not_one]) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [("watch.codebook", "int4x64"), ("watch-sign256.codebook", "sign256")],
)
def test_the_shipped_codebooks(name, kind):
    known = Domain.load((ROOT / "models" / "watch.domain").read_bytes(), CRYPTO)
    data = (ROOT / "models" / name).read_bytes()
    noted = json.loads((ROOT / "models" / "provenance.json").read_text())[name]
    assert noted["sha256"] == hashlib.sha256(data).hexdigest() and noted["bytes"] == len(data)
    assert len(data) < 320_000
    book = Codebook.load(data, CRYPTO, known)
    assert book.kind == KINDS[kind] and book.trained_on == noted["vectors"]
    assert (book.k1, book.k2) == (256, 16)


def test_vectors_are_those_of_devices():
    """The vectorised encoder against LiteRT row by row and Domain.vector."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    known = Domain.load((ROOT / "models" / "watch.domain").read_bytes(), HostCrypto())
    inputs = np.random.default_rng(2).integers(-128, 128, (30, 48)).astype(np.int8)
    vectors, labels = make_codebook.encode(inputs)
    interpreter = Interpreter(
        model_path=str(ROOT / "models" / "watch_mlp_int8.tflite"),
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
    )
    run = interpreter.get_signature_runner()
    zero = run.get_output_details()["embedding"]["quantization"][1]
    for row, vector, label in zip(inputs, vectors, labels, strict=True):
        found = run(features=row[None])
        assert known.vector(found["embedding"].tobytes(), zero) == vector.tobytes()
        assert found["probabilities"].argmax() == label
