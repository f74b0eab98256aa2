"""A relay that changes, repeats, reflects, drops, reorders or cuts what it carries.

The ends speak TLS through it: each lie breaks the tunnel, is named in the log of the end that was lied
to, and the session goes on over a new tunnel. What was sent arrives, in order, once.
"""

import re
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from tdn_interop.errors import Reason, TdnError
from tests.interop.forge import lie, refusals, until
from tests.mesh import AIRLINE, HUB_2, REGISTRY, TOP, mini_mesh

TAMPERED = ("E2E_AUTH_FAILED", "TDN-T-RTE-02")
COUNTED = ("COUNT_MISMATCH", "TDN-T-RTE-08")
APPLICATION_DATA, HANDSHAKE = 0x17, 0x16


class Lie:
    """Told once, about the first record of a kind that passes after `armed` was set."""

    def __init__(self, tell=bytes, kind=APPLICATION_DATA):
        self.tell = tell
        self.kind = kind
        self.armed = False
        self.told = 0

    def __call__(self, record):
        if not self.armed or record[0] != self.kind:
            return record
        self.armed = False
        self.told += 1
        return self.tell(record)


@pytest.fixture
async def mesh(tmp_path):
    async with mini_mesh(tmp_path) as running:
        for node in running.nodes.values():
            node.mesh.admits = lambda _peer, _topic: True
        yield running


async def send_through(mesh, lies, source, destination, count=6):
    """Open a tunnel in truth, then send a row of messages while the lies are told; it must arrive as it was sent."""
    sender, receiver = mesh.nodes[source].mesh.channels, mesh.nodes[destination].mesh.channels
    await sender.send(destination, "row", b"first", 10)
    assert await receiver.receive("row", source, 10) == (source, b"first")
    before = [one.told for one in lies]
    for one in lies:
        one.armed = True
    messages = [b"message %d of a row" % number for number in range(count)]
    await sender.send(destination, "row", messages[0], 10)
    await until(lambda: [one.told for one in lies] == [told + 1 for told in before])
    for message in messages[1:]:  # in records of their own
        await sender.send(destination, "row", message, 10)
    got = [(await receiver.receive("row", source, 20))[1] for _ in messages]
    await sender.flush(destination, "row", 10)
    assert got == messages
    with pytest.raises(TdnError) as caught:  # and nothing more
        await receiver.receive("row", source, 0.01)
    assert caught.value.reason is Reason.DEADLINE


def flipped(position):
    """A record with one bit changed; a position from the end counts backwards."""

    def tell(record):
        changed = bytearray(record)
        at = position % len(record)
        if at == 4:  # of the length: make the record shorter, so that nobody waits for more
            changed[at] &= changed[at] - 1
        else:
            changed[at] ^= 1 << position % 8
        return bytes(changed)

    return tell


# Type, version and length of the record, then its ciphertext and its tag.
POSITIONS = [0, 1, 2, 4, 5, 11, -17, -9, -1]


@pytest.mark.parametrize("relay", [TOP, HUB_2])
async def test_one_bit_on_the_way_there(mesh, relay):
    told = Lie()
    lie(mesh.nodes[relay].mesh.tunnels, forward=told)
    for number, position in enumerate(POSITIONS if relay == TOP else POSITIONS[3:6]):
        told.tell = flipped(position)
        await send_through(mesh, [told], AIRLINE, REGISTRY)
        assert refusals(mesh.nodes[REGISTRY])[TAMPERED] == number + 1, position
    assert set(refusals(mesh.nodes[REGISTRY])) == {TAMPERED}
    assert told.told > 0


async def test_one_bit_on_the_way_back(mesh):
    told = Lie()
    lie(mesh.nodes[TOP].mesh.tunnels, backward=told)
    for position in POSITIONS:
        told.tell = flipped(position)
        with capture_logs() as log:
            await send_through(mesh, [told], AIRLINE, REGISTRY)
        assert said(log) == [TAMPERED], position


def said(log):
    return [(line["reason"], line["requirement"]) for line in log if line["event"] == "refused"]


