"""Failures on their way to others: always heard, never too large, and nothing in them about our own files."""

import pytest

from tdn_interop._pb.tdn.app.v1 import job_pb2
from tdn_interop.app.evidence import bundle, wire
from tdn_interop.app.evidence.statements import Outcome, Verdict
from tdn_interop.app.jobs import job_protocol as words
from tdn_interop.app.jobs import job_wire
from tdn_interop.errors import (
    ConfigError,
    LocalProtocolError,
    NegotiationFailed,
    PeerProtocolError,
    Reason,
    Refused,
    TdnError,
    Unavailable,
)
from tdn_interop.identity import VERDICT
from tdn_interop.transport.frame import Failure
from tests.app.evidence_mesh import JOB, Mesh, statement

A, B = "a.x.cn", "b.y.cn"
LOUD = Failure(Reason.INTERNAL, "x" * 100_000, B * 50, "TDN-F-TSK-02" * 9, {"k" * 99: "z" * 70_000})
CARRIERS = {
    "refusal": words.Refusal(B, 0, LOUD),
    "fail": words.Fail(B, 0, LOUD),
    "abort": words.Abort(B, 0, Outcome.FAILED, LOUD),
}


@pytest.mark.parametrize("kind", CARRIERS)
def test_a_long_failure_is_cut_and_heard(kind):
    _, heard = job_wire.decode_message(B, job_wire.encode_message(JOB, CARRIERS[kind]))
    assert heard.failure.reason is Reason.INTERNAL
    assert heard.failure.message == "x" * 2048
    assert set(map(len, heard.failure.metadata.values())) == {2048}


@pytest.mark.parametrize("change", ["key", "value", "entries", "message", "noticed_by", "requirement"])
def test_a_peer_that_does_not_cut_is_refused(change):
    m = job_pb2.JobMessage(job_id=JOB)
    failure = m.fail.failure
    failure.reason = "INTERNAL"
    match change:
        case "key":
            failure.metadata["k" * 65] = ""
        case "value":
            failure.metadata["k"] = "z" * 2049
        case "entries":
            failure.metadata.update({str(n): "" for n in range(65)})
        case _:
            setattr(failure, change, "z" * 2049)
    with pytest.raises(PeerProtocolError) as error:
        job_wire.decode_message(B, m.SerializeToString())
    assert error.value.reason is Reason.INVALID_REQUEST


def test_no_party_can_make_the_verdict_too_large_for_the_others():
    mesh = Mesh.of(A, B)
    said = statement(mesh, A, Outcome.FAILED, agreement_sha256=b"")
    made = Verdict(JOB, Outcome.FAILED, b"", (said,), (B,), "INTERNAL")
    data = job_wire.encode_verdict(made, LOUD)
    assert wire.decode_verdict(data).failure == "INTERNAL"
    told = job_wire.decode_verdict_failure(data)
    assert (told.reason, told.message, told.metadata) == (Reason.INTERNAL, "x" * 256, {})
    signed = mesh.sign(A, VERDICT, data)
    assert bundle.build(signed, [], [mesh.attest(A, signed)], mesh.records.values())


@pytest.mark.parametrize("kind", [ConfigError, Unavailable, LocalProtocolError, TdnError])
def test_errors_about_ourselves_travel_without_their_words(kind):
    error = kind(Reason.DIGEST_MISMATCH, "salaries.csv: 00ff, 17 rows", "TDN-F-RES-06", rows=17)
    assert Failure.of(error, A) == Failure(
        Reason.DIGEST_MISMATCH, Reason.DIGEST_MISMATCH.value.summary[0], A, "TDN-F-RES-06"
    )
    assert Failure.in_full(error, A).message == "salaries.csv: 00ff, 17 rows"


@pytest.mark.parametrize("kind", [PeerProtocolError, NegotiationFailed, Refused])
def test_errors_about_peers_keep_their_words(kind):
    assert Failure.of(kind(Reason.SEQ_GAP, "7 after 5", seq=7), A).message == "7 after 5"
