"""The loop under an algorithm machine: it always ends, and an aborted run gives its threads back."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tdn_interop.algo.message import KeyBody, TaskMessage
from tdn_interop.algo.task import Aborted, Compute, Computed, Output, Received, Send, Started
from tdn_interop.algo.wire import encode_message
from tdn_interop.app.jobs.driver import Driver, Place
from tdn_interop.errors import PeerProtocolError, Reason, TdnError, Unavailable

MESSAGE = TaskMessage(bytes(32), 1, "item-key", 0, True, KeyBody(b"k"))
GONE = Unavailable(Reason.DEADLINE, "the peer is gone")


class Channels:
    """`gone` says at which call the peer is lost; `heard` is what the peer sends."""

    def __init__(self, gone="", heard=()):
        self.gone, self.heard, self.sent, self.flushed = gone, list(heard), [], False

    async def send(self, _node, _topic, data, _limit_s):
        if self.gone == "send":
            raise GONE
        self.sent.append(data)

    async def receive(self, _topic, node):
        if self.gone == "receive":
            raise GONE
        if not self.heard:
            await asyncio.Event().wait()
        return node, self.heard.pop(0)

    async def flush(self, *_):
        if self.gone == "flush":
            raise GONE
        self.flushed = True


class Machine:
    """Does what it is told at the start, is over after so many events."""

    def __init__(self, effects, over_after=1):
        self.effects, self.left, self.events = effects, over_after, []

    @property
    def over(self):
        return self.left <= 0

    def step(self, event):
        self.events.append(event)
        self.left = 0 if isinstance(event, Aborted) else self.left - 1
        return self.effects if isinstance(event, Started) else []


def driver(machine, channels, pool=None):
    return Driver(machine, Place("t", {"b": "b.x.cn"}, 1), channels, pool, lambda _items: None)


async def run(*arguments):
    async with asyncio.timeout(5):
        return await driver(*arguments).run()


async def test_all_is_sent_and_flushed_before_the_end():
    channels = Channels()
    result = await run(Machine([Send("b", MESSAGE), Output((1, 2)), Send("b", MESSAGE)]), channels)
    assert result.output == (1, 2)
    assert channels.sent == [encode_message(MESSAGE)] * 2
    assert channels.flushed


@pytest.mark.parametrize("gone", ["send", "flush"])
async def test_a_peer_that_is_lost_when_the_machine_is_over(gone):
    with pytest.raises(Unavailable) as error:
        await run(Machine([Send("b", MESSAGE)] * 3), Channels(gone))
    assert error.value.__cause__ is GONE


@pytest.mark.parametrize("gone", ["send", "receive"])
async def test_a_peer_that_is_lost_in_the_middle(gone):
    machine = Machine([Send("b", MESSAGE)], over_after=9)
    with pytest.raises(Unavailable):
        await run(machine, Channels(gone))
    assert isinstance(machine.events[-1], Aborted)


async def test_what_a_peer_sends_reaches_the_machine_or_ends_the_run():
    machine = Machine([], over_after=2)
    await run(machine, Channels(heard=[encode_message(MESSAGE)]))
    assert machine.events[1] == Received("b", MESSAGE)
    with pytest.raises(PeerProtocolError):
        await run(Machine([], over_after=2), Channels(heard=[b"\xff"]))


async def test_a_defect_of_a_worker_ends_the_run():
    channels = Channels()
    channels.send = None
    with pytest.raises(TdnError) as error:
        await run(Machine([Send("b", MESSAGE)], over_after=9), channels)
    assert error.value.reason is Reason.INTERNAL


async def test_a_run_that_ends_early_leaves_no_computations_behind():
    entered, go_on, ran = threading.Event(), threading.Event(), []

    def block(number):
        ran.append(number)
        entered.set()
        go_on.wait(5)

    with ThreadPoolExecutor(1) as pool:
        effects = [Compute(number, block, (number,)) for number in range(50)]
        work = asyncio.create_task(driver(Machine(effects, 99), Channels(), pool).run())
        await asyncio.to_thread(entered.wait, 5)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        go_on.set()
    assert ran == [0]


async def test_computations_answer():
    machine = Machine([Compute(7, lambda: "done", ())], over_after=2)
    with ThreadPoolExecutor(1) as pool:
        await run(machine, Channels(), pool)
    assert machine.events[1] == Computed(7, "done")
