"""Evidence messages: bytes <-> frozen records. Decode is validation. Errors: INVALID_REQUEST.

Statements are kept and checked as the bytes that were signed. A bundle is different: it has one form only
(`canonical`), so that no byte of it can be changed without notice.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from tdn_interop import ids
from tdn_interop._pb.tdn.app.v1 import evidence_pb2, job_pb2
from tdn_interop.app.evidence.merkle import HASH_BYTES
from tdn_interop.app.evidence.statements import (
    AnchorOffer,
    Attestation,
    Consent,
    Content,
    Event,
    Inclusion,
    Outcome,
    Statement,
    TreeHead,
    Verdict,
)
from tdn_interop.errors import PeerProtocolError, Reason, guard
from tdn_interop.identity import Signed
from tdn_interop.transport.records_wire import MAX_HOPS, signed_from_pb, signed_to_pb

M = TypeVar("M", bound=Message)
MAX_PARTIES = 16
MAX_CONTENT = 64 << 10
# A path of 63 hashes reaches every leaf of a log of 2**63.
_MAX_PATH = 63
_MAX_FACTS = 16
_KIND = re.compile(r"[a-z][a-z0-9.-]{0,63}\Z")
_FACT = re.compile(r"[a-z][A-Za-z0-9]{0,31}\Z")
# Long enough for a hexadecimal digest and a node id, too short for data.
_MAX_FACT = 200


def encode_event(event: Event) -> bytes:
    """Serialize. Errors: INVALID_REQUEST when the event is not one that `decode_event` takes."""
    data = evidence_pb2.Event(
        node=event.node, kind=event.kind, subject=event.subject, at_ms=event.at_ms, facts=event.facts,
        statement_sha256=event.statement_sha256,
    ).SerializeToString(deterministic=True)  # fmt: skip
    decode_event(data)
    return data


def decode_event(data: bytes) -> Event:
    """Parse and check: facts are few and short, so that no data goes into evidence that nobody can take back."""
    m = _parse(evidence_pb2.Event(), data)
    _check(_KIND.match(m.kind), "the kind of an event is malformed")
    _check(0 < len(m.subject) <= _MAX_FACT and m.at_ms >= 0, "subject or time of an event is malformed")
    _check(len(m.statement_sha256) in {0, HASH_BYTES}, "a digest must have 32 bytes")
    short = all(_FACT.match(key) and len(text) <= _MAX_FACT for key, text in m.facts.items())
    guard("TDN-F-EVD-03").check(
        short and len(m.facts) <= _MAX_FACTS,
        Reason.INVALID_REQUEST,
        "facts are too many or too long for evidence",
    )
    return Event(_node(m.node), m.kind, m.subject, m.at_ms, dict(m.facts), m.statement_sha256)


def encode_tree_head(head: TreeHead) -> bytes:
    """Serialize."""
    message = evidence_pb2.TreeHead(node=head.node, size=head.size, root=head.root, at_ms=head.at_ms)
    return message.SerializeToString(deterministic=True)


def decode_tree_head(data: bytes) -> TreeHead:
    """Parse and check."""
    m = _parse(evidence_pb2.TreeHead(), data)
    _check(m.size < 1 << 63 and m.at_ms >= 0, "size or time of a head is out of range")
    return TreeHead(_node(m.node), m.size, _hash(m.root), m.at_ms)


def inclusion_to_pb(inclusion: Inclusion) -> evidence_pb2.Inclusion:
    """To the message."""
    return evidence_pb2.Inclusion(
        index=inclusion.index, path=inclusion.path, head=signed_to_pb(inclusion.head)
    )


def inclusion_from_pb(m: evidence_pb2.Inclusion) -> Inclusion:
    """From the message."""
    return Inclusion(m.index, _path(m.path), signed_from_pb(m.head))


def offer_to_pb(offer: AnchorOffer) -> evidence_pb2.AnchorRequest:
    """To the message."""
    return evidence_pb2.AnchorRequest(
        head=signed_to_pb(offer.head), consistency=offer.consistency, consistency_from=offer.consistency_from
    )


def offer_from_pb(m: evidence_pb2.AnchorRequest) -> AnchorOffer:
    """From the message."""
    return AnchorOffer(signed_from_pb(m.head), m.consistency_from, _path(m.consistency))


def anchored_to_pb(links: Sequence[Inclusion], records: Sequence[Signed]) -> evidence_pb2.AnchorResponse:
    """To the message: the way to the top and the records of the nodes that keep its logs."""
    return evidence_pb2.AnchorResponse(
        links=[inclusion_to_pb(x) for x in links], records=[signed_to_pb(r) for r in records]
    )


def anchored_from_pb(m: evidence_pb2.AnchorResponse) -> tuple[tuple[Inclusion, ...], tuple[Signed, ...]]:
    """From the message: (links, records)."""
    _check(0 < len(m.links) <= MAX_HOPS and len(m.records) <= MAX_HOPS, "the way to the top is too long")
    return tuple(map(inclusion_from_pb, m.links)), tuple(map(signed_from_pb, m.records))


def encode_attestation(attestation: Attestation) -> bytes:
    """Serialize."""
    return _attestation_to_pb(attestation).SerializeToString(deterministic=True)


def decode_attestation(data: bytes) -> Attestation:
    """Parse and check."""
    return _attestation_from_pb(_parse(evidence_pb2.Attestation(), data))


def decode_consent(data: bytes) -> Consent:
    """Parse and check."""
    m = _parse(job_pb2.Consent(), data)
    job_id, coordinator = ids.job_id(m.job_id, PeerProtocolError), _node(m.coordinator)
    return Consent(job_id, _hash(m.agreement_sha256), coordinator, tuple(map(_node, m.parties)))


def decode_statement(data: bytes) -> Statement:
    """Parse and check."""
    m = _parse(job_pb2.Statement(), data)
    return Statement(
        ids.job_id(m.job_id, PeerProtocolError), _node(m.party), _outcome(m.outcome), _maybe(m.agreement_sha256),
        m.epoch, _maybe(m.result_commitment), m.ended_at_ms, _node(m.coordinator),
    )  # fmt: skip


def decode_verdict(data: bytes) -> Verdict:
    """Parse and check."""
    m = _parse(job_pb2.Verdict(), data)
    _check(
        0 < len(m.statements) <= MAX_PARTIES and len(m.missing) <= MAX_PARTIES,
        "a verdict has no statement or too many",
    )
    return Verdict(
        ids.job_id(m.job_id, PeerProtocolError), _outcome(m.outcome), _maybe(m.agreement_sha256),
        tuple(map(signed_from_pb, m.statements)), tuple(map(_node, m.missing)), m.failure.reason,
    )  # fmt: skip


def encode_bundle(content: Content) -> bytes:
    """Serialize and compress."""
    plain = encode_content(content)
    packed = zlib.compress(plain, 9)
    return evidence_pb2.EvidenceBundle(
        version=1, content_sha256=hashlib.sha256(packed).digest(), content=packed
    ).SerializeToString(deterministic=True)


def unpack_bundle(bundle: bytes) -> bytes:
    """The serialized content of a bundle that came through undamaged."""
    m = _parse(evidence_pb2.EvidenceBundle(), bundle, canonical=True)
    _check(m.version == 1, f"version {m.version} is unknown")
    _check(hashlib.sha256(m.content).digest() == m.content_sha256, "the bundle is damaged")
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(m.content, MAX_CONTENT)
    except zlib.error:
        guard("TDN-F-EVD-07").refuse(Reason.INVALID_REQUEST, "the bundle cannot be unpacked")
    _check(unpacker.eof and not unpacker.unused_data, "the content is longer than allowed or not complete")
    return plain


def encode_content(content: Content) -> bytes:
    """Serialize."""
    return evidence_pb2.BundleContent(
        verdict=signed_to_pb(content.verdict), consents=[signed_to_pb(c) for c in content.consents],
        attestations=[_attestation_to_pb(a) for a in content.attestations],
        records=[signed_to_pb(r) for r in content.records],
    ).SerializeToString(deterministic=True)  # fmt: skip


def decode_content(data: bytes) -> Content:
    """Parse and check: canonical form, sane numbers."""
    m = _parse(evidence_pb2.BundleContent(), data, canonical=True)
    _check(
        max(len(m.consents), len(m.attestations)) <= MAX_PARTIES and len(m.records) <= MAX_PARTIES * MAX_HOPS,
        "a list is too long",
    )
    return Content(
        signed_from_pb(m.verdict), tuple(map(signed_from_pb, m.consents)),
        tuple(map(_attestation_from_pb, m.attestations)), tuple(map(signed_from_pb, m.records)),
    )  # fmt: skip


def _attestation_to_pb(attestation: Attestation) -> evidence_pb2.Attestation:
    return evidence_pb2.Attestation(
        event=signed_to_pb(attestation.event), chain=[inclusion_to_pb(x) for x in attestation.chain],
        records=[signed_to_pb(r) for r in attestation.records],
    )  # fmt: skip


def _attestation_from_pb(m: evidence_pb2.Attestation) -> Attestation:
    _check(0 < len(m.chain) <= MAX_HOPS and len(m.records) <= MAX_HOPS, "the way to the top is too long")
    return Attestation(
        signed_from_pb(m.event), tuple(map(inclusion_from_pb, m.chain)), tuple(map(signed_from_pb, m.records))
    )


def _parse(message: M, data: bytes, *, canonical: bool = False) -> M:
    _check(len(data) <= MAX_CONTENT, "the message is too long")
    try:
        message.ParseFromString(data)
    except DecodeError:
        guard("TDN-F-EVD-08").refuse(Reason.INVALID_REQUEST, f"not a {type(message).__name__}")
    if canonical:
        message.DiscardUnknownFields()
        same = message.SerializeToString(deterministic=True) == data
        guard("TDN-F-EVD-07").check(
            same, Reason.INVALID_REQUEST, f"the {type(message).__name__} is not in canonical form"
        )
    return message


def _check(ok: object, message: str) -> None:
    guard("TDN-F-EVD-08").check(ok, Reason.INVALID_REQUEST, message)


def _node(text: str) -> str:
    return ids.node_id(text, PeerProtocolError)


def _hash(value: bytes) -> bytes:
    _check(len(value) == HASH_BYTES, "a digest must have 32 bytes")
    return value


def _maybe(value: bytes) -> bytes:
    return _hash(value) if value else value


def _path(hashes: Sequence[bytes]) -> tuple[bytes, ...]:
    _check(len(hashes) <= _MAX_PATH + 1, "a proof is too long")
    return tuple(map(_hash, hashes))


def _outcome(number: int) -> Outcome:
    _check(number in {o.value for o in Outcome}, "the outcome is unknown")
    return Outcome(number)
