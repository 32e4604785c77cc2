"""The postman against everything a link can do: each item is taken once, in order, and the
sender knows. The mailbox is the real one; only the device and the link are played.

The device is what SPEC.md section 10 says of one: it takes the next number and no other, takes
nothing before this connection's first ack, refuses counters it has passed, writes content,
number and counter at once, forgets at a reboot what it only knew, and answers every numbered
box with a hello.
"""

import contextlib
import random
from collections import namedtuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mailbox import NEIGHBOUR, Mailbox
from gateway.postman import (
    ADOPT,
    AGAIN_MS,
    ASK,
    DOUBT,
    MORE,
    SAME,
    TRIES,
    WINDOW,
    Postman,
    Standing,
    judge,
)

AGENT = b"\x07" * 8
START = 1_800_000_000_000
Ack = namedtuple("Ack", "counter nonce")
Box = namedtuple("Box", "counter number body")
Hello = namedtuple("Hello", "nonce counter taken")


class Device:
    """durable: what a power cut leaves: (bodies taken, taken, counter)."""

    def __init__(self):
        self.durable = ((), 0, 0)
        self.images = [self.durable]
        self.ever = set()
        self.boot()
        self.connections = 0

    def boot(self):
        self.counter = self.durable[2]
        self.answered = False

    @property
    def got(self):
        return self.durable[0]

    def connect(self):
        self.connections += 1
        self.answered = False

    def hear(self, ack):
        if ack.counter > self.counter:
            self.counter = ack.counter
            self.answered = self.answered or ack.nonce == self.hello().nonce

    def take(self, box):
        """Whether to answer with a hello."""
        if not self.answered or box.counter <= self.counter:
            return False
        self.counter = box.counter
        bodies, taken, _ = self.durable
        if box.number == taken + 1:
            self.durable = (*bodies, box.body), taken + 1, self.counter
            self.ever.add(box.body)
        return True

    def hello(self):
        return Hello(b"%d" % self.connections, self.counter, self.durable[1])


class Killed(Exception):
    """The gateway's process ends here, between two statements."""


class Mortal(Mailbox):
    """left: statements until it is killed."""

    left = 1 << 60

    def run(self, sql, values=()):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().run(sql, values)


