"""Composition root: configuration in, a running node, a clean stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator

import grpc.aio
import structlog
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tdn_interop import config as configuration
from tdn_interop._pb.tdn.app.v1 import (
    backup_service_pb2_grpc,
    control_service_pb2,
    control_service_pb2_grpc,
    registry_service_pb2_grpc,
    trust_service_pb2_grpc,
)
from tdn_interop.app.backup.backup_service import BackupServicer
from tdn_interop.app.backup.continuity import Continuity, prove_restored
from tdn_interop.app.control.control_service import ControlServicer
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.files.transfer import Transfers
from tdn_interop.app.files.transfer_wire import CONTENT, TOPIC
from tdn_interop.app.jobs.jobs import Jobs
from tdn_interop.app.jobs.party import PartyState
from tdn_interop.app.members import setup
from tdn_interop.app.members.registry_service import RegistryServicer
from tdn_interop.app.members.standing import Standing
from tdn_interop.app.members.trust_service import TrustServicer
from tdn_interop.app.memory import keep_buffers
from tdn_interop.app.mesh import Mesh
from tdn_interop.app.node_lock import locked
from tdn_interop.app.resources import Resources
from tdn_interop.app.store.engine import Store
from tdn_interop.app.telemetry import Metrics, context
from tdn_interop.config import NodeConfig
from tdn_interop.transport.interceptors import ServerCalls, standard_layers

_log = structlog.get_logger("tdn.node")
STOP_S = 0.3


class Node:
    """One running node."""

    def __init__(
        self, config: NodeConfig, mesh: Mesh, jobs: Jobs, resources: Resources, transfers: Transfers
    ) -> None:
        self.config = config
        self.mesh = mesh
        self.jobs = jobs
        self.resources = resources
        self.transfers = transfers
        self.started = time.monotonic()
        self.drained = asyncio.Event()
        self.continuity = Continuity(mesh.anchoring)
        mesh.draining.jobs, mesh.draining.stop = self._computing, self.drained.set

    async def _computing(self) -> int:
        """Jobs with a part of this node that runs."""
        return sum(row.party_state == PartyState.RUNNING.name for row in await self.jobs.every())


@contextlib.asynccontextmanager
async def running(config: NodeConfig) -> AsyncIterator[Node]:
    """A node that serves within the block.

    Errors: CONFIG_INVALID, NOT_ENROLLED, STORE_UNAVAILABLE, EVIDENCE_BROKEN; nothing is left behind.
    """
    metrics = Metrics()
    with locked(config), metrics.served(config.metrics), context(node=config.id):
        setup.finish_enrolment(config.dir)
        if config.role == "top":
            setup.renew_top(config)
        standing = Standing.load(config)
        store = Store.open(config.database_url)
        try:
            log = await EvidenceLog.open(store, standing.key)
            await prove_restored(config, standing, log)
            mesh = Mesh(config, standing, store, log, metrics)
            resources = Resources(config.id, store, log)
            jobs = Jobs(mesh, store, log, resources, metrics)
            transfers = Transfers(mesh.me, mesh.channels, store, mesh.refused, mesh.is_node)
            mesh.listeners.append(transfers.on_session)
            mesh.cutting.listeners += [jobs.refused, transfers.refused]
            mesh.served |= {TOPIC: transfers.admits, CONTENT: transfers.admits}
            node = Node(config, mesh, jobs, resources, transfers)
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(mesh.close)
                await jobs.recall()
                await mesh.start()
                stack.push_async_callback(jobs.close)
                await jobs.start()
                stack.push_async_callback(transfers.close)
                await transfers.start()
                await mesh.post.start()
                mesh.mailbox.start()
                control = await _control(node, metrics, store)
                stack.push_async_callback(control.stop, STOP_S)
                stack.callback(transfers.leave)
                if mesh.link:
                    mesh.spawn(node.continuity.run(mesh.link))
                yield node
        finally:
            store.close()
            configuration.remove_runtime_dir(config.dir)


async def run_node(config: NodeConfig) -> None:
    """Run until SIGTERM or SIGINT. Errors: those of `running`, and EVIDENCE_BROKEN when this is an old or a second copy."""
    keep_buffers()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(config) as node:
        _log.info("running", node=config.id, role=config.role, listen=config.listen or "")
        ends = [asyncio.create_task(event.wait()) for event in (stop, node.drained, node.continuity.broken)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        if node.continuity.error:
            raise node.continuity.error
    _log.info("stopped", node=config.id)


async def _control(node: Node, metrics: Metrics, store: Store) -> grpc.aio.Server:
    """The owner's socket: control, health, reflection, channelz."""
    target = configuration.control_socket(node.config)
    layers = standard_layers(metrics.rpc_server, lambda _peer: "owner", node.mesh.refused)
    server = grpc.aio.server(interceptors=[ServerCalls(*layers)])
    control_service_pb2_grpc.add_NodeControlServiceServicer_to_server(ControlServicer(node), server)
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryServicer(node.mesh), server)
    trust_service_pb2_grpc.add_TrustServiceServicer_to_server(TrustServicer(node.mesh), server)
    backups = BackupServicer(node.config, store)
    backup_service_pb2_grpc.add_BackupServiceServicer_to_server(backups, server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    channelz.add_channelz_servicer(server)
    name = control_service_pb2.DESCRIPTOR.services_by_name["NodeControlService"].full_name
    reflection.enable_server_reflection((name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    path = configuration.runtime_dir(node.config.dir) / "control.sock"
    path.unlink(missing_ok=True)
    server.add_insecure_port(target)
    await server.start()
    path.chmod(0o600)
    return server
