"""The links of a node and where they lead, as its owner sees them."""

from __future__ import annotations

from tdn_interop._pb.tdn.app.v1 import routes_pb2 as pb
from tdn_interop.app.mesh import Mesh
from tdn_interop.transport.adverts import Advert
from tdn_interop.transport.trust import now_ms


def routes_of(mesh: Mesh) -> pb.ListRoutesResponse:
    """As they are now."""
    ours = [
        pb.NeighbourLink(node=node, kept_by="ours", linked=link.is_linked)
        for node, link in sorted(mesh.adjacency.links.items())
    ]
    theirs = [pb.NeighbourLink(node=node, kept_by="theirs", linked=True) for node in mesh.tunnels.attached]
    table, at_ms = mesh.adjacency.table, now_ms()
    best = table.best()
    return pb.ListRoutesResponse(
        links=[*ours, *theirs],
        routes=[_entry(advert, best[advert.prefix], at_ms) for advert in table.every()],
    )


def _entry(advert: Advert, best: Advert, at_ms: int) -> pb.RouteEntry:
    state = "backup" if advert.backup else "used" if advert.path == best.path else "spare"
    return pb.RouteEntry(
        prefix=advert.prefix, next=advert.path[0], path=advert.path, state=state,
        age_ms=max(0, at_ms - advert.issued_at_ms), expires_at_ms=advert.expires_at_ms,
    )  # fmt: skip
