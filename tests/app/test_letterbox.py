"""The mailbox at a hub: who may leave and take what, bounds, expiry, and what the evidence tells."""

import dataclasses

import pytest

from tdn_interop import identity
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.post import letterbox as letterbox_module
from tdn_interop.app.post import mailbox_wire as wire
from tdn_interop.app.post.letterbox import Letterbox
from tdn_interop.app.post.mailbox_wire import SignedLetter
from tdn_interop.app.post.sealing import SealingKeys
from tdn_interop.app.store.engine import Store
from tdn_interop.errors import PeerProtocolError, Reason, TdnError
from tdn_interop.identity import Signed
from tests.app.letters import (
    BANK,
    CLINIC,
    DAY,
    FAR,
    HUB,
    KEYS,
    NOW,
    Members,
    letter,
    parcel,
    sealing_key,
    verified,
)


class World:
    """A hub with two members; `time` is its clock."""

    def __init__(self, folder):
        self.time = NOW
        self.url = f"sqlite:///{folder}/hub.db"
        self.keys = SealingKeys(folder / "sealing.key", lambda: self.time)
        self.public, _ = self.keys.current()

    async def start(self):
        self.store = Store.open(self.url)
        self.log = await EvidenceLog.open(self.store, KEYS[HUB])
        self.box = Letterbox(self.store, self.log, Members(BANK, CLINIC), verified, lambda: self.time)
        return self

    def letter(self, message=None, **changes):
        return letter(self.public, message or parcel(), **changes)

    async def left(self, node=BANK):
        return [found async for found in self.box.letters(node)]


@pytest.fixture
async def world(tmp_path):
    world = await World(tmp_path).start()
    await world.box.publish(BANK, sealing_key(world.keys, BANK))
    yield world
    world.store.close()


async def refusal(awaitable):
    with pytest.raises(TdnError) as caught:
        await awaitable
    return caught.value.reason


async def test_letters_stay_in_order_until_they_are_acknowledged(world):
    first, second = world.letter(parcel(0)), world.letter(parcel(1))
    await world.box.deposit(FAR, [first])
    await world.box.deposit(FAR, [second])
    assert await world.left() == [first, second] == await world.left()
    await world.box.acknowledge(BANK, [first.sha256])
    await world.box.acknowledge(BANK, [first.sha256])
    assert await world.left() == [second]


async def test_letters_and_keys_are_there_after_a_crash(world):
    kept = world.letter()
    await world.box.deposit(FAR, [kept])
    world.store.close()
    await world.start()
    assert await world.left() == [kept]
    assert (await world.box.key_of(BANK))[0] == sealing_key(world.keys, BANK)


async def test_a_letter_with_the_same_id_takes_the_place_of_the_older_one(world):
    older, newer = world.letter(parcel(0)), world.letter(parcel(0))
    assert older.sha256 != newer.sha256
    await world.box.deposit(FAR, [older])
    await world.box.deposit(FAR, [newer])
    await world.box.acknowledge(BANK, [older.sha256])
    assert await world.left() == [newer]


async def test_members_take_only_their_own_letters(world):
    mine = world.letter()
    await world.box.deposit(FAR, [mine])
    assert await world.left(CLINIC) == []
    await world.box.acknowledge(CLINIC, [mine.sha256])
    assert await world.left() == [mine]
    assert await refusal(world.box.acknowledge(FAR, [mine.sha256])) is Reason.POLICY_DENIED
    assert await refusal(anext(world.box.letters(FAR))) is Reason.POLICY_DENIED


def tampered(signed):
    statement = bytearray(signed.letter.statement)
    statement[-1] ^= 1
    return SignedLetter(dataclasses.replace(signed.letter, statement=bytes(statement)), signed.record)