class World:
    """One device, one gateway, and what is on its way between them."""

    def __init__(self, path):
        self.path = path
        self.now = START
        self.counter = START
        self.device = Device()
        self.down, self.up = [], []
        self.puts = {}  # id -> body
        self.made = 0
        self.calm = False
        self.sender = Mailbox(self.path, now_ms=lambda: self.now)  # another process
        self.sender.run("PRAGMA synchronous=OFF")
        self.gateway()

    def gateway(self):
        """A new process: what it had in memory is gone."""
        self.box = Mortal(self.path, now_ms=lambda: self.now)
        self.box.run("PRAGMA synchronous=OFF")  # power cuts are another test's
        self.postman = Postman()
        self.issued = 0

    def close(self):
        self.box.close()
        self.sender.close()

    # -- what a link can do -------------------------------------------------------------

    def step(self, what, n):
        try:
            getattr(self, "do_" + what)(n)
        except Killed:
            self.box.db.close()  # without a commit, as the end of a process does
            self.gateway()

    def do_kill(self, n):
        """Soon: in the middle of whatever it does next."""
        self.box.left = n % 40

    def do_put(self, n):
        self.made += 1
        body = b"%d" % self.made
        key = b"k%d" % (n % 3) if n % 4 == 0 else b""
        made = self.sender.put(AGENT, NEIGHBOUR, body, n % 3, 0, key)
        assert made.reason == "" and made.id not in self.puts
        self.puts[made.id] = body

    def do_wait(self, n):
        self.now += n % (3 * AGAIN_MS)
        self.turn()

    def do_turn(self, _):
        self.turn()

    def do_deliver(self, n):
        """Any box or ack that is under way, in any order; it may be delivered again."""
        if self.down:
            message = self.down[n // 2 % len(self.down)]
            if n % 2:
                self.down.remove(message)
            self.at_device(message)

    def do_lose(self, n):
        if self.down:
            self.down.pop(n % len(self.down))

    def do_answer(self, n):
        """Any hello that was ever said and is not lost, also an old one, also twice."""
        if self.up:
            hello = self.up[n // 2 % len(self.up)]
            if n % 2:
                self.up.remove(hello)
            self.at_gateway(hello)

    def do_mute(self, n):
        if self.up:
            self.up.pop(n % len(self.up))

    def do_connect(self, _):
        self.device.connect()
        self.up.append(self.device.hello())

    def do_reboot(self, n):
        self.device.boot()
        self.do_connect(n)

    def do_restart(self, _):
        self.box.close()
        self.gateway()

    def do_gone(self, _):
        self.postman.away(AGENT)

    def do_session(self, _):
        self.postman.new_session()

    # -- both ends ----------------------------------------------------------------------

    def next_counter(self):
        self.counter = max(self.counter + 1, self.now)
        self.issued = self.counter
        return self.counter

    def at_device(self, message):
        if isinstance(message, Box):
            if self.device.take(message):
                if self.calm and self.up and self.up[-1].nonce == self.device.hello().nonce:
                    self.up.pop()  # one for all that came within a second
                self.up.append(self.device.hello())
        else:
            self.device.hear(message)

    def at_gateway(self, hello):
        self.down.append(Ack(self.next_counter(), hello.nonce))
        asked = self.postman.asked(AGENT)
        verdict = self.box.seen(AGENT, hello.taken, None, hello.counter, asked, self.now)
        self.postman.heard(AGENT, hello.nonce, hello.counter, verdict, self.now)
        self.turn()

    def turn(self):
        items = self.box.open_items(AGENT)
        waiting = self.box.any_waiting(AGENT)
        turn = self.postman.turn(AGENT, [i.number for i in items], waiting, self.now)
        chosen = [i for i in items if i.number in turn.again]
        if turn.room:
            chosen += self.box.bind(AGENT, turn.room, self.now)
        assert len(self.box.open_items(AGENT)) <= WINDOW
        sent = []
        if turn.ask:
            asked = self.issued
            counter = self.next_counter()
            self.down.append(Box(counter, 0xFFFFFFFF, b""))
            self.postman.asking(AGENT, asked or counter)
        for item in chosen:
            counter = self.next_counter()
            self.down.append(Box(counter, item.number, item.body))
            sent.append((item.number, counter))
        self.postman.sent(AGENT, sent, self.now)

    # -- what must hold -------------------------------------------------------------------

    def check(self):
        """Nothing was taken twice; what the sender thinks was taken was."""
        got = self.device.got
        assert len(set(got)) == len(got)
        for id_, body in self.puts.items():
            if self.sender.is_taken(id_):
                assert body in got, f"{body} is said to be taken, the device has {got}"

    def settle(self):
        """The link works from now on: everything ends as it should."""
        self.calm = True
        self.do_restart(0)
        self.do_connect(0)
        for _ in range(2000):
            if self.up:
                self.at_gateway(self.up.pop(0))
            elif self.down:
                self.at_device(self.down.pop(0))
            else:
                self.now += AGAIN_MS
                before = len(self.down)
                self.turn()
                if (
                    len(self.down) == before
                    and not self.postman.lost(AGENT)
                    and (not self.sender.with_mail())
                ):
                    break
        else:
            raise AssertionError("they do not come to rest")
        self.check()
        left = [body for id_, body in self.puts.items() if self.sender.is_taken(id_) is False]
        assert left == []
        known = [t.id for t in self.sender.taken(AGENT, 10_000)]
        assert {self.puts[id_] for id_ in known} == set(self.device.got)


EVENTS = ("put", "put", "wait", "turn", "deliver", "deliver", "deliver", "lose", "answer",
          "answer", "mute", "connect", "reboot", "restart", "kill", "gone", "session")  # fmt: skip


def events(*more):
    return st.lists(st.tuples(st.sampled_from(EVENTS + more), st.integers(0, 1 << 20)), max_size=90)


@contextlib.contextmanager
def world(tmp_path_factory, kind=World):
    made = kind(tmp_path_factory.mktemp("postman") / "mailbox.db")
    try:
        yield made
    finally:
        made.close()


@settings(max_examples=80, deadline=None)
@given(story=events())
def test_each_item_once_in_order_and_the_sender_knows(tmp_path_factory, story):
    with world(tmp_path_factory) as one:
        numbers = {}
        for what, n in story:
            one.step(what, n)
            one.check()
            # A number is never bound to anything else.
            for item in one.sender.open_items(AGENT):
                assert numbers.setdefault(item.number, item.body) == item.body
        one.settle()
        got = one.device.got
        assert [numbers.get(i + 1, body) for i, body in enumerate(got)] == list(got)


class Lossy(World):
    """The device's flash may be wiped or put back to an earlier image, too."""

    def do_wipe(self, n):
        self.device.durable = ((), 0, 0)
        self.device.images = [self.device.durable]
        self.do_reboot(n)

    def do_image(self, _):
        self.device.images.append(self.device.durable)

    def do_restore(self, n):
        """Images of what then did not happen are gone."""
        place = n % len(self.device.images)
        del self.device.images[place + 1 :]
        self.device.durable = self.device.images[place]
        self.do_reboot(n)

    def check(self):
        """A device that lost what it took is known to have done so only later."""
        got = self.device.got
        assert len(set(got)) == len(got)
        for id_, body in self.puts.items():
            if self.sender.is_taken(id_):
                assert body in self.device.ever

    def settle(self):
        super().settle()
        for body in self.device.got:
            assert self.device.got.count(body) == 1
        taken = {self.puts[t.id] for t in self.sender.taken(AGENT, 10_000)}
        assert taken == set(self.device.got)


@settings(max_examples=80, deadline=None)
@given(story=events("wipe", "image", "restore"))
def test_a_device_that_lost_its_flash_gets_everything_again(tmp_path_factory, story):
    with world(tmp_path_factory, Lossy) as one:
        for what, n in story:
            one.step(what, n)
            one.check()
        one.settle()


def long_story(seed, *more):
    rng = random.Random(seed)
    return [(rng.choice(EVENTS + more), rng.randrange(1 << 20)) for _ in range(400)]


@pytest.mark.parametrize("seed", range(8))
def test_long_stories(tmp_path_factory, seed):
    with world(tmp_path_factory) as one:
        for what, n in long_story(seed):
            one.step(what, n)
            one.check()
        one.settle()
        assert len(one.device.got) > 15  # it was about something
    with world(tmp_path_factory, Lossy) as one:
        for what, n in long_story(seed, "wipe", "image", "restore"):
            one.step(what, n)
            one.check()
        one.settle()


def believe_everything(standing, taken, counter, asked):
    """A gateway for which every hello is news."""
    if taken == standing.taken and taken <= standing.top:
        return SAME, standing
    if standing.taken is not None and standing.taken <= taken <= standing.top:
        return MORE, standing._replace(taken=taken)
    return ADOPT, Standing(taken, taken, 0)


def caught(tmp_path_factory, kind=World):
    """Whether one of a few long stories shows a fault."""
    for seed in range(30):
        with world(tmp_path_factory, kind) as one:
            try:
                for what, n in long_story(seed):
                    one.step(what, n)
                    one.check()
                one.settle()
            except AssertionError:
                return True
    return False


def an_old_hello_comes_again(one):
    """What the device said before it took anything is delivered once more."""
    one.calm = True
    one.do_connect(0)
    old = one.up[0]
    one.do_put(1)
    one.do_put(2)
    while one.up or one.down:
        if one.up:
            one.at_gateway(one.up.pop(0))
        else:
            one.at_device(one.down.pop(0))
    assert len(one.device.got) == 2
    one.do_put(3)  # urgent
    one.at_gateway(old)
    one.do_connect(0)
    one.at_gateway(one.up.pop(0))
    one.check()
    one.settle()


def test_an_old_hello_changes_nothing(tmp_path_factory):
    with world(tmp_path_factory) as one:
        an_old_hello_comes_again(one)
        assert len(one.device.got) == 3


def test_the_tests_see_a_postman_who_believes_too_much(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("gateway.mail_carry.judge", believe_everything)
    with world(tmp_path_factory) as one, pytest.raises(AssertionError):
        an_old_hello_comes_again(one)


def test_the_tests_see_numbers_that_are_bound_anew(tmp_path_factory):
    """What is under way is forgotten when the gateway starts again."""

    class Forgetful(World):
        def gateway(self):
            super().gateway()
            with self.box.batch():
                self.box.run("UPDATE items SET number = NULL WHERE taken_ms IS NULL")
                self.box.run("UPDATE boxes SET top = taken WHERE taken IS NOT NULL")

    assert caught(tmp_path_factory, Forgetful)


def test_judgement_of_hellos():
    fresh = Standing()
    assert judge(fresh, 0, 0, 0) == (ASK, fresh)
    assert judge(fresh, 5, 100, 100) == (ADOPT, (5, 5, 100))
    known = Standing(5, 8, 100)
    assert judge(known, 5, 100, 0) == (SAME, known)
    assert judge(known, 7, 100, 0) == (MORE, (7, 8, 100))
    for taken, counter in ((4, 200), (9, 200), (5, 99), (7, 99)):
        assert judge(known, taken, counter, 0) == (DOUBT, known)
        assert judge(known, taken, counter, counter + 1) == (DOUBT, known)
    assert judge(known, 4, 200, 200) == (ADOPT, (4, 4, 200))
    assert judge(known, 9, 250, 200) == (ADOPT, (9, 9, 200))
    # It forgot the counter, nothing else: numbers stay bound.
    assert judge(known, 6, 99, 99) == (ADOPT, (6, 8, 99))


def test_nothing_goes_out_before_a_hello_and_silence_ends_it():
    postman = Postman()
    assert not postman.turn(AGENT, [1, 2], True, 0).again and not postman.here(AGENT)
    postman.heard(AGENT, b"n", 5, SAME, 0)
    assert postman.turn(AGENT, [1, 2], True, 0) == (False, (1, 2), WINDOW - 2)
    postman.sent(AGENT, [(1, 10), (2, 11)], 0)
    assert postman.turn(AGENT, [1, 2], False, AGAIN_MS - 1) == (False, (), 0)
    # Seen and not taken: number 1 was lost on the way, 2 met a gap.
    postman.heard(AGENT, b"n", 10, SAME, 100)
    assert postman.turn(AGENT, [1, 2], False, 100).again == (1,)
    postman.sent(AGENT, [(1, 12)], 100)
    # A new connection: both may be lost.
    postman.heard(AGENT, b"m", 10, SAME, 200)
    assert postman.turn(AGENT, [1, 2], False, 200).again == (1, 2)
    postman.sent(AGENT, [(1, 13), (2, 14)], 200)
    now, times = 200, []
    while postman.here(AGENT):
        now += 1000
        if postman.turn(AGENT, [1, 2], False, now).again:
            times.append(now - 200)
    assert times == [AGAIN_MS * (2**i - 1) for i in range(1, TRIES + 1)]
    postman.heard(AGENT, b"m", 10, SAME, now)
    assert postman.here(AGENT)
    postman.away(AGENT)
    assert postman.turn(AGENT, [1], True, now).again == ()


def test_who_is_in_doubt_is_asked():
    postman = Postman()
    # Never heard of: when there is mail.
    postman.heard(AGENT, b"n", 5, ASK, 0)
    assert not postman.turn(AGENT, [], False, 0).ask
    assert postman.turn(AGENT, [], True, 0) == (True, (), 0)
    assert not postman.turn(AGENT, [], True, AGAIN_MS - 1).ask
    assert postman.turn(AGENT, [], True, 2 * AGAIN_MS).ask
    # Known before: at once, it may have lost what it had.
    postman = Postman()
    postman.heard(AGENT, b"n", 5, DOUBT, 0)
    assert postman.lost(AGENT) and postman.turn(AGENT, [], False, 0).ask
    postman.asking(AGENT, 9)
    postman.heard(AGENT, b"n", 9, ADOPT, 10)
    assert not postman.lost(AGENT) and postman.asked(AGENT) == 0
