"""NodeControlService: what the owner asks on the control socket, translated to calls of the node."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio

from tdn_interop import ids
from tdn_interop._pb.tdn.app.v1 import control_service_pb2 as pb
from tdn_interop._pb.tdn.app.v1 import (
    control_service_pb2_grpc,
    drain_pb2,
    mailbox_service_pb2,
    routes_pb2,
    snapshot_pb2,
)
from tdn_interop._pb.tdn.common.v1 import failure_pb2
from tdn_interop.algo.catalogue import algorithm
from tdn_interop.app.control.routes_wire import routes_of
from tdn_interop.app.control.snapshot_wire import snapshot_of
from tdn_interop.app.data.table import CsvFormat
from tdn_interop.app.jobs import flow as flows
from tdn_interop.app.post.mailbox_service import mailboxes_to_pb
from tdn_interop.app.store.jobs import JobRow
from tdn_interop.app.store.resources import ResourceRow
from tdn_interop.app.store.transfers import InRow, OutRow
from tdn_interop.identity import fingerprint
from tdn_interop.transport import records_wire

if TYPE_CHECKING:
    from tdn_interop.app.node import Node

Context = grpc.aio.ServicerContext[Any, Any]
# What is answered is on record: a node that dies after its answer has not forgotten it.
RECORD_S = 10.0
_SECRET_FACTS = {"result_salt"}


class ControlServicer(control_service_pb2_grpc.NodeControlServiceServicer):
    """Only the owner of the node reaches this: the socket has mode 0600 in a folder of mode 0700."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:  # noqa: N802
        """See the proto."""
        del request, context
        mesh, standing = self._node.mesh, self._node.mesh.standing
        return pb.GetStatusResponse(
            node_id=mesh.me, role=records_wire.ROLES[mesh.config.role],
            identity_sha256=fingerprint(standing.key.public_key), listen=mesh.config.listen or "",
            parent=standing.membership.parent, linked=mesh.link is None or mesh.link.linked.is_set(),
            certificate_expires_at_ms=standing.expires_at_ms, log_size=await mesh.log_size(),
            peers=mesh.channels.peers(), uptime_s=time.monotonic() - self._node.started, members=mesh.register.nodes,
        )  # fmt: skip

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Context) -> pb.CreateTokenResponse:  # noqa: N802
        """See the proto."""
        del context
        role = records_wire.role_name(request.role)
        token = await self._node.mesh.admission.invite(ids.node_id(request.node_id), role, request.valid_s)
        return pb.CreateTokenResponse(token=token)

    async def Ping(self, request: pb.PingRequest, context: Context) -> pb.PingResponse:  # noqa: N802
        """See the proto."""
        del context
        pong = await self._node.mesh.pings.ping(ids.node_id(request.node_id), request.timeout_s or 10)
        return pb.PingResponse(
            round_trip_ms=pong.round_trip_ms, hops=pong.hops, identity_sha256=pong.identity_sha256
        )

    async def LookupRoute(self, request: pb.LookupRouteRequest, context: Context) -> pb.LookupRouteResponse:  # noqa: N802
        """See the proto."""
        del context
        route, record = await self._node.mesh.resolve(request.name)
        return pb.LookupRouteResponse(
            destination=route.destination, hops=route.hops, identity_sha256=fingerprint(record.identity_key),
            expires_at_ms=route.expires_at_ms,
        )  # fmt: skip

    async def ListRoutes(  # noqa: N802
        self, request: routes_pb2.ListRoutesRequest, context: Context
    ) -> routes_pb2.ListRoutesResponse:
        """See the proto."""
        del request, context
        return routes_of(self._node.mesh)

    async def RegisterResource(  # noqa: N802
        self, request: pb.RegisterResourceRequest, context: Context
    ) -> pb.RegisterResourceResponse:
        """See the proto."""
        del context
        form = CsvFormat(request.format.encoding or "utf-8", request.format.delimiter or ",")
        row = await self._node.resources.register(request.name, Path(request.path), form, list(request.keys))
        return pb.RegisterResourceResponse(resource=_resource(row))

    async def ListResources(  # noqa: N802
        self, request: pb.ListResourcesRequest, context: Context
    ) -> pb.ListResourcesResponse:
        """See the proto."""
        del request, context
        return pb.ListResourcesResponse(
            resources=[_resource(row) for row in await self._node.resources.every()]
        )

    async def GetResource(self, request: pb.GetResourceRequest, context: Context) -> pb.GetResourceResponse:  # noqa: N802
        """See the proto."""
        del context
        return pb.GetResourceResponse(resource=_resource(await self._node.resources.find(request.id)))

    async def RunJob(self, request: pb.RunJobRequest, context: Context) -> pb.RunJobResponse:  # noqa: N802
        """See the proto."""
        del context
        self._node.mesh.draining.check()
        return pb.RunJobResponse(job_id=await self._node.jobs.run(request.flow_toml))

    async def DecideJob(self, request: pb.DecideJobRequest, context: Context) -> pb.DecideJobResponse:  # noqa: N802
        """See the proto."""
        del context
        row = await self._node.jobs.find(request.job_id)
        self._node.jobs.decide(row.job_id, request.comment, approve=request.approve)
        await self._node.jobs.settled(row.job_id, RECORD_S)
        return pb.DecideJobResponse()

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:  # noqa: N802
        """See the proto."""
        del request, context
        return pb.ListJobsResponse(jobs=[self._job(row) for row in await self._node.jobs.every()])

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:  # noqa: N802
        """See the proto."""
        del context
        row = await self._node.jobs.find(request.job_id)
        view = self._job(row)
        view.party_states.update(await self._node.jobs.parties(row.job_id))
        return pb.GetJobResponse(job=view)

    async def WatchJob(  # noqa: N802
        self, request: pb.WatchJobRequest, context: Context
    ) -> AsyncIterator[pb.WatchJobResponse]:
        """See the proto."""
        del context
        row = await self._node.jobs.find(request.job_id)
        async for now in self._node.jobs.watch(row.job_id):
            yield pb.WatchJobResponse(job=self._job(now))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:  # noqa: N802
        """See the proto."""
        del context
        row = await self._node.jobs.find(request.job_id)
        self._node.jobs.cancel(row.job_id, request.comment)
        await self._node.jobs.settled(row.job_id, RECORD_S)
        return pb.CancelJobResponse()

    async def GetBundle(self, request: pb.GetBundleRequest, context: Context) -> pb.GetBundleResponse:  # noqa: N802
        """See the proto."""
        del context
        bundle = await self._node.jobs.bundle(request.job_id)
        return pb.GetBundleResponse(
            bundle=bundle, top_identity_key=self._node.mesh.standing.membership.top_identity_key
        )

    async def SendFile(  # noqa: N802
        self, request: pb.SendFileRequest, context: Context
    ) -> AsyncIterator[pb.SendFileResponse]:
        """See the proto."""
        del context
        node, path = ids.node_id(request.node_id), Path(request.path)
        transfer = self._node.transfers.send(node, request.topic, path, request.transfer_id)
        async with aclosing(transfer):
            async for now in transfer:
                yield pb.SendFileResponse(
                    sent_bytes=now.moved_bytes, total_bytes=now.total_bytes, done=now.done, sha256=now.sha256,
                    resumes=now.resumes, resent_bytes=now.resent_bytes, seconds=now.seconds,
                    transfer_id=now.transfer_id,
                )  # fmt: skip

    async def ReceiveFile(  # noqa: N802
        self, request: pb.ReceiveFileRequest, context: Context
    ) -> AsyncIterator[pb.ReceiveFileResponse]:
        """See the proto."""
        del context
        limit = request.timeout_s or None
        yield pb.ReceiveFileResponse()
        transfer = self._node.transfers.receive(request.topic, Path(request.out), limit, request.receive_id)
        async with aclosing(transfer):
            async for now in transfer:
                yield pb.ReceiveFileResponse(
                    received_bytes=now.moved_bytes, total_bytes=now.total_bytes, sender=now.peer, done=now.done,
                    sha256=now.sha256, resumes=now.resumes, resent_bytes=now.resent_bytes, seconds=now.seconds,
                    transfer_id=now.transfer_id,
                )  # fmt: skip

    async def ListTransfers(  # noqa: N802
        self, request: pb.ListTransfersRequest, context: Context
    ) -> pb.ListTransfersResponse:
        """See the proto."""
        del request, context
        return pb.ListTransfersResponse(
            transfers=[_transfer(row) for row in await self._node.transfers.every()]
        )

    async def CancelTransfer(  # noqa: N802
        self, request: pb.CancelTransferRequest, context: Context
    ) -> pb.CancelTransferResponse:
        """See the proto."""
        del context
        await self._node.transfers.cancel(request.transfer_id)
        return pb.CancelTransferResponse()

    async def ListMailboxes(  # noqa: N802
        self, request: mailbox_service_pb2.ListMailboxesRequest, context: Context
    ) -> mailbox_service_pb2.ListMailboxesResponse:
        """See the proto."""
        del request, context
        return mailboxes_to_pb(await self._node.mesh.mailbox.boxes())

    async def GetSnapshot(  # noqa: N802
        self, request: snapshot_pb2.GetSnapshotRequest, context: Context
    ) -> snapshot_pb2.GetSnapshotResponse:
        """See the proto."""
        del request, context
        return await snapshot_of(self._node)

    async def Drain(  # noqa: N802
        self, request: drain_pb2.DrainRequest, context: Context
    ) -> AsyncIterator[drain_pb2.DrainResponse]:
        """See the proto."""
        del context
        async for now in self._node.mesh.draining.drain(request.timeout_s):
            yield drain_pb2.DrainResponse(**dataclasses.asdict(now))

    async def Undrain(  # noqa: N802
        self, request: drain_pb2.UndrainRequest, context: Context
    ) -> drain_pb2.UndrainResponse:
        """See the proto."""
        del request, context
        await self._node.mesh.draining.undrain()
        return drain_pb2.UndrainResponse()

    def _job(self, row: JobRow) -> pb.JobView:
        flow = flows.flow_from_json(row.flow)
        failure = row.failure
        return pb.JobView(
            job_id=row.job_id, state=row.state, party_state=row.party_state, flow=flow.name,
            coordinator=row.coordinator, parties=flow.parties, recipients=flow.tasks[0].receivers,
            algorithm=row.algorithm, suite=row.suite, created_at_ms=row.created_at_ms, ended_at_ms=row.ended_at_ms,
            failure=failure_pb2.Failure(**failure) if failure else None,
            facts={name: fact for name, fact in row.facts.items() if name not in _SECRET_FACTS},
            hops=row.hops, progress=self._node.jobs.progress(row), flow_sha256=row.flow_sha256.hex(),
            flow_json=row.flow.decode(), learns=_learns(flow),
        )  # fmt: skip


