"""The Linux board: adapters made from a configuration."""

from edge_agent.config import Config
from edge_agent.cpython.clock import LinuxClock
from edge_agent.cpython.link_mqtt import MqttLink
from edge_agent.cpython.signer import HostCrypto, HostEntropy
from edge_agent.cpython.store import FileStore
from edge_agent.delivery import OFFLINE
from edge_agent.domain import Domain
from edge_agent.frame import DeviceKeys
from edge_agent.interfaces import Board, Link, Model, Sensor


def mqtt_link(config: Config) -> MqttLink:
    """The link that `config` describes; user name and password default to derived ones."""
    keys = DeviceKeys(HostCrypto(), config.agent, config.key, config.generation)
    return MqttLink(
        config.broker,
        client_id=config.agent.hex(),
        username=config.broker.username or config.agent.hex(),
        password=config.broker.password or keys.mqtt_password(),
        subscriptions=[config.topic(name) for name in ("ack", "box", "cfg")],
        will=(config.topic("state"), OFFLINE),
        max_inflight=config.window + 8,  # hellos and states besides the records
    )


def linux_board(
    config: Config,
    model: Model | None = None,
    sensor: Sensor | None = None,
    link: Link | None = None,
    domain: Domain | None = None,
) -> Board:
    """A Board for this machine. Arguments replace what would be made from `config`.

    domain: what model and sensor are made to fit; needed unless both are given.
    ConfigError, StoreError, ModelError or SensorError when a part cannot be made.
    """
    if model is None:
        from edge_agent.cpython.model_litert import load_model

        model = load_model(config.model, domain=domain)
    if sensor is None:
        from edge_agent.cpython.sensors import open_sensor

        sensor = open_sensor(config.sensor, domain)
    return Board(
        clock=LinuxClock(),
        entropy=HostEntropy(),
        crypto=HostCrypto(),
        store=FileStore(config.journal_path),
        link=link if link is not None else mqtt_link(config),
        model=model,
        sensor=sensor,
    )
