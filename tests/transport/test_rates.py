"""Nobody asks without end, and nobody is refused because somebody else does."""

from types import SimpleNamespace

import pytest

from tdn_interop import config
from tdn_interop.errors import Reason, Refused
from tdn_interop.transport import interceptors
from tdn_interop.transport import rates as room
from tdn_interop.transport.rates import Rate, Rates


class Clock:
    """Seconds that pass when the test says so."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def taken(rates, kind, source, times):
    for _ in range(times):
        rates.take(kind, source)


def refusal(rates, kind, source):
    with pytest.raises(Refused) as caught:
        rates.take(kind, source)
    return caught.value


def test_a_source_that_asks_too_often_is_told_when_to_come_back(clock):
    rates = Rates({"openings": Rate(4, 8)}, clock)
    taken(rates, "openings", "a.cn", 8)
    error = refusal(rates, "openings", "a.cn")
    assert (error.reason, error.requirement) == (Reason.RATE_LIMITED, "TDN-T-LIM-06")
    assert error.metadata == {"retry_after_ms": "250", "per_s": "4"}
    clock.now += 0.25
    taken(rates, "openings", "a.cn", 1)
    refusal(rates, "openings", "a.cn")


def test_sources_and_classes_do_not_share_their_tokens(clock):
    rates = Rates({"openings": Rate(1, 2), "hellos": Rate(1, 2)}, clock)
    taken(rates, "openings", "a.cn", 2)
    refusal(rates, "openings", "a.cn")
    taken(rates, "openings", "b.cn", 2)
    taken(rates, "hellos", "a.cn", 2)


def test_a_class_without_a_limit_has_none(clock):
    taken(Rates({}, clock), "openings", "a.cn", 10_000)


def test_refusals_cost_no_tokens_and_nothing_piles_up_beyond_the_burst(clock):
    rates = Rates({"calls": Rate(1, 3)}, clock)
    taken(rates, "calls", "a.cn", 3)
    for _ in range(100):
        refusal(rates, "calls", "a.cn")
    clock.now += 1
    taken(rates, "calls", "a.cn", 1)
    clock.now += 1_000
    taken(rates, "calls", "a.cn", 3)
    refusal(rates, "calls", "a.cn")


def test_sources_are_forgotten_by_the_age_of_their_last_call(clock):
    rates = Rates({"enrolments": Rate(0.001, 1)}, clock)
    rates.take("enrolments", "address 0")
    for number in range(1, room.SOURCES + 100):
        refusal(rates, "enrolments", "address 0")
        rates.take("enrolments", f"address {number}")
    assert len(rates._buckets["enrolments"]) == room.SOURCES
    refusal(rates, "enrolments", "address 0")  # it has asked again and again
    rates.take("enrolments", "address 1")  # nobody has heard of it for long


async def test_each_class_of_calls_has_its_limit(clock):
    """A letter costs its hub two events in the log and one may replace another without end, so they have their own."""
    kinds = {kind for kind, _ in config.Rates()}
    rates = Rates({kind: Rate(1, 1) for kind in kinds}, clock)
    layer = interceptors.rated(rates, lambda peer: peer)
    context = SimpleNamespace(peer=lambda: "bank.cn", invocation_metadata=tuple)
    served = [
        "/tdn.transport.v1.RelayService/Tunnel", "/tdn.transport.v1.RelayService/Attach",
        "/tdn.transport.v1.RoutingService/Resolve", "/tdn.transport.v1.ChannelService/Exchange",
        "/tdn.transport.v1.EnrolmentService/Enrol", "/tdn.app.v1.MailboxService/DepositLetters",
        "/tdn.app.v1.MailboxService/FetchLetters",
    ]  # fmt: skip
    for path in served:  # one does not use up what another may
        async with layer(interceptors.Call(path, (False, False), context)):
            pass
        with pytest.raises(Refused) as caught:
            async with layer(interceptors.Call(path, (False, False), context)):
                raise AssertionError("was let in")
        assert caught.value.reason is Reason.RATE_LIMITED
    assert len(kinds) == len(served)
