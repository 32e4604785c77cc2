"""Sites for tests of learning: people 4-10 as the shipped model sees them.

A site is a person: what the left arm did is what its device has lived through, the right arm is
what comes after. Vectors come from the shipped model by way of this project's own runtime.
"""

import contextlib
import functools
import itertools
import json
import time
from pathlib import Path

import numpy as np
import routing_kit
from codebook_kit import CRYPTO, OWNER, PUBLIC
from sklearn.tree import DecisionTreeClassifier

from edge_agent.cpython.model_own import OwnModel
from edge_agent.cpython.sensors.replay import ReplayFile
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import PROFILE, Domain, VectorSpace, make_domain
from edge_agent.effects import Ids
from edge_agent.features import Features
from edge_agent.frame import Box
from edge_agent.mail import Mail
from gateway import heads
from gateway.base_head import base_of
from gateway.codebook import make_codebook
from gateway.mailbox import Mailbox
from gateway.postman import ASK
from mpy_port import tflite

MODELS = Path(__file__).resolve().parents[2] / "models"
MLP = MODELS / "watch_mlp_int8.tflite"
SITES = range(4, 11)
LABELS = 7


@functools.cache
def domain():
    return Domain.load((MODELS / "watch.domain").read_bytes(), HostCrypto())


@functools.cache
def _model():
    return OwnModel(MLP.read_bytes(), "shipped")


@functools.cache
def _replay():
    return ReplayFile(MODELS / "data/watch_replay.bin")


@functools.cache
def base():
    return base_of(MLP.read_bytes(), domain())


@functools.cache
def lived(step=2):
    """person, side -> (vectors, true labels, what the model said), of every step-th window."""
    model, file = (
        OwnModel(MLP.read_bytes(), "shipped"),
        ReplayFile(MODELS / "data/watch_replay.bin"),
    )
    features = Features(domain().features)
    found = {}
    for recording in file.recordings:
        rows = found.setdefault((recording.person, recording.side), ([], [], []))
        for n in range(0, file.windows(recording, 128, 64), step):
            output = model.run(features.apply(file.read(recording, n * 64, 128)))
            rows[0].append(domain().vector(output.embedding, output.zero_point))
            rows[1].append(recording.label)
            rows[2].append(max(range(LABELS), key=lambda i: output.scores[i]))
    return {
        key: (np.frombuffer(b"".join(v), np.int8).reshape(-1, 64), np.array(y), np.array(said))
        for key, (v, y, said) in found.items()
    }


def left(person, weight=4.0):
    """What a site has lived through, confirmed."""
    vectors, truth, said = lived()[person, 0]
    return heads.evidence(vectors, truth, weight, 0, said)


def right(person):
    return lived()[person, 1]


def of_others(person, weight=0.5, claim=lambda origin, truth: truth):
    """Everything that the other six lived through. claim: what an origin says of its labels."""
    parts = []
    for other in SITES:
        if other != person:
            vectors, truth, _ = lived()[other, 0]
            parts.append(heads.evidence(vectors, claim(other, truth), weight, other))
    return heads.join(*parts)


def near_of_others(person, per_label=14, weight=0.5, claim=lambda origin, truth: truth):
    """Of these the nearest within each label to anything lived through here."""
    rows = of_others(person, weight, claim)
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (
        left(person).vectors.astype(float), rows.vectors.astype(float)
    ))  # fmt: skip
    alike = (y @ x.T).max(1)
    chosen = []
    for label in range(LABELS):
        mine = np.flatnonzero(rows.labels == label)
        chosen += mine[np.argsort(-alike[mine], kind="stable")[:per_label]].tolist()
    return rows.take(np.array(chosen))


# -- whole gateways and devices ----------------------------------------------------------------


class LearnSite(routing_kit.Site):
    """A gateway of the watch domain."""

    domain = domain()
    domain_file = (MODELS / "watch.domain").read_bytes()

    @staticmethod
    def codebook(kind):
        return (MODELS / "watch.codebook").read_bytes()


class Person:
    """A device: a model that knows some labels, the device's own mailbox machine, a gateway.

    knows: labels that its model can say.  says(scores, label): what its model makes of the
    shipped one's scores. Its mail is carried by hand, with the real machines at both ends.
    """

    def __init__(self, site, person, knows=range(LABELS), model=b"somemodel"[:8]):
        self.site, self.person, self.knows, self.model = site, person, set(knows), model
        self.ids = Ids()
        settings = {"rows": 16, "neighbours": 16, "depth": 3, "ttl_h": 720}
        self.mail = Mail(settings, self.ids, None, LABELS)
        self.counter = 0

    @property
    def name(self):
        return f"person {self.person}"

    @property
    def agent(self):
        return self.site.devices[self.name].agent

    def decide(self, vector, scores):
        """(label, confidence, more fields of the outcome)."""
        scores = bytes(s if i in self.knows else 0 for i, s in enumerate(scores))
        own = max(range(LABELS), key=lambda i: scores[i])
        said = self.mail.decide(scores, vector, self.model, 0)
        if said is None:
            return own, scores[own], {"model": self.model}
        more = {"parents": said.parents, "depth": said.depth, "head": said.head}
        return said.label, said.confidence, {
            **more, "alone": (own, scores[own]), "model": self.model,
        }  # fmt: skip

    def live(self, rows, confirm=True, claim=lambda truth: truth):
        """rows: (vector, scores, truth). Outcomes, and then what somebody says they were."""
        made = [(v, *self.decide(v, s)) for v, s, _ in rows]
        ids = self.site.commit(self.name, made)
        if confirm:
            told = [
                (None, claim(truth), None, {"about": id_, "result": 1})
                for id_, (_, _, truth) in zip(ids, rows, strict=True)
            ]
            self.site.commit(self.name, told)
        return ids

    def right(self, rows, label=None):
        """Share of rows that it gets right now, of one label or of all."""
        mine = [row for row in rows if label is None or row[2] == label]
        return sum(self.decide(v, s)[0] == truth for v, s, truth in mine) / len(mine)

    def hello(self):
        head, taken = self.mail.report(self.model)
        with contextlib.closing(Mailbox(self.site.folder / "mailbox.db")) as box:
            self.counter += 1
            now = int(time.time() * 1000)
            if box.seen(self.agent, taken, head, self.counter, 0, now) == ASK:
                box.seen(self.agent, taken, head, self.counter, self.counter, now)
            return box.open_items(self.agent) or box.bind(self.agent, 8, now)

    def fetch_mail(self):
        """Until there is no more; how many boxes came."""
        count = 0
        while items := self.hello():
            for item in items:
                self.counter += 1
                count += 1
                assert count < 500
                self.mail.on_box(Box(self.counter, item.type, item.body, item.number), 0)
            while self.mail.busy():
                self.mail.flush([])
                self.mail.on_done(0)
        return count


