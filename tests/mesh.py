"""A mini mesh in one process: real nodes, real certificates, real sockets; one event loop, so it starts in a second."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tdn_interop.app.members import setup
from tdn_interop.app.node import Node, running
from tdn_interop.config import NodeConfig, load_config

TOP, HUB_1, HUB_2 = "cn", "shandong.cn", "guangdong.cn"
AIRLINE, RESEARCH, REGISTRY = "airline.shandong.cn", "research.shandong.cn", "registry.guangdong.cn"
# (node, role, listens): the registry keeps no listener, its hub reaches it over Attach.
MINI = (
    (TOP, "top", True),
    (HUB_1, "hub", True),
    (HUB_2, "hub", True),
    (AIRLINE, "child", True),
    (RESEARCH, "child", True),
    (REGISTRY, "child", False),
)
RULES = '\n[[approval.rules]]\nalgorithms = ["psi"]\n'


def free_address() -> str:
    """An address nobody listens on; the kernel does not hand the same one out again soon."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@dataclass
class Mesh:
    """Running nodes by id, and how to start and stop more."""

    folder: Path
    nodes: dict[str, Node] = field(default_factory=dict)
    stacks: dict[str, contextlib.AsyncExitStack] = field(default_factory=dict)

    def config(self, node: str) -> NodeConfig:
        return load_config(self.folder / node / "node.toml")

    async def enrol(self, node: str, role: str, *, listens: bool, extra: str = RULES) -> NodeConfig:
        """Make a node and, unless it is a top, join it to its running parent."""
        listen = free_address() if listens else None
        enrolment = free_address() if role != "child" else None
        file = setup.init_node(self.folder / node, node, role, listen=listen, enrolment=enrolment)
        text = file.read_text().replace('\nmode = "manual"', '\nmode = "rules"') + extra
        file.write_text(text)
        config = self.config(node)
        if role != "top":
            parent = self.nodes[node.partition(".")[2]]
            await setup.join(config, await parent.mesh.admission.invite(node, role, 600))
        return config

    async def start(self, node: str) -> Node:
        """Run a node that has been enrolled; returns when its link stands."""
        stack = contextlib.AsyncExitStack()
        self.nodes[node] = await stack.enter_async_context(running(self.config(node)))
        self.stacks[node] = stack
        link = self.nodes[node].mesh.link
        if link:
            await asyncio.wait_for(link.linked.wait(), 10)
        return self.nodes[node]

    async def stop(self, node: str) -> None:
        del self.nodes[node]
        await self.stacks.pop(node).aclose()


@contextlib.asynccontextmanager
async def mini_mesh(folder: Path, members: tuple[tuple[str, str, bool], ...] = MINI) -> AsyncIterator[Mesh]:
    """1 top, 2 hubs, 3 children, all running; children approve every PSI by rule."""
    mesh = Mesh(folder)
    try:
        for node, role, listens in members:
            await mesh.enrol(node, role, listens=listens)
            await mesh.start(node)
        yield mesh
    finally:
        for node in reversed(list(mesh.stacks)):
            await mesh.stop(node)
