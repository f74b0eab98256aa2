"""Nodes with channels on a loopback network."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from tdn_interop.transport.channels import Channels
from tdn_interop.transport.frame import Limits
from tdn_interop.transport.loopback import Loopback
from tdn_interop.transport.session import Timing
from tests.transport.sessions import TinyLimits, credentials

SMALL = TinyLimits(frame_bytes=100, message_bytes=1000, topic_credit_bytes=8000, topics=8, idle_ms=60_000)
PATIENT = Timing(quiet_s=10, stall_s=30)
QUICK = Timing(quiet_s=0.02, stall_s=0.06)


class Nodes:
    """`a` and `b` are channels of a.cn and b.cn; `events` what they reported."""

    def __init__(self, net: Loopback, limits: Limits, timing: Timing) -> None:
        self.net = net
        self.limits = limits
        self.timing = timing
        self.events = []
        self.all = []
        self.a = self.start("a.cn")
        self.b = self.start("b.cn")

    def start(self, node: str, **options) -> Channels:
        """A node; started again, it has forgotten everything."""
        defaults = {
            "verify": lambda _peer, _credentials: None, "connect": self.net.dialler(node),
            "limits": self.limits, "timing": self.timing,
        }  # fmt: skip
        channels = Channels(
            node, lambda _stream: credentials(node), on_event=lambda event: self.events.append((node, event)),
            **(defaults | options),
        )  # fmt: skip
        self.net.attach(node, channels.accept)
        self.all.append(channels)
        return channels

    def kinds(self, node: str) -> list[str]:
        return [event.kind for name, event in self.events if name == node]

    async def until(self, node: str, kind: str) -> None:
        async with asyncio.timeout(10):
            while kind not in self.kinds(node):
                await asyncio.sleep(0)


@asynccontextmanager
async def nodes(net: Loopback | None = None, limits: Limits = SMALL, timing: Timing = PATIENT):
    mesh = Nodes(net or Loopback(), limits, timing)
    try:
        yield mesh
    finally:
        await asyncio.gather(*(channels.close(0.01) for channels in mesh.all))
        await mesh.net.close()


MESSAGES = [bytes([i]) * (i * 37 % 900) for i in range(64)]


async def send_all(channels, peer, topic, messages, timeout_s=30):
    for message in messages:
        await channels.send(peer, topic, message, timeout_s)
    await channels.flush(peer, topic, timeout_s)


async def receive_all(channels, topic, count, timeout_s=30):
    return [(await channels.receive(topic, timeout_s=timeout_s))[1] for _ in range(count)]


async def both_ways(mesh, messages):
    """Send the messages in both directions at once; what either side received."""
    results = await asyncio.gather(
        receive_all(mesh.a, "t", len(messages)), receive_all(mesh.b, "t", len(messages)),
        send_all(mesh.a, "b.cn", "t", messages), send_all(mesh.b, "a.cn", "t", messages),
    )  # fmt: skip
    return results[:2]


def refused(kind, coroutine):
    async def run():
        with pytest.raises(kind) as caught:
            await coroutine
        return caught.value

    return run()
