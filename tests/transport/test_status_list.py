"""The rules of status lists, with a clock that the test moves."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdn_interop import identity
from tdn_interop.errors import PeerProtocolError, Reason, TdnError, switch_off
from tdn_interop.identity import Signed
from tdn_interop.transport import status_list_wire as wire
from tdn_interop.transport.status_list import SKEW_MS, START_MS, StatusLists, issue
from tdn_interop.transport.status_list_wire import Order, Revocation, StatusList
from tdn_interop.transport.trust import Trust
from tests.interop.forge import stranger

CN, EU = stranger("cn"), stranger("eu")
HUB, AIRLINE, RESEARCH = "shandong.cn", "airline.shandong.cn", "research.shandong.cn"
NOW = 1_800_000_000_000
AGE_S = 600


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += int(seconds * 1000)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lists(clock):
    trust = Trust("cn", CN.public_key, lambda _node, key: key, clock)
    return StatusLists(trust.signed_by_top, AGE_S, clock)


def entry(node, reason="lost key"):
    return Revocation(node, NOW - 5, reason)


def take(lists, signed):
    version = lists.verify(signed)
    lists.took(signed)
    return version


def reason_of(call, *args):
    with pytest.raises(TdnError) as caught:
        call(*args)
    return caught.value.reason


def test_who_is_on_the_list_is_refused_and_everybody_below(lists, clock):
    assert take(lists, issue(CN, 7, clock(), [entry(HUB)])) == 7
    for node in (HUB, AIRLINE, f"x.{AIRLINE}"):
        assert reason_of(lists.admit, node) is Reason.REVOKED
        assert lists.refusal(node).reason is Reason.REVOKED
    for node in ("cn", "guangdong.cn", "xshandong.cn", "shandong.eu"):
        lists.admit(node)
        assert lists.refusal(node) is None
    assert lists.on_list(HUB)
    assert not lists.on_list(AIRLINE)


def test_a_long_list_that_comes_again_is_not_read_again(lists, clock, monkeypatch):
    """Anybody may offer a genuine old one as often as calls are taken; to read it takes a tenth of a second."""
    take(lists, issue(CN, 7, clock(), [entry(HUB)]))
    read = []
    monkeypatch.setattr(wire, "decode_status_list", read.append)
    assert lists.verify(issue(CN, 6, clock(), [])) == 6
    assert lists.verify(issue(CN, 7, clock(), [])) == 7  # `Notices` refuses it: EQUIVOCATION
    assert read == []


def test_words_say_who_was_revoked(lists, clock):
    take(lists, issue(CN, 1, clock(), [entry(HUB)]))
    assert lists.refusal(HUB).message == f"{HUB} has been revoked"
    assert lists.refusal(AIRLINE).message == f"{AIRLINE} is below {HUB}, which has been revoked"


def test_an_old_list_begins_nothing_new_and_ends_nothing(lists, clock):
    take(lists, issue(CN, 1, clock(), [entry(AIRLINE)]))
    clock.passes(AGE_S)
    lists.admit_new(RESEARCH)
    clock.passes(0.001)
    assert reason_of(lists.admit_new, RESEARCH) is Reason.STATUS_STALE
    lists.admit(RESEARCH)
    assert reason_of(lists.admit_new, AIRLINE) is Reason.REVOKED
    assert [one.stale for one in lists.standings()] == [True]
    take(lists, issue(CN, 2, clock(), [entry(AIRLINE)]))
    lists.admit_new(RESEARCH)


def test_without_any_list_only_the_start_is_allowed(lists, clock):
    clock.passes(START_MS / 1000)
    lists.admit_new(RESEARCH)
    clock.passes(0.001)
    assert reason_of(lists.admit_new, RESEARCH) is Reason.STATUS_STALE


def test_the_list_of_one_top_says_nothing_about_the_nodes_of_another(lists, clock):
    clock.passes(START_MS / 1000 + 1)
    take(lists, issue(CN, 1, clock(), []))
    lists.admit_new(RESEARCH)
    assert reason_of(lists.admit_new, "bank.eu") is Reason.STATUS_STALE


@pytest.mark.parametrize("signer", [EU, stranger("cn"), stranger(HUB)], ids=["other top", "other key", "hub"])
def test_only_the_key_of_a_trusted_top_signs(lists, clock, signer):
    statement = wire.encode_status_list(StatusList("cn", 9, clock(), ()))
    forged = signer.sign(identity.STATUS_LIST, statement)
    assert reason_of(lists.verify, forged) is Reason.SIGNATURE_INVALID
    renamed = Signed(forged.statement, "cn", forged.signature)
    assert reason_of(lists.verify, renamed) is Reason.SIGNATURE_INVALID


def test_a_signature_for_another_purpose_or_another_top_is_none(lists, clock):
    statement = wire.encode_status_list(StatusList("cn", 9, clock(), ()))
    assert reason_of(lists.verify, CN.sign(identity.TRUST_BUNDLE, statement)) is Reason.SIGNATURE_INVALID
    others = wire.encode_status_list(StatusList("eu", 9, clock(), ()))
    assert reason_of(lists.verify, CN.sign(identity.STATUS_LIST, others)) is Reason.SIGNATURE_INVALID


def test_nobody_comes_back(lists, clock):
    take(lists, issue(CN, 5, clock(), [entry(AIRLINE)]))
    assert reason_of(lists.verify, issue(CN, 6, clock(), [entry(RESEARCH)])) is Reason.EQUIVOCATION
    assert take(lists, issue(CN, 6, clock(), [entry(RESEARCH), entry(AIRLINE)])) == 6


def test_a_list_from_the_future_would_never_become_old(lists, clock):
    lists.verify(issue(CN, 1, clock() + SKEW_MS, []))
    assert reason_of(lists.verify, issue(CN, 1, clock() + SKEW_MS + 1, [])) is Reason.STATUS_STALE


def test_a_clock_ten_minutes_behind_takes_what_is_fresh(lists, clock):
    take(lists, issue(CN, 1, clock() + SKEW_MS - 1000, []))
    clock.passes(30)
    lists.admit_new(RESEARCH)


@pytest.mark.parametrize(
    "found",
    [
        StatusList("shandong.cn", 1, NOW, ()),
        StatusList("cn", 0, NOW, ()),
        StatusList("cn", 1, 0, ()),
        StatusList("cn", 1, NOW, (entry("cn"),)),
        StatusList("cn", 1, NOW, (entry("bank.eu"),)),
        StatusList("cn", 1, NOW, (entry("b.cn"), entry("a.cn"))),
        StatusList("cn", 1, NOW, (entry("a.cn"), entry("a.cn"))),
        StatusList("cn", 1, NOW, (entry("A.cn"),)),
        StatusList("cn", 1, NOW, (entry("a.cn", "two\nlines"),)),
        StatusList("cn", 1, NOW, (entry("a.cn", "x" * 121),)),
    ],
)
def test_malformed_lists_do_not_exist(found):
    with pytest.raises(PeerProtocolError):
        wire.decode_status_list(wire.encode_status_list(found))


def test_a_list_is_bounded():
    with pytest.raises(TdnError) as caught:
        issue(CN, 1, NOW, [entry(f"n{number}.cn", "x" * 120) for number in range(8_000)])
    assert caught.value.reason is Reason.RESOURCE_EXHAUSTED
    fits = issue(CN, 1, NOW, [entry(f"node-{number:05}.shandong.cn", "") for number in range(15_000)])
    assert len(wire.decode_status_list(fits.statement).revoked) == 15_000
    with pytest.raises(PeerProtocolError):
        wire.decode_status_list(b"\0" * (wire.MAX_LIST + 1))


NODES = st.sampled_from(
    [".".join(labels) for n in (1, 2, 3) for labels in itertools.product("abc", repeat=n)]
)


@given(st.sets(NODES.map(lambda node: f"{node}.cn")), st.integers(1, 1 << 60))
def test_lists_survive_the_wire(nodes, version):
    signed = issue(CN, version, NOW, map(entry, nodes))
    assert wire.decode_status_list(signed.statement) == StatusList(
        "cn", version, NOW, tuple(map(entry, sorted(nodes)))
    )


@given(st.sets(NODES.map(lambda node: f"{node}.cn")), NODES.map(lambda node: f"{node}.cn"))
def test_refused_is_who_is_named_or_below_somebody_named(revoked, node):
    lists = StatusLists(lambda _context, _signed: None, AGE_S, Clock())
    lists.refuse(map(entry, revoked))
    expected = any(node == one or node.endswith("." + one) for one in revoked)
    assert (lists.refusal(node) is not None) == expected


def test_orders_survive_the_wire():
    order = Order(AIRLINE, "lost key", NOW)
    assert wire.decode_order(wire.encode_order(order)) == order
    for data in (
        b"\xff",
        wire.encode_order(Order("no id!", "", 1)),
        wire.encode_order(Order("a.cn", "x" * 121, 1)),
    ):
        with pytest.raises(PeerProtocolError):
            wire.decode_order(data)


def test_the_guards_can_be_switched_off(lists, clock):
    take(lists, issue(CN, 1, clock(), [entry(AIRLINE)]))
    try:
        switch_off(frozenset({"TDN-T-IDN-01", "TDN-T-IDN-09"}))
        assert lists.refusal(AIRLINE) is None
        clock.passes(2 * AGE_S)
        lists.admit_new(RESEARCH)
    finally:
        switch_off(frozenset())
