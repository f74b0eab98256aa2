"""Letters in a mesh of real nodes: the recipient is away, its hub keeps them, the sender may go."""

import asyncio
import contextlib
import signal
import sys
from collections import defaultdict

import pytest
import sqlalchemy as sa

from tdn_interop.app.control.control_client import connected
from tdn_interop.app.post.post import Post
from tdn_interop.config import control_socket
from tdn_interop.errors import TdnError
from tests.interop.forge import until
from tests.mesh import AIRLINE, HUB_1, HUB_2, MINI, REGISTRY, RESEARCH, TOP, mini_mesh

SECRET = b"the number of the safe is 4711-0815"
MEMBERS = tuple(member for member in MINI if member[0] != RESEARCH)


@pytest.fixture
def got(monkeypatch):
    """What each node has received; it is done at once."""
    received = defaultdict(list)

    async def consume(post, parcel):
        await post._arrivals._store.run(lambda c: post.done_in(c, parcel))
        received[post._channels.me].append((parcel.peer, parcel.body))

    monkeypatch.setattr(Post, "_consume", consume)
    return received


@pytest.fixture
async def mesh(tmp_path, got):
    async with mini_mesh(tmp_path, MEMBERS) as running:
        yield running


async def submit(mesh, sender, peer, *bodies):
    node = mesh.nodes[sender].mesh
    await node._store.run(lambda c: [node.post.send_in(c, peer, body, 600) for body in bodies])
    node.post.wake(peer)


async def count(node, table):
    query = sa.select(sa.func.count()).select_from(sa.table(table))
    return await node.mesh._store.run(lambda c: c.scalar(query))


async def boxes(node):
    return {box.recipient: box.letters for box in await node.mesh.mailbox.boxes()}


async def eventually(ready, expected, timeout_s=20):
    """Ask until the answer is as expected."""
    async with asyncio.timeout(timeout_s):
        while await ready() != expected:
            await asyncio.sleep(0.01)


async def at_home(mesh, node, hub):
    """Wait until the hub knows the sealing key of `node`."""

    async def known():
        return await mesh.nodes[hub].mesh._store.run(
            lambda c: c.scalar(
                sa.text("SELECT count(*) FROM mailbox_keys WHERE node_id = :node"), {"node": node}
            )
        )

    await eventually(known, 1)


async def test_a_recipient_that_was_away_gets_its_parcels_though_the_sender_is_gone_then(mesh, got):
    await at_home(mesh, REGISTRY, HUB_2)
    await at_home(mesh, AIRLINE, HUB_1)
    await mesh.stop(REGISTRY)
    await submit(mesh, AIRLINE, REGISTRY, b"1", b"2", b"3")
    await eventually(lambda: boxes(mesh.nodes[HUB_2]), {REGISTRY: 3})
    assert await count(mesh.nodes[AIRLINE], "post_out") == 3, "only a receipt ends the sender's duty"
    await mesh.stop(AIRLINE)

    await mesh.start(REGISTRY)
    await until(lambda: len(got[REGISTRY]) == 3)
    assert got[REGISTRY] == [(AIRLINE, b"1"), (AIRLINE, b"2"), (AIRLINE, b"3")]
    await eventually(lambda: boxes(mesh.nodes[HUB_2]), {})
    await until(lambda: not mesh.nodes[REGISTRY].mesh.post._giving)
    assert await boxes(mesh.nodes[HUB_1]) == {AIRLINE: 1}, "the receipt, for now the sender is away"
    await mesh.stop(REGISTRY)

    await mesh.start(AIRLINE)
    await eventually(lambda: count(mesh.nodes[AIRLINE], "post_out"), 0)
    await mesh.start(REGISTRY)
    await submit(mesh, AIRLINE, REGISTRY, b"4")
    await until(lambda: len(got[REGISTRY]) == 4)
    assert got[REGISTRY][3] == (AIRLINE, b"4")


async def test_a_hub_writes_to_its_child_and_to_one_elsewhere(mesh, got):
    await at_home(mesh, REGISTRY, HUB_2)
    await mesh.stop(REGISTRY)
    await submit(mesh, HUB_2, REGISTRY, b"from above")
    await submit(mesh, HUB_1, REGISTRY, b"from aside")
    await eventually(lambda: boxes(mesh.nodes[HUB_2]), {REGISTRY: 2})
    await mesh.start(REGISTRY)
    await until(lambda: len(got[REGISTRY]) == 2)
    assert set(got[REGISTRY]) == {(HUB_2, b"from above"), (HUB_1, b"from aside")}


async def test_the_mailbox_of_a_hub_is_at_the_top(mesh, got):
    await at_home(mesh, HUB_2, TOP)
    await mesh.stop(REGISTRY)
    await mesh.stop(HUB_2)
    await submit(mesh, AIRLINE, HUB_2, b"for a hub")
    await eventually(lambda: boxes(mesh.nodes[TOP]), {HUB_2: 1})
    await mesh.start(HUB_2)
    await until(lambda: got[HUB_2] == [(AIRLINE, b"for a hub")])


@contextlib.asynccontextmanager
async def process_of(mesh, node):
    """The node as a process of its own, killed without a word at the end; its output goes to a file."""
    config = mesh.folder / node / "node.toml"
    with (mesh.folder / node / "out.log").open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tdn_interop.app.cli", "-v", "node", "run", "--config", str(config),
            stdout=out, stderr=out,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def test_a_hub_that_is_killed_keeps_its_letters_and_has_never_read_them(mesh, got):
    await at_home(mesh, REGISTRY, HUB_2)
    await mesh.stop(HUB_2)
    await mesh.stop(REGISTRY)

    async def kept():
        async with connected(control_socket(mesh.config(HUB_2)), HUB_2) as client:
            linked = (await client.status())["linked"]
            return linked and [box["letters"] for box in (await client.mailboxes())["mailboxes"]]

    async with process_of(mesh, HUB_2):
        await eventually_up(kept, [])
        await submit(mesh, AIRLINE, REGISTRY, SECRET, SECRET)
        assert found(mesh.folder / AIRLINE, SECRET), "the search finds what lies in the clear"
        await eventually_up(kept, [2])
    assert found(mesh.folder / HUB_2, REGISTRY.encode())
    assert not found(mesh.folder / HUB_2, SECRET)
    async with process_of(mesh, HUB_2):
        await eventually_up(kept, [2])
        await mesh.stop(AIRLINE)
        await mesh.start(REGISTRY)
        await until(lambda: len(got[REGISTRY]) == 2)
        await eventually_up(kept, [])
    assert got[REGISTRY] == [(AIRLINE, SECRET)] * 2
    assert not found(mesh.folder / HUB_2, SECRET)


async def eventually_up(ask, expected):
    """As `eventually`, of a process that may still be starting."""

    async def answer():
        try:
            return await ask()
        except TdnError as error:  # it is not the answer yet
            return error

    await eventually(answer, expected, 40)


def found(folder, needle):
    """True when a file of the folder holds the bytes."""
    return any(needle in path.read_bytes() for path in folder.rglob("*") if path.is_file())
