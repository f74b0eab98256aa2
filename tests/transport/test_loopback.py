import asyncio
from itertools import pairwise

import pytest

from tdn_interop.transport.channel import ConnectionLost
from tdn_interop.transport.frame import Ack
from tdn_interop.transport.loopback import Faults, Loopback, pair


def frames(count):
    return [Ack("t", number) for number in range(count)]


async def carry(count, faults):
    """Sequence numbers that arrive of `count` sent ones."""
    here, there = pair(faults, capacity=10_000)
    for frame in frames(count):
        await here.send(frame)
    await here.close()
    arrived = []
    with pytest.raises(ConnectionLost):
        while True:
            arrived.append((await there.receive()).next_seq)
    return arrived


async def test_a_sound_connection_keeps_order_and_what_was_sent_before_its_end():
    assert await carry(50, Faults()) == list(range(50))


async def test_scripted_faults():
    assert await carry(5, Faults(drop=frozenset({1, 3}))) == [0, 2, 4]
    assert await carry(3, Faults(duplicate=frozenset({1}))) == [0, 1, 1, 2]
    assert await carry(4, Faults(late=frozenset({1}), window=1)) == [0, 2, 1, 3]


async def test_random_faults_are_repeatable_and_near_their_rates():
    faults = Faults(loss=0.05, duplication=0.1, reordering=0.1, seed=7)
    first = await carry(4000, faults)
    assert first == await carry(4000, faults)
    assert first != await carry(4000, Faults(loss=0.05, duplication=0.1, reordering=0.1, seed=8))
    assert 0.03 < 1 - len(set(first)) / 4000 < 0.07
    assert 0.05 < (len(first) - len(set(first))) / 4000 < 0.15
    assert any(one > two for one, two in pairwise(first))
    assert all(number - max(first[: i + 1]) >= -5 for i, number in enumerate(first))


async def test_a_reset_hits_both_ends_and_loses_what_is_on_its_way():
    here, there = pair(Faults(reset_after=2))
    await here.send(Ack("t", 0))
    await there.send(Ack("t", 9))
    await here.send(Ack("t", 1))
    with pytest.raises(ConnectionLost):
        await here.send(Ack("t", 2))
    for end in (here, there):
        with pytest.raises(ConnectionLost):
            await end.receive()
        with pytest.raises(ConnectionLost):
            await end.send(Ack("t", 3))


async def test_a_full_connection_makes_its_sender_wait():
    here, there = pair(capacity=2)
    sender = asyncio.create_task(asyncio.wait_for(send_all(here, frames(3)), 5))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not sender.done()
    assert (await there.receive()).next_seq == 0
    await sender


async def send_all(stream, many):
    for frame in many:
        await stream.send(frame)


async def test_the_network_counts_dials_and_refuses_unknown_nodes():
    net = Loopback()
    served = []

    async def accept(stream, peer):
        served.append((peer, await stream.receive()))

    net.attach("b.cn", accept)
    connect = net.dialler("a.cn")
    stream = await connect("b.cn")
    await stream.send(Ack("t", 0))
    with pytest.raises(ConnectionLost):
        await connect("c.cn")
    await asyncio.sleep(0)
    await net.close()
    assert served == [("a.cn", Ack("t", 0))]
    assert net.dials == {("a.cn", "b.cn"): 1}
