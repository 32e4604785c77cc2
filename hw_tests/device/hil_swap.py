"""A new model comes while the agent works: in boxes, piece by piece, over MQTT.

A box of type 200 holds where its bytes belong (u16), how long the file is (u16), and the
bytes. Pieces are taken in order; each is noted as "m NEXT", where the next one begins. With
the last one the agent changes to the model, and later boots begin with it.
"""

import os

from hil_note import note

from edge_agent.errors import ModelError
from mpy_port.unload import unload
from mpy_port.wiring import TfliteModel, check_model

BOX = 200
COMING, NEXT = "/coming.tflite", "/next.tflite"


def chosen(path):
    """The model to begin with."""
    return NEXT if NEXT[1:] in os.listdir("/") else path


class Swap:
    """A handler of boxes."""

    def __init__(self, domain):
        self.domain = domain
        self.agent = None
        self.taken = 0

    def __call__(self, body):
        at = body[0] << 8 | body[1]
        size = body[2] << 8 | body[3]
        if at == self.taken < size:
            with open(COMING, "ab" if at else "wb") as file:
                file.write(body[4:])
            self.taken += len(body) - 4
        note("m", self.taken)
        if self.taken == size and COMING[1:] in os.listdir("/"):
            self.change()

    def change(self):
        os.rename(COMING, NEXT)
        try:
            found = TfliteModel(NEXT)
            check_model(found, self.domain, NEXT)
        except ModelError as error:
            os.remove(NEXT)
            note("x", repr(error))
            return
        self.agent.use_model(found)
        unload()
        note("v", "model-replaced", "")
