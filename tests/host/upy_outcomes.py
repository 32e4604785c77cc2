"""Raw windows to sealed frames with the code of a board, on whichever interpreter runs this.

    micropython tests/host/upy_outcomes.py JOB.json

The job names files (domain, model, samples: int16 little-endian windows one after the
other), agent, key, generation, the options of `seal`, unsure_below, tier (null: the best),
and rows: [journal, seq, boot, uptime_ms, utc_s, tags, options] for each window, options being
an index into the list `seal` of [encrypt, pad, small]. With `peers` (those of a configuration)
there are `boxes`, too: [window before which it comes, type, body]; every 5 the mailbox is
written and read again. Prints a line for each window, in hex: features, scores, embedding,
frame, and the mailbox at the end. Nothing here imports anything for hosts only.
"""

import json
import sys
from array import array
from binascii import hexlify, unhexlify

sys.path.insert(0, (__file__.rpartition("/")[0] or ".") + "/../..")

from edge_agent.domain import Domain
from edge_agent.features import Features
from edge_agent.frame import DeviceKeys, OutcomeRecord, seal
from edge_agent.interfaces import ModelOutput
from edge_agent.outcome import distil
from mpy_port.crypto import StockCrypto
from mpy_port.tflite.classifier import Classifier


def read(path):
    with open(path, "rb") as file:
        return file.read()


class Mailbox:
    """Takes boxes in order; starts again from what it wrote, as after a power cut."""

    def __init__(self, peers, boxes, labels):
        from edge_agent.effects import Ids
        from edge_agent.frame import Box
        from edge_agent.mail import Mail

        self.make = lambda data: Mail(peers, Ids(), data, labels)
        self.box = Box
        self.boxes = boxes
        self.mail = self.make(None)

    def before(self, window):
        for number, (at, kind, body) in enumerate(self.boxes, 1):
            if at == window:
                self.mail.on_box(self.box(1000 + number, kind, unhexlify(body), number), 0)
                if number % 5 == 0:
                    self.mail = self.make(self.mail.state())


def main():
    job = json.loads(read(sys.argv[1]))
    crypto = StockCrypto()
    domain = Domain.load(read(job["domain"]), crypto, verify=False)
    keys = DeviceKeys(crypto, unhexlify(job["agent"]), unhexlify(job["key"]), job["generation"])
    model = Classifier(job["model"], job["tier"])
    model_id = crypto.sha256(model.data)[:8]
    features = Features(domain.features)
    length = features.window * features.axes
    mailbox = Mailbox(job["peers"], job["boxes"], len(domain.labels)) if "peers" in job else None
    advise = None
    print("#", sys.implementation.name, model.interpreter.tier)
    with open(job["samples"], "rb") as feed:
        for k, row in enumerate(job["rows"]):
            journal, seq, boot, uptime_ms, utc_s, tags, options = row
            if mailbox is not None:
                mailbox.before(k)
                advise = lambda s, v: mailbox.mail.decide(s, v, model_id, 0)  # noqa: E731
            x = features.apply(array("h", feed.read(2 * length)))
            output = ModelOutput(*model.run(x))
            said = distil(output, domain, model_id, tags, job["unsure_below"], advise)
            record = OutcomeRecord(
                unhexlify(journal),
                seq,
                boot,
                uptime_ms,
                utc_s,
                domain.id,
                said,
                domain.fingerprint(said.vector),
            )
            encrypt, pad, small = job["seal"][options]
            frame = seal(keys, record, encrypt, pad, small)
            parts = x, output.scores, output.embedding, frame
            print(" ".join([hexlify(part).decode() for part in parts]))
    if mailbox is not None:
        print(hexlify(mailbox.mail.state()).decode())


if __name__ == "__main__":
    main()
