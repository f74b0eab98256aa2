"""Job messages come back as they were; bytes of a peer become a message or one kind of refusal."""

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tdn_interop.algo import catalogue
from tdn_interop.algo.handshake import Choice
from tdn_interop.app.evidence.statements import Outcome, Statement, Verdict
from tdn_interop.app.jobs import job_protocol as words
from tdn_interop.app.jobs import job_wire
from tdn_interop.app.jobs.terms import Agreement, InputOffer, Offer
from tdn_interop.errors import PeerProtocolError, Reason
from tdn_interop.identity import Signed
from tdn_interop.transport.frame import Failure

JOB = "0123456789abcdef" * 2
NODE = "bank-a.shandong.cn"
OTHER = "bank-b.zhejiang.cn"

digests = st.binary(min_size=32, max_size=32)
signed = st.builds(
    Signed, st.binary(min_size=1, max_size=200), st.just(OTHER), st.binary(min_size=64, max_size=64)
)
outcomes = st.sampled_from(Outcome)
failures = st.builds(
    Failure, st.sampled_from(Reason), st.text(max_size=300), st.sampled_from([NODE, OTHER, ""]),
    st.sampled_from(["", "TDN-F-TSK-01"]), st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=4),
)  # fmt: skip


def statement_of(outcome):
    made = Statement(JOB, OTHER, outcome, bytes(32), 1, b"", 1_700_000_000_000, NODE)
    return Signed(job_wire.encode_statement(made), OTHER, bytes(64))


def verdict_of(outcome, failure=None):
    made = Verdict(
        JOB, outcome, bytes(32), (statement_of(outcome),), (), failure.reason.name if failure else ""
    )
    return Signed(job_wire.encode_verdict(made, failure), OTHER, bytes(64))


BODIES = {
    words.Propose: [st.binary(max_size=300)],
    words.Stored: [],
    words.Approval: [signed, signed],
    words.Refusal: [failures],
    words.Admit: [st.binary(max_size=300), st.lists(signed, max_size=4).map(tuple)],
    words.Admitted: [signed],
    words.Prepare: [],
    words.Prepared: [],
    words.Start: [digests],
    words.Computed: [st.integers(0, 2**32 - 1), st.one_of(st.just(b""), digests)],
    words.Interrupted: [],
    words.Release: [],
    words.Attested: [st.binary(max_size=300)],
    words.Fail: [failures],
    words.Cancel: [st.text(max_size=300)],
    words.Abort: [outcomes, failures],
}


def _message(kind):
    envelope = [st.just(OTHER), st.integers(0, 2**32 - 1)]
    if kind is words.Stated:
        return outcomes.flatmap(lambda o: st.builds(kind, *envelope, st.just(statement_of(o)), st.just(o)))
    if kind is words.Conclude:
        return outcomes.flatmap(lambda o: st.builds(kind, *envelope, st.just(verdict_of(o)), st.just(o)))
    return st.builds(kind, *envelope, *BODIES[kind])


KINDS = [*BODIES, words.Stated, words.Conclude]
messages = st.one_of([_message(kind) for kind in KINDS])


def test_every_kind_is_tried():
    assert set(KINDS) == set(job_wire._WRITERS)


@given(messages)
def test_round_trip(message):
    assert job_wire.decode_message(OTHER, job_wire.encode_message(JOB, message)) == (JOB, message)


@given(messages)
def test_the_sender_is_whom_the_channel_names(message):
    _, read = job_wire.decode_message(NODE, job_wire.encode_message(JOB, message))
    assert read.sender == NODE


DECODERS = {
    "message": lambda data: job_wire.decode_message(OTHER, data),
    "offer": job_wire.decode_offer,
    "agreement": job_wire.decode_agreement,
    "statement": job_wire.decode_statement,
    "outcome of a verdict": job_wire.decode_verdict_outcome,
    "failure of a verdict": job_wire.decode_verdict_failure,
}
OFFER = Offer(JOB, bytes(32), catalogue.offer(NODE), (InputOffer(f"{NODE}/loans@1", bytes(32)),), 7, "human")
AGREEMENT = Agreement(
    JOB, bytes(32), (statement_of(Outcome.FAILED),), (bytes(32),), Choice("psi.ecdh/1", "x25519-sha256-ell2", "raw/1"),
    "semi-honest/1",
)  # fmt: skip
VALID = {
    "message": job_wire.encode_message(JOB, words.Conclude(OTHER, 1, verdict_of(Outcome.FAILED), Outcome.FAILED)),
    "offer": job_wire.encode_offer(OFFER),
    "agreement": job_wire.encode_agreement(AGREEMENT),
    "statement": statement_of(Outcome.FAILED).statement,
    "outcome of a verdict": verdict_of(Outcome.FAILED).statement,
    "failure of a verdict": verdict_of(Outcome.FAILED, Failure(Reason.INTERNAL, "m", NODE)).statement,
}  # fmt: skip


@pytest.mark.parametrize("what", DECODERS)
@given(data=st.binary(max_size=400))
@example(data=b"")
@example(data=bytes(job_wire.MAX_MESSAGE + 1))
def test_any_bytes(what, data):
    decoded(what, data)


@pytest.mark.parametrize("what", DECODERS)
@given(place=st.integers(0, 2000), byte=st.integers(0, 255), cut=st.booleans())
def test_valid_bytes_with_one_changed_or_cut(what, place, byte, cut):
    valid = VALID[what]
    place %= len(valid)
    decoded(what, valid[:place] if cut else valid[:place] + bytes([byte]) + valid[place + 1 :])


def decoded(what, data):
    """Read, or refused in the one way: anything else fails the test."""
    with contextlib.suppress(PeerProtocolError):
        DECODERS[what](data)


@pytest.mark.parametrize("what", DECODERS)
def test_valid_bytes_are_read(what):
    DECODERS[what](VALID[what])


def test_terms_come_back():
    assert job_wire.decode_offer(VALID["offer"]) == OFFER
    assert job_wire.decode_agreement(VALID["agreement"]) == AGREEMENT
    assert job_wire.decode_statement(VALID["statement"]) == (OTHER, Outcome.FAILED)


@given(outcomes, failures)
def test_verdicts_keep_outcome_and_reason(outcome, failure):
    data = verdict_of(outcome, failure).statement
    assert job_wire.decode_verdict_outcome(data) is outcome
    read = job_wire.decode_verdict_failure(data)
    assert (read.reason, read.noticed_by) == (failure.reason, failure.noticed_by)
    assert failure.message.startswith(read.message)
