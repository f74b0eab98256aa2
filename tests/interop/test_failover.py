"""Several links: tunnels take the shortest way that stands, and another one when it falls. Running nodes, one process."""

import asyncio

import pytest

from tdn_interop import identity
from tdn_interop.app.store import tables
from tdn_interop.errors import Reason, TdnError
from tdn_interop.transport import records_wire
from tests.interop.forge import refusals, until
from tests.mesh import HUB_1, HUB_2, TOP, Mesh

# A is at home at both hubs, B only at the second, C only at the first.
A, B, C = "a.shandong.cn", "b.guangdong.cn", "c.shandong.cn"
STAGES = {"top": (TOP,), "hub": (HUB_1, HUB_2), "child": (A, B, C)}
LINKS = {HUB_1: [HUB_2], A: [HUB_2]}


def keep_links(mesh, node):
    """Write the links of a node, and who may keep one to it, into its configuration."""
    file = mesh.folder / node / "node.toml"
    guests = [guest for guest, links in LINKS.items() if node in links]
    links = [
        f'\n[[links]]\nnode = "{to}"\naddress = "{mesh.config(to).listen}"\n' for to in LINKS.get(node, ())
    ]
    file.write_text(f"neighbours = {guests}\n".replace("'", '"') + file.read_text() + "".join(links))


def table(mesh, node):
    """prefix -> paths that a node has heard, best first."""
    heard = mesh.nodes[node].mesh.adjacency.table._heard
    return {
        prefix: [advert.path for advert in sorted(adverts.values(), key=lambda a: a.preference)]
        for prefix, adverts in heard.items()
    }


def backups(mesh, node):
    """What a node has heard of A: whether its second hub is only for the worst."""
    return {advert.backup for advert in mesh.nodes[node].mesh.adjacency.table._heard[A].values()}


@pytest.fixture
async def mesh(tmp_path):
    mesh = Mesh(tmp_path)
    try:
        for role, nodes in STAGES.items():
            for node in nodes:
                await mesh.enrol(node, role, listens=role != "child")
            for node in nodes:
                keep_links(mesh, node)
                await mesh.start(node)
        for node in LINKS:
            for link in mesh.nodes[node].mesh.adjacency.links.values():
                await asyncio.wait_for(link.linked.wait(), 10)
        # Every relay has heard of everybody by every way.
        counts = {TOP: (HUB_1, HUB_2, A), HUB_1: (TOP, HUB_2, A), HUB_2: (TOP, HUB_1)}
        await until(
            lambda: all(
                len(table(mesh, node).get(p, ())) == 2 for node, known in counts.items() for p in known
            )
        )
        await until(lambda: set(table(mesh, A)) == {TOP, HUB_1, HUB_2})
        await until(
            lambda: all(backups(mesh, node) == {True} for node in (TOP, HUB_1))
        )  # its parent is linked
        yield mesh
    finally:
        for node in reversed(list(mesh.stacks)):
            await mesh.stop(node)


async def hops(mesh, source, destination):
    """The relays of a ping over a fresh session."""
    mesh.nodes[source].mesh.channels.drop(destination)
    return (await mesh.nodes[source].mesh.pings.ping(destination, 10)).hops


async def test_everybody_knows_the_ways_and_the_shortest_is_taken(mesh):
    assert table(mesh, HUB_1) == {
        TOP: [(TOP,), (HUB_2, TOP)],
        HUB_2: [(HUB_2,), (TOP, HUB_2)],
        A: [(HUB_2, A), (TOP, HUB_2, A)],
    }
    assert table(mesh, C) == {}  # one link: no choice
    assert await hops(mesh, C, B) == (HUB_1, HUB_2)
    assert await hops(mesh, A, B) == (HUB_2,)
    assert await hops(mesh, B, A) == (HUB_2,)
    assert await hops(mesh, A, C) == (HUB_1,)
    assert await hops(mesh, TOP, A) == (HUB_1,)
    for node in (A, B, C):
        for other in {A, B, C} - {node}:
            route, record = await mesh.nodes[node].mesh.resolve(other)
            assert record.node_id == other
            assert route.hops == await hops(mesh, node, other), (node, other)


