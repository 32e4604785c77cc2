"""The README's agent, with a ledger: each record that became durable, on a line to the host."""

import asyncio
import sys

from edge_agent import Agent, Config, Domain
from edge_agent.cpython.board import linux_board
from edge_agent.cpython.model_litert import load_model
from edge_agent.cpython.signer import HostCrypto
from edge_agent.frame import outcome_id


def main() -> None:
    config = Config.load("pi.json")
    with open(config.domain, "rb") as file:
        domain = Domain.load(file.read(), HostCrypto())
    ledger = open("/dev/ledger", "w", buffering=1)  # noqa: SIM115 - to the end
    board = linux_board(config, model=load_model(config.model, "litert", domain), domain=domain)
    agent = Agent(
        board,
        config,
        domain,
        on_committed=lambda key, seq, frame: print(
            "c", agent.journal.journal_id.hex(), seq, outcome_id(frame).hex(), file=ledger
        ),
    )
    print("b", agent.journal.boot, agent.journal.journal_id.hex(), 0, 1, file=ledger)
    asyncio.run(agent.run(drain=True))
    pending = sum(agent.status()["journal_stats"]["pending"])
    print("e", pending, file=ledger)
    sys.exit(1 if pending else 0)


main()
