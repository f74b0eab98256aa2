"""Leases: silence ends them, any sign of life renews them, and only who is waited for has one."""

import pytest

from tdn_interop.app.jobs.lease import BEAT_S, Leases
from tdn_interop.errors import Reason, Unavailable

A, B = "a.x.cn", "b.y.cn"


class Waiting:
    def __init__(self, *peers, lease_s=60):
        self.peers, self.lease_s, self.given_up = peers, lease_s, []

    def expects(self):
        return self.peers

    def lost(self, peer):
        self.given_up.append(peer)


class Net:
    """`alive` nodes answer; the clock stands until somebody moves it."""

    def __init__(self, *waiting):
        self.now, self.alive, self.asked = 100.0, set(), []
        self.leases = Leases(lambda: waiting, self.ping, lambda: self.now)

    async def ping(self, peer, timeout_s):
        self.asked.append(peer)
        if peer not in self.alive:
            raise Unavailable(Reason.DEADLINE, "silence")

    async def pass_time(self, seconds):
        for _ in range(int(seconds / BEAT_S)):
            await self.leases.look(BEAT_S)
            self.now += BEAT_S
        await self.leases.look(BEAT_S)


async def test_silence_for_a_lease_gives_a_node_up():
    one = Waiting(A)
    net = Net(one)
    await net.pass_time(55)
    assert one.given_up == []
    await net.pass_time(5)
    assert one.given_up == [A]


async def test_a_node_that_answers_is_not_given_up_and_nobody_else_is_asked():
    one = Waiting(A)
    net = Net(one)
    net.alive = {A}
    await net.pass_time(600)
    assert (one.given_up, set(net.asked)) == ([], {A})


async def test_whoever_is_heard_of_is_not_asked():
    one = Waiting(A)
    net = Net(one)
    await net.leases.look(BEAT_S)
    for _ in range(50):
        net.now += BEAT_S / 2
        net.leases.heard(A)
        net.now += BEAT_S / 2
        await net.leases.look(BEAT_S)
    assert (one.given_up, net.asked) == ([], [])


async def test_a_lease_begins_when_something_is_expected():
    one = Waiting()
    net = Net(one)
    await net.pass_time(300)
    one.peers = (A,)
    await net.pass_time(55)
    assert one.given_up == []
    one.peers = ()
    await net.pass_time(300)
    one.peers = (A,)
    await net.pass_time(55)
    assert one.given_up == []


async def test_everybody_has_a_lease_of_its_own():
    short, long = Waiting(A, B, lease_s=20), Waiting(A, lease_s=200)
    net = Net(short, long)
    net.alive = {B}
    await net.pass_time(20)
    assert (set(short.given_up), long.given_up) == ({A}, [])


@pytest.mark.parametrize("peer", [A, B])
async def test_what_is_heard_of_strangers_is_not_kept(peer):
    net = Net()
    net.leases.heard(peer)
    assert net.leases._heard == {}
