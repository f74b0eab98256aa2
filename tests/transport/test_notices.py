"""Notices: the newest statement of each kind and top counts, whatever comes again later."""

import asyncio

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tdn_interop import identity
from tdn_interop.errors import PeerProtocolError, Reason, TdnError, guard
from tdn_interop.identity import Identity
from tdn_interop.transport.notice_service import Sharing
from tdn_interop.transport.notices import STATUS_LIST, TRUST_BUNDLE, Notices

CN, HK = (Identity(top, Ed25519PrivateKey.generate()) for top in ("cn", "hk"))
KEYS = {"cn": CN.public_key, "hk": HK.public_key}


def verify(signed):
    """The statement is its version in ten digits, and whatever follows."""
    good = identity.verify(identity.STATUS_LIST, signed, KEYS[signed.signer])
    guard("TDN-T-IDN-09").check(good, Reason.SIGNATURE_INVALID, "a forged notice")
    return int(signed.statement[:10])


def notice(version, more=b"", by=CN):
    return by.sign(identity.STATUS_LIST, b"%010d" % version + more)


@pytest.fixture
def notices(tmp_path):
    made = Notices(tmp_path / "notices")
    made.add(STATUS_LIST, verify)
    return made


def test_a_newer_version_replaces_an_older_one_and_never_the_other_way(notices):
    assert notices.newest(STATUS_LIST, "cn") is None
    assert notices.offer(STATUS_LIST, notice(5))
    assert not notices.offer(STATUS_LIST, notice(5))
    assert not notices.offer(STATUS_LIST, notice(4))
    assert notices.newest(STATUS_LIST, "cn") == notice(5)
    assert notices.offer(STATUS_LIST, notice(7))
    assert notices.newest(STATUS_LIST, "cn") == notice(7)


def test_each_top_has_its_own_versions(notices):
    notices.offer(STATUS_LIST, notice(5))
    assert notices.offer(STATUS_LIST, notice(2, by=HK))
    assert notices.newest(STATUS_LIST, "cn") == notice(5)
    assert notices.newest(STATUS_LIST, "hk") == notice(2, by=HK)


def test_a_top_that_says_two_things_under_one_version(notices):
    notices.offer(STATUS_LIST, notice(5))
    with pytest.raises(PeerProtocolError) as caught:
        notices.offer(STATUS_LIST, notice(5, b"else"))
    assert caught.value.reason is Reason.EQUIVOCATION
    assert notices.newest(STATUS_LIST, "cn") == notice(5)


def test_a_forged_notice_changes_nothing(notices):
    notices.offer(STATUS_LIST, notice(5))
    forged = notice(9, by=Identity("cn", Ed25519PrivateKey.generate()))
    with pytest.raises(TdnError) as caught:
        notices.offer(STATUS_LIST, forged)
    assert caught.value.reason is Reason.SIGNATURE_INVALID
    assert notices.newest(STATUS_LIST, "cn") == notice(5)


def test_what_a_neighbour_invents_is_not_remembered(tmp_path):
    """Names of tops that do not exist, and statements of up to a mebibyte: nothing of it stays."""
    refused = []
    notices = Notices(tmp_path / "notices", knows=KEYS.__contains__)
    notices.add(STATUS_LIST, verify)
    sharing = Sharing(None, notices, refused.append)
    for number in range(100):
        stranger = Identity(f"t{number}", Ed25519PrivateKey.generate())
        sharing._hear(STATUS_LIST, notice(1, by=stranger))
    sharing._hear(STATUS_LIST, notice(9, by=Identity("cn", Ed25519PrivateKey.generate())))
    assert not sharing._heard
    assert [error.reason for error in refused] == [Reason.SIGNATURE_INVALID]
    sharing._hear(STATUS_LIST, notice(5))
    assert list(sharing._heard.values()) == [notice(5)]
    sharing._hear(STATUS_LIST, notice(4))
    assert list(sharing._heard.values()) == [notice(5)]


def test_a_kind_that_is_not_served_is_not_kept(notices):
    assert not notices.offer(TRUST_BUNDLE, notice(1))
    assert notices.newest(TRUST_BUNDLE, "cn") is None


def test_a_node_that_starts_again_knows_what_it_knew(notices, tmp_path):
    for one in (notice(5), notice(6), notice(1, by=HK)):
        notices.offer(STATUS_LIST, one)
    took = []
    again = Notices(tmp_path / "notices")
    again.add(STATUS_LIST, verify, took.append)
    assert took == [notice(6), notice(1, by=HK)]
    assert not again.offer(STATUS_LIST, notice(5))


def test_a_damaged_file_is_dropped(notices, tmp_path):
    notices.offer(STATUS_LIST, notice(5))
    (tmp_path / "notices" / "status_list-cn.bin").write_bytes(b"damaged")
    again = Notices(tmp_path / "notices")
    again.add(STATUS_LIST, verify)
    assert again.newest(STATUS_LIST, "cn") is None
    assert again.offer(STATUS_LIST, notice(5))


async def test_who_follows_hears_what_is_known_and_then_what_is_newer(notices):
    notices.offer(STATUS_LIST, notice(1))
    notices.offer(STATUS_LIST, notice(1, by=HK))
    heard = notices.follow()
    assert [await anext(heard), await anext(heard)] == [
        (STATUS_LIST, notice(1)), (STATUS_LIST, notice(1, by=HK)),
    ]  # fmt: skip
    waiting = asyncio.ensure_future(anext(heard))
    await asyncio.sleep(0)
    assert not waiting.done()
    for version in (2, 3):
        notices.offer(STATUS_LIST, notice(version))
    assert await waiting == (STATUS_LIST, notice(3))  # what a slow reader missed it never sees
    await heard.aclose()
