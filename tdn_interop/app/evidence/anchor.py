"""Anchoring: a hub or top takes the heads of its children's logs into its own log.

What a child has once shown above can then neither be taken back nor be shown differently to others.
"""

from __future__ import annotations

import sqlalchemy as sa

from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.evidence.merkle import EMPTY_ROOT, verify_consistency
from tdn_interop.app.evidence.statements import AnchorOffer, Inclusion, TreeHead
from tdn_interop.app.store import log as rows
from tdn_interop.app.store import members
from tdn_interop.errors import Reason, Refused, guard
from tdn_interop.identity import TREE_HEAD, verify
from tdn_interop.transport.records_wire import encode_signed


def check_offer(offer: AnchorOffer, caller: str, key: bytes, last: rows.AnchorRow | None) -> TreeHead:
    """The head that `caller` (its node id from the link) may anchor after `last`. Pure.

    Errors: IDENTITY_MISMATCH (somebody else's head), SIGNATURE_INVALID, EVIDENCE_BROKEN (the log has become
    shorter), STATE_CONFLICT (the proof does not start at the size anchored last, which is in metadata
    `lastSize`), EQUIVOCATION (the log was another one before).
    """
    gate = guard("TDN-F-EVD-02")
    head = wire.decode_tree_head(offer.head.statement)
    gate.check(
        head.node == offer.head.signer == caller, Reason.IDENTITY_MISMATCH,
        f"{caller} offers a head of {head.node} signed by {offer.head.signer}", Refused,
    )  # fmt: skip
    gate.check(
        verify(TREE_HEAD, offer.head, key), Reason.SIGNATURE_INVALID, f"the head is not signed by {caller}"
    )
    size, root = (last.size, last.root) if last else (0, EMPTY_ROOT)
    gate.check(
        head.size >= size, Reason.EVIDENCE_BROKEN,
        f"the log of {caller} had {size} leaves and now has {head.size}",
    )  # fmt: skip
    if head.size == size:
        gate.check(head.root == root, Reason.EQUIVOCATION, f"{caller} shows two logs of {size} leaves")
        return head
    gate.check(
        offer.consistency_from == size, Reason.STATE_CONFLICT,
        f"the proof starts at {offer.consistency_from}, the last head of {caller} here has {size} leaves",
        lastSize=size,
    )  # fmt: skip
    gate.check(
        verify_consistency(size, head.size, root, head.root, offer.consistency), Reason.EQUIVOCATION,
        f"the log of {caller} with {head.size} leaves does not continue the one with {size}",
    )  # fmt: skip
    return head


async def take_head(log: EvidenceLog, caller: str, offer: AnchorOffer) -> Inclusion:
    """Take the head of a member into our log; its place there. The same head again gets the same place.

    Errors: those of `check_offer`; ALREADY_EXISTS for another head of a size, which would only make the log
    longer; UNAUTHENTICATED when `caller` is not a member.
    """
    return await log.store.run(lambda connection: _take(log, connection, caller, offer))


def _take(log: EvidenceLog, connection: sa.Connection, caller: str, offer: AnchorOffer) -> Inclusion:
    member = members.get(connection, caller)
    if member is None:
        guard("TDN-F-EVD-02").refuse(Reason.UNAUTHENTICATED, f"{caller} is not a member here", Refused)
    last = rows.last_anchor(connection, caller)
    head = check_offer(offer, caller, member.identity_key, last)
    if last and head.size == last.size:
        guard("TDN-F-EVD-02").check(
            _is_leaf(connection, last.leaf_index, offer), Reason.ALREADY_EXISTS,
            f"{caller} has anchored its log of {head.size} leaves with another head", Refused,
        )  # fmt: skip
        return log.inclusion_in(connection, last.leaf_index)
    index = log.anchor_in(connection, caller, offer.head)
    rows.put_anchor(connection, rows.AnchorRow(caller, head.size, head.root, index))
    return log.inclusion_in(connection, index)


def _is_leaf(connection: sa.Connection, index: int, offer: AnchorOffer) -> bool:
    leaf = rows.leaf(connection, index)
    return leaf is not None and leaf.leaf == encode_signed(offer.head)
