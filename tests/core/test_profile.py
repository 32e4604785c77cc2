"""A domain whose vectors are the features themselves: any model, and no embedding of its own."""

import unittest

from upy_crypto import make_crypto

from edge_agent.domain import PROFILE, Domain, VectorSpace
from edge_agent.errors import ModelError
from edge_agent.outcome import distil
from mpy_port.wiring import TfliteModel, check_model

MODELS = (__file__.rpartition("/")[0] or ".") + "/../../models/"


class ProfileDomain(unittest.TestCase):
    def test_what_goes_in_is_the_embedding(self):
        with open(MODELS + "watch.domain", "rb") as file:
            domain = Domain.load(file.read(), make_crypto(), False)
        model = TfliteModel(MODELS + "watch_mlp_int8.tflite")
        check_model(model, domain, "m")
        own = model.run(bytes(48))
        self.assertEqual(len(own.embedding), 64)

        space = domain.space
        more = (space.multiplier, space.shift, space.features)
        domain.space = VectorSpace(48, PROFILE, *more)
        check_model(model, domain, "m")
        features = bytes([i * 5 & 255 for i in range(48)])
        output = model.run(features)
        self.assertEqual((output.embedding, output.zero_point), (features, 0))
        outcome = distil(output, domain, model.model_id)
        self.assertEqual(outcome.vector, domain.vector(features, 0))

        domain.space = VectorSpace(64, PROFILE, *more)
        self.assertRaises(ModelError, check_model, model, domain, "m")


if __name__ == "__main__":
    unittest.main()
