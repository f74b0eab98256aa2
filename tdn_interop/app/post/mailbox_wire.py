"""Statements of the mailbox: bytes <-> frozen records. Errors: INVALID_REQUEST, TOO_LARGE."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from tdn_interop import ids
from tdn_interop._pb.tdn.app.v1 import mailbox_service_pb2 as pb
from tdn_interop.app.post import post_wire, sealing
from tdn_interop.errors import PeerProtocolError, Reason, guard
from tdn_interop.identity import LETTER, Signed
from tdn_interop.transport import records_wire

M = TypeVar("M", bound=Message)
MAX_BATCH = 64
LETTER_ID_BYTES = 16
MAX_SEALED = post_wire.MAX_MESSAGE + sealing.OVERHEAD
# Names, digests and times beside what is sealed.
MAX_LETTER = MAX_SEALED + 1024


@dataclass(frozen=True, slots=True)
class SealingKey:
    """Letters for a node are sealed to `public_key` until `not_after_ms`."""

    node_id: str
    public_key: bytes
    not_after_ms: int


@dataclass(frozen=True, slots=True)
class Letter:
    """A sealed message; `key_sha256` names the key of the recipient."""

    sender: str
    recipient: str
    letter_id: bytes
    expires_at_ms: int
    key_sha256: bytes
    sealed: bytes = b""

    @property
    def info(self) -> bytes:
        """What the seal is bound to: everything that the hub can read."""
        return LETTER.encode() + b"\0" + _letter(self, b"").SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class SignedLetter:
    """A Letter signed by its sender, and the sender's NodeRecord signed by its top."""

    letter: Signed
    record: Signed

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the statement: what is acknowledged."""
        return hashlib.sha256(self.letter.statement).digest()


def encode_key(key: SealingKey) -> bytes:
    """Serialize."""
    m = pb.SealingKey(node_id=key.node_id, public_key=key.public_key, not_after_ms=key.not_after_ms)
    return m.SerializeToString(deterministic=True)


def decode_key(data: bytes) -> SealingKey:
    """Parse and check."""
    m = _parse(pb.SealingKey(), data)
    _check(len(m.public_key) == sealing.PUBLIC_BYTES, "a sealing key must have 1,216 bytes")
    return SealingKey(ids.node_id(m.node_id, PeerProtocolError), m.public_key, m.not_after_ms)


def encode_letter(letter: Letter) -> bytes:
    """Serialize."""
    return _letter(letter, letter.sealed).SerializeToString(deterministic=True)


def decode_letter(data: bytes) -> Letter:
    """Parse and check."""
    m = _parse(pb.Letter(), data)
    _check(len(m.letter_id) == LETTER_ID_BYTES, "a letter id must have 16 bytes")
    _check(len(m.key_sha256) == 32, "a key digest must have 32 bytes")
    _check(len(m.sealed) >= sealing.OVERHEAD, "a letter is not sealed")
    sender, recipient = (ids.node_id(node, PeerProtocolError) for node in (m.sender, m.recipient))
    return Letter(sender, recipient, m.letter_id, m.expires_at_ms, m.key_sha256, m.sealed)


def signed_to_pb(letter: SignedLetter) -> pb.SignedLetter:
    """To the message."""
    signed = records_wire.signed_to_pb
    return pb.SignedLetter(letter=signed(letter.letter), record=signed(letter.record))


def signed_from_pb(m: pb.SignedLetter) -> SignedLetter:
    """From the message."""
    size = len(m.letter.statement)
    guard("TDN-T-LIM-01").check(
        size <= MAX_LETTER, Reason.TOO_LARGE, f"a letter of {size} bytes, {MAX_LETTER} are allowed"
    )
    return SignedLetter(
        records_wire.signed_from_pb(m.letter, MAX_LETTER), records_wire.signed_from_pb(m.record)
    )


def encode_signed(letter: SignedLetter) -> bytes:
    """Serialize."""
    return signed_to_pb(letter).SerializeToString(deterministic=True)


def decode_signed(data: bytes) -> SignedLetter:
    """Parse and check."""
    return signed_from_pb(_parse(pb.SignedLetter(), data))


def deposit_from_pb(m: pb.DepositLettersRequest) -> list[SignedLetter]:
    """From the message."""
    _check(0 < len(m.letters) <= MAX_BATCH, "a deposit has no letter or too many")
    return [signed_from_pb(letter) for letter in m.letters]


def digests_from_pb(m: pb.AcknowledgeLettersRequest) -> list[bytes]:
    """From the message."""
    _check(len(m.letter_sha256) <= MAX_BATCH, "too many letters at once")
    _check(all(len(digest) == 32 for digest in m.letter_sha256), "a digest must have 32 bytes")
    return list(m.letter_sha256)


def _letter(letter: Letter, sealed: bytes) -> pb.Letter:
    return pb.Letter(
        sender=letter.sender, recipient=letter.recipient, letter_id=letter.letter_id,
        expires_at_ms=letter.expires_at_ms, key_sha256=letter.key_sha256, sealed=sealed,
    )  # fmt: skip


def _parse(message: M, data: bytes) -> M:
    try:
        message.ParseFromString(data)
    except DecodeError:
        guard("TDN-T-ENC-01").refuse(Reason.INVALID_REQUEST, f"not a {type(message).__name__}")
    return message


def _check(ok: object, message: str) -> None:
    guard("TDN-T-ENC-01").check(ok, Reason.INVALID_REQUEST, message)
