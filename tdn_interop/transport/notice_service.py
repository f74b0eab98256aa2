"""NoticeService on both sides of a link: notices flow both ways, and on from neighbour to neighbour."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio
import tenacity

from tdn_interop._pb.tdn.transport.v1 import notice_service_pb2 as pb
from tdn_interop._pb.tdn.transport.v1 import notice_service_pb2_grpc
from tdn_interop.errors import PeerProtocolError, Reason, Refused, TdnError, Unavailable, guard
from tdn_interop.identity import Signed
from tdn_interop.reasons import Retry
from tdn_interop.transport import records_wire, status
from tdn_interop.transport.link import CALL_S, Link
from tdn_interop.transport.notices import KINDS, Notices

Context = grpc.aio.ServicerContext[Any, Any]


def notice_to_pb(kind: str, signed: Signed) -> pb.Notice:
    """To the message."""
    message = pb.Notice()
    getattr(message, kind).CopyFrom(records_wire.signed_to_pb(signed))
    return message


def notice_from_pb(message: pb.Notice) -> tuple[str, Signed]:
    """(kind, notice). Errors: INVALID_REQUEST, also for a kind that is not known here."""
    kind = message.WhichOneof("kind")
    if kind not in KINDS:
        guard("TDN-T-ENC-01").refuse(Reason.INVALID_REQUEST, "a notice of an unknown kind", PeerProtocolError)
    return kind, records_wire.signed_from_pb(getattr(message, kind), KINDS[kind])


class NoticeServicer(notice_service_pb2_grpc.NoticeServiceServicer):
    """Serves neighbours; who they are comes from the certificate of the link."""

    def __init__(
        self, notices: Notices, is_neighbour: Callable[[str], bool], peer_of: Callable[[str], str]
    ) -> None:
        self._notices = notices
        self._is_neighbour = is_neighbour
        self._peer_of = peer_of

    async def WatchNotices(  # noqa: N802  the name of the RPC
        self, request: pb.WatchNoticesRequest, context: Context
    ) -> AsyncIterator[pb.WatchNoticesResponse]:
        """See the proto."""
        del request
        self._check(context)
        async for kind, signed in self._notices.follow():
            yield pb.WatchNoticesResponse(notice=notice_to_pb(kind, signed))

    async def OfferNotice(  # noqa: N802  the name of the RPC
        self, request: pb.OfferNoticeRequest, context: Context
    ) -> pb.OfferNoticeResponse:
        """See the proto."""
        self._check(context)
        return pb.OfferNoticeResponse(news=self._notices.offer(*notice_from_pb(request.notice)))

    def _check(self, context: Context) -> None:
        node = self._peer_of(context.peer())
        guard("TDN-T-RTE-05").check(
            self._is_neighbour(node), Reason.POLICY_DENIED, f"{node} is no neighbour here", Refused
        )


class Sharing:
    """Notices over one link of ours: we watch what the other side knows, and tell it what is newer here."""

    def __init__(self, link: Link, notices: Notices, on_refusal: Callable[[TdnError], None]) -> None:
        self._link = link
        self._notices = notices
        self._on_refusal = on_refusal
        self._heard: dict[tuple[str, str], Signed] = {}  # from the other side, and good

    async def watch(self) -> None:
        """Hear, as long as the node runs."""
        await self._persist(self._watch)

    async def tell(self) -> None:
        """Tell, as long as the node runs."""
        await self._persist(self._tell)

    async def _persist(self, talk: Callable[[], Awaitable[None]]) -> None:
        policy = tenacity.AsyncRetrying(
            wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=5),
            retry=tenacity.retry_if_exception_type(TdnError),
        )
        while True:
            await self._link.linked.wait()
            await policy(talk)

    async def _watch(self) -> None:
        await self._link.linked.wait()
        stub = notice_service_pb2_grpc.NoticeServiceStub(self._link.channel)
        call = stub.WatchNotices(pb.WatchNoticesRequest())
        try:
            async for answer in call:
                self._hear(*notice_from_pb(answer.notice))
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from error
        finally:
            call.cancel()
        guard("TDN-T-ENC-03").refuse(Reason.UNREACHABLE, "the link has ended", Unavailable)

    def _hear(self, kind: str, signed: Signed) -> None:
        """A bad notice is refused and noted; the good ones that come after it still count."""
        try:
            self._notices.offer(kind, signed)
        except TdnError as error:
            self._on_refusal(error)
        if self._notices.newest(kind, signed.signer) == signed:  # who signs is up to the other side
            self._heard[kind, signed.signer] = signed

    async def _tell(self) -> None:
        async for kind, signed in self._notices.follow():
            await self._link.linked.wait()
            if self._heard.get((kind, signed.signer)) != signed:
                request = pb.OfferNoticeRequest(notice=notice_to_pb(kind, signed))
                stub = notice_service_pb2_grpc.NoticeServiceStub(self._link.channel)
                try:
                    await self._link.ask(stub.OfferNotice(request, timeout=CALL_S))
                except TdnError as error:
                    if error.reason.value.retry is not Retry.NO:
                        raise
                    self._on_refusal(error)  # saying it again is in vain
