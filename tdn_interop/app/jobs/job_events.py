"""What the two machines of a job hear from their own node, and what they ask it to do.

Local events are what the node has done or found out; effects are what is to be done, and each names the event
that answers it. Messages between nodes are in `job_protocol.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tdn_interop.algo.machine import Effect, LocalEvent
from tdn_interop.app.evidence.statements import Outcome
from tdn_interop.app.jobs.job_protocol import Approval, Racing, Stated
from tdn_interop.identity import Signed
from tdn_interop.transport.frame import Failure

# -- the coordinator ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begun(LocalEvent):
    """The owner of this node wants the job. May repeat: parties ignore a second proposal."""


@dataclass(frozen=True, slots=True)
class Agreed(Racing):
    """The answer to `Negotiate`: the serialized Agreement, its digest, the NodeRecords in its order."""

    agreement: bytes
    agreement_sha256: bytes
    records: tuple[Signed, ...]


@dataclass(frozen=True, slots=True)
class NotAgreed(Racing):
    """The other answer to `Negotiate`: the offers have nothing in common, or one is not valid."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class PartyLost(Racing):
    """A party cannot be reached any more."""

    party: str


@dataclass(frozen=True, slots=True)
class VerdictSigned(Racing):
    """The answer to `SignVerdict`, with the NodeRecords of who made statements."""

    verdict: Signed
    outcome: Outcome
    records: tuple[Signed, ...] = ()


@dataclass(frozen=True, slots=True)
class Negotiate(Effect):
    """Make the agreement that follows from the offers; answer `Agreed` or `NotAgreed`."""

    approvals: tuple[Approval, ...]  # sorted by party


@dataclass(frozen=True, slots=True)
class SignVerdict(Effect):
    """Record and sign the verdict; answer `VerdictSigned`."""

    outcome: Outcome
    statements: tuple[Stated, ...]  # sorted by party
    missing: tuple[str, ...]
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class KeepAttestation(Effect):
    """Keep what a party adds to the evidence bundle."""

    party: str
    attestation: bytes


# -- a party -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Approved(LocalEvent):
    """An answer to `Decide`: the signed Offer and the NodeRecord of this node."""

    offer: Signed
    record: Signed


@dataclass(frozen=True, slots=True)
class Declined(LocalEvent):
    """The other answer to `Decide`."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class CancelAsked(LocalEvent):
    """The owner of this node wants the job cancelled."""

    comment: str


@dataclass(frozen=True, slots=True)
class AgreementAccepted(Racing):
    """The answer to `CheckAgreement`: the signed Consent and the digest it is for."""

    consent: Signed
    agreement_sha256: bytes


@dataclass(frozen=True, slots=True)
class InputLoaded(Racing):
    """The answer to `LoadInput`."""


@dataclass(frozen=True, slots=True)
class OfRun(Racing):
    """What became of the run of an epoch; ignored when that run has been stopped meanwhile."""

    epoch: int


@dataclass(frozen=True, slots=True)
class TaskDone(OfRun):
    """The answer to `RunTask`: the result, if this party receives one, is on the disk; `commitment` hides its digest."""

    hops: int
    commitment: bytes = b""


@dataclass(frozen=True, slots=True)
class RunInterrupted(OfRun):
    """The other answer to `RunTask`: this node or a session ended under it; nothing is wrong with the task."""


@dataclass(frozen=True, slots=True)
class Delivered(Racing):
    """The answer to `DeliverResult`: the result is in its place, or there is none for this party."""


@dataclass(frozen=True, slots=True)
class Failed(Racing):
    """Work for this job failed on this node, or the coordinator is lost."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class StatementSigned(Racing):
    """The answer to `SignStatement`, with the NodeRecord of this node."""

    statement: Signed
    record: Signed | None = None


@dataclass(frozen=True, slots=True)
class VerdictAccepted(Racing):
    """The answer to `AcceptVerdict`: the serialized Attestation of this node."""

    attestation: bytes


@dataclass(frozen=True, slots=True)
class Decide(Effect):
    """Store the flow; ask the rules or wait for a human; answer `Approved` or `Declined`."""

    flow: bytes


@dataclass(frozen=True, slots=True)
class CheckAgreement(Effect):
    """Make the agreement again from the offers and compare; answer `AgreementAccepted` or `Failed`."""

    agreement: bytes
    records: tuple[Signed, ...]


@dataclass(frozen=True, slots=True)
class LoadInput(Effect):
    """Load the input, if this party has one; answer `InputLoaded` or `Failed`."""


@dataclass(frozen=True, slots=True)
class RunTask(Effect):
    """Run this party's part of the task; answer `TaskDone` or `Failed`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class DeliverResult(Effect):
    """Put the result in its place, if this party receives one; answer `Delivered` or `Failed`."""


@dataclass(frozen=True, slots=True)
class StopRun(Effect):
    """Stop the run of an epoch that is over, wait until it has stopped, and forget its result. Inputs stay."""


@dataclass(frozen=True, slots=True)
class StopTask(Effect):
    """Stop all work for this job, wait until it has stopped, and remove what it has put out. May repeat."""


@dataclass(frozen=True, slots=True)
class SignStatement(Effect):
    """Record and sign the outcome; answer `StatementSigned`. At most one for each party and job."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class GiveUp(Effect):
    """End the record of the job without a verdict, unless one has been accepted."""


@dataclass(frozen=True, slots=True)
class AcceptVerdict(Effect):
    """Verify the verdict and record it as the end of the job; answer `VerdictAccepted`."""

    verdict: Signed
    records: tuple[Signed, ...] = ()
