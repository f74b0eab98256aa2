"""The asking side of `NodeControlService`: answers are plain documents, the JSON of `--json`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
from google.protobuf.message import Message

from tdn_interop._pb.tdn.app.v1 import control_service_pb2 as pb
from tdn_interop._pb.tdn.app.v1 import drain_pb2, mailbox_service_pb2, routes_pb2, snapshot_pb2
from tdn_interop._pb.tdn.app.v1.control_service_pb2_grpc import NodeControlServiceStub
from tdn_interop._pb.tdn.common.v1.identity_pb2 import Role
from tdn_interop.app.members.registry_client import RegistryClient
from tdn_interop.app.members.trust_client import TrustClient
from tdn_interop.errors import Reason, TdnError, Unavailable, guard
from tdn_interop.transport import status

Document = dict[str, Any]

ANSWER_S = 30.0


class NodeClient:
    """Asks one node. Errors of every method: the node's own, and NODE_DOWN when nobody answers."""

    def __init__(self, channel: grpc.aio.Channel, where: str) -> None:
        self._stub = NodeControlServiceStub(channel)
        self._where = where
        self.registry = RegistryClient(channel, self._answer)
        self.trust = TrustClient(channel, self._answer)

    async def _ask(self, method: Any, request: Message, timeout_s: float = ANSWER_S) -> Any:
        with self._errors():
            return await method(request, timeout=timeout_s)

    async def _answer(self, method: Any, request: Message, timeout_s: float = ANSWER_S) -> Document:
        return document(await self._ask(method, request, timeout_s))

    async def _follow(self, method: Any, request: Message) -> AsyncIterator[Any]:
        with self._errors():
            async for message in method(request):
                yield message

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            silent = error.code() is grpc.StatusCode.UNAVAILABLE and not status.has_reason(error)
            guard("TDN-X-CLI-02").check(
                not silent, Reason.NODE_DOWN, f"no node answers for {self._where}", Unavailable
            )
            raise status.from_rpc_error(error) from error

    async def status(self) -> Document:
        """GetStatus."""
        return document(await self._ask(self._stub.GetStatus, pb.GetStatusRequest()))

    async def invite(self, node: str, role: str, valid_s: int) -> Document:
        """CreateToken; `role` is child, hub or top."""
        number = Role.Value(f"ROLE_{role.upper()}")
        request = pb.CreateTokenRequest(node_id=node, role=number, valid_s=valid_s)
        return document(await self._ask(self._stub.CreateToken, request))

    async def ping(self, node: str, timeout_s: float) -> Document:
        """Ping; waits a little longer than the node does, so that its own reason arrives."""
        request = pb.PingRequest(node_id=node, timeout_s=timeout_s)
        return document(await self._ask(self._stub.Ping, request, timeout_s + 5))

    async def route(self, name: str) -> Document:
        """LookupRoute."""
        return document(await self._ask(self._stub.LookupRoute, pb.LookupRouteRequest(name=name)))

    async def routes(self) -> Document:
        """ListRoutes."""
        return document(await self._ask(self._stub.ListRoutes, routes_pb2.ListRoutesRequest()))

    async def register(
        self, name: str, path: str, keys: list[str], encoding: str, delimiter: str
    ) -> Document:
        """RegisterResource; `path` is absolute. The node reads the whole file: it may take its time."""
        layout = pb.CsvFormat(encoding=encoding, delimiter=delimiter)
        request = pb.RegisterResourceRequest(name=name, path=path, format=layout, keys=keys)
        answer = await self._ask(self._stub.RegisterResource, request, 3_600)
        return document(answer.resource)

    async def resources(self) -> Document:
        """ListResources."""
        return document(await self._ask(self._stub.ListResources, pb.ListResourcesRequest()))

    async def resource(self, name: str) -> Document:
        """GetResource."""
        answer = await self._ask(self._stub.GetResource, pb.GetResourceRequest(id=name))
        return document(answer.resource)

    async def run_job(self, flow_toml: str) -> Document:
        """RunJob."""
        return document(await self._ask(self._stub.RunJob, pb.RunJobRequest(flow_toml=flow_toml)))

    async def decide(self, job: str, comment: str, *, approve: bool) -> None:
        """DecideJob."""
        request = pb.DecideJobRequest(job_id=job, approve=approve, comment=comment)
        await self._ask(self._stub.DecideJob, request)

    async def jobs(self) -> Document:
        """ListJobs."""
        return document(await self._ask(self._stub.ListJobs, pb.ListJobsRequest()))

    async def job(self, job: str) -> Document:
        """GetJob."""
        return document((await self._ask(self._stub.GetJob, pb.GetJobRequest(job_id=job))).job)

    async def watch(self, job: str) -> AsyncIterator[Document]:
        """WatchJob: the job now and at each change, until it ends."""
        async for answer in self._follow(self._stub.WatchJob, pb.WatchJobRequest(job_id=job)):
            yield document(answer.job)

    async def cancel(self, job: str, comment: str) -> None:
        """CancelJob."""
        await self._ask(self._stub.CancelJob, pb.CancelJobRequest(job_id=job, comment=comment))

    async def bundle(self, job: str) -> tuple[bytes, bytes]:
        """GetBundle: the bundle and the identity key of the top."""
        answer = await self._ask(self._stub.GetBundle, pb.GetBundleRequest(job_id=job))
        return answer.bundle, answer.top_identity_key

    async def send_file(
        self, node: str, topic: str, path: str, transfer_id: str = ""
    ) -> AsyncIterator[Document]:
        """SendFile: progress; `path` is absolute."""
        request = pb.SendFileRequest(node_id=node, topic=topic, path=path, transfer_id=transfer_id)
        async for answer in self._follow(self._stub.SendFile, request):
            yield document(answer)

    async def receive_file(
        self, topic: str, out: str, timeout_s: float, receive_id: str = ""
    ) -> AsyncIterator[Document]:
        """ReceiveFile: progress; `out` is absolute."""
        request = pb.ReceiveFileRequest(topic=topic, out=out, timeout_s=timeout_s, receive_id=receive_id)
        async for answer in self._follow(self._stub.ReceiveFile, request):
            yield document(answer)

    async def transfers(self) -> Document:
        """ListTransfers."""
        return document(await self._ask(self._stub.ListTransfers, pb.ListTransfersRequest()))

    async def cancel_transfer(self, transfer_id: str) -> None:
        """CancelTransfer."""
        await self._ask(self._stub.CancelTransfer, pb.CancelTransferRequest(transfer_id=transfer_id))

    async def mailboxes(self) -> Document:
        """ListMailboxes."""
        request = mailbox_service_pb2.ListMailboxesRequest()
        return document(await self._ask(self._stub.ListMailboxes, request))

    async def snapshot(self) -> Document:
        """GetSnapshot."""
        return document(await self._ask(self._stub.GetSnapshot, snapshot_pb2.GetSnapshotRequest()))

    async def drain(self, timeout_s: float) -> AsyncIterator[Document]:
        """Drain: what remains, until the node stops."""
        async for answer in self._follow(self._stub.Drain, drain_pb2.DrainRequest(timeout_s=timeout_s)):
            yield document(answer)

    async def undrain(self) -> None:
        """Undrain."""
        await self._ask(self._stub.Undrain, drain_pb2.UndrainRequest())


