"""Signed statements and small messages of the communication tier: bytes <-> frozen records.

Decode is validation: a record that exists is well formed. Errors: INVALID_REQUEST.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from tdn_interop import ids
from tdn_interop._pb.tdn.common.v1 import identity_pb2
from tdn_interop._pb.tdn.transport.v1 import enrolment_service_pb2, relay_service_pb2, routing_service_pb2
from tdn_interop.errors import ConfigError, PeerProtocolError, Reason, TdnError, guard
from tdn_interop.identity import Signed

ROLES = {"child": identity_pb2.ROLE_CHILD, "hub": identity_pb2.ROLE_HUB, "top": identity_pb2.ROLE_TOP}
_ROLE_NAMES = {number: name for name, number in ROLES.items()}
M = TypeVar("M", bound=Message)
# No statement of ours is longer; a longer one is refused before it is parsed.
MAX_STATEMENT = 64 << 10
# What a signature adds to its statement: signer, signature, tags.
MAX_ENVELOPE = 512
MAX_HOPS = 16


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """The entry of a node in the top's log."""

    node_id: str
    role: str
    identity_key: bytes
    parent: str
    logged_at_ms: int


@dataclass(frozen=True, slots=True)
class Delegation:
    """Permission of the identity key of `node_id` for one TLS key."""

    node_id: str
    tls_key_sha256: bytes
    not_before_ms: int
    not_after_ms: int


@dataclass(frozen=True, slots=True)
class Application:
    """What a node applies for; the requests are PKCS #10, DER."""

    node_id: str
    role: str
    identity_key: bytes
    tls_csr: bytes
    ca_csr: bytes


