"""Tunnels and routes over running nodes: who may ask for what, what relays sign, what is left behind."""

import asyncio
import collections
import os

import grpc.aio
import pytest

from tdn_interop import identity
from tdn_interop._pb.tdn.transport.v1 import (
    relay_service_pb2,
    relay_service_pb2_grpc,
    routing_service_pb2,
    routing_service_pb2_grpc,
)
from tdn_interop.app.store import tables
from tdn_interop.config import runtime_dir, split_address
from tdn_interop.errors import Reason, Refused, TdnError
from tdn_interop.transport import records_wire, relay, relay_service, status, tls
from tdn_interop.transport.dial import Dialled, Dialler
from tdn_interop.transport.front import connect_tcp
from tdn_interop.transport.records_wire import Join, Opening
from tests.interop.forge import raw_context, refusals, until
from tests.mesh import AIRLINE, HUB_1, HUB_2, REGISTRY, RESEARCH, TOP, mini_mesh


@pytest.fixture
async def mesh(tmp_path):
    async with mini_mesh(tmp_path) as running:
        for node in running.nodes.values():
            node.mesh.admits = lambda _peer, _topic: True
        yield running


async def refusal(work):
    with pytest.raises(TdnError) as caught:
        await work
    return caught.value


class Guest:
    """A member that calls a relay with its genuine certificate and says what it likes."""

    def __init__(self, mesh, node, relay_node, folder):
        host, port = split_address(mesh.nodes[relay_node].config.listen)
        files = mesh.nodes[node].mesh.standing.files
        self.dialled = Dialled(
            relay_node, lambda: connect_tcp(host, port, 5), Dialler(lambda: tls.client_context(files), folder)
        )

    async def __aenter__(self):
        await self.dialled.start()
        return self

    async def __aexit__(self, *_):
        await self.dialled.close()

    async def tunnel(self, *metadata):
        """The refusal of a tunnel call."""
        call = self.dialled.channel.stream_stream(
            f"/{relay_service.SERVICE}/Tunnel",
            request_serializer=relay_service.same,
            response_deserializer=relay_service.same,
        )(metadata=grpc.aio.Metadata(*metadata), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        return status.from_rpc_error(caught.value)

    async def open(self, opening):
        return await self.tunnel((relay_service.OPEN, records_wire.encode_opening(opening)))

    async def join(self, join):
        return await self.tunnel((relay_service.JOIN, records_wire.encode_join(join)))


@pytest.fixture
async def guest(mesh, tmp_path):
    """Calls of one node at another one's listener."""
    made = []

    async def enter(node, relay_node):
        one = Guest(mesh, node, relay_node, runtime_dir(tmp_path / "guest"))
        made.append(one)
        return await one.__aenter__()

    yield enter
    for one in made:
        await one.dialled.close()


def opening(source=AIRLINE, destination=REGISTRY, hop_limit=8, deadline_ms=5000, visited=()):
    return Opening(os.urandom(16), source, destination, hop_limit, deadline_ms, visited)


OPENINGS = [
    (opening(hop_limit=0), "ROUTE_LOOP", "TDN-T-RTE-03"),
    (opening(source=f"x.{AIRLINE}", visited=(HUB_1, AIRLINE)), "ROUTE_LOOP", "TDN-T-RTE-03"),
    (opening(source=RESEARCH), "IDENTITY_MISMATCH", "TDN-T-IDN-02"),
    (opening(visited=(RESEARCH,)), "IDENTITY_MISMATCH", "TDN-T-IDN-02"),
    (opening(deadline_ms=1), "DEADLINE", "TDN-T-DDL-01"),
    (opening(deadline_ms=1 << 31), "INVALID_REQUEST", "TDN-T-DDL-03"),
    (opening(destination="ghost.guangdong.cn"), "NO_ROUTE", "TDN-T-RTE-03"),
    (opening(destination="bank.us"), "NO_ROUTE", "TDN-T-RTE-03"),
    (opening(destination="ghost.shandong.cn"), "NO_ROUTE", "TDN-T-RTE-03"),
    (opening(destination="no-hub.cn"), "NO_ROUTE", "TDN-T-RTE-03"),
]


async def test_openings_that_a_hub_refuses(mesh, guest):
    one, hub, shapes = await guest(AIRLINE, HUB_1), mesh.nodes[HUB_1], set()
    for what, reason, requirement in OPENINGS:
        before = refusals(hub).get((reason, requirement), 0)
        error = await one.open(what)
        assert (error.reason.name, error.requirement) == (reason, requirement), what
        assert refusals(hub)[reason, requirement] == before + 1
        if error.reason is Reason.NO_ROUTE:
            shapes.add((type(error), error.message.replace(what.destination, "NAME"), tuple(error.metadata)))
    assert len(shapes) == 1  # unknown, away, foreign: no difference to see
    assert hub.mesh.tunnels.count == 0
    assert len((await mesh.nodes[AIRLINE].mesh.pings.ping(REGISTRY, 10)).hops) == 3


NOT_ADJACENT = [(REGISTRY, HUB_1), (AIRLINE, TOP), (HUB_1, HUB_2)]
OUTSIDER = (Reason.POLICY_DENIED, "TDN-T-RTE-05")


async def test_only_direct_members_use_a_relay(mesh, guest):
    for node, relay_node in NOT_ADJACENT:
        one = await guest(node, relay_node)
        error = await one.open(opening(source=node, destination=RESEARCH))
        assert (error.reason, error.requirement) == OUTSIDER
        error = await one.join(Join(os.urandom(16), (), ""))
        assert (error.reason, error.requirement) == OUTSIDER
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            stub = relay_service_pb2_grpc.RelayServiceStub(one.dialled.channel)
            await stub.Attach(relay_service_pb2.AttachRequest(), timeout=5).read()
        error = status.from_rpc_error(caught.value)
        assert (error.reason, error.requirement) == OUTSIDER
        assert node not in mesh.nodes[relay_node].mesh.tunnels.attached


async def test_only_direct_members_ask_for_routes(guest):
    for node, relay_node in NOT_ADJACENT:
        stub = routing_service_pb2_grpc.RoutingServiceStub((await guest(node, relay_node)).dialled.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Resolve(routing_service_pb2.ResolveRequest(name=RESEARCH, hop_limit=8))
        error = status.from_rpc_error(caught.value)
        assert (error.reason, error.requirement) == OUTSIDER


async def test_routes_that_a_hub_refuses(mesh, guest):
    stub = routing_service_pb2_grpc.RoutingServiceStub((await guest(AIRLINE, HUB_1)).dialled.channel)
    shapes = set()
    for name, hop_limit, reason in (
        (REGISTRY, 0, "ROUTE_LOOP"), (REGISTRY, 1, "ROUTE_LOOP"), ("NOT A NODE", 8, "INVALID_REQUEST"),
        (REGISTRY, 17, "INVALID_REQUEST"), (REGISTRY, (1 << 32) - 1, "INVALID_REQUEST"),
        ("a.cn/", 8, "INVALID_REQUEST"), ("ghost.guangdong.cn", 8, "NO_ROUTE"), ("bank.us", 8, "NO_ROUTE"),
        ("ghost.shandong.cn/loans@1", 8, "NO_ROUTE"),
    ):  # fmt: skip
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Resolve(routing_service_pb2.ResolveRequest(name=name, hop_limit=hop_limit))
        error = status.from_rpc_error(caught.value)
        assert error.reason.name == reason, name
        if reason == "NO_ROUTE":
            shapes.add((type(error), error.requirement, error.message.replace(name.split("/")[0], "NAME")))
    assert shapes == {(Refused, "TDN-T-RTE-03", "there is no way to NAME")}
    route, record = await mesh.nodes[AIRLINE].mesh.resolve(f"{REGISTRY}/register@1")
    assert route.hops == (HUB_1, TOP, HUB_2)
    assert record.node_id == REGISTRY
    assert record.identity_key == mesh.nodes[REGISTRY].mesh.standing.key.public_key


@pytest.mark.parametrize("path", [("NOT A NODE",), ("", ""), (HUB_1,) * 17])
async def test_relays_that_a_hub_invents(mesh, path):
    airline, hub = mesh.nodes[AIRLINE].mesh, mesh.nodes[HUB_1].mesh

    async def relay(_opening, _previous, _leg, ready):
        await ready(path)

    hub.tunnels.relay = relay
    assert (await refusal(airline.tunnels.dial(RESEARCH, 5))).reason is Reason.INVALID_REQUEST


async def test_a_hub_that_offers_tunnels_without_end_is_not_listened_to(mesh):
    link, hub = mesh.nodes[AIRLINE].mesh.link, mesh.nodes[HUB_1].mesh
    taken, go = [], asyncio.Event()

    async def slow(offered):
        taken.append(offered)
        await go.wait()

    link.on_opening, link._openings = slow, asyncio.Semaphore(8)
    for _ in range(100):
        hub.tunnels._below[AIRLINE].put_nowait(opening(source=RESEARCH, destination=AIRLINE))
    await until(lambda: len(taken) == 8)
    await mesh.nodes[AIRLINE].mesh.resolve(RESEARCH)  # the link is well, and whatever was offered has come
    assert len(taken) == 8
    go.set()
    await until(lambda: len(taken) == 100)


async def test_calls_to_the_parent_are_counted(mesh):
    node = mesh.nodes[AIRLINE].mesh
    await node.resolve(REGISTRY)
    labels = {
        "grpc_type": "unary", "grpc_service": "tdn.transport.v1.RoutingService", "grpc_method": "Resolve",
        "grpc_code": "OK",
    }  # fmt: skip
    registry = node._metrics.registry
    await until(lambda: registry.get_sample_value("grpc_client_handled_total", labels) == 1)


async def test_joins_that_a_hub_refuses(mesh, guest):
    one = await guest(AIRLINE, HUB_1)
    error = await one.join(Join(os.urandom(16), (), ""))
    assert (error.reason, error.requirement) == (Reason.NO_ROUTE, "TDN-T-RTE-05")
    # A tunnel for RESEARCH waits; AIRLINE knows its id and comes first.
    waiting, hub = opening(destination=RESEARCH), mesh.nodes[HUB_1].mesh.tunnels
    mesh.nodes[RESEARCH].mesh.link.on_opening = nobody
    dialling = asyncio.create_task(one.open(waiting))
    await until(lambda: hub._waiting)
    error = await one.join(Join(waiting.tunnel_id, (), ""))
    assert (error.reason, error.requirement) == (Reason.NO_ROUTE, "TDN-T-RTE-05")
    assert error.message == f"no tunnel waits for {AIRLINE}"
    dialling.cancel()


async def nobody(_opening):
    """A node that hears of a tunnel and does nothing."""


MALFORMED = [
    (),
    ((relay_service.OPEN, b""),),
    ((relay_service.OPEN, b"\xff\xff"),),
    ((relay_service.JOIN, b""),),
    ((relay_service.JOIN, records_wire.encode_join(Join(bytes(16), (), "NO_SUCH_REASON"))),),
    ((relay_service.OPEN, records_wire.encode_opening(opening(visited=("x",) * 17))),),
    ((relay_service.OPEN, records_wire.encode_opening(opening(destination="NOT A NODE"))),),
]


async def test_malformed_tunnel_calls(guest):
    one = await guest(AIRLINE, HUB_1)
    for metadata in MALFORMED:
        error = await one.tunnel(*metadata)
        assert (error.reason, error.requirement) == (Reason.INVALID_REQUEST, "TDN-T-ENC-01"), metadata


async def test_a_node_that_is_away_is_reported_quickly(mesh):
    await mesh.stop(REGISTRY)
    await until(lambda: not mesh.nodes[HUB_2].mesh.tunnels.attached)
    async with asyncio.timeout(2):
        error = await refusal(mesh.nodes[AIRLINE].mesh.pings.ping(REGISTRY, 10))
    assert (error.reason, error.message) == (Reason.NO_ROUTE, f"there is no way to {REGISTRY}")


# -- receipts


class Counting:
    """The socket end of a tunnel, counted message by message."""

    def __init__(self, leg, counts, read, write):
        self._leg, self._counts, self._read, self._write = leg, counts, read, write

    async def read(self):
        message = await self._leg.read()
        self._counts[self._read] += len(message)
        return message

    async def write(self, message):
        await self._leg.write(message)
        self._counts[self._write] += len(message)

    def __getattr__(self, name):
        return getattr(self._leg, name)


def count_ends(mesh, monkeypatch):
    """Independent counts of what leaves the dialling end and what reaches the other one."""
    counts = collections.Counter()
    for node, read, write, at in ((AIRLINE, "sent", "got back", 0), (REGISTRY, "sent back", "got", 1)):
        tunnels = mesh.nodes[node].mesh.tunnels
        honest = tunnels._carry

        def carry(o, leg, onward, previous, honest=honest, read=read, write=write, at=at):
            if at:
                onward = relay._Onward(
                    Counting(onward.leg, counts, read, write), onward.path, onward.next, onward.finish
                )
            else:
                leg = Counting(leg, counts, read, write)
            return honest(o, leg, onward, previous)

        monkeypatch.setattr(tunnels, "_carry", carry)
    return counts


async def test_relays_sign_what_the_ends_count(mesh, monkeypatch):
    counts = count_ends(mesh, monkeypatch)
    ends = []
    monkeypatch.setattr(
        mesh.nodes[REGISTRY].mesh.server.front, "take", lambda stream, _origin: ends.append(stream)
    )
    near, path = await mesh.nodes[AIRLINE].mesh.tunnels.dial(REGISTRY, 10)
    assert path == (HUB_1, TOP, HUB_2)
    await across(near, ends[0], os.urandom(3_000_000))
    await across(ends[0], near, os.urandom(70_000))
    near.close()
    found = {node: await kept(mesh.nodes[node], node) for node in (HUB_1, TOP, HUB_2)}
    ends[0].close()
    assert counts["sent"] == counts["got"] > 3_000_000
    assert counts["sent back"] == counts["got back"] > 70_000
    for node, signed in found.items():
        receipt = records_wire.decode_receipt(signed.statement)
        assert identity.verify(identity.RECEIPT, signed, mesh.nodes[node].mesh.standing.key.public_key)
        assert (receipt.relay, receipt.source, receipt.destination) == (node, AIRLINE, REGISTRY)
        assert (receipt.forward_bytes, receipt.backward_bytes) == (counts["sent"], counts["sent back"])
        assert receipt.started_at_ms <= receipt.ended_at_ms
    chain = [records_wire.decode_receipt(found[node].statement) for node in (HUB_1, TOP, HUB_2)]
    assert [(r.previous, r.next) for r in chain] == [(AIRLINE, TOP), (HUB_1, HUB_2), (TOP, REGISTRY)]
    # The dialler has the receipt of its hub, the other end that of its own, both in their evidence.
    for node, of in ((AIRLINE, HUB_1), (REGISTRY, HUB_2)):
        assert await kept(mesh.nodes[node], of) == found[of]
        [(_, event)] = await mesh.nodes[node].mesh._evidence.about(chain[0].tunnel_id.hex())
        assert (event.kind, event.facts["relay"]) == ("relay.receipt.got", of)


async def across(source, target, data):
    """Send bytes through a tunnel that nobody encrypts; they arrive as they are."""
    loop, got = asyncio.get_running_loop(), b""
    sending = asyncio.create_task(loop.sock_sendall(source, data))
    while len(got) < len(data):
        got += await loop.sock_recv(target, 1 << 20)
    await sending
    assert got == data


async def kept(node, relay_node):
    """The one receipt of a relay in a node's store, as soon as it is there."""

    def read(connection):
        rows = connection.execute(tables.receipts.select().where(tables.receipts.c.relay == relay_node))
        return [records_wire.decode_signed(row.signed) for row in rows]

    async with asyncio.timeout(10):
        while not (found := await node.mesh._store.run(read)):
            await asyncio.sleep(0.01)
    [signed] = found
    return signed


# -- what is left behind


async def test_200_connections_leave_no_descriptors(mesh):
    hub, port = mesh.nodes[HUB_1], split_address(mesh.nodes[HUB_1].config.listen)[1]
    await mesh.nodes[AIRLINE].mesh.pings.ping(RESEARCH, 10)
    front = hub.mesh.server.front
    pipes, before = len(front._served), len(os.listdir("/proc/self/fd"))
    contexts = [raw_context(mesh.nodes[REGISTRY].mesh.standing.files), raw_context()]
    for number in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=contexts[number % 2])
            writer.transport.abort()
        except OSError:
            continue
    await until(lambda: len(front._served) == pipes and not front._half_open)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    await mesh.nodes[AIRLINE].mesh.pings.ping(RESEARCH, 10)


async def test_nodes_that_stop_leave_nothing(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    async with mini_mesh(tmp_path) as mesh:
        await mesh.nodes[AIRLINE].mesh.pings.ping(REGISTRY, 10)
        folders = [runtime_dir(node.config.dir) for node in mesh.nodes.values()]
    assert [name for folder in folders if folder.exists() for name in os.listdir(folder)] == []
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_dialling_again_and_again_leaves_nothing(mesh):
    airline, registry = mesh.nodes[AIRLINE].mesh, mesh.nodes[REGISTRY].mesh
    await airline.pings.ping(REGISTRY, 10)

    async def end():
        airline.channels.drop(REGISTRY)
        registry.channels.drop(AIRLINE)
        await until(lambda: not any(node.mesh.tunnels.count for node in mesh.nodes.values()))

    await end()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(6):
        await airline.pings.ping(REGISTRY, 10)
        await end()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
