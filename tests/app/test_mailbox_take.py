"""What a node does with letters that a hub hands out, also a hostile one, and what it leaves at hubs."""

import contextlib
import dataclasses

import pytest

from tdn_interop.app.post import post_wire
from tdn_interop.app.post.mailbox_wire import SignedLetter, decode_letter
from tdn_interop.app.post.post_wire import WireReceipt
from tdn_interop.app.post.sealing import SealingKeys
from tdn_interop.errors import PeerProtocolError, Reason, Refused, Unavailable
from tests.app.letters import (
    BANK,
    CLINIC,
    DAY,
    FAR,
    KEYS,
    NOW,
    letter,
    mailbox,
    parcel,
    record_of,
    sealing_key,
)


class Hub:
    """A hub that hands out `letters`, and keeps what it is told."""

    def __init__(self, *letters, key=None, record=None):
        self.handed, self.acknowledged, self.deposited = letters, [], []
        self.key, self.record = key, record

    async def letters(self):
        for signed in self.handed:
            yield signed

    async def acknowledge(self, digests):
        self.acknowledged += digests

    async def key_of(self, node):
        return self.key, self.record or record_of(node)

    async def deposit(self, letters):
        self.deposited += letters


@pytest.fixture
def bank(tmp_path):
    box, mesh = mailbox(tmp_path)
    mesh.public, _ = box._keys.current()
    return box, mesh


async def test_good_letters_reach_the_post_and_are_acknowledged(bank):
    box, mesh = bank
    letters = [letter(mesh.public, parcel(number)) for number in range(70)]
    hub = Hub(*letters)
    await box._fetch(hub)
    assert mesh.arrived == [(FAR, parcel(number)) for number in range(70)]
    assert hub.acknowledged == [signed.sha256 for signed in letters]


def tampered(signed):
    statement = signed.letter.statement[:-1] + bytes([signed.letter.statement[-1] ^ 1])
    return SignedLetter(dataclasses.replace(signed.letter, statement=statement), signed.record)


