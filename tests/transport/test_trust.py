"""The five steps by which a node decides who is behind a connection, each shown to decide."""

import dataclasses
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tdn_interop import identity
from tdn_interop.errors import Reason, TdnError
from tdn_interop.identity import Credentials, Identity, Signed
from tdn_interop.transport import records_wire
from tdn_interop.transport.pki import PeerCertificate
from tdn_interop.transport.records_wire import Delegation, NodeRecord
from tdn_interop.transport.trust import Membership, Trust, delegate

NOW = 1_700_000_000_000
BANK, OTHER = "bank.shandong.cn", "other.shandong.cn"
TLS_KEY, OTHER_TLS_KEY = bytes(32), bytes([1]) * 32


def key(node):
    return Identity(node, Ed25519PrivateKey.generate())


TOP, BANK_KEY, OTHER_KEY, FRESH_KEY = key("cn"), key(BANK), key(OTHER), key(BANK)
PEER = PeerCertificate(BANK, TLS_KEY, NOW + 1000)


def record(node=BANK, identity_key=BANK_KEY, signer=TOP, context=identity.NODE_RECORD):
    made = NodeRecord(node, "child", identity_key.public_key, node.partition(".")[2], NOW)
    return signer.sign(context, records_wire.encode_record(made))


def delegation(signer=BANK_KEY, node=BANK, tls_key=TLS_KEY, start=-1, end=1, context=identity.DELEGATION):
    made = Delegation(node, tls_key, NOW + start, NOW + end)
    return signer.sign(context, records_wire.encode_delegation(made))


GOOD = Credentials(record(), delegation())


class Pins(dict):
    def __call__(self, node, identity_key):
        return self.setdefault(node, identity_key)


def trust(pins=None):
    return Trust("cn", TOP.public_key, pins if pins is not None else Pins(), lambda: NOW)


def refusal(credentials, pins=None):
    with pytest.raises(TdnError) as caught:
        trust(pins).verify(PEER, credentials)
    return caught.value.reason, caught.value.requirement


def test_good_credentials():
    pins = Pins()
    assert trust(pins).verify(PEER, GOOD).identity_key == BANK_KEY.public_key
    assert pins == {BANK: BANK_KEY.public_key}
    trust(pins).verify(PEER, GOOD)


MISMATCH, OTHER_NAME = (Reason.IDENTITY_MISMATCH, "TDN-T-IDN-06"), (Reason.IDENTITY_MISMATCH, "TDN-T-IDN-02")
FORGED = (Reason.SIGNATURE_INVALID, "TDN-T-IDN-06")
BAD = {
    "a record that its own node signed": (Credentials(record(signer=BANK_KEY), delegation()), FORGED),
    "a record that a false top signed": (Credentials(record(signer=key("cn")), delegation()), FORGED),
    "a record that another node signed with the top's key": (
        Credentials(record(signer=Identity(OTHER, TOP._key)), delegation()), FORGED,
    ),
    "a signature for another purpose": (
        Credentials(record(context=identity.RECEIPT), delegation()), FORGED,
    ),
    "the record of another node": (Credentials(record(OTHER, OTHER_KEY), delegation(OTHER_KEY, OTHER)), OTHER_NAME),
    "a delegation by a key of the impostor": (Credentials(record(), delegation(FRESH_KEY)), MISMATCH),
    "a delegation by another node": (Credentials(record(), delegation(OTHER_KEY)), MISMATCH),
    "a delegation in the name of another node": (Credentials(record(), delegation(node=OTHER)), MISMATCH),
    "a delegation of another TLS key": (Credentials(record(), delegation(tls_key=OTHER_TLS_KEY)), MISMATCH),
    "a delegation that has ended": (Credentials(record(), delegation(end=-1, start=-2)), MISMATCH),
    "a delegation that has not begun": (Credentials(record(), delegation(start=1, end=2)), MISMATCH),
    "another statement signed as a delegation": (
        Credentials(record(), delegation(context=identity.NODE_RECORD)), MISMATCH,
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", BAD)
def test_bad_credentials(which):
    credentials, expected = BAD[which]
    assert refusal(credentials) == expected


@pytest.mark.parametrize("part", ["record", "delegation"])
def test_one_bit_of_a_statement(part):
    good = getattr(GOOD, part)
    for at in range(0, len(good.statement) * 8, 7):
        statement = bytearray(good.statement)
        statement[at // 8] ^= 1 << at % 8
        bad = dataclasses.replace(good, statement=bytes(statement))
        reason, _ = refusal(dataclasses.replace(GOOD, **{part: bad}))
        assert reason in {Reason.SIGNATURE_INVALID, Reason.IDENTITY_MISMATCH, Reason.INVALID_REQUEST}


def test_a_second_identity_key_for_a_known_node_even_if_the_top_signs_it():
    pins = Pins({BANK: BANK_KEY.public_key})
    second = Credentials(record(identity_key=FRESH_KEY), delegation(FRESH_KEY))
    assert refusal(second, pins) == MISMATCH
    assert pins == {BANK: BANK_KEY.public_key}
    trust(pins).verify(PEER, GOOD)


@pytest.mark.parametrize(("start", "end"), [(0, 0), (-1, 0), (0, 1)])
def test_both_ends_of_a_delegation_are_inside(start, end):
    trust().verify(PEER, Credentials(record(), delegation(start=start, end=end)))


def test_delegate_makes_what_verify_takes():
    made = delegate(BANK_KEY, TLS_KEY, NOW - 1, NOW + 1)
    trust().verify(PEER, Credentials(record(), made))


def test_membership_survives_its_file(tmp_path):
    for parent in (record("shandong.cn", key("shandong.cn")), None):
        saved = Membership("cn", TOP.public_key, "shandong.cn", "127.0.0.1:1", record(), parent)
        saved.save(tmp_path / "m.json")
        assert Membership.load(tmp_path / "m.json") == saved


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"top": 1}', json.dumps({"top": "cn", "top_identity_key": "zz"})]
)
def test_a_damaged_membership(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(TdnError) as caught:
        Membership.load(tmp_path / "m.json")
    assert caught.value.reason is Reason.CONFIG_INVALID


def test_a_node_that_has_not_enrolled(tmp_path):
    with pytest.raises(TdnError) as caught:
        Membership.load(tmp_path / "m.json")
    assert caught.value.reason is Reason.NOT_ENROLLED


def test_a_signature_of_another_length_is_no_signature():
    assert not identity.verify(identity.RECEIPT, Signed(b"x", "cn", b"short"), TOP.public_key)
    assert not identity.verify(identity.RECEIPT, TOP.sign(identity.RECEIPT, b"x"), b"short")
