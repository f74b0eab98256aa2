"""Adverts: what a node leads to, as a path whose every hop is signed (a path vector). Pure.

The origin signs to whom it tells its own id; each relay on the way signs to whom it hands the advert on,
over the digest of the hop before. So nobody can claim a path that does not exist, leave out a relay, or
speak for a node that is not its own. RFC 8205 (BGPsec) protects paths of the Internet in the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from tdn_interop import identity, ids
from tdn_interop.errors import PeerProtocolError, Reason, TdnError, guard
from tdn_interop.identity import Identity, Signed
from tdn_interop.transport import route_wire
from tdn_interop.transport.records_wire import NodeRecord
from tdn_interop.transport.route_wire import MAX_PATH, Hop, Origin, SignedPath

LIFE_MS = 60_000
REFRESH_MS = 20_000
MAX_LIFE_MS = 120_000
# How far the clock of an origin may be ahead of ours.
SKEW_MS = 30_000

RecordOf = Callable[[Signed], NodeRecord]


@dataclass(frozen=True, slots=True)
class Advert:
    """A checked advert. `path` leads from the node that told it to its origin, both included.

    `exact`: the origin is a child and stands for itself alone; otherwise for everything below it, too.
    """

    prefix: str
    exact: bool
    backup: bool
    sequence: int
    issued_at_ms: int
    expires_at_ms: int
    path: tuple[str, ...]
    signed: SignedPath

    @property
    def rank(self) -> int:
        """Higher is better, the same at every node for one destination, so that paths do not run in circles.

        The longer name counts; the backup of a child comes after its parent and before whatever is above that.
        """
        labels = 1 + self.prefix.count(".")
        return 2 * labels - 3 * self.backup

    @property
    def preference(self) -> tuple[int, int, tuple[str, ...]]:
        """Of several adverts for one destination the one with the smallest is taken."""
        return -self.rank, len(self.path), self.path

    def covers(self, node: str) -> bool:
        """True when this path leads to `node`."""
        return node == self.prefix or (not self.exact and ids.is_below(node, self.prefix))


def originate(key: Identity, record: Signed, to: str, origin: Origin) -> SignedPath:
    """The advert of this node for itself, for one neighbour."""
    hop = key.sign(identity.ADVERT, route_wire.encode_hop(Hop(to, b"", origin)))
    return SignedPath((hop,), (record,))


def extend(key: Identity, record: Signed, to: str, heard: SignedPath) -> SignedPath:
    """What this node tells `to` of an advert that it has heard."""
    hop = key.sign(identity.ADVERT, route_wire.encode_hop(Hop(to, _digest(heard.hops[-1]), None)))
    return SignedPath((*heard.hops, hop), (*heard.records, record))


def check(told: SignedPath, teller: str, me: str, now_ms: int, record_of: RecordOf) -> Advert:
    """Decide whether an advert that `teller` told us holds. `record_of` verifies a record or raises.

    Errors: ROUTE_INVALID.
    """
    hops = [route_wire.decode_hop(signed.statement) for signed in told.hops]
    path = tuple(signed.signer for signed in reversed(told.hops))
    _check(len(path) <= MAX_PATH and len(set(path)) == len(path), f"{teller} tells a path in a circle")
    _check(me not in path, f"{teller} tells {me} a path through {me}")
    _check(path[0] == teller, f"{teller} tells an advert of {path[0]}")
    _check_chain(told, hops, me)
    roles = _signed_by(told, record_of)
    _check(all(role != "child" for role in roles[1:]), "a child is no relay on the way to others")
    origin = hops[0].origin
    assert origin is not None  # noqa: S101  _check_chain has seen it
    _check(origin.prefix == path[-1], f"{path[-1]} tells where {origin.prefix} is")
    _check_time(origin, now_ms)
    return Advert(
        origin.prefix,
        roles[0] == "child",
        origin.backup,
        origin.sequence,
        origin.issued_at_ms,
        origin.expires_at_ms,
        path,
        told,
    )


def _check_chain(told: SignedPath, hops: list[Hop], me: str) -> None:
    """Each hop is told to the signer of the next one, and the last one to us."""
    receivers = [*(signed.signer for signed in told.hops[1:]), me]
    _check([hop.to for hop in hops] == receivers, "a hop of an advert was told to another node")
    before = [b"", *(_digest(signed) for signed in told.hops[:-1])]
    chained = [hop.previous_sha256 for hop in hops] == before
    origins = [hop.origin is not None for hop in hops]
    _check(
        chained and origins == [True] + [False] * (len(hops) - 1), "the hops of an advert are not one chain"
    )


def _signed_by(told: SignedPath, record_of: RecordOf) -> list[str]:
    """The roles of the signers, from the origin on."""
    roles = []
    for hop, signed in zip(told.hops, told.records, strict=True):
        try:
            record = record_of(signed)
        except TdnError as error:
            words = f"the record of {hop.signer} in an advert does not hold: {error.message}"
            guard("TDN-T-RTE-09").refuse(Reason.ROUTE_INVALID, words, PeerProtocolError)
        ok = record.node_id == hop.signer and identity.verify(identity.ADVERT, hop, record.identity_key)
        _check(ok, f"{hop.signer} did not sign its hop of an advert")
        roles.append(record.role)
    return roles


def _check_time(origin: Origin, now_ms: int) -> None:
    life = origin.expires_at_ms - origin.issued_at_ms
    _check(0 < life <= MAX_LIFE_MS, f"an advert of {origin.prefix} lives too long")
    _check(origin.expires_at_ms > now_ms, f"an advert of {origin.prefix} has expired; compare the clocks")
    ahead = origin.issued_at_ms - now_ms
    _check(ahead <= SKEW_MS, f"an advert of {origin.prefix} comes from the future; compare the clocks")


def _digest(signed: Signed) -> bytes:
    return hashlib.sha256(signed.statement + signed.signature).digest()


def _check(ok: bool, words: str) -> None:
    guard("TDN-T-RTE-09").check(ok, Reason.ROUTE_INVALID, words, PeerProtocolError)