@contextlib.asynccontextmanager
async def connected(target: str, where: str) -> AsyncIterator[NodeClient]:
    """A client of the control socket `target`; `where` names it in NODE_DOWN."""
    async with grpc.aio.insecure_channel(target) as channel:
        yield NodeClient(channel, where)


def failure_of(job: Document) -> TdnError | None:
    """Why a job did not succeed, as an error."""
    failure = job["failure"]
    if failure is None:
        return None
    requirement, metadata = failure["requirement"], failure["metadata"]
    if failure["noticed_by"]:
        metadata = metadata | {"noticed_by": failure["noticed_by"]}
    return status.named_error(failure["reason"], failure["message"], requirement, metadata)


def document(message: Message) -> Document:
    """Every field of `message` under its own name; enums are lower-case words, absent messages None."""
    return {field.name: _value(field, message) for field in message.DESCRIPTOR.fields}


def _value(field: Any, message: Message) -> Any:
    value = getattr(message, field.name)
    if field.message_type and field.message_type.GetOptions().map_entry:
        return dict(sorted(value.items()))
    if field.is_repeated:
        return [_single(field, item) for item in value]
    if field.message_type and not message.HasField(field.name):
        return None
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.message_type:
        return document(value)
    if field.enum_type:
        name = field.enum_type.values_by_number[value].name
        return name.removeprefix(f"{field.enum_type.name.upper()}_").lower()
    return value
