"""The communication side of a node, assembled: front, link, tunnels, channels, services of its role."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from tdn_interop import config as configuration
from tdn_interop._pb.tdn.app.v1 import evidence_pb2_grpc, mailbox_service_pb2_grpc
from tdn_interop._pb.tdn.transport.v1 import (
    enrolment_service_pb2_grpc,
    notice_service_pb2_grpc,
    renewal_service_pb2_grpc,
    routing_service_pb2_grpc,
    status_service_pb2_grpc,
)
from tdn_interop.app.adjacency import Adjacency
from tdn_interop.app.anchoring import Anchoring, EvidenceServicer
from tdn_interop.app.draining import Draining
from tdn_interop.app.evidence import wire as evidence_wire
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.members.admission import Admission
from tdn_interop.app.members.cutting import Cutting
from tdn_interop.app.members.federation import Federation
from tdn_interop.app.members.register import Register
from tdn_interop.app.members.renewal import Renewal, issuer
from tdn_interop.app.members.revocation import Revoking
from tdn_interop.app.members.rollover import Rollover
from tdn_interop.app.members.standing import Standing
from tdn_interop.app.pings import PING, PONG, Pings
from tdn_interop.app.post.mailbox import Mailbox
from tdn_interop.app.post.mailbox_service import MailboxServicer
from tdn_interop.app.post.post import TOPIC as POST
from tdn_interop.app.post.post import Post
from tdn_interop.app.receipts import Receipts
from tdn_interop.app.store import members
from tdn_interop.app.store.engine import Store
from tdn_interop.app.telemetry import Metrics
from tdn_interop.config import NodeConfig
from tdn_interop.errors import Reason, Refused, TdnError, guard
from tdn_interop.identity import Credentials, Signed
from tdn_interop.transport import tls
from tdn_interop.transport.channel import ChannelEvent, FrameStream
from tdn_interop.transport.channel_service import ChannelServicer, ClientFrames, Peers, ServerFrames
from tdn_interop.transport.channels import Channels
from tdn_interop.transport.dial import Dialler
from tdn_interop.transport.enrolment_service import EndorsementServicer, Endorser
from tdn_interop.transport.frame import Limits
from tdn_interop.transport.interceptors import ServerCalls, for_peers, rated, standard_layers
from tdn_interop.transport.notice_service import NoticeServicer, Sharing
from tdn_interop.transport.notices import Notices
from tdn_interop.transport.rates import Rate, Rates
from tdn_interop.transport.records_wire import NodeRecord, Route
from tdn_interop.transport.relay import Tunnels
from tdn_interop.transport.relay_service import RelayServicer
from tdn_interop.transport.renewal_service import RenewalServicer
from tdn_interop.transport.rotation import Rotation
from tdn_interop.transport.routing_service import RoutingServicer
from tdn_interop.transport.rpc_metrics import client_interceptors
from tdn_interop.transport.server import Server
from tdn_interop.transport.status_list import StatusLists
from tdn_interop.transport.status_service import StatusServicer
from tdn_interop.transport.trust import Trust, now_ms

_log = structlog.get_logger("tdn.mesh")
# Longest time for goodbyes when the node stops: peers that stop at the same moment do not answer.
FAREWELL_S = 1.0
# What may come at once of the calls that a node may make: as many as in this time.
BURST_S = 10
# How often certificates of living connections are looked at.
SWEEP_S = 10.0
# When connections end because a root is gone: a moment later, so that the neighbours hear of it first.
ANEW_S = 0.5


class Mesh:
    """Everything of a node that other nodes meet.

    `listeners` hear of sessions that open and end. `served` holds, by the first part of a topic's name, who says
    whether a message (peer, topic) is served; `admits` says so for every other topic.
    """

    def __init__(
        self, config: NodeConfig, standing: Standing, store: Store, log: EvidenceLog, metrics: Metrics
    ) -> None:
        self.config, self.me, self.standing = config, config.id, standing
        self.register = Register(store, log)
        self.served: dict[str, Callable[[str, str], bool]] = {}
        self.admits: Callable[[str, str], bool] = lambda _peer, _topic: False
        self._store, self._evidence, self._metrics = store, log, metrics
        self._pins: dict[str, bytes] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._folder = configuration.runtime_dir(config.dir)
        self._rates = Rates({kind: Rate(per_s, BURST_S * per_s) for kind, per_s in config.rates})
        place = standing.membership
        self.trust = Trust(place.top, place.top_identity_key, self._pin)
        self.lists = StatusLists(self.trust.signed_by_top, config.status_max_age_s)
        dialler = Dialler(
            lambda: tls.client_context(standing.files), self._folder, client_interceptors(metrics.rpc_client),
            self._refusal,
        )  # fmt: skip
        self.adjacency = Adjacency(config, standing, self.register, dialler, self._relay, self.refused)
        self.link = self.adjacency.parent
        self.server = Server(
            lambda: tls.server_context(standing.files), self._folder, "peers", self.refused, [self._calls("peers")]
        )  # fmt: skip
        self.receipts = Receipts(store, log, self.adjacency.key_of, self.refused)
        self.tunnels = Tunnels(
            standing.key, self.adjacency.table, self.adjacency.links, self.server.front, self.receipts
        )
        self.adjacency.serve(self.tunnels, self.receipts.got)
        self.server.front.refusal, self.tunnels.admit = self._refusal, self.lists.admit
        self.peers = Peers(self.tunnels, config.direct, dialler, config.timeouts.dial_s)
        self.channels = Channels(
            self.me, self._credentials, self._verify, self.peers.connect,
            _limits(config), inbox_bytes=1 << 30,
            admits=self._serves, on_event=self._noted,
        )  # fmt: skip
        self.post = Post(self.channels, store, self.spawn, self.refused)
        self.listeners = [self.post.on_channel]
        self.mailbox = Mailbox(self, store, log)
        self.draining = Draining(self.me, self.tunnels)
        self.tunnels.takes = self.channels.takes = self.draining.check
        self.draining.on_change = self.adjacency.neighbours.withhold
        self.notices = Notices(config.file("notices"), place.top, self.trust.knows)
        links = list(self.adjacency.links.values())
        self.rotation = Rotation(links, self.peers, self.channels)
        self.renewal = Renewal(config, standing, self.link, self.rotation.own)
        self.federation = Federation(config, standing, self.trust, self.notices, log)
        self.revoking = Revoking(standing.key, self.register, store, self.notices, self.lists, self.link)
        self.cutting = Cutting(self.me, self._refusal, self.channels, self.server.front, links)
        self.anchoring = Anchoring(log, place.record, self.link)
        endorse = self.link.endorse if self.link else Endorser(standing.key, self.register).endorse
        self._issuer = issuer(config, log)
        self.rollover = Rollover(config, self.renewal, self.federation, self.register, log)
        self.admission = Admission(
            config, standing, self.register, endorse, self._issuer, lambda: self.federation.signed
        )
        self.pings = Pings(
            self.channels, lambda node: self.peers.paths.get(node, ()), self.key_of, self._dropped,
            config.timeouts.dial_s,
        )  # fmt: skip

    async def start(self) -> None:
        """Serve and link. Errors: CONFIG_INVALID when an address cannot be bound."""
        await self.register.load()
        self.federation.on_roots = self._roots_changed
        self.federation.start()
        await self.revoking.start()
        self.revoking.on_list = self._listed
        self.spawn(self.revoking.run())
        self._pins = await self._store.run(members.pins)
        self._add_services()
        await self.server.start(self.config.listen)
        await self.admission.start(self._folder, self._calls("enrol"), self.refused)
        await self.adjacency.start(self.spawn)
        for link in self.adjacency.links.values():
            sharing = Sharing(link, self.notices, self.refused)
            self.spawn(sharing.watch())
            self.spawn(sharing.tell())
        self.spawn(self.pings.answer(self.spawn))
        self.spawn(self._sweep())
        self.spawn(self.renewal.run())
        self.spawn(self.rotation.run())
        self.spawn(self.rollover.run())

    async def close(self) -> None:
        """Say goodbye to everybody and stop."""
        await self.post.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.draining.close()
        await self.channels.close(FAREWELL_S)
        await self.tunnels.close()
        await self.anchoring.close()
        await self.adjacency.close()
        await self.admission.close()
        await self.server.close()

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Run in the background until the node closes; what it raises is a defect and is logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def refused(self, error: TdnError) -> None:
        """Count and log a refusal: the victim's record of what was tried."""
        self._metrics.refused(error)
        _log.warning(
            "refused", reason=error.reason.name, requirement=error.requirement, message=error.message,
            metadata=error.metadata,
        )  # fmt: skip

    def refused_lately(self) -> list[tuple[str, int]]:
        """(reason, times) of the last minute, most often first."""
        return self._metrics.recent.counts()

    def _dropped(self, error: TdnError) -> None:
        """Count a refusal of which there may be many."""
        self._metrics.refused(error)

    def record(self, signed: Signed) -> NodeRecord:
        """A record that the top signed, with the key that is pinned if we have met the node. Errors: IDENTITY_MISMATCH."""
        record = self.trust.record(signed)
        known = self.key_of(record.node_id) or record.identity_key
        guard("TDN-T-IDN-06").check(
            known == record.identity_key,
            Reason.IDENTITY_MISMATCH,
            f"{record.node_id} has another identity key",
            Refused,
        )
        return record

    def _relay(self, signed: Signed) -> NodeRecord:
        """The record of a node on a way: nobody is led over one that is refused. Errors: REVOKED, those of `record`."""
        record = self.record(signed)
        self.lists.admit(record.node_id)
        return record

    def key_of(self, node: str) -> bytes:
        """The pinned identity key of a node; empty when we have never met it."""
        return self.standing.key.public_key if node == self.me else self._pins.get(node, b"")

    async def note(
        self, kind: str, subject: str, facts: dict[str, str], statement_sha256: bytes = b""
    ) -> int:
        """Append an event to the evidence log; its index."""
        return await self._evidence.append(kind, subject, facts, statement_sha256)

    async def log_size(self) -> int:
        """Number of leaves in the evidence log."""
        return evidence_wire.decode_tree_head((await self._evidence.head()).statement).size

    async def resolve(self, name: str) -> tuple[Route, NodeRecord]:
        """Route and record of a node. Errors: NO_ROUTE and why no neighbour can be asked."""
        return await self.adjacency.resolve(name)

    async def is_node(self, name: str) -> bool:
        """False when we have never met such a node and everybody who could know says that there is none."""
        if self.key_of(name):
            return True
        try:
            await self.resolve(name)
        except TdnError as error:
            return error.reason is not Reason.NO_ROUTE
        return True

    # -- assembling ----------------------------------------------------------------------------

    def _credentials(self, stream: FrameStream) -> Credentials:
        """For the certificate that this very connection began with: ours may have been renewed meanwhile."""
        assert isinstance(stream, ServerFrames | ClientFrames)  # noqa: S101  this node has no other streams
        return self.standing.credentials(stream.certificate.ours)

    def _calls(self, which: str) -> ServerCalls:
        def node_of(peer: str) -> str:
            return self.server.node_of(peer) if which == "peers" else "not enrolled yet"

        def source_of(peer: str) -> str:
            return self.server.front.source(peer) if which == "peers" else self.admission.source(peer)

        layers = standard_layers(self._metrics.rpc_server, node_of, self.refused, for_peers)
        only_new = () if which == "peers" else (self.draining.layer,)
        return ServerCalls(*layers, rated(self._rates, source_of), *only_new)

    def _add_services(self) -> None:
        grpc, front, node_of = self.server.grpc, self.server.front, self.server.node_of
        grpc.add_generic_rpc_handlers((ChannelServicer(self.channels, front).handler(),))
        if self.mailbox.box is None:
            return
        mailbox_service_pb2_grpc.add_MailboxServiceServicer_to_server(
            MailboxServicer(self.mailbox.box, node_of), grpc
        )
        neighbour, record = self.adjacency.is_neighbour, self.standing.membership.record
        grpc.add_generic_rpc_handlers((RelayServicer(self.tunnels, front, neighbour, record).handler(),))
        renewal_service_pb2_grpc.add_RenewalServiceServicer_to_server(
            RenewalServicer(self._issuer, self.register, node_of), grpc
        )
        notice_service_pb2_grpc.add_NoticeServiceServicer_to_server(
            NoticeServicer(self.notices, neighbour, node_of), grpc
        )
        routing_service_pb2_grpc.add_RoutingServiceServicer_to_server(
            RoutingServicer(self.adjacency.routing, self.adjacency.neighbours, neighbour, node_of), grpc
        )
        evidence_pb2_grpc.add_EvidenceServiceServicer_to_server(
            EvidenceServicer(self.anchoring, self.register, node_of), grpc
        )
        if self.config.role == "top":
            status_service_pb2_grpc.add_StatusServiceServicer_to_server(
                StatusServicer(self.revoking.ordered, node_of), grpc
            )
            endorser = Endorser(self.standing.key, self.register)
            enrolment_service_pb2_grpc.add_EndorsementServiceServicer_to_server(
                EndorsementServicer(endorser, self.register.known, node_of), grpc
            )

    # -- what happens --------------------------------------------------------------------------

    def _verify(self, stream: FrameStream, credentials: Credentials) -> None:
        """Who a hello comes from: the certificate of its very connection, and the identity key behind it."""
        assert isinstance(stream, ServerFrames | ClientFrames)  # noqa: S101  this node has no other streams
        try:
            self.trust.verify(stream.certificate, credentials)
            node = stream.certificate.node
            (self.lists.admit if node in self.channels.peers() else self.lists.admit_new)(node)
        except TdnError as error:
            if isinstance(stream, ClientFrames):  # on the other side the interceptor records it
                self.refused(error)
            raise

    def _listed(self) -> None:
        """Somebody may be refused from now on."""
        self.spawn(self.revoking.apply())
        self.cutting.soon()

    def _refusal(self, node: str) -> Refused | None:
        return self.trust.refusal(node) or self.lists.refusal(node)

    def _roots_changed(self, gone: bool) -> None:
        """What hangs on a root that is gone may have connections: all of them begin anew, which costs a moment."""
        self.renewal.soon()
        if gone:
            self.cutting.soon()
            asyncio.get_running_loop().call_later(ANEW_S, self._begin_anew)

    def _begin_anew(self) -> None:
        self.peers.begin_anew()
        self.server.front.begin_anew()
        for link in self.adjacency.links.values():
            link.begin_anew()

    def _pin(self, node: str, key: bytes) -> bytes:
        """Trust on first proof: the first key that the top vouched for stays."""
        if node not in self._pins:
            self._pins[node] = key
            self.spawn(self._store.run(lambda c: members.pin(c, node, key, now_ms())))
        return self._pins[node]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.drop_expired(now_ms())
            self.cutting.sweep()

    def drop_expired(self, at_ms: int) -> None:
        """End the link and connections whose certificate has expired; sessions come back with fresh ones."""
        self.peers.drop_expired(at_ms)
        self.adjacency.drop_expired(at_ms)
        self.server.front.drop_expired(at_ms)

    def _noted(self, event: ChannelEvent) -> None:
        metrics = self._metrics
        match event.kind:
            case "sent" | "received":
                metrics.frame_bytes.labels(event.kind).inc(event.size_bytes)
                return
            case "opened":
                metrics.session_open.inc()
            case "resumed":
                metrics.session_resumed.inc()
            case "closed" | "failed":
                metrics.session_open.dec()
                metrics.session_ended.labels(event.reason or "GOODBYE").inc()
        _log.info("session", event_kind=event.kind, peer=event.peer, reason=event.reason)
        for listener in self.listeners:
            listener(event)

    def _serves(self, peer: str, topic: str) -> bool:
        admits = self.served.get(topic.partition("/")[0], self.admits)
        return topic in {PING, PONG, POST} or admits(peer, topic)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            _log.error("background work failed", exc_info=task.exception())


def _limits(config: NodeConfig) -> Limits:
    """Credit for what is on its way over three relays; the inbox bounds what one peer can fill, to 512 MiB."""
    return Limits(
        message_bytes=2 << 20, topic_credit_bytes=16 << 20, topics=128, idle_ms=int(config.timeouts.idle_s * 1000)
    )  # fmt: skip
