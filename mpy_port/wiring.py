"""What boards have in common: the model on our interpreter, and the MQTT link."""

import hashlib

from edge_agent.delivery import OFFLINE
from edge_agent.domain import PROFILE
from edge_agent.errors import ModelError
from edge_agent.features import Features
from edge_agent.frame import DeviceKeys
from edge_agent.interfaces import Model, ModelOutput
from mpy_port import tflite
from mpy_port.mqtt.client import MqttLink
from mpy_port.tflite.classifier import Classifier

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.config import Config
    from edge_agent.domain import Domain
    from edge_agent.interfaces import Clock, Crypto


class TfliteModel(Model):
    """A classifier on our interpreter. ModelError with the file's name in front.

    profile: what goes in is the embedding, the model's own is not used.
    """

    profile = False

    def __init__(self, path: str, tier: "str | None" = None) -> None:
        self._where = path
        try:
            self._net = Classifier(path, tier)
        except tflite.ModelError as error:
            raise ModelError(error.what, path + ": " + error.where, error.fix)
        self.sha256 = hashlib.sha256(self._net.data).digest()
        self.model_id = self.sha256[:8]
        self.input_length = self._net.input_length
        self.labels = self._net.labels
        self.embedding_length = self._net.embedding_length

    def run(self, features: bytes) -> ModelOutput:
        try:
            scores, embedding, zero_point = self._net.run(features)
        except tflite.ModelError as error:
            raise ModelError(error.what, self._where + ": " + error.where, error.fix)
        if self.profile:
            return ModelOutput(scores, bytes(features), 0)
        return ModelOutput(scores, embedding, zero_point)


def check_model(model: TfliteModel, domain: "Domain", where: str) -> None:
    """ModelError when outcomes of this model would not be comparable within the domain."""
    encoder = domain.space.encoder
    if isinstance(encoder, bytes) and encoder != model.sha256:
        raise ModelError(
            "is not the encoder of domain " + domain.name,
            where,
            "Use the model file that came with the domain",
        )
    width = Features(domain.features).length
    model.profile = isinstance(encoder, str) and encoder == PROFILE
    for what, has, wants in (
        ("input", model.input_length, width),
        ("embedding", width if model.profile else model.embedding_length, domain.space.dim),
    ):
        if has != wants:
            raise ModelError(
                "its %s has %d values, domain %s wants %d" % (what, has, domain.name, wants), where
            )
    if model.labels > len(domain.labels):
        raise ModelError("it gives %d scores, the domain has fewer labels" % model.labels, where)


def mqtt_link(
    config: "Config", crypto: "Crypto", clock: "Clock", link: "Any" = MqttLink, **more: "Any"
) -> MqttLink:
    """The link that `config` describes; user name and password default to derived ones.

    link: MqttLink or a class made of it, called with `more` besides.
    """
    keys = DeviceKeys(crypto, config.agent, config.key, config.generation)
    agent = "".join(["%02x" % b for b in config.agent])
    found: MqttLink = link(
        config.broker,
        agent,
        config.broker.username or agent,
        config.broker.password or keys.mqtt_password(),
        [config.topic(name) for name in ("ack", "box", "cfg")],
        clock,
        (config.topic("state"), OFFLINE),
        window=config.window + 8,  # hellos and states besides the records
        **more,
    )
    return found
