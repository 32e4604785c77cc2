"""edge-gateway with its commit and its acknowledgements pulled apart.

python gateway_kill.py ORDER [arguments of edge-gateway]

before-commit   control: dies when a batch is judged, neither committed nor acknowledged
after-commit    control: dies when the batch is on disk and not yet acknowledged
ack-first       mutant: acknowledges, then commits; dies between the two
no-dedupe       mutant: takes every frame for a new one; dies as after-commit does
"""

import sys

from moment import Moment

from gateway import cli, opening
from gateway.custody import Custody
from gateway.mqtt import Bridge

ORDER = sys.argv.pop(1)
moment = Moment()
commit = Custody.commit
flush = Bridge._flush


def commit_between(self, plan):
    """The real commit, with a moment on one side of it."""
    if ORDER == "before-commit" and plan.rows:
        moment.reach()
    commit(self, plan)
    if ORDER in ("after-commit", "no-dedupe") and plan.rows:
        moment.reach()


def ack_first(self):
    """Bridge._flush with everything in the wrong order."""
    pending, self._pending = self._pending, []
    plan = self.custody.judge([(topic, payload) for topic, payload, _ in pending], now_ms())
    for topic, payload in self.custody.answers(plan):
        self.client.publish(topic, payload, qos=1)
    for _, _, mid in pending:
        if mid:
            self.client.ack(mid, 1)
    while self.client.want_write():
        self.client.loop_write()
    if plan.rows:
        moment.reach()
    commit(self.custody, plan)


def now_ms():
    return opening.now_ms()


def never_seen(self, agent, journal, seq):
    return None


Custody.commit = commit_between
if ORDER == "ack-first":
    Bridge._flush = ack_first
elif ORDER == "no-dedupe":
    Custody._seen = never_seen
elif ORDER not in ("before-commit", "after-commit"):
    sys.exit(f"unknown order {ORDER}")

sys.exit(cli.main(sys.argv[1:]))
