"""Clocks of honest nodes differ: by ten minutes nothing happens, beyond that a refusal says to compare them."""

import dataclasses
import datetime as dt

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tdn_interop import identity
from tdn_interop.errors import Reason, TdnError
from tdn_interop.identity import Credentials, Identity
from tdn_interop.transport import pki, records_wire, tls, trust_wire
from tdn_interop.transport.records_wire import NodeRecord
from tdn_interop.transport.trust import Trust, delegate
from tdn_interop.transport.trust_wire import TrustBundle, TrustedTop
from tests.interop.forge import now, raw_context, until, write
from tests.interop.fronts import CLIENT, HUB, ROOT, exchange, fronted

BANK = "bank.cn"
NOW = 1_800_000_000_000
MINUTE = 60_000
TOP, KEY = Identity("cn", Ed25519PrivateKey.generate()), Identity(BANK, Ed25519PrivateKey.generate())
ROOT_CN = pki.create_root("cn")
# How far the clock of the verifier stands from that of the issuer, in minutes; what is fresh is refused, or not.
SKEWS = [(-11, False), (-9, True), (0, True), (9, True)]


def trust(skew_minutes):
    return Trust("cn", TOP.public_key, lambda _node, key: key, lambda: NOW + skew_minutes * MINUTE)


@pytest.mark.parametrize(("skew", "good"), SKEWS)
def test_a_delegation_that_was_just_made(skew, good):
    """Its certificate, and therefore the delegation, begin ten minutes before the issue."""
    starts = dt.datetime.fromtimestamp(NOW / 1000, dt.UTC) - pki.SKEW
    key = pki.new_key()
    leaf = pki.issue_leaf(ROOT_CN, BANK, key.public_key(), dt.timedelta(days=1), starts)
    spki, ends = pki.spki_sha256(leaf), int(leaf.not_valid_after_utc.timestamp() * 1000)
    record = TOP.sign(
        identity.NODE_RECORD, records_wire.encode_record(NodeRecord(BANK, "child", KEY.public_key, "cn", NOW))
    )
    shown = Credentials(record, delegate(KEY, spki, int(starts.timestamp() * 1000), ends))
    peer = pki.PeerCertificate(BANK, spki, ends)
    if good:
        trust(skew).verify(peer, shown)
        return
    with pytest.raises(TdnError) as caught:
        trust(skew).verify(peer, shown)
    assert caught.value.reason is Reason.IDENTITY_MISMATCH
    assert "compare the clocks" in caught.value.message


@pytest.mark.parametrize(("skew", "good"), [*SKEWS, (600, True)])
def test_a_bundle_that_was_just_issued(skew, good):
    top = TrustedTop("cn", TOP.public_key, (pki.der(ROOT_CN.certificate),))
    signed = TOP.sign(identity.TRUST_BUNDLE, trust_wire.encode_bundle(TrustBundle("cn", 1, NOW, (top,))))
    if good:
        assert trust(skew).bundle(signed).version == 1
        return
    with pytest.raises(TdnError) as caught:
        trust(skew).bundle(signed)
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert "compare the clocks" in caught.value.message


def by_a_clock_that_is(minutes, life=dt.timedelta(days=1)):
    """A leaf that an issuer whose clock differs from ours makes now, as `issue_leaf` would."""
    key = pki.new_key()
    issued = now() + dt.timedelta(minutes=minutes)
    leaf = pki.issue_leaf(HUB, CLIENT, key.public_key(), life + pki.SKEW, issued - pki.SKEW)
    return leaf, key


@pytest.mark.parametrize(
    ("minutes", "life_minutes", "refusal"),
    [
        (9, 1440, None), (-9, 1440, None), (11, 1440, ("UNAUTHENTICATED", "compare the clocks")),
        (-9, 10, None), (-11, 10, ("CERTIFICATE_EXPIRED", "expired")),
    ],
)  # fmt: skip
async def test_a_certificate_that_was_just_issued(tmp_path, minutes, life_minutes, refusal):
    leaf, key = by_a_clock_that_is(minutes, dt.timedelta(minutes=life_minutes))
    files = write(tmp_path / "client", [leaf, HUB.certificate], key, ROOT.certificate)
    async with fronted(tmp_path / "f") as (_, port, behind):
        answer = await exchange(port, raw_context(files))
        if refusal is None:
            assert answer == b"hello"
            return
        await until(lambda: behind.refused)
        [error] = behind.refused
        assert (error.reason.name, refusal[1] in error.message) == (refusal[0], True)


def test_the_peer_is_told_from_when_to_when(tmp_path):
    """What rotation goes by: the life of a certificate without the slack before it."""
    leaf, key = by_a_clock_that_is(0, dt.timedelta(minutes=30))
    files = write(tmp_path, [leaf, HUB.certificate], key, ROOT.certificate)
    peer = tls.self_test(files, CLIENT)
    assert peer.expires_at_ms - peer.issued_at_ms == 30 * MINUTE
    assert peer.at(0.5) == peer.issued_at_ms + 15 * MINUTE
    assert peer.ours == leaf
    assert dataclasses.replace(peer, ours=None) == pki.read_peer(pki.der(leaf))
