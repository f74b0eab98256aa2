"""Two ends of transfers in one process, on real stores and files, that can be killed at any of their awaits."""

import asyncio
import contextlib
from collections import defaultdict, deque
from dataclasses import dataclass, field

from tdn_interop.app.files.moving import Sizes
from tdn_interop.app.files.transfer import Transfers
from tdn_interop.app.store.engine import Store
from tdn_interop.errors import Reason, Unavailable
from tdn_interop.transport.channel import ChannelEvent

SIZES = Sizes(part=64, window=256, checkpoint=128)
CREDIT = 3  # messages on a topic that nobody has received


@dataclass
class Doom:
    """When an end dies: at its `left`-th call of the store or the channels, before or after that is done."""

    left: int = -1
    after: bool = False

    async def call(self, work):
        """Do `work` unless the end is dead. A dead process goes no further: whoever called is cancelled."""
        if self.left == 0:
            raise asyncio.CancelledError
        self.left -= self.left > 0
        if self.left == 0 and not self.after:
            raise asyncio.CancelledError
        result = await work()
        if self.left == 0:
            raise asyncio.CancelledError
        return result


@dataclass
class DyingStore:
    """A store whose process may die around a transaction."""

    store: Store
    doom: Doom

    async def run(self, fn):
        return await self.doom.call(lambda: self.store.run(fn))


@dataclass
class Messages:
    """What one life of a node has of its channels: ordered, exactly once, lost with the session."""

    me: str
    world: "World"
    doom: Doom
    queues: defaultdict = field(default_factory=lambda: defaultdict(deque))  # by topic: (peer, message)
    changed: list = field(default_factory=list)
    failures: int = 0

    async def send(self, peer, topic, payload, timeout_s):
        async def work():
            async with asyncio.timeout(timeout_s):
                await self._queue(peer, topic, payload)

        await self.doom.call(work)

    async def _queue(self, peer, topic, payload):
        there, session = self.world.open(self.me, peer), self.failures
        while len(there.messages.queues[topic]) >= CREDIT:
            await there.messages.change()
            if self.failures != session:
                raise lost()
        there.messages.queues[topic].append((self.me, payload))
        there.messages.beat()
        await asyncio.sleep(0)

    async def receive(self, topic, peer=None, timeout_s=None):
        async def work():
            session = self.failures
            async with asyncio.timeout(timeout_s):
                while not self.queues[topic]:
                    await self.change()
                    if peer and self.failures != session and not self.queues[topic]:
                        raise lost()
            message = self.queues[topic].popleft()
            self.beat()
            return message

        return await self.doom.call(work)

    def discard(self, prefix):
        for topic in [topic for topic in self.queues if topic.startswith(prefix)]:
            self.queues.pop(topic)
        self.beat()

    def fail(self):
        self.failures += 1
        self.beat()

    def beat(self):
        waiters, self.changed = self.changed, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def change(self):
        waiter = asyncio.get_running_loop().create_future()
        self.changed.append(waiter)
        await waiter


def lost():
    return Unavailable(Reason.SESSION_UNKNOWN, "the session is gone")


async def _anybody(_name):
    return True


@dataclass
class End:
    """A node in one of its lives, and the command of its owner."""

    messages: Messages
    store: Store
    transfers: Transfers
    doom: Doom
    command: asyncio.Task


@dataclass
class World:
    """`commands` makes the command of an owner, by node: the same one in every life."""

    folder: object
    commands: dict
    ends: dict = field(default_factory=dict)
    sessions: set = field(default_factory=set)
    refusals: list = field(default_factory=list)

    def open(self, me, peer):
        """The other end, after both have heard that there is a session."""
        if peer not in self.ends:
            raise Unavailable(Reason.UNREACHABLE, f"{peer} is away")
        if not self.sessions:
            self.sessions.add(frozenset({me, peer}))
            self._tell("opened")
        return self.ends[peer]

    def cut(self):
        """The session is lost; what was received stays, what was on its way is gone."""
        if self.sessions:
            self.sessions.clear()
            for end in self.ends.values():
                end.messages.fail()
            self._tell("failed")

    def _tell(self, kind):
        for me, end in self.ends.items():
            for peer in self.ends.keys() - {me}:
                end.transfers.on_session(
                    ChannelEvent(kind, peer, reason="SESSION_UNKNOWN" * (kind == "failed"))
                )

    async def start(self, name):
        doom = Doom()
        store = Store.open(f"sqlite:///{self.folder}/{name}.db")
        messages = Messages(name, self, doom)
        transfers = Transfers(name, messages, DyingStore(store, doom), self.refusals.append, _anybody, SIZES)
        await transfers.start()
        command = asyncio.create_task(_finish(self.commands[name](transfers)))
        self.ends[name] = End(messages, store, transfers, doom, command)

    async def kill(self, name):
        """End a life: nothing of it happens any more."""
        end = self.ends[name]
        end.doom.left = 0
        del self.ends[name]
        self.cut_from(end, name)
        end.transfers._leaving = True  # a dead process gives nothing up
        end.command.cancel()
        await asyncio.gather(end.command, return_exceptions=True)
        await end.transfers.close()
        end.store.close()

    def cut_from(self, dead, name):
        """The survivors learn of a death."""
        self.sessions.clear()
        for end in self.ends.values():
            end.messages.fail()
            end.transfers.on_session(ChannelEvent("failed", name, reason="SESSION_UNKNOWN"))
        dead.messages.beat()

    async def close(self):
        for name in list(self.ends):
            await self.kill(name)


async def _finish(steps):
    """The last progress of a command."""
    async with contextlib.aclosing(steps):
        async for now in steps:
            last = now
    return last
