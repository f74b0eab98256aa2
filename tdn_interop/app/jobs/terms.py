"""What parties offer and what they agree on: the records of a job's terms."""

from __future__ import annotations

from dataclasses import dataclass

from tdn_interop.algo.handshake import Choice, Proposal
from tdn_interop.identity import Signed


@dataclass(frozen=True, slots=True)
class InputOffer:
    """An input bound to a job; `commitment` hides the content."""

    resource: str
    commitment: bytes


@dataclass(frozen=True, slots=True)
class Offer:
    """What a party brings into the agreement."""

    job_id: str
    flow_sha256: bytes
    proposal: Proposal
    inputs: tuple[InputOffer, ...]
    approved_at_ms: int
    approved_by: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was agreed. `offers` and `identity_keys` are sorted by party."""

    job_id: str
    flow_sha256: bytes
    offers: tuple[Signed, ...]
    identity_keys: tuple[bytes, ...]
    choice: Choice
    security_model: str
