"""The bound over all sessions and peers; the rest of the inbox is tested through channels."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdn_interop.errors import Reason, Unavailable
from tdn_interop.transport.inbox import Inbox


def fill(inbox: Inbox, peer: str, cost: int = 1) -> int:
    """What `peer` got in before it was refused."""
    held = 0
    while True:
        try:
            inbox.put(peer, "t", b"", cost, lambda: None)
        except Unavailable:
            return held
        held += cost


def test_a_peer_that_fills_gets_half_and_each_that_comes_later_half_of_the_rest():
    inbox = Inbox(1200)
    assert [fill(inbox, f"n{number}.cn") for number in range(4)] == [600, 300, 150, 75]


def test_a_peer_that_comes_first_cannot_starve_the_others_when_it_is_read():
    inbox = Inbox(1200)
    fill(inbox, "greedy.cn")
    assert inbox.discard("t") == 600
    assert [fill(inbox, "a.cn"), fill(inbox, "greedy.cn")] == [600, 300]


def test_the_bound_is_strict_and_what_is_taken_makes_room():
    inbox = Inbox(1000)
    inbox.put("a.cn", "t", b"", 300, lambda: None)
    inbox.put("a.cn", "t", b"", 200, lambda: None)
    with pytest.raises(Unavailable) as caught:
        inbox.put("a.cn", "t", b"", 1, lambda: None)
    assert caught.value.reason is Reason.RESOURCE_EXHAUSTED
    assert asyncio.run(inbox.take("t", None)) == ("a.cn", b"")
    inbox.put("a.cn", "t", b"", 300, lambda: None)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 400)), max_size=60))
def test_no_mixture_of_peers_holds_more_than_the_whole(puts):
    inbox = Inbox(1000)
    held = dict.fromkeys("abcde", 0)
    for peer, cost in puts:
        with suppress(Unavailable):
            inbox.put(peer, "t", b"", cost, lambda: None)
            held[peer] += cost
    assert max(held.values()) <= 500
    assert sum(held.values()) < 1000