@dataclass(frozen=True, slots=True)
class Token:
    """What an operator hands to a new node."""

    endpoint: str
    link_endpoint: str
    issuer: str
    node_id: str
    role: str
    secret: bytes
    root_sha256: bytes
    top: str
    top_identity_key: bytes
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class Opening:
    """What relays know of a tunnel."""

    tunnel_id: bytes
    source: str
    destination: str
    hop_limit: int
    deadline_ms: int
    visited: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Join:
    """How an attached node takes a tunnel: the relays below it, or the name of a reason."""

    tunnel_id: bytes
    path: tuple[str, ...]
    refusal: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a relay did for one tunnel."""

    tunnel_id: bytes
    relay: str
    source: str
    destination: str
    previous: str
    next: str
    forward_bytes: int
    backward_bytes: int
    started_at_ms: int
    ended_at_ms: int


@dataclass(frozen=True, slots=True)
class Route:
    """A way to a node."""

    destination: str
    hops: tuple[str, ...]
    expires_at_ms: int


def signed_to_pb(signed: Signed) -> identity_pb2.Signed:
    """To the message."""
    return identity_pb2.Signed(statement=signed.statement, signer=signed.signer, signature=signed.signature)


def signed_from_pb(message: identity_pb2.Signed, longest: int = MAX_STATEMENT) -> Signed:
    """From the message; `longest` bytes its statement may have."""
    _check(len(message.signature) == 64, "a signature must have 64 bytes")
    _check(0 < len(message.statement) <= longest, "a statement is empty or too long")
    return Signed(message.statement, ids.node_id(message.signer, PeerProtocolError), message.signature)


def encode_signed(signed: Signed) -> bytes:
    """Serialize."""
    return signed_to_pb(signed).SerializeToString(deterministic=True)


def decode_signed(data: bytes, longest: int = MAX_STATEMENT) -> Signed:
    """Parse and check; `longest` bytes its statement may have."""
    return signed_from_pb(_parse(identity_pb2.Signed(), data, longest + MAX_ENVELOPE), longest)


def encode_record(record: NodeRecord) -> bytes:
    """Serialize."""
    return identity_pb2.NodeRecord(
        node_id=record.node_id, role=ROLES[record.role], identity_key=record.identity_key, parent=record.parent,
        logged_at_ms=record.logged_at_ms,
    ).SerializeToString(deterministic=True)  # fmt: skip


def decode_record(data: bytes) -> NodeRecord:
    """Parse and check: the parent is the node above."""
    m = _parse(identity_pb2.NodeRecord(), data)
    node = ids.node_id(m.node_id, PeerProtocolError)
    _check(len(m.identity_key) == 32, "an identity key must have 32 bytes")
    _check(
        m.parent == ("" if m.role == identity_pb2.ROLE_TOP else ids.parent(node)),
        "the parent is not the node above",
    )
    return NodeRecord(node, role_name(m.role), m.identity_key, m.parent, m.logged_at_ms)


def encode_delegation(delegation: Delegation) -> bytes:
    """Serialize."""
    return identity_pb2.Delegation(
        node_id=delegation.node_id, tls_key_sha256=delegation.tls_key_sha256,
        not_before_ms=delegation.not_before_ms, not_after_ms=delegation.not_after_ms,
    ).SerializeToString(deterministic=True)  # fmt: skip


def decode_delegation(data: bytes) -> Delegation:
    """Parse and check."""
    m = _parse(identity_pb2.Delegation(), data)
    _check(len(m.tls_key_sha256) == 32, "a key digest must have 32 bytes")
    return Delegation(
        ids.node_id(m.node_id, PeerProtocolError), m.tls_key_sha256, m.not_before_ms, m.not_after_ms
    )


def encode_application(application: Application) -> bytes:
    """Serialize."""
    return enrolment_service_pb2.Application(
        node_id=application.node_id, role=ROLES[application.role], identity_key=application.identity_key,
        tls_csr_der=application.tls_csr, ca_csr_der=application.ca_csr,
    ).SerializeToString(deterministic=True)  # fmt: skip


def decode_application(data: bytes) -> Application:
    """Parse and check: only hubs ask for a CA."""
    m = _parse(enrolment_service_pb2.Application(), data)
    role = role_name(m.role)
    _check(len(m.identity_key) == 32, "an identity key must have 32 bytes")
    _check(bool(m.ca_csr_der) == (role == "hub"), "a hub, and only a hub, asks for a CA certificate")
    node = ids.node_id(m.node_id, PeerProtocolError)
    return Application(node, role, m.identity_key, m.tls_csr_der, m.ca_csr_der)


def encode_token(token: Token) -> str:
    """base64url text for an operator."""
    message = enrolment_service_pb2.Token(
        endpoint=token.endpoint, link_endpoint=token.link_endpoint, issuer=token.issuer, node_id=token.node_id,
        role=ROLES[token.role], secret=token.secret, root_sha256=token.root_sha256, top=token.top,
        top_identity_key=token.top_identity_key, expires_at_ms=token.expires_at_ms,
    )  # fmt: skip
    return base64.urlsafe_b64encode(message.SerializeToString()).decode().rstrip("=")


def decode_token(text: str) -> Token:
    """Parse what an operator typed. Errors: TOKEN_INVALID."""
    try:
        data = base64.b64decode(text.strip() + "=" * (-len(text.strip()) % 4), altchars=b"-_", validate=True)
        m = _parse(enrolment_service_pb2.Token(), data)
        role, node, issuer = role_name(m.role), ids.node_id(m.node_id), ids.node_id(m.issuer)
        ok = len(m.secret) == 16 and len(m.root_sha256) == 32 and len(m.top_identity_key) == 32
    except (binascii.Error, ValueError, TdnError):
        ok = False
    if not ok:
        guard("TDN-T-IDN-07").refuse(Reason.TOKEN_INVALID, "this text is not an enrolment token", ConfigError)
    return Token(
        m.endpoint, m.link_endpoint, issuer, node, role, m.secret, m.root_sha256, m.top, m.top_identity_key,
        m.expires_at_ms,
    )  # fmt: skip


def opening_to_pb(opening: Opening) -> relay_service_pb2.TunnelOpening:
    """To the message."""
    return relay_service_pb2.TunnelOpening(
        tunnel_id=opening.tunnel_id, source=opening.source, destination=opening.destination,
        hop_limit=opening.hop_limit, deadline_ms=opening.deadline_ms, visited=opening.visited,
    )  # fmt: skip


def opening_from_pb(m: relay_service_pb2.TunnelOpening) -> Opening:
    """From the message."""
    _check(len(m.tunnel_id) == 16, "a tunnel id must have 16 bytes")
    _check(
        len(m.visited) <= MAX_HOPS and m.hop_limit <= MAX_HOPS, f"a tunnel passes at most {MAX_HOPS} relays"
    )
    source, destination, *visited = (
        ids.node_id(n, PeerProtocolError) for n in (m.source, m.destination, *m.visited)
    )  # fmt: skip
    return Opening(m.tunnel_id, source, destination, m.hop_limit, m.deadline_ms, tuple(visited))


def encode_opening(opening: Opening) -> bytes:
    """Serialize."""
    return opening_to_pb(opening).SerializeToString()


def decode_opening(data: bytes) -> Opening:
    """Parse and check."""
    return opening_from_pb(_parse(relay_service_pb2.TunnelOpening(), data))


def decode_path(text: str) -> tuple[str, ...]:
    """Parse and check the relays that a neighbour names: node ids between commas."""
    names = text.split(",") if text else []
    _check(len(names) <= MAX_HOPS, f"a tunnel passes at most {MAX_HOPS} relays")
    return tuple(ids.node_id(name, PeerProtocolError) for name in names)


def encode_join(join: Join) -> bytes:
    """Serialize."""
    message = relay_service_pb2.TunnelJoin(tunnel_id=join.tunnel_id, path=join.path, refusal=join.refusal)
    return message.SerializeToString()


def decode_join(data: bytes) -> Join:
    """Parse and check."""
    m = _parse(relay_service_pb2.TunnelJoin(), data)
    _check(len(m.tunnel_id) == 16 and len(m.path) <= MAX_HOPS, "the joined tunnel is malformed")
    _check(not m.refusal or m.refusal in Reason.__members__, "the refusal is no known reason")
    return Join(m.tunnel_id, tuple(ids.node_id(n, PeerProtocolError) for n in m.path), m.refusal)


def encode_receipt(receipt: Receipt) -> bytes:
    """Serialize."""
    return relay_service_pb2.Receipt(
        tunnel_id=receipt.tunnel_id, relay=receipt.relay, source=receipt.source, destination=receipt.destination,
        previous=receipt.previous, next=receipt.next, forward_bytes=receipt.forward_bytes,
        backward_bytes=receipt.backward_bytes, started_at_ms=receipt.started_at_ms, ended_at_ms=receipt.ended_at_ms,
    ).SerializeToString(deterministic=True)  # fmt: skip


def decode_receipt(data: bytes) -> Receipt:
    """Parse and check."""
    m = _parse(relay_service_pb2.Receipt(), data)
    _check(len(m.tunnel_id) == 16, "a tunnel id must have 16 bytes")
    return Receipt(
        m.tunnel_id, m.relay, m.source, m.destination, m.previous, m.next, m.forward_bytes, m.backward_bytes,
        m.started_at_ms, m.ended_at_ms,
    )  # fmt: skip


def encode_route(route: Route) -> bytes:
    """Serialize."""
    message = routing_service_pb2.Route(
        destination=route.destination, hops=route.hops, expires_at_ms=route.expires_at_ms
    )
    return message.SerializeToString(deterministic=True)


def decode_route(data: bytes) -> Route:
    """Parse and check."""
    m = _parse(routing_service_pb2.Route(), data)
    _check(len(m.hops) <= MAX_HOPS, f"a route passes at most {MAX_HOPS} relays")
    destination, *hops = (ids.node_id(n, PeerProtocolError) for n in (m.destination, *m.hops))
    return Route(destination, tuple(hops), m.expires_at_ms)


def role_name(number: int) -> str:
    """`child`, `hub` or `top`."""
    _check(number in _ROLE_NAMES, "the role is unknown")
    return _ROLE_NAMES[number]  # type: ignore[index]  # the enum's numbers are ints


def _parse(message: M, data: bytes, longest: int = MAX_STATEMENT) -> M:
    _check(len(data) <= longest, "the message is too long")
    try:
        message.ParseFromString(data)
    except DecodeError:
        guard("TDN-T-ENC-01").refuse(Reason.INVALID_REQUEST, f"not a {type(message).__name__}")
    return message


def _check(ok: bool, message: str) -> None:
    guard("TDN-T-ENC-01").check(ok, Reason.INVALID_REQUEST, message)


def encode_carried(data: bytes) -> bytes:
    """A tunnel message that carries `data`."""
    return relay_service_pb2.TunnelRequest(data=data).SerializeToString()


def decode_carried(message: bytes) -> bytes:
    """The bytes that a tunnel message carries."""
    m = relay_service_pb2.TunnelRequest()
    try:
        m.ParseFromString(message)
    except DecodeError:
        guard("TDN-T-ENC-01").refuse(Reason.INVALID_REQUEST, "not a tunnel message")
    return m.data
