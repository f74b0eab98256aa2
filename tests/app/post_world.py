"""Two ends of the post over a wire in memory; either can be killed at any await or commit and comes back."""

import asyncio
import contextlib

import sqlalchemy as sa

from tdn_interop.app.post.post import Post
from tdn_interop.app.store.engine import Store
from tdn_interop.errors import Reason, Unavailable
from tdn_interop.transport.channel import ChannelEvent
from tdn_interop.transport.trust import now_ms

DONE = "CREATE TABLE IF NOT EXISTS done (id INTEGER PRIMARY KEY, peer TEXT, body BLOB)"


class End:
    """One node: its database stays, everything else is lost when it dies. It also is its own channels and store."""

    def __init__(self, me: str, folder, net: dict[str, "End"]) -> None:
        self.me, self.net = me, net
        self.url = f"sqlite:///{folder}/{me}.db"
        self.fuse, self.points, self.deaths = None, 0, 0
        self.refusals, self.given_up, self.wire = [], [], []
        self.lost = frozenset()  # ordinals of messages that go down with a session
        self.online, self.skew_ms = True, 0
        self.away = None
        net[me] = self

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        self.dead, self.tasks, self.inbox = asyncio.Event(), set(), asyncio.Queue()
        self.store = Store.open(self.url)
        await self.store.run(lambda c: c.exec_driver_sql(DONE))
        self.post = Post(self, self, self.spawn, self.refusals.append, clock=self.clock, pause_s=0.002)
        self.post.consumer = self.consume
        self.post.expired = lambda peer, body: self.given_up.append((peer, body))
        self.post.away = self.away
        self.spawn(self.post.start())
        for other in self.net.values():
            if other is not self and hasattr(other, "post"):
                other.post.on_channel(ChannelEvent("failed", self.me))
                other.post.on_channel(ChannelEvent("opened", self.me))

    async def stop(self) -> None:
        self.dead.set()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.store.close()

    async def restart(self) -> None:
        await self.stop()
        self.deaths += 1
        await self.start()

    def spawn(self, work) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task) -> None:
        if not task.cancelled() and task.exception():
            self.refusals.append(task.exception())

    def clock(self) -> int:
        return now_ms() + self.skew_ms

    async def point(self) -> None:
        """A place to die: nothing of this end happens after it."""
        if self.points == self.fuse:
            self.fuse = None
            self.dead.set()
        self.points += 1
        if self.dead.is_set():
            await asyncio.Event().wait()

    # -- the store and the channels that the post sees -------------------------------------------

    async def run(self, fn):
        await self.point()
        result = await self.store.run(fn)
        await self.point()
        return result

    async def send(self, peer, topic, payload, timeout_s) -> None:
        del topic, timeout_s
        await self.point()
        other = self.net[peer]
        if not other.online or other.dead.is_set():
            raise Unavailable(Reason.UNREACHABLE, "away", "TDN-T-RTE-03")
        if len(self.wire) not in self.lost:
            other.inbox.put_nowait((self.me, payload))
        self.wire.append(payload)
        await self.point()

    async def receive(self, topic):
        del topic
        got = await self.inbox.get()
        await self.point()
        return got

    # -- the application -----------------------------------------------------------------------

    async def consume(self, parcel) -> None:
        def effect(connection):
            row = {"peer": parcel.peer, "body": parcel.body}
            connection.execute(sa.text("INSERT INTO done (peer, body) VALUES (:peer, :body)"), row)
            self.post.done_in(connection, parcel)

        await self.run(effect)

    async def submit(self, peer: str, *bodies: bytes, valid_s: float = 60) -> None:
        """Queue in one transaction, as a caller that is not killed."""

        def queue(connection):
            for body in bodies:
                self.post.send_in(connection, peer, body, valid_s)

        await self.store.run(queue)
        self.post.wake(peer)

    async def done(self) -> list[bytes]:
        found = await self.store.run(lambda c: list(c.execute(sa.text("SELECT body FROM done ORDER BY id"))))
        return [bytes(row.body) for row in found]

    async def count(self, table: str) -> int:
        query = sa.select(sa.func.count()).select_from(sa.table(table))
        return await self.store.run(lambda c: c.scalar(query))


@contextlib.asynccontextmanager
async def two(folder):
    """a.cn and b.cn, started; whoever dies is started again."""
    net: dict[str, End] = {}
    a, b = End("a.cn", folder, net), End("b.cn", folder, net)
    await a.start()
    await b.start()
    try:
        yield a, b
    finally:
        await a.stop()
        await b.stop()


async def revive(*ends: End) -> None:
    """Start again whoever has died."""
    for end in ends:
        if end.dead.is_set():
            await end.restart()


async def settle(a: End, b: End, timeout_s: float = 20) -> None:
    """Until both outboxes are empty and everything that arrived is done."""
    async with asyncio.timeout(timeout_s):
        while True:
            await revive(a, b)
            left = [await end.count(table) for end in (a, b) for table in ("post_out", "post_in")]
            if not any(left) and not (a.dead.is_set() or b.dead.is_set()):
                return
            await asyncio.sleep(0.001)