def _learns(flow: flows.FlowSpec) -> list[pb.Learning]:
    """Who learns what, and the limits: the algorithm's own statement."""
    task = flow.tasks[0]
    spec = algorithm(flows.algorithm_id(task))
    said = [(party, spec.leakage[role]) for party, role in flows.roles(task).items()]
    said += [("", text) for text in (spec.security_model.text, *spec.limits)]
    return [pb.Learning(party=party, en=text[0], zh=text[1]) for party, text in said]


def _transfer(row: OutRow | InRow) -> pb.FileTransfer:
    if isinstance(row, OutRow):
        direction, peer, path, stored = "out", row.peer, row.path, row.acknowledged
    else:
        direction, peer, path, stored = "in", row.sender, row.out, row.stored
    return pb.FileTransfer(
        transfer_id=row.transfer_id, direction=direction, peer=peer, topic=row.topic, path=path, state=row.state,
        total_bytes=row.size_bytes, stored_bytes=stored, resumes=row.resumes, resent_bytes=row.resent_bytes,
        sha256=row.sha256, failure=failure_pb2.Failure(**row.failure) if row.failure else None,
        created_at_ms=row.created_at_ms, ended_at_ms=row.ended_at_ms,
    )  # fmt: skip


def _resource(row: ResourceRow) -> pb.Resource:
    return pb.Resource(
        id=row.id, path=row.path, format=pb.CsvFormat(encoding=row.encoding, delimiter=row.delimiter),
        columns=row.columns, keys=row.keys, rows=row.rows, bytes=row.size_bytes, sha256=row.sha256,
        registered_at_ms=row.registered_at_ms, distinct_keys=row.distinct_keys, duplicate_rows=row.duplicate_rows,
        empty_rows=row.empty_rows,
    )  # fmt: skip