REFUSED = {
    "tampered": (lambda key: tampered(letter(key, parcel())), Reason.SIGNATURE_INVALID),
    "another signer": (lambda key: letter(key, parcel(), signer=KEYS[CLINIC]), Reason.IDENTITY_MISMATCH),
    "another sender": (lambda key: letter(key, parcel(), sender=CLINIC), Reason.IDENTITY_MISMATCH),
    "another recipient": (lambda key: letter(key, parcel(), recipient=CLINIC), Reason.IDENTITY_MISMATCH),
    "expired": (lambda key: letter(key, parcel(), expires_at_ms=NOW - 1), Reason.LETTER_EXPIRED),
    "another record": (
        lambda key: dataclasses.replace(letter(key, parcel()), record=record_of(CLINIC)), Reason.IDENTITY_MISMATCH,
    ),
    "a record that the top did not sign": (
        lambda key: dataclasses.replace(letter(key, parcel()), record=dataclasses.replace(
            record_of(FAR), signature=bytes(64))), Reason.SIGNATURE_INVALID,
    ),
    "a key that we never had": (lambda key: letter(key, parcel(), key_sha256=b"k" * 32), Reason.SEAL_BROKEN),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_a_letter_that_is_not_what_its_sender_sealed_for_us_is_dropped(bank, case):
    box, mesh = bank
    make, reason = REFUSED[case]
    bad, good = make(mesh.public), letter(mesh.public, parcel(5))
    hub = Hub(bad, good)
    await box._fetch(hub)
    assert mesh.refusals == [reason]
    assert mesh.arrived == [(FAR, parcel(5))]
    assert hub.acknowledged == [bad.sha256, good.sha256]


async def test_the_seal_is_bound_to_what_the_hub_can_read(bank):
    """Even the sender's own key cannot give the sealed bytes of one letter to another."""
    box, mesh = bank
    first = decode_letter(letter(mesh.public, parcel()).letter.statement)
    for change in ({"letter_id": b"i" * 16}, {"expires_at_ms": NOW + 2 * DAY}):
        moved = dataclasses.replace(first, **change)
        with pytest.raises(PeerProtocolError) as caught:
            box._keys.open(moved.key_sha256, moved.sealed, moved.info)
        assert caught.value.reason is Reason.SEAL_BROKEN


async def test_a_revoked_sender_is_not_heard_any_more(bank):
    box, mesh = bank
    mesh.revoked[FAR] = Refused(Reason.REVOKED, "revoked", "TDN-T-IDN-09")
    await box._fetch(Hub(letter(mesh.public, parcel())))
    assert (mesh.refusals, mesh.arrived) == ([Reason.REVOKED], [])


@pytest.mark.parametrize("reason", [Reason.SEQ_GAP, Reason.RESOURCE_EXHAUSTED, Reason.STORE_UNAVAILABLE])
async def test_a_letter_that_cannot_be_stored_yet_stays_at_the_hub(bank, reason):
    box, mesh = bank
    mesh.problem = Unavailable(reason, "later", "TDN-T-DLV-04")
    hub = Hub(letter(mesh.public, parcel()))
    await box._fetch(hub)
    assert hub.acknowledged == []


# -- out -------------------------------------------------------------------------------------------


@pytest.fixture
def far(tmp_path):
    """(mailbox of FAR, its mesh, hub of BANK, keys of BANK)."""
    box, mesh = mailbox(tmp_path, FAR)
    keys = SealingKeys(tmp_path / "bank.key", lambda: NOW)
    hub = Hub(key=sealing_key(keys, BANK))

    @contextlib.asynccontextmanager
    async def at(_hub):
        yield hub

    box._at = at
    return box, mesh, hub, keys


async def test_the_same_parcel_has_the_same_letter_id_and_a_stream_one_letter_with_a_receipt(far):
    box, _, hub, _ = far
    receipts = [post_wire.encode(WireReceipt(b"s" * 16, number)) for number in (1, 2)]
    assert await box.send(BANK, [parcel(1), parcel(1), parcel(2), *receipts])
    ids = [decode_letter(signed.letter.statement).letter_id for signed in hub.deposited]
    assert ids[0] == ids[1] != ids[2]
    assert ids[3] == ids[4]
    assert len(set(ids)) == 3


async def test_a_letter_lives_as_long_as_its_parcel_but_no_longer_than_a_hub_keeps_it(far):
    box, _, hub, _ = far
    await box.send(BANK, [parcel(1), parcel(2, expires_at_ms=NOW + 365 * DAY)])
    ends = [decode_letter(signed.letter.statement).expires_at_ms for signed in hub.deposited]
    assert ends == [NOW + DAY, NOW + 30 * DAY]


async def test_a_sealing_key_that_the_recipient_did_not_sign_gets_no_letter(far):
    box, mesh, hub, keys = far
    hub.key = sealing_key(keys, BANK, KEYS[CLINIC])
    assert not await box.send(BANK, [parcel()])
    hub.key, hub.record = sealing_key(keys, CLINIC), record_of(CLINIC)
    assert not await box.send(BANK, [parcel()])
    assert mesh.refusals == [Reason.IDENTITY_MISMATCH] * 2
    assert hub.deposited == []


async def test_a_sealing_key_past_its_end_gets_no_letter(far):
    box, mesh, hub, _ = far
    box._clock = lambda: NOW + 60 * DAY
    assert not await box.send(BANK, [parcel()])
    assert mesh.refusals == [Reason.LETTER_EXPIRED]
    assert hub.deposited == []


async def test_a_top_has_no_mailbox(far):
    box, *_ = far
    assert not await box.send("cn", [parcel()])


async def test_a_child_keeps_no_letters(far):
    box, *_ = far
    with pytest.raises(Refused) as caught:
        await box.boxes()
    assert caught.value.reason is Reason.UNSUPPORTED
