"""What a node is doing at this moment, as its owner may see it: names, sizes and counts, never data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tdn_interop._pb.tdn.app.v1 import snapshot_pb2 as pb
from tdn_interop.app.store.transfers import InRow, OutRow
from tdn_interop.transport import records_wire
from tdn_interop.transport.channel import Channel
from tdn_interop.transport.trust import now_ms
from tdn_interop.transport.tunnel import Passage

if TYPE_CHECKING:
    from tdn_interop.app.mesh import Mesh
    from tdn_interop.app.node import Node


async def snapshot_of(node: Node) -> pb.GetSnapshotResponse:
    """Everything at one moment."""
    mesh = node.mesh
    return pb.GetSnapshotResponse(
        node_id=mesh.me, role=records_wire.ROLES[mesh.config.role], at_ms=now_ms(),
        uptime_s=time.monotonic() - node.started, draining=mesh.draining.on,
        certificate_expires_at_ms=mesh.standing.expires_at_ms, links=_links(mesh),
        tunnels=[_tunnel(one) for one in list(mesh.tunnels.passing.values())],
        sessions=[_session(channel) for channel in sorted(mesh.channels.sessions, key=lambda c: c.peer)],
        transfers=await _transfers(node), jobs=await _jobs(node), mailboxes=await _mailboxes(mesh),
        refusals=[pb.RefusalCount(reason=name, count=count) for name, count in mesh.refused_lately()],
    )  # fmt: skip


def _links(mesh: Mesh) -> list[pb.LinkView]:
    up = [
        pb.LinkView(neighbour=node, direction="up", linked=link.is_linked, since_at_ms=link.since_ms)
        for node, link in sorted(mesh.adjacency.links.items())
    ]
    return up + [
        pb.LinkView(neighbour=node, direction="down", linked=True, since_at_ms=since_ms)
        for node, since_ms in sorted(mesh.tunnels.attached_since.items())
    ]


def _tunnel(one: Passage) -> pb.TunnelView:
    opening = one.opening
    return pb.TunnelView(
        id=opening.tunnel_id.hex(), source=opening.source, destination=opening.destination,
        forward_bytes=one.counter.forward, backward_bytes=one.counter.backward, started_at_ms=one.started_at_ms,
    )  # fmt: skip


def _session(channel: Channel) -> pb.SessionView:
    topics = channel.session.topics
    return pb.SessionView(
        peer=channel.peer, state=channel.session.state.name.lower(), topics=topics.count,
        queued_bytes=topics.kept_bytes, credit_bytes=topics.least_credit,
    )  # fmt: skip


async def _mailboxes(mesh: Mesh) -> list[pb.MailboxView]:
    boxes = await mesh.mailbox.box.boxes() if mesh.mailbox.box else []
    return [
        pb.MailboxView(
            recipient=box.recipient, letters=box.letters, bytes=box.size_bytes, oldest_at_ms=box.oldest_at_ms
        )
        for box in boxes
    ]  # fmt: skip


async def _jobs(node: Node) -> list[pb.JobLine]:
    return [
        pb.JobLine(
            job_id=row.job_id, coordinator=row.coordinator, state=row.state, party_state=row.party_state,
            progress=node.jobs.progress(row),
        )
        for row in await node.jobs.every()
        if not row.ended_at_ms
    ]  # fmt: skip


async def _transfers(node: Node) -> list[pb.TransferView]:
    return [_transfer(row) for row in await node.transfers.every() if not row.ended_at_ms]


def _transfer(row: OutRow | InRow) -> pb.TransferView:
    direction, peer, moved = (
        ("out", row.peer, row.acknowledged) if isinstance(row, OutRow) else ("in", row.sender, row.stored)
    )
    return pb.TransferView(
        id=row.transfer_id, direction=direction, peer=peer, topic=row.topic, state=row.state.lower(),
        moved_bytes=moved, total_bytes=row.size_bytes,
    )  # fmt: skip
