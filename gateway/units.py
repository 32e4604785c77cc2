"""systemd units of gateway, broker, routing, DHT seed and agents. Pure: text from facts.

Each service runs as a user that owns its folder and nothing else, may not gain rights, sees
a read-only system, no home directories and no devices (the agent: those that sensors hang
on), and talks IP and Unix sockets only. It says when it is ready and that it is alive
(Type=notify, WatchdogSec): a loop that hangs is ended and started again, which loses
nothing, because only what was committed was acknowledged.

`systemd-analyze verify` and `security` are run on this text in tests/host/test_units.py, and
the units themselves in hw_tests/test_deploy.py.
"""

from pathlib import Path
from typing import NamedTuple

GATEWAY_USER, AGENT_USER = "edge-gateway", "edge-agent"
STATE = Path("/var/lib")
AGENTS = STATE / "edge-agent"
WATCHDOG_S = 120
# Groups that Debian gives to buses of sensors; an agent is in those that exist.
SENSOR_GROUPS = ("i2c", "spi", "gpio", "dialout", "audio", "iio")
SENSOR_DEVICES = ("char-i2c", "char-spidev", "char-gpiochip", "char-iio", "char-ttyUSB",
                  "char-ttyACM", "char-alsa")  # fmt: skip
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))

_HARD = """\
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
LimitCORE=0
ProtectSystem=strict
ProtectHome={home}
PrivateTmp=yes
PrivateMounts=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
"""


class Facts(NamedTuple):
    """What install found out.

    python: the interpreter. pythonpath: "" or where the package is, when it is nowhere that
    this interpreter looks by itself. folder: of the gateway. hidden: folders below HOMES that
    the services need to see. groups: of SENSOR_GROUPS, those that exist.
    """

    python: str
    pythonpath: str
    folder: Path
    hidden: "tuple[Path, ...]" = ()
    groups: "tuple[str, ...]" = ()


def units(facts: Facts) -> "dict[str, str]":
    """{file name: text}."""
    command = f"{facts.python} -m gateway.cli -C {facts.folder}"
    return {
        "edge-gateway-broker.service": _service(
            facts, "Broker of the edge gateway", f"{command} mosquitto",
            before="edge-gateway.service", more="LimitNOFILE=65536\n",
        ),
        "edge-gateway.service": _service(
            facts, "Edge gateway: takes outcomes in", f"{command} run",
            after="edge-gateway-broker.service", wants="edge-gateway-broker.service",
        ),
        "edge-gateway-route.service": _service(
            facts, "Edge gateway: announces and finds outcomes", f"{command} route",
            after="edge-gateway.service", when=f"{facts.folder}/routing/network.json",
        ),
        "edge-gateway-seed.service": _service(
            facts, "Edge gateway: a seed of the DHT",
            f"{facts.python} -m gateway.dht_node --config {facts.folder}/seed.json",
            when=f"{facts.folder}/seed.json", notify=False,
        ),
        "edge-agent@.service": _agent(facts),
    }  # fmt: skip


def sysusers() -> str:
    """For systemd-sysusers: who the services are."""
    return (
        f'u {GATEWAY_USER} - "Edge gateway" {STATE / "edge-gateway"}\n'
        f'u {AGENT_USER} - "Edge agent" {AGENTS}\n'
    )


def _service(
    facts: Facts,
    text: str,
    command: str,
    after: str = "",
    before: str = "",
    wants: str = "",
    when: str = "",
    more: str = "",
    notify: bool = True,
) -> str:
    folder = facts.folder
    own = (
        f"StateDirectory={folder.relative_to(STATE)}\nStateDirectoryMode=0700\n"
        if folder.is_relative_to(STATE)
        else f"ReadWritePaths={folder}\n"
    )
    unit = [f"Description={text}", f"After=network-online.target {after}".rstrip()]
    unit += ["Wants=network-online.target" + (f" {wants}" if wants else "")]
    unit += [f"Before={before}"] if before else []
    unit += [f"ConditionPathExists={when}"] if when else []
    life = (
        f"Type=notify\nNotifyAccess=main\nWatchdogSec={WATCHDOG_S}\n" if notify else "Type=exec\n"
    )
    return (
        "# Written by `edge-gateway install`; yours belongs into `systemctl edit`.\n"
        "[Unit]\n" + "\n".join(unit) + "\n\n"
        "[Service]\n" + life + _start(facts, command, "always") + f"User={GATEWAY_USER}\n"
        f"Group={GATEWAY_USER}\nWorkingDirectory={folder}\n{own}{more}"
        "PrivateDevices=yes\nPrivateUsers=yes\nProcSubset=pid\n" + _hard(facts) + "\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def _agent(facts: Facts) -> str:
    groups = f"SupplementaryGroups={' '.join(facts.groups)}\n" if facts.groups else ""
    devices = "".join(f"DeviceAllow={name} rw\n" for name in SENSOR_DEVICES)
    return (
        "# Written by `edge-gateway install`; yours belongs into `systemctl edit`.\n"
        "[Unit]\nDescription=Edge agent %i\nAfter=network-online.target\n"
        "Wants=network-online.target\n"
        f"ConditionPathExists={AGENTS}/%i/device.json\n\n"
        f"[Service]\nType=notify\nNotifyAccess=main\nWatchdogSec={WATCHDOG_S}\n"
        + _start(facts, f"{facts.python} -m edge_agent.cli run --config device.json", "on-failure")
        + f"User={AGENT_USER}\nGroup={AGENT_USER}\n{groups}"
        f"WorkingDirectory={AGENTS}/%i\nStateDirectory=edge-agent/%i\nStateDirectoryMode=0700\n"
        f"DevicePolicy=closed\n{devices}" + _hard(facts) + "\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def _start(facts: Facts, command: str, restart: str) -> str:
    path = f"Environment=PYTHONPATH={facts.pythonpath}\n" if facts.pythonpath else ""
    return (
        f"{path}Environment=PYTHONDONTWRITEBYTECODE=1\nExecStart={command}\n"
        f"Restart={restart}\nRestartSec=2\nTimeoutStartSec=180\nTimeoutStopSec=30\n"
    )


def _hard(facts: Facts) -> str:
    text = _HARD.format(home="tmpfs" if facts.hidden else "yes")
    return text + "".join(f"BindReadOnlyPaths={path}\n" for path in facts.hidden)
