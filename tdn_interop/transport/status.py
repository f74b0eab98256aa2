"""Errors of ours as `google.rpc.Status`, and the way back. AIP-193 and google/rpc/error_details.proto.

Every status carries an `ErrorInfo` whose reason is a name of the one table; nothing else decides what
an error means. A peer that sends no details, or details we do not know, is understood by its gRPC
code alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

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
from tdn_interop.reasons import Retry

DOMAIN = "tdn"
RETRY_AFTER_S = 1

_KIND = "kind"
_REQUIREMENT = "requirement"
_KINDS = {
    kind.__name__: kind
    for kind in (
        ConfigError, LocalProtocolError, NegotiationFailed, PeerProtocolError, Refused, TdnError, Unavailable,
    )
}  # fmt: skip
# What a bare code of a peer means: it gives no reason of ours.
_BARE: Mapping[grpc.StatusCode, tuple[type[TdnError], Reason]] = {
    grpc.StatusCode.UNAVAILABLE: (Unavailable, Reason.UNREACHABLE),
    grpc.StatusCode.CANCELLED: (Unavailable, Reason.UNREACHABLE),  # a server that stops ends its calls so
    grpc.StatusCode.DEADLINE_EXCEEDED: (Unavailable, Reason.DEADLINE),
    grpc.StatusCode.UNAUTHENTICATED: (Refused, Reason.UNAUTHENTICATED),
    grpc.StatusCode.UNIMPLEMENTED: (Refused, Reason.UNSUPPORTED),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (Unavailable, Reason.RESOURCE_EXHAUSTED),
}


def to_status(error: TdnError) -> status_pb2.Status:
    """`error` with ErrorInfo always, BadRequest for a named field, RetryInfo when waiting helps.

    The field of an INVALID_REQUEST is its metadata entry `field`.
    """
    spec = error.reason.value
    status = status_pb2.Status(code=status_code(error.reason).value[0], message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason.name, domain=DOMAIN, metadata=error.metadata)
    info.metadata[_KIND] = type(error).__name__
    if error.requirement:
        info.metadata[_REQUIREMENT] = error.requirement
    status.details.add().Pack(info)
    if error.reason is Reason.INVALID_REQUEST and "field" in error.metadata:
        request = error_details_pb2.BadRequest()
        request.field_violations.add(field=error.metadata["field"], description=error.message)
        status.details.add().Pack(request)
    if spec.retry is Retry.LATER:
        delay = error_details_pb2.RetryInfo()
        delay.retry_delay.FromSeconds(RETRY_AFTER_S)
        status.details.add().Pack(delay)
    return status


def status_code(reason: Reason) -> grpc.StatusCode:
    """The gRPC code of `reason`, by the table."""
    return grpc.StatusCode[reason.value.status]


def from_rpc_error(error: grpc.aio.AioRpcError) -> TdnError:
    """The error that the other side meant, or what its gRPC code alone means."""
    return _stated(error) or _bare(error)


def has_reason(error: grpc.aio.AioRpcError) -> bool:
    """True when the other side gave a reason of the table; False when gRPC speaks for itself."""
    return _stated(error) is not None


def named_error(
    name: str, message: str, requirement: str, metadata: Mapping[str, str], kind: str = ""
) -> TdnError:
    """The error behind what travels: a name of the table, or INTERNAL for a name this version does not know."""
    reason = Reason.__members__.get(name, Reason.INTERNAL)
    error = _KINDS.get(kind, TdnError)(reason, message, requirement)
    # Not by keyword: a peer may use the names of our parameters. Sorted: protobuf maps have no order.
    error.metadata = dict(sorted(metadata.items()))
    return error


def _stated(error: grpc.aio.AioRpcError) -> TdnError | None:
    for info in _error_infos(error):
        if info.domain == DOMAIN and info.reason in Reason.__members__:
            metadata = dict(info.metadata)
            requirement, kind = metadata.pop(_REQUIREMENT, ""), metadata.pop(_KIND, "")
            return named_error(info.reason, error.details() or "", requirement, metadata, kind)
    return None


def _error_infos(error: grpc.aio.AioRpcError) -> Iterator[error_details_pb2.ErrorInfo]:
    try:
        status = rpc_status.from_call(cast("grpc.Call", error))  # it has what from_call reads
        for detail in status.details if status else ():
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                yield info
    except (DecodeError, ValueError):
        return  # details that contradict the code or cannot be parsed say nothing; the code still does


def _bare(error: grpc.aio.AioRpcError) -> TdnError:
    code = error.code()
    kind, reason = _BARE.get(code, (TdnError, Reason.INTERNAL))
    return kind(reason, f"{code.name}: {error.details() or 'no details'}", grpcCode=code.name)