REFUSED = {
    "tampered": (lambda w: tampered(w.letter()), Reason.SIGNATURE_INVALID),
    "signed for another purpose": (lambda w: w.letter(context=identity.OFFER), Reason.SIGNATURE_INVALID),
    "signed by another key": (
        lambda w: w.letter(signer=identity.Identity(FAR, KEYS[CLINIC]._key)), Reason.SIGNATURE_INVALID,
    ),
    "signed by another node": (lambda w: w.letter(signer=KEYS[CLINIC]), Reason.IDENTITY_MISMATCH),
    "in the name of another node": (lambda w: w.letter(sender=CLINIC), Reason.IDENTITY_MISMATCH),
    "for a node that is not here": (lambda w: w.letter(recipient="bank.gansu.cn"), Reason.NO_ROUTE),
    "for the hub itself": (lambda w: w.letter(recipient=HUB), Reason.NO_ROUTE),
    "expired": (lambda w: w.letter(expires_at_ms=NOW), Reason.LETTER_EXPIRED),
    "for ever": (lambda w: w.letter(expires_at_ms=NOW + 40 * DAY), Reason.LETTER_EXPIRED),
    "without a date": (lambda w: w.letter(expires_at_ms=-1), Reason.LETTER_EXPIRED),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_a_letter_that_cannot_be_good_is_not_taken_nor_its_companions(world, case):
    make, reason = REFUSED[case]
    assert await refusal(world.box.deposit(FAR, [world.letter(parcel(9)), make(world)])) is reason
    assert await world.left() == []


async def test_a_caller_brings_only_letters_of_its_own(world):
    assert await refusal(world.box.deposit(CLINIC, [world.letter()])) is Reason.IDENTITY_MISMATCH


@pytest.mark.parametrize("bound", ["PER_SENDER", "PER_RECIPIENT"])
async def test_a_full_mailbox_takes_nothing_more(world, monkeypatch, bound):
    monkeypatch.setattr(letterbox_module, bound, 2)
    await world.box.deposit(FAR, [world.letter(parcel(0)), world.letter(parcel(1))])
    assert await refusal(world.box.deposit(FAR, [world.letter(parcel(2))])) is Reason.MAILBOX_FULL
    await world.box.deposit(FAR, [world.letter(parcel(0))])  # it takes the place of another
    assert len(await world.left()) == 2
    await world.box.acknowledge(BANK, [(await world.left())[0].sha256])
    await world.box.deposit(FAR, [world.letter(parcel(2))])


@pytest.mark.parametrize("bound", ["PER_SENDER_BYTES", "PER_RECIPIENT_BYTES"])
async def test_a_mailbox_is_bounded_in_bytes_too(world, monkeypatch, bound):
    monkeypatch.setattr(letterbox_module, bound, 4000)
    await world.box.deposit(FAR, [world.letter(parcel(0))])
    large = world.letter(parcel(1, b"x" * 4000))
    assert await refusal(world.box.deposit(FAR, [large])) is Reason.MAILBOX_FULL


async def test_expired_letters_go_and_make_room(world):
    await world.box.deposit(FAR, [world.letter()])
    world.time += DAY
    assert await world.left() == []
    assert await world.box.boxes() == []
    assert [event.kind for _, event in await world.log.about(BANK)] == [
        "mailbox.deposited",
        "mailbox.expired",
    ]


async def test_the_evidence_holds_names_sizes_and_digests(world):
    signed = world.letter(parcel(0, b"nobody may read this"))
    await world.box.deposit(FAR, [signed])
    await world.box.acknowledge(BANK, [signed.sha256])
    events = [event for _, event in await world.log.about(BANK)]
    assert [event.kind for event in events] == ["mailbox.deposited", "mailbox.fetched"]
    for event in events:
        assert event.statement_sha256 == signed.sha256
        assert set(event.facts) == {"sender", "bytes", "expiresAtMs"}


async def test_the_operator_sees_how_much_waits_for_whom(world):
    await world.box.deposit(FAR, [world.letter(parcel(0)), world.letter(parcel(1))])
    [box] = await world.box.boxes()
    assert (box.recipient, box.letters, box.oldest_at_ms) == (BANK, 2, NOW)
    assert box.size_bytes > 2 * len(parcel(0))


# -- sealing keys ----------------------------------------------------------------------------------


async def test_a_key_that_its_node_did_not_sign_is_not_published(world):
    other = sealing_key(world.keys, CLINIC)
    assert await refusal(world.box.publish(BANK, other)) is Reason.IDENTITY_MISMATCH
    false = sealing_key(world.keys, BANK, KEYS[CLINIC])
    assert await refusal(world.box.publish(BANK, false)) is Reason.IDENTITY_MISMATCH
    renamed = Signed(false.statement, BANK, false.signature)
    assert await refusal(world.box.publish(BANK, renamed)) is Reason.IDENTITY_MISMATCH
    assert await refusal(world.box.publish(FAR, sealing_key(world.keys, FAR))) is Reason.POLICY_DENIED


async def test_an_old_key_is_not_handed_out(world):
    world.time += 61 * DAY
    assert await refusal(world.box.key_of(BANK)) is Reason.NO_ROUTE
    assert await refusal(world.box.publish(BANK, KEYS[BANK].sign(identity.SEALING_KEY, wire.encode_key(
        wire.SealingKey(BANK, world.public, NOW))))) is Reason.INVALID_REQUEST  # fmt: skip


async def test_unknown_nodes_and_nodes_without_a_key_get_the_same_answer(world):
    assert await refusal(world.box.key_of(CLINIC)) is Reason.NO_ROUTE
    assert await refusal(world.box.key_of("nobody.hebei.cn")) is Reason.NO_ROUTE


# -- the wire --------------------------------------------------------------------------------------


def test_what_cannot_be_a_letter_is_refused(tmp_path):
    public, _ = SealingKeys(tmp_path / "k", lambda: NOW).current()
    good = wire.decode_letter(letter(public, parcel()).letter.statement)
    for change in ({"letter_id": b"short"}, {"key_sha256": b""}, {"sealed": b"clear"}, {"sender": "No Node"}):
        with pytest.raises(PeerProtocolError):
            wire.decode_letter(wire.encode_letter(dataclasses.replace(good, **change)))
    with pytest.raises(PeerProtocolError):
        wire.decode_letter(b"\xff")
    with pytest.raises(PeerProtocolError):
        wire.decode_key(wire.encode_key(wire.SealingKey(BANK, b"short", 1)))


def test_a_letter_that_is_too_large_is_refused(tmp_path):
    public, _ = SealingKeys(tmp_path / "k", lambda: NOW).current()
    largest = letter(public, b"x" * (wire.MAX_SEALED - 1200))
    assert wire.decode_signed(wire.encode_signed(largest)) == largest
    huge = SignedLetter(Signed(b"x" * (wire.MAX_LETTER + 1), FAR, b"s" * 64), largest.record)
    with pytest.raises(PeerProtocolError) as caught:
        wire.decode_signed(wire.encode_signed(huge))
    assert caught.value.reason is Reason.TOO_LARGE