@functools.cache
def windows(person, side, step=2):
    """[(vector, scores of the shipped model, truth)], the labels taking turns."""
    model, file = _model(), _replay()
    features = Features(domain().features)
    each = []
    for recording in file.recordings:
        if (recording.person, recording.side) == (person, side):
            rows = []
            for n in range(0, file.windows(recording, 128, 64), step):
                output = model.run(features.apply(file.read(recording, n * 64, 128)))
                vector = domain().vector(output.embedding, output.zero_point)
                rows.append((vector, output.scores, recording.label))
            each.append(rows)
    return [row for turn in itertools.zip_longest(*each) for row in turn if row is not None]


# -- one feature profile, three architectures -------------------------------------------------

PROFILE_SPACE = VectorSpace(48, PROFILE, 47, 8, domain().features)
PROFILE_FILE = make_domain(
    CRYPTO, OWNER, PUBLIC, "watch by features", 1, PROFILE_SPACE, domain().labels, domain().tags,
    domain().actions, domain().results,
)  # fmt: skip
PROFILE_DOMAIN = Domain.load(PROFILE_FILE, CRYPTO)


class ProfileSite(LearnSite):
    """A gateway of a domain whose vectors are made of features: any model will do."""

    domain, domain_file = PROFILE_DOMAIN, PROFILE_FILE

    @staticmethod
    def codebook(kind):
        """Centroids are plain samples of people 4 and 5: good enough to test by."""
        rows = [v for p in (4, 5) for v, _, _ in profile_windows("perceptron", p, 0, 1)]
        table = np.frombuffer(b"".join(rows), np.int8).reshape(-1, 64)
        first = table[:: len(table) // 16][:16]
        near = np.random.default_rng(2).normal(0, 15, (16, 4, 64)) + first[:, None]
        second = np.clip(np.rint(near), -127, 127).astype(np.int8)
        return make_codebook(
            CRYPTO, OWNER, PROFILE_DOMAIN, 1, kind, bytes([12] * 64), bytes(64), 0, first, second,
            np.full((16, 4), 9000), 16, "for tests",
        )  # fmt: skip


@functools.cache
def _tree():
    """A decision tree on the features of people 4 and 5, both arms."""
    rows, truth = [], []
    for person in (4, 5):
        for side in (0, 1):
            for samples, label in _samples(person, side, 1):
                rows.append(np.frombuffer(Features(domain().features).apply(samples), np.int8))
                truth.append(label)
    return DecisionTreeClassifier(max_depth=8, random_state=1).fit(np.stack(rows), truth)


@functools.cache
def _convolution():
    """(network, its features)."""
    raw = json.loads((MODELS / "watch_cnn_features.json").read_text())
    lists = {name: tuple(raw[name]) for name in ("offset", "mul")}
    features = Features(domain().features._replace(**{**raw, **lists}))
    return tflite.Interpreter((MODELS / "watch_cnn_int8.tflite").read_bytes()), features


def _samples(person, side, step, share=(0.0, 1.0)):
    """(samples, truth) of every step-th window. share: which part of each recording."""
    file = _replay()
    for recording in file.recordings:
        if (recording.person, recording.side) == (person, side):
            count = file.windows(recording, 128, 64)
            for n in range(int(share[0] * count), int(share[1] * count), step):
                yield file.read(recording, n * 64, 128), recording.label


@functools.cache
def profile_windows(architecture, person, first, last, step=2):
    """[(vector, scores, truth)]: the vector is of the features, the scores are the model's. Both
    arms; first, last: which share of each recording."""
    features, rows = Features(domain().features), []
    both = (_samples(person, side, step, (first, last)) for side in (0, 1))
    for samples, truth in itertools.chain(*both):
        profile = features.apply(samples)
        if architecture == "perceptron":
            scores = _model().run(profile).scores
        elif architecture == "convolution":
            network, raw = _convolution()
            network.set_input(raw.apply(samples), 0)
            network.invoke()
            scores = bytes(value + 128 for value in memoryview(network.output(0)).cast("b"))
        else:
            shares = _tree().predict_proba(np.frombuffer(profile, np.int8)[None])[0]
            scores = bytes(int(255 * share) for share in shares)
        rows.append((PROFILE_DOMAIN.vector(profile, 0), scores, truth))
    order = np.argsort([row[2] for row in rows], kind="stable")
    turns = np.random.default_rng(person).permutation(len(order))
    return [rows[i] for i in turns]