async def test_a_record_repeated_dropped_or_out_of_order(mesh):
    told, held = Lie(), []
    lie(mesh.nodes[TOP].mesh.tunnels, forward=lambda record: told(record) + b"".join(kept(held, record)))

    def kept(pending, record):
        """What was held back, once another record has passed."""
        late = [one for one in pending if one != record]
        pending[:] = [one for one in pending if one == record]
        return late

    def hold(record):
        held.append(record)
        return b""

    lies = {"repeated": lambda record: record * 2, "dropped": lambda _record: b"", "out of order": hold}
    for number, (name, tell) in enumerate(lies.items()):
        told.tell = tell
        await send_through(mesh, [told], AIRLINE, REGISTRY)
        assert refusals(mesh.nodes[REGISTRY])[TAMPERED] == number + 1, name


async def test_a_record_of_an_earlier_tunnel(mesh):
    """Replay across connections: the keys are others."""
    told, old = Lie(), []
    lie(mesh.nodes[TOP].mesh.tunnels, forward=told)

    def keep(record):
        old.append(record)
        return record

    told.tell = keep
    await send_through(mesh, [told], AIRLINE, REGISTRY)
    told.tell = flipped(-1)  # breaks this tunnel, so that the next record belongs to another one
    await send_through(mesh, [told], AIRLINE, REGISTRY)
    told.tell = lambda record: old[0] + record
    await send_through(mesh, [told], AIRLINE, REGISTRY)
    assert refusals(mesh.nodes[REGISTRY]) == {TAMPERED: 2}


async def test_a_record_sent_back_to_its_sender(mesh):
    own = []
    there, back = Lie(), Lie()
    lie(mesh.nodes[TOP].mesh.tunnels, forward=there, backward=back)

    def keep(record):
        own.append(record)
        back.armed = True
        return record

    there.tell, back.tell = keep, lambda record: own[0] + record
    with capture_logs() as log:
        await send_through(mesh, [there], AIRLINE, REGISTRY)
    assert back.told == 1
    # The top counts what it added as the hub's, and the hub beyond it accuses it of that, too, unless as many bytes
    # of the hub's were lost when the tunnel broke: then the sum fits.
    accusers = {node: found for node, one in mesh.nodes.items() if (found := refusals(one))}
    assert accusers in ({}, {HUB_2: {COUNTED: 1}})
    assert said(log) == [TAMPERED, *[COUNTED] * len(accusers)]
    for claim in re.findall(r"cn claims (\d+) bytes from us .* we counted (\d+) and", str(log)):
        assert 0 < int(claim[0]) - int(claim[1]) <= len(own[0]) + 1  # the length before it may take one more


async def test_a_stream_that_is_cut_in_the_middle_of_a_record(mesh):
    """No byte is wrong, so nobody is accused; the session knows what is missing."""
    told, dead = Lie(), []
    lie(mesh.nodes[TOP].mesh.tunnels, forward=lambda record: cut(told(record)))

    def cut(record):
        if dead:
            dead.clear()
            raise ConnectionResetError
        return record

    def half(record):
        dead.append(True)
        return record[: len(record) // 2]

    told.tell = half
    for _ in range(3):
        await send_through(mesh, [told], AIRLINE, REGISTRY)
    assert told.told == 3


# The last byte of the legacy version of a record is not here: TLS 1.3 ignores it (RFC 8446 section 5.1).
HANDSHAKE_POSITIONS = [0, 1, 5, 11, 43, 77, 120, -1]
NAMED = {
    *(TAMPERED, ("UNSUPPORTED_VERSION", "TDN-T-IDN-03"), ("UNAUTHENTICATED", "TDN-T-IDN-01")),
}


@pytest.mark.parametrize("direction", ["forward", "backward"])
async def test_one_bit_of_a_hello(mesh, direction):
    """Nothing is opened on it; the next, honest handshake succeeds."""
    told = Lie(kind=HANDSHAKE)
    lie(mesh.nodes[TOP].mesh.tunnels, **{direction: told})
    airline, registry = mesh.nodes[AIRLINE].mesh.channels, mesh.nodes[REGISTRY].mesh.channels
    for position in HANDSHAKE_POSITIONS:
        told.tell, told.armed = flipped(position), True
        with capture_logs() as log:
            with suppress(TdnError):  # unless a second attempt came before the answer
                await airline.open(REGISTRY, 5)
            await airline.send(REGISTRY, "row", b"x", 5)
            assert await registry.receive("row", AIRLINE, 5) == (AIRLINE, b"x")
        assert not told.armed
        named = [one for one in said(log) if one in NAMED]
        assert named, position
        airline.drop(REGISTRY)
        registry.drop(AIRLINE)
