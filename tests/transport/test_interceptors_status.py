"""Errors to google.rpc.Status and back."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from tdn_interop import errors
from tdn_interop.reasons import Reason, Retry
from tdn_interop.transport import status

KINDS = [
    errors.ConfigError, errors.LocalProtocolError, errors.NegotiationFailed, errors.PeerProtocolError,
    errors.Refused, errors.TdnError, errors.Unavailable,
]  # fmt: skip
CODE = {code.value[0]: code for code in grpc.StatusCode}


def rpc_error(message: status_pb2.Status, details: bytes | None = None) -> grpc.aio.AioRpcError:
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", details or message.SerializeToString()))
    return grpc.aio.AioRpcError(CODE[message.code], grpc.aio.Metadata(), trailers, message.message)


def detail(message: status_pb2.Status, kind: type) -> object | None:
    found = kind()
    return next((found for packed in message.details if packed.Unpack(found)), None)


@given(
    st.sampled_from(Reason), st.sampled_from(KINDS), st.text(max_size=40),
    st.dictionaries(st.from_regex(r"[a-z][A-Za-z]{0,8}", fullmatch=True).filter(
        lambda key: key not in {"kind", "requirement", "reason", "message", "self"}), st.text(max_size=9), max_size=3),
)  # fmt: skip
def test_every_error_survives_the_wire(reason, kind, message, metadata):
    sent = kind(reason, message, "TDN-T-ENC-02", **metadata)
    received = status.from_rpc_error(rpc_error(status.to_status(sent)))
    assert type(received) is kind
    assert (received.reason, received.message, received.requirement) == (reason, message, "TDN-T-ENC-02")
    assert received.metadata == metadata


@pytest.mark.parametrize("reason", Reason)
def test_code_and_details_follow_the_table(reason):
    made = status.to_status(errors.TdnError(reason, "words"))
    assert made.code == code_pb2.Code.Value(reason.value.status)
    info = detail(made, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (reason.name, "tdn")
    retry = detail(made, error_details_pb2.RetryInfo)
    assert (retry is not None) == (reason.value.retry is Retry.LATER)
    assert retry is None or retry.retry_delay.seconds > 0


def test_an_invalid_request_names_its_field():
    made = status.to_status(errors.PeerProtocolError(Reason.INVALID_REQUEST, "too long", field="points[3]"))
    (violation,) = detail(made, error_details_pb2.BadRequest).field_violations
    assert (violation.field, violation.description) == ("points[3]", "too long")
    unnamed = status.to_status(errors.PeerProtocolError(Reason.INVALID_REQUEST, "too long"))
    assert detail(unnamed, error_details_pb2.BadRequest) is None


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable, Reason.UNREACHABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.Unavailable, Reason.DEADLINE),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Refused, Reason.UNSUPPORTED),
        (grpc.StatusCode.INTERNAL, errors.TdnError, Reason.INTERNAL),
        (grpc.StatusCode.NOT_FOUND, errors.TdnError, Reason.INTERNAL),
    ],
)
def test_a_bare_code_means_what_it_says(code, kind, reason):
    bare = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "no words of ours")
    found = status.from_rpc_error(bare)
    assert (type(found), found.reason) == (kind, reason)
    assert "no words of ours" in found.message
    assert not status.has_reason(bare)


def foreign(
    domain: str = "tdn", reason: str = "NO_ROUTE", code: int = 14, kind: str = ""
) -> status_pb2.Status:
    made = status_pb2.Status(code=code, message="words")
    info = error_details_pb2.ErrorInfo(domain=domain, reason=reason, metadata={"kind": kind})
    made.details.add().Pack(info)
    return made


@pytest.mark.parametrize("message", [foreign(domain="other.example"), foreign(reason="NEWER_THAN_WE_ARE")])
def test_details_of_others_do_not_decide(message):
    assert status.from_rpc_error(rpc_error(message)).reason is Reason.UNREACHABLE


def test_an_unknown_kind_is_the_plain_error():
    found = status.from_rpc_error(rpc_error(foreign(kind="SystemExit")))
    assert (type(found), found.reason) == (errors.TdnError, Reason.NO_ROUTE)


def test_broken_or_contradicting_details_leave_the_code():
    broken = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")
    message = status_pb2.Status(code=14, message="words", details=[broken])
    assert status.from_rpc_error(rpc_error(message)).reason is Reason.UNREACHABLE
    assert status.from_rpc_error(rpc_error(message, b"\xff\xff")).reason is Reason.UNREACHABLE
    other_code = foreign(code=5).SerializeToString()
    assert status.from_rpc_error(rpc_error(foreign(), other_code)).reason is Reason.UNREACHABLE
