"""The demo's site with a kill at a chosen step of a commit.

python agent_kill.py ORDER [arguments of examples.demo.site]

before-sync     control: dies with several outcomes appended, none of them synced
after-sync      control: dies when they are synced and neither published nor in the ledger
publish-first   mutant: publishes each outcome when it is appended; dies before the sync
"""

import asyncio
import sys

from moment import Moment

from edge_agent.journal import Journal
from examples.demo import site

ORDER = sys.argv.pop(1)
ENOUGH = 3  # outcomes that are appended and not synced

moment = Moment()
append = Journal.append
sync = Journal.sync
here = []  # the site, once it is made
unsynced = []  # seqs
early = []  # publishes of these


class Site(site.Site):
    def __init__(self, options):
        super().__init__(options)
        here.append(self)


def append_and(self, seq, frame, *more):
    """The real step; then, in the mutant, a publish that nothing has earned yet."""
    ref = append(self, seq, frame, *more)
    if ORDER == "publish-first" and here:
        publish = here[0].link.publish(here[0].config.topic("up"), bytes(frame), 1)
        early.append(asyncio.get_running_loop().create_task(publish))
    if ORDER != "after-sync":
        unsynced.append(seq)
        # The mutant dies when the broker has taken over what may still be lost here.
        sent = ORDER == "before-sync" or any(task.done() for task in early)
        if len(unsynced) >= ENOUGH and sent:
            moment.reach()
    return ref


def sync_and(self, *more):
    refs = sync(self, *more)
    unsynced.clear()
    early.clear()
    if ORDER == "after-sync" and refs:
        moment.reach()
    return refs


if ORDER not in ("before-sync", "after-sync", "publish-first"):
    sys.exit(f"unknown order {ORDER}")
Journal.append = append_and
Journal.sync = sync_and
site.Site = Site

sys.exit(site.main(sys.argv[1:]))
