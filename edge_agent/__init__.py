"""The edge agent: from a sensor to outcomes that reach their gateway exactly once.

    from edge_agent import Agent, Config, Domain

Names are loaded when they are first used, so that a board pays only for what it uses and
never for what is made for hosts (`edge_agent.cpython`, `edge_agent.tools`).
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from edge_agent.agent import Agent as Agent
    from edge_agent.config import Config as Config
    from edge_agent.core import AgentCore as AgentCore
    from edge_agent.domain import Domain as Domain
    from edge_agent.errors import EdgeError as EdgeError
    from edge_agent.interfaces import Board as Board
    from edge_agent.journal import Journal as Journal
    from edge_agent.outcome import Outcome as Outcome
    from edge_agent.version import __version__ as __version__

_WHERE = {
    "Agent": "agent",
    "AgentCore": "core",
    "Board": "interfaces",
    "Config": "config",
    "Domain": "domain",
    "EdgeError": "errors",
    "Journal": "journal",
    "Outcome": "outcome",
    "__version__": "version",
}


def __getattr__(name: str) -> object:
    module = _WHERE.get(name)
    try:
        if module is None:
            # MicroPython also asks here for modules: `from edge_agent import frame`.
            return __import__("edge_agent." + name, None, None, ("*",))
        return getattr(__import__("edge_agent." + module, None, None, (name,)), name)
    except ImportError as error:
        if module is not None:
            raise
        raise AttributeError("edge_agent has no %s (%s)" % (name, error))
