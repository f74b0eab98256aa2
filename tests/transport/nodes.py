"""Nodes with channels on a loopback network."""

import asyncio
from contextlib import asynccontextmanager

from tdn_interop.transport.channels import Channels
from tdn_interop.transport.frame import Limits
from tdn_interop.transport.loopback import Loopback
from tdn_interop.transport.session import Timing
from tests.transport.sessions import credentials

SMALL = Limits(frame_bytes=100, message_bytes=1000, topic_credit_bytes=8000, topics=8, idle_ms=60_000)
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
            node, lambda: credentials(node), on_event=lambda event: self.events.append((node, event)),
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
