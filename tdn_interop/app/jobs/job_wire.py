"""Messages and statements of the job protocol: bytes <-> frozen records. Errors: INVALID_REQUEST."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from tdn_interop import ids
from tdn_interop._pb.tdn.app.v1 import job_pb2
from tdn_interop.algo import wire as algo_wire
from tdn_interop.app.evidence.statements import Consent, Outcome, Statement, Verdict
from tdn_interop.app.jobs import job_protocol as words
from tdn_interop.app.jobs.terms import Agreement, InputOffer, Offer
from tdn_interop.errors import PeerProtocolError, Reason, guard
from tdn_interop.transport import records_wire, wire
from tdn_interop.transport.frame import Failure

PbT = TypeVar("PbT", bound=Message)
# A flow has at most 64 KiB; an agreement holds one offer per party.
MAX_MESSAGE = 1 << 20
MAX_SENTENCE = 256  # characters, why a job did not succeed


def outcome_from_pb(number: int) -> Outcome:
    """From the enum, whose numbers are ours."""
    _check(number in {outcome.value for outcome in Outcome}, "the outcome is unknown")
    return Outcome(number)


def _number(outcome: Outcome) -> job_pb2.Outcome.ValueType:
    return job_pb2.Outcome.Value(f"OUTCOME_{outcome.name}")


def encode_message(job_id: str, message: words.Message) -> bytes:
    """Serialize; the sender is not in it, the post knows."""
    m = job_pb2.JobMessage(job_id=job_id, epoch=message.epoch)
    field, write = _WRITERS[type(message)]
    getattr(m, field).SetInParent()  # for some kinds this is all they say
    if write:
        write(getattr(m, field), message)
    return m.SerializeToString()


def decode_message(sender: str, data: bytes) -> tuple[str, words.Message]:
    """(job id, message) from a peer."""
    m = _parse(job_pb2.JobMessage(), data)
    kind = m.WhichOneof("body")
    _check(kind is not None, "the job message has no known kind")
    body = getattr(m, str(kind))
    return ids.job_id(m.job_id, PeerProtocolError), _READERS[str(kind)](sender, m.epoch, body)


# Any: the body messages of the oneof share no base but Message.
def _write_approval(m: Any, message: words.Approval) -> None:
    m.offer.CopyFrom(records_wire.signed_to_pb(message.offer))
    m.record.CopyFrom(records_wire.signed_to_pb(message.record))


def _write_admit(m: Any, message: words.Admit) -> None:
    m.agreement = message.agreement
    m.records.extend(records_wire.signed_to_pb(record) for record in message.records)


def _write_abort(m: Any, message: words.Abort) -> None:
    m.outcome = _number(message.outcome)
    m.failure.CopyFrom(wire.failure_to_pb(message.failure))


def _write_computed(m: Any, message: words.Computed) -> None:
    m.hops = message.hops
    m.result_commitment = message.commitment


def _write_stated(m: Any, message: words.Stated) -> None:
    m.statement.CopyFrom(records_wire.signed_to_pb(message.statement))
    if message.record:
        m.record.CopyFrom(records_wire.signed_to_pb(message.record))


def _write_conclude(m: Any, message: words.Conclude) -> None:
    m.verdict.CopyFrom(records_wire.signed_to_pb(message.verdict))
    m.records.extend(records_wire.signed_to_pb(record) for record in message.records)


def _plain(field: str, attribute: str) -> Callable[[Any, Any], None]:
    return lambda m, message: setattr(m, field, getattr(message, attribute))


def _signed(field: str) -> Callable[[Any, Any], None]:
    return lambda m, message: getattr(m, field).CopyFrom(records_wire.signed_to_pb(getattr(message, field)))


def _failure(field: str) -> Callable[[Any, Any], None]:
    return lambda m, message: getattr(m, field).CopyFrom(wire.failure_to_pb(message.failure))


_WRITERS: dict[type[words.Message], tuple[str, Callable[[Any, Any], None] | None]] = {
    words.Propose: ("propose", _plain("flow", "flow")),
    words.Stored: ("stored", None),
    words.Approval: ("decision", _write_approval),
    words.Refusal: ("decision", _failure("refusal")),
    words.Admit: ("admit", _write_admit),
    words.Admitted: ("admitted", _signed("consent")),
    words.Prepare: ("prepare", None),
    words.Prepared: ("prepared", None),
    words.Start: ("start", _plain("agreement_sha256", "agreement_sha256")),
    words.Computed: ("computed", _write_computed),
    words.Interrupted: ("interrupted", None),
    words.Release: ("release", None),
    words.Stated: ("stated", _write_stated),
    words.Conclude: ("conclude", _write_conclude),
    words.Attested: ("attested", _plain("attestation", "attestation")),
    words.Fail: ("fail", _failure("failure")),
    words.Cancel: ("cancel", _plain("comment", "comment")),
    words.Abort: ("abort", _write_abort),
}


def _read_decision(sender: str, epoch: int, m: Any) -> words.Message:
    if m.HasField("refusal"):
        return words.Refusal(sender, epoch, wire.failure_from_pb(m.refusal))
    signed = records_wire.signed_from_pb
    return words.Approval(sender, epoch, signed(m.offer), signed(m.record))


def _read_admit(sender: str, epoch: int, m: Any) -> words.Message:
    records = tuple(records_wire.signed_from_pb(record) for record in m.records)
    return words.Admit(sender, epoch, m.agreement, records)


def _read_computed(sender: str, epoch: int, m: Any) -> words.Message:
    _check(len(m.result_commitment) in {0, 32}, "a commitment must have 32 bytes")
    return words.Computed(sender, epoch, m.hops, m.result_commitment)


def _read_stated(sender: str, epoch: int, m: Any) -> words.Message:
    statement = records_wire.signed_from_pb(m.statement)
    record = records_wire.signed_from_pb(m.record) if m.HasField("record") else None
    return words.Stated(sender, epoch, statement, decode_statement(statement.statement)[1], record)


def _read_conclude(sender: str, epoch: int, m: Any) -> words.Message:
    verdict = records_wire.signed_from_pb(m.verdict)
    records = tuple(records_wire.signed_from_pb(record) for record in m.records)
    return words.Conclude(sender, epoch, verdict, decode_verdict_outcome(verdict.statement), records)


def _read_abort(sender: str, epoch: int, m: Any) -> words.Message:
    return words.Abort(sender, epoch, outcome_from_pb(m.outcome), wire.failure_from_pb(m.failure))


_READERS: dict[str, Callable[[str, int, Any], words.Message]] = {
    "propose": lambda sender, epoch, m: words.Propose(sender, epoch, m.flow),
    "stored": lambda sender, epoch, _: words.Stored(sender, epoch),
    "decision": _read_decision,
    "admit": _read_admit,
    "admitted": lambda sender, epoch, m: words.Admitted(
        sender, epoch, records_wire.signed_from_pb(m.consent)
    ),
    "prepare": lambda sender, epoch, _: words.Prepare(sender, epoch),
    "prepared": lambda sender, epoch, _: words.Prepared(sender, epoch),
    "start": lambda sender, epoch, m: words.Start(sender, epoch, m.agreement_sha256),
    "computed": _read_computed,
    "interrupted": lambda sender, epoch, _: words.Interrupted(sender, epoch),
    "release": lambda sender, epoch, _: words.Release(sender, epoch),
    "stated": _read_stated,
    "conclude": _read_conclude,
    "attested": lambda sender, epoch, m: words.Attested(sender, epoch, m.attestation),
    "fail": lambda sender, epoch, m: words.Fail(sender, epoch, wire.failure_from_pb(m.failure)),
    "cancel": lambda sender, epoch, m: words.Cancel(sender, epoch, m.comment[:1024]),
    "abort": _read_abort,
}


def encode_offer(offer: Offer) -> bytes:
    """Serialize."""
    m = job_pb2.Offer(
        job_id=offer.job_id, flow_sha256=offer.flow_sha256, approved_at_ms=offer.approved_at_ms,
        approved_by=offer.approved_by,
    )  # fmt: skip
    m.proposal.ParseFromString(algo_wire.encode_proposal(offer.proposal))
    for entry in offer.inputs:
        m.inputs.add(resource=entry.resource, commitment=entry.commitment)
    return m.SerializeToString(deterministic=True)


def decode_offer(data: bytes) -> Offer:
    """Parse and check."""
    m = _parse(job_pb2.Offer(), data)
    _check(len(m.flow_sha256) == 32, "a flow digest must have 32 bytes")
    _check(m.approved_by in {"rule", "human"}, "approvals come by rule or by a human")
    _check(all(len(entry.commitment) == 32 for entry in m.inputs), "a commitment must have 32 bytes")
    inputs = tuple(InputOffer(entry.resource, entry.commitment) for entry in m.inputs)
    proposal = algo_wire.decode_proposal(m.proposal.SerializeToString())
    return Offer(
        ids.job_id(m.job_id, PeerProtocolError), m.flow_sha256, proposal, inputs, m.approved_at_ms, m.approved_by
    )  # fmt: skip


def encode_agreement(agreement: Agreement) -> bytes:
    """Serialize; the bytes that everybody hashes."""
    m = job_pb2.Agreement(
        job_id=agreement.job_id, flow_sha256=agreement.flow_sha256, identity_keys=agreement.identity_keys,
        security_model=agreement.security_model,
        offers=[records_wire.signed_to_pb(offer) for offer in agreement.offers],
    )  # fmt: skip
    m.choice.ParseFromString(algo_wire.encode_choice(agreement.choice))
    return m.SerializeToString(deterministic=True)


def decode_agreement(data: bytes) -> Agreement:
    """Parse and check."""
    m = _parse(job_pb2.Agreement(), data)
    _check(len(m.flow_sha256) == 32, "a flow digest must have 32 bytes")
    choice = algo_wire.decode_choice(m.choice.SerializeToString())
    offers = tuple(records_wire.signed_from_pb(offer) for offer in m.offers)
    return Agreement(
        ids.job_id(m.job_id, PeerProtocolError),
        m.flow_sha256,
        offers,
        tuple(m.identity_keys),
        choice,
        m.security_model,
    )


def encode_consent(consent: Consent) -> bytes:
    """Serialize."""
    m = job_pb2.Consent(
        job_id=consent.job_id,
        agreement_sha256=consent.agreement_sha256,
        coordinator=consent.coordinator,
        parties=consent.parties,
    )
    return m.SerializeToString(deterministic=True)


def encode_statement(statement: Statement) -> bytes:
    """Serialize."""
    return job_pb2.Statement(
        job_id=statement.job_id, party=statement.party, outcome=_number(statement.outcome),
        agreement_sha256=statement.agreement_sha256, epoch=statement.epoch,
        result_commitment=statement.result_commitment, ended_at_ms=statement.ended_at_ms,
        coordinator=statement.coordinator,
    ).SerializeToString(deterministic=True)  # fmt: skip


def decode_statement(data: bytes) -> tuple[str, Outcome]:
    """(party, outcome) of a statement."""
    m = _parse(job_pb2.Statement(), data)
    return ids.node_id(m.party, PeerProtocolError), outcome_from_pb(m.outcome)


def encode_verdict(verdict: Verdict, failure: Failure | None) -> bytes:
    """Serialize."""
    m = job_pb2.Verdict(
        job_id=verdict.job_id, outcome=_number(verdict.outcome), agreement_sha256=verdict.agreement_sha256,
        statements=[records_wire.signed_to_pb(s) for s in verdict.statements], missing=verdict.missing,
    )  # fmt: skip
    if failure:  # one sentence: a verdict and its bundle have a size that every party must be able to bear
        brief = replace(failure, message=failure.message[:MAX_SENTENCE], metadata={})
        m.failure.CopyFrom(wire.failure_to_pb(brief))
    return m.SerializeToString(deterministic=True)


def decode_verdict_outcome(data: bytes) -> Outcome:
    """The outcome of a verdict."""
    return outcome_from_pb(_parse(job_pb2.Verdict(), data).outcome)


def decode_verdict_failure(data: bytes) -> Failure | None:
    """Why a job did not succeed, by its verdict."""
    m = _parse(job_pb2.Verdict(), data)
    return wire.failure_from_pb(m.failure) if m.HasField("failure") else None


def _parse(message: PbT, data: bytes) -> PbT:
    _check(len(data) <= MAX_MESSAGE, "the message is too long")
    try:
        message.ParseFromString(data)
    except DecodeError:
        guard("TDN-T-ENC-01").refuse(Reason.INVALID_REQUEST, f"not a {type(message).__name__}")
    return message


def _check(ok: object, message: str) -> None:
    guard("TDN-T-ENC-01").check(ok, Reason.INVALID_REQUEST, message)