async def test_the_top_falls(mesh):
    sender, receiver = mesh.nodes[C].mesh, mesh.nodes[B].mesh
    await mesh.nodes[TOP].mesh.pings.ping(B, 10)
    await mesh.stop(TOP)
    await until(lambda: TOP not in table(mesh, HUB_1))
    assert await hops(mesh, C, B) == (HUB_1, HUB_2)
    assert (await sender.resolve(B))[0].hops == (HUB_1, HUB_2)
    assert receiver.channels.peers() == [C]
    await mesh.start(TOP)
    await until(lambda: TOP in table(mesh, HUB_2))


async def test_a_hub_falls_and_its_child_is_reached_by_the_other_one(mesh):
    assert table(mesh, TOP)[A] == [(HUB_2, A), (HUB_1, HUB_2, A)]
    await mesh.stop(HUB_1)
    await until(lambda: not mesh.nodes[HUB_2].mesh.adjacency.table.best()[A].backup)
    assert await hops(mesh, B, A) == (HUB_2,)
    assert await hops(mesh, TOP, A) == (HUB_2,)
    assert await hops(mesh, A, TOP) == (HUB_2,)
    with pytest.raises(TdnError) as caught:
        await hops(mesh, B, C)
    assert caught.value.reason is Reason.NO_ROUTE
    await mesh.start(HUB_1)
    await until(lambda: mesh.nodes[HUB_2].mesh.adjacency.table.best().get(A) is not None)
    await until(lambda: mesh.nodes[HUB_2].mesh.adjacency.table.best()[A].backup)
    await asyncio.wait_for(mesh.nodes[C].mesh.link.linked.wait(), 10)
    assert await hops(mesh, B, C) == (HUB_2, HUB_1)


async def test_a_hub_that_drains_is_gone_round(mesh):
    draining = mesh.nodes[HUB_1].mesh.draining
    looks = draining.drain(600)
    look = asyncio.create_task(anext(looks))
    await until(lambda: not paths_from(mesh, HUB_1))
    assert await hops(mesh, TOP, A) == (HUB_2,)
    assert await hops(mesh, A, TOP) == (HUB_2,)
    with pytest.raises(TdnError) as caught:  # there is no other way
        await hops(mesh, B, C)
    assert caught.value.reason is Reason.DRAINING
    await draining.undrain()
    await look
    await until(lambda: paths_from(mesh, HUB_1).count((HUB_1,)) == 2)
    assert await hops(mesh, TOP, A) == (HUB_1,)
    assert await hops(mesh, B, C) == (HUB_2, HUB_1)


def paths_from(mesh, hub):
    """What its two neighbours lead to over `hub`."""
    tables = (table(mesh, node) for node in (TOP, HUB_2))
    return [path for paths in tables for heard in paths.values() for path in heard if path[0] == hub]


async def test_receipts_of_every_neighbour_are_kept(mesh):
    """The child at home at two hubs: one of them is not its parent, but signs receipts that count."""
    node = mesh.nodes[A].mesh
    assert await hops(mesh, A, B) == (HUB_2,)
    node.channels.drop(B)

    def read(connection):
        return connection.execute(tables.receipts.select().where(tables.receipts.c.relay == HUB_2)).all()

    async with asyncio.timeout(10):
        while not (rows := await node._store.run(read)):
            await asyncio.sleep(0.01)
    signed = records_wire.decode_signed(rows[0].signed)
    assert identity.verify(identity.RECEIPT, signed, mesh.nodes[HUB_2].mesh.standing.key.public_key)
    assert refusals(mesh.nodes[A]) == {}
