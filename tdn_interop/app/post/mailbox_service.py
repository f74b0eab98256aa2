"""MailboxService on the wire: what a hub serves, and how a node asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

import grpc.aio

from tdn_interop import ids
from tdn_interop._pb.tdn.app.v1 import mailbox_service_pb2 as pb
from tdn_interop._pb.tdn.app.v1 import mailbox_service_pb2_grpc
from tdn_interop.app.post import mailbox_wire as wire
from tdn_interop.app.post.letterbox import Letterbox
from tdn_interop.app.post.mailbox_wire import SignedLetter
from tdn_interop.app.store.mailbox import BoxRow
from tdn_interop.errors import PeerProtocolError
from tdn_interop.identity import Signed
from tdn_interop.transport import records_wire
from tdn_interop.transport.link import CALL_S

Context = grpc.aio.ServicerContext[Any, Any]
FETCH_S = 60.0


class MailboxServicer(mailbox_service_pb2_grpc.MailboxServiceServicer):
    """Serves a letterbox; `peer_of` tells the node of the certificate behind `context.peer()`."""

    def __init__(self, box: Letterbox, peer_of: Callable[[str], str]) -> None:
        self._box = box
        self._peer_of = peer_of

    async def PublishSealingKey(  # noqa: N802  the name of the RPC
        self, request: pb.PublishSealingKeyRequest, context: Context
    ) -> pb.PublishSealingKeyResponse:
        """See the proto."""
        await self._box.publish(self._peer_of(context.peer()), records_wire.signed_from_pb(request.key))
        return pb.PublishSealingKeyResponse()

    async def GetSealingKey(  # noqa: N802  the name of the RPC
        self, request: pb.GetSealingKeyRequest, context: Context
    ) -> pb.GetSealingKeyResponse:
        """See the proto."""
        self._peer_of(context.peer())  # whoever asks must be somebody, and not refused
        key, record = await self._box.key_of(ids.node_id(request.node_id, PeerProtocolError))
        signed = records_wire.signed_to_pb
        return pb.GetSealingKeyResponse(key=signed(key), record=signed(record))

    async def DepositLetters(  # noqa: N802  the name of the RPC
        self, request: pb.DepositLettersRequest, context: Context
    ) -> pb.DepositLettersResponse:
        """See the proto."""
        await self._box.deposit(self._peer_of(context.peer()), wire.deposit_from_pb(request))
        return pb.DepositLettersResponse()

    async def FetchLetters(  # noqa: N802  the name of the RPC
        self, request: pb.FetchLettersRequest, context: Context
    ) -> AsyncIterator[pb.FetchLettersResponse]:
        """See the proto."""
        del request
        async for letter in self._box.letters(self._peer_of(context.peer())):
            yield pb.FetchLettersResponse(letter=wire.signed_to_pb(letter))

    async def AcknowledgeLetters(  # noqa: N802  the name of the RPC
        self, request: pb.AcknowledgeLettersRequest, context: Context
    ) -> pb.AcknowledgeLettersResponse:
        """See the proto."""
        await self._box.acknowledge(self._peer_of(context.peer()), wire.digests_from_pb(request))
        return pb.AcknowledgeLettersResponse()


def mailboxes_to_pb(boxes: Sequence[BoxRow]) -> pb.ListMailboxesResponse:
    """To the message."""
    return pb.ListMailboxesResponse(mailboxes=[
        pb.Mailbox(node_id=b.recipient, letters=b.letters, bytes=b.size_bytes, oldest_at_ms=b.oldest_at_ms)
        for b in boxes
    ])  # fmt: skip


class Ask(Protocol):
    """How the answer of a call is waited for, with its typed refusal."""

    async def __call__(self, call: Awaitable[Any]) -> Any:
        """The answer. Errors: the refusal, or why the hub cannot be reached."""
        ...


class MailboxClient:
    """Asks the mailbox of a hub. Errors of every method: the refusals of `Letterbox`, and why it cannot be reached."""

    def __init__(self, channel: grpc.aio.Channel, ask: Ask) -> None:
        self._stub = mailbox_service_pb2_grpc.MailboxServiceStub(channel)
        self._ask = ask

    async def publish(self, key: Signed) -> None:
        """Publish our sealing key."""
        request = pb.PublishSealingKeyRequest(key=records_wire.signed_to_pb(key))
        await self._ask(self._stub.PublishSealingKey(request, timeout=CALL_S))

    async def key_of(self, node: str) -> tuple[Signed, Signed]:
        """The sealing key of a node and its record."""
        request = pb.GetSealingKeyRequest(node_id=node)
        answer = await self._ask(self._stub.GetSealingKey(request, timeout=CALL_S))
        return records_wire.signed_from_pb(answer.key), records_wire.signed_from_pb(answer.record)

    async def deposit(self, letters: Sequence[SignedLetter]) -> None:
        """Leave letters of ours."""
        request = pb.DepositLettersRequest(letters=[wire.signed_to_pb(letter) for letter in letters])
        await self._ask(self._stub.DepositLetters(request, timeout=CALL_S))

    async def letters(self) -> AsyncIterator[SignedLetter]:
        """The letters for us."""
        call = self._stub.FetchLetters(pb.FetchLettersRequest(), timeout=FETCH_S)
        try:
            while (answer := await self._ask(call.read())) is not grpc.aio.EOF:
                yield wire.signed_from_pb(answer.letter)
        finally:
            call.cancel()

    async def acknowledge(self, digests: Sequence[bytes]) -> None:
        """Have letters of ours forgotten."""
        request = pb.AcknowledgeLettersRequest(letter_sha256=digests)
        await self._ask(self._stub.AcknowledgeLetters(request, timeout=CALL_S))
