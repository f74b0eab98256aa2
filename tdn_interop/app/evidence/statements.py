"""What is said in evidence, as frozen records. Digests are SHA-256, 32 bytes; times milliseconds since the epoch."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from tdn_interop.errors import LocalProtocolError, Reason, guard
from tdn_interop.identity import Signed

# Kind of the event with which a party takes note of the verdict of a job.
VERDICT_KIND = "job.verdict"
# Kind of a leaf that is the head of a child's log.
ANCHOR_KIND = "head.anchored"
SALT_BYTES = 16


class Outcome(enum.Enum):
    """How a job, or a party's part of it, ended."""

    SUCCEEDED = 1
    FAILED = 2
    CANCELLED = 3
    REJECTED = 4


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `statement_sha256` is empty or the digest of a signed statement it is about."""

    node: str
    kind: str
    subject: str
    at_ms: int
    facts: Mapping[str, str]
    statement_sha256: bytes


@dataclass(frozen=True, slots=True)
class TreeHead:
    """The state of the log of `node`."""

    node: str
    size: int
    root: bytes
    at_ms: int


@dataclass(frozen=True, slots=True)
class Inclusion:
    """Leaf `index` is in the log whose TreeHead is `head`."""

    index: int
    path: tuple[bytes, ...]
    head: Signed


@dataclass(frozen=True, slots=True)
class AnchorOffer:
    """A head for the log above, with the proof from the size that is anchored there to this one."""

    head: Signed
    consistency_from: int
    consistency: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Attestation:
    """The event of one party, the way from its log to the top's, and the records of the nodes on it."""

    event: Signed
    chain: tuple[Inclusion, ...]
    records: tuple[Signed, ...] = ()


@dataclass(frozen=True, slots=True)
class Consent:
    """A party's consent to the exact bytes of an agreement, and to who gives the verdict."""

    job_id: str
    agreement_sha256: bytes
    coordinator: str
    parties: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """What one party says about the end of a job; digests are empty where there is nothing to digest."""

    job_id: str
    party: str
    outcome: Outcome
    agreement_sha256: bytes
    epoch: int
    result_commitment: bytes
    ended_at_ms: int
    coordinator: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The one verdict of a job, as far as evidence looks at it; `failure` is the name of a reason or empty."""

    job_id: str
    outcome: Outcome
    agreement_sha256: bytes
    statements: tuple[Signed, ...]
    missing: tuple[str, ...]
    failure: str


@dataclass(frozen=True, slots=True)
class Content:
    """What a bundle says."""

    verdict: Signed
    consents: tuple[Signed, ...]
    attestations: tuple[Attestation, ...]
    records: tuple[Signed, ...]


def digest(signed: Signed) -> bytes:
    """SHA-256 of a statement, by which events and consents refer to it."""
    return hashlib.sha256(signed.statement).digest()


def commitment(salt: bytes, content_sha256: bytes) -> bytes:
    """Commitment to content: SHA-256 over a secret salt and the digest of the content.

    Without the salt nobody can try out what the content is; with it, its owner can open the commitment.
    """
    ok = len(salt) >= SALT_BYTES and len(content_sha256) == 32
    guard("TDN-F-EVD-03").check(
        ok, Reason.INVALID_REQUEST, f"a salt has at least {SALT_BYTES} bytes, a digest 32", LocalProtocolError
    )
    return hashlib.sha256(salt + content_sha256).digest()
