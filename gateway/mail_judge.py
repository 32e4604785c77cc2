"""The half of mailbox.db where judgements wait until gateway.db has them. See judge.py."""

import json
from typing import NamedTuple

from gateway.mail_db import MailDb

WAITING_MAX = 1000
WAIT_MS = 30 * 86_400_000


class Waiting(NamedTuple):
    """result, label: number or name, label None: as the device said.  domain, stated: of the
    outcome, None until it was found.  agent: whose outcome it must be, b"" for any."""

    id: int
    outcome: bytes
    agent: bytes
    result: "int | str"
    label: "int | str | None"
    domain: "bytes | None"
    stated: "int | None"


class Judgements(MailDb):
    """The newest judgement of an outcome counts. Of too many, the oldest give way."""

    def judge(
        self,
        outcome: bytes,
        result: "int | str",
        label: "int | str | None",
        now_ms: int,
        agent: bytes = b"",
        domain: "bytes | None" = None,
        stated: "int | None" = None,
    ) -> None:
        said = json.dumps([result, label])
        with self.batch():
            self.run("DELETE FROM judgements WHERE outcome = ?", (outcome,))
            self.run(
                "INSERT INTO judgements (outcome, agent, said, put_ms, domain, label)"
                " VALUES (?,?,?,?,?,?)",
                (outcome, agent, said, now_ms, domain, stated),
            )
            gone = self.run(
                "DELETE FROM judgements WHERE put_ms < ? OR id NOT IN"
                " (SELECT id FROM judgements ORDER BY id DESC LIMIT ?)",
                (now_ms - WAIT_MS, WAITING_MAX),
            ).rowcount
            self.run(
                "INSERT INTO meta VALUES ('judgements given up', ?) ON CONFLICT DO UPDATE SET"
                " value = value + excluded.value",
                (gone,),
            )

    def judgements(self) -> list[Waiting]:
        """All that wait, oldest first."""
        rows = self.rows(
            "SELECT id, outcome, agent, said, domain, label FROM judgements ORDER BY id"
        )
        found = []
        for id_, outcome, agent, said, domain, stated in rows:
            result, label = json.loads(said)
            found.append(Waiting(id_, outcome, agent, result, label, domain, stated))
        return found

    def judgements_given_up(self) -> int:
        rows = self.rows("SELECT value FROM meta WHERE key = 'judgements given up'")
        return int(rows[0][0]) if rows else 0

    def judged(self, ids: "list[int]") -> None:
        """gateway.db has them, or they were refused."""
        with self.batch():
            for id_ in ids:
                self.run("DELETE FROM judgements WHERE id = ?", (id_,))
