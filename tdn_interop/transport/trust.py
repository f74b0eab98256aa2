"""What a node believes, and the steps in which it decides who the other end of a connection is.

The trust of a node begins with two things from its enrolment token: the digest of the root certificate
and the identity key of the top. Bundles that this top signs add the tops it is federated with; each top
vouches for its own tree only. A hub is its children's CA and could issue a certificate for an
impostor; therefore the identity key, which the hub never had, must delegate each TLS key.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tdn_interop import identity, ids
from tdn_interop.errors import ConfigError, Reason, Refused, guard
from tdn_interop.identity import Credentials, Identity, Signed
from tdn_interop.transport import records_wire as records
from tdn_interop.transport import trust_wire
from tdn_interop.transport.pki import PeerCertificate
from tdn_interop.transport.records_wire import NodeRecord
from tdn_interop.transport.trust_wire import TrustBundle

# Clocks of honest nodes differ by less.
SKEW_MS = 600_000


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Membership:
    """Where a node stands in the mesh: written at enrolment, read at start.

    `record` and `parent_record` are NodeRecords signed by the top; a top signed its own.
    """

    top: str
    top_identity_key: bytes
    parent: str
    parent_link: str
    record: Signed
    parent_record: Signed | None

    def save(self, path: Path) -> None:
        """Write atomically."""
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(self), default=bytes.hex, indent=1) + "\n")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Membership:
        """Read. Errors: NOT_ENROLLED when there is no such file, CONFIG_INVALID when it is damaged."""
        try:
            raw = json.loads(path.read_text())
            return cls(
                raw["top"], bytes.fromhex(raw["top_identity_key"]), raw["parent"], raw["parent_link"],
                _signed(raw["record"]), _signed(raw["parent_record"]) if raw["parent_record"] else None,
            )  # fmt: skip
        except FileNotFoundError:
            guard("TDN-T-IDN-07").refuse(Reason.NOT_ENROLLED, f"there is no {path}", ConfigError)
        except (ValueError, KeyError, TypeError):
            guard("TDN-T-IDN-07").refuse(Reason.CONFIG_INVALID, f"{path} is damaged", ConfigError)


def _signed(raw: dict[str, str]) -> Signed:
    return Signed(bytes.fromhex(raw["statement"]), raw["signer"], bytes.fromhex(raw["signature"]))


class Trust:
    """Verifies records and credentials; `pin` is asked to keep the first key of a node id and tell the kept one."""

    def __init__(
        self,
        top: str,
        top_identity_key: bytes,
        pin: Callable[[str, bytes], bytes],
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.top = top
        self._keys = {top: top_identity_key}
        self._pin = pin
        self._clock = clock

    @property
    def tops(self) -> list[str]:
        """Tops that are trusted, our own among them."""
        return sorted(self._keys)

    @property
    def keys(self) -> list[bytes]:
        """Identity keys of these tops."""
        return [self._keys[top] for top in self.tops]

    def knows(self, top: str) -> bool:
        """True when this top is trusted."""
        return top in self._keys

    def refusal(self, node: str) -> Refused | None:
        """Why nobody of the hierarchy of `node` is served; None when its top is trusted."""
        top = node.rpartition(".")[2]
        words = f"{node} lives below {top}, which is not trusted here"
        return None if top in self._keys else Refused(Reason.UNAUTHENTICATED, words, "TDN-T-IDN-08")

    def bundle(self, signed: Signed) -> TrustBundle:
        """The bundle of a trusted top. Errors: SIGNATURE_INVALID, INVALID_REQUEST, IDENTITY_MISMATCH."""
        self.signed_by_top(identity.TRUST_BUNDLE, signed)
        bundle = trust_wire.decode_bundle(signed.statement)
        same = bundle.top == signed.signer and bundle.own.identity_key == self._keys[signed.signer]
        guard("TDN-T-IDN-08").check(
            same, Reason.IDENTITY_MISMATCH, f"the bundle that {signed.signer} signed is for another top or key", Refused
        )  # fmt: skip
        soon = bundle.issued_at_ms <= self._clock() + SKEW_MS
        guard("TDN-T-IDN-08").check(
            soon, Reason.INVALID_REQUEST, f"the bundle of {bundle.top} is from the future; compare the clocks"
        )
        return bundle

    def adopt(self, bundle: TrustBundle) -> None:
        """From now on trust whom our own top's bundle names."""
        self._keys = {top.top: top.identity_key for top in bundle.tops}

    def signed_by_top(self, context: str, signed: Signed) -> None:
        """Check that a trusted top signed a statement for this purpose. Errors: SIGNATURE_INVALID."""
        key = self._keys.get(signed.signer)
        ok = key is not None and identity.verify(context, signed, key)
        guard("TDN-T-IDN-06").check(
            ok, Reason.SIGNATURE_INVALID, f"the signature of {signed.signer} as a top does not verify"
        )

    def record(self, signed: Signed) -> NodeRecord:
        """The record of a node, if its top signed it. Errors: SIGNATURE_INVALID, INVALID_REQUEST, IDENTITY_MISMATCH."""
        self.signed_by_top(identity.NODE_RECORD, signed)
        record, top = records.decode_record(signed.statement), signed.signer
        within = record.node_id == top or ids.is_below(record.node_id, top)
        guard("TDN-T-IDN-08").check(
            within, Reason.IDENTITY_MISMATCH, f"{top} cannot vouch for {record.node_id}", Refused
        )
        return record

    def verify(self, peer: PeerCertificate, credentials: Credentials) -> NodeRecord:
        """Decide who is behind a connection. Errors: IDENTITY_MISMATCH, SIGNATURE_INVALID.

        1. The top of the node signed the record.
        2. The record names the node that the certificate of the connection names.
        3. The key is the one this node has seen before under that name, if it has seen one.
        4. That key signed the delegation, and the delegation is valid now.
        5. The delegation is for the TLS key of this very connection.
        """
        check = guard("TDN-T-IDN-06").check
        record = self.record(credentials.record)  # 1
        same = record.node_id == peer.node  # 2
        guard("TDN-T-IDN-02").check(
            same,
            Reason.IDENTITY_MISMATCH,
            f"the record names {record.node_id}, the certificate {peer.node}",
            Refused,
        )
        known = self._pin(peer.node, record.identity_key) == record.identity_key  # 3
        check(known, Reason.IDENTITY_MISMATCH, f"{peer.node} shows another identity key than before", Refused)
        delegation = records.decode_delegation(credentials.delegation.statement)
        signed = identity.verify(identity.DELEGATION, credentials.delegation, record.identity_key)  # 4
        check(
            signed,
            Reason.IDENTITY_MISMATCH,
            f"{peer.node}'s identity key did not delegate a TLS key",
            Refused,
        )
        check(delegation.node_id == peer.node, Reason.IDENTITY_MISMATCH,
              f"{peer.node} shows a delegation of {delegation.node_id}", Refused)  # fmt: skip
        valid = delegation.not_before_ms <= self._clock() <= delegation.not_after_ms
        words = f"{peer.node}'s delegation is not valid now; compare the clocks"
        check(valid, Reason.IDENTITY_MISMATCH, words, Refused)
        bound = delegation.tls_key_sha256 == peer.tls_key_sha256  # 5
        check(bound, Reason.IDENTITY_MISMATCH, f"{peer.node}'s delegation is for another TLS key", Refused)
        return record


def delegate(key: Identity, tls_key_sha256: bytes, not_before_ms: int, not_after_ms: int) -> Signed:
    """Permission of an identity key for one TLS key."""
    statement = records.Delegation(key.node, tls_key_sha256, not_before_ms, not_after_ms)
    return key.sign(identity.DELEGATION, records.encode_delegation(statement))
