"""From a party's event to the head of the top's log: each link is a leaf in the log of the node above."""

from __future__ import annotations

from collections.abc import Sequence

from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.merkle import leaf_hash, verify_inclusion
from tdn_interop.app.evidence.statements import Attestation, Event, TreeHead
from tdn_interop.errors import Reason, guard
from tdn_interop.identity import EVENT, NODE_RECORD, TREE_HEAD, Signed, verify
from tdn_interop.ids import is_below, parent
from tdn_interop.transport.records_wire import decode_record, encode_signed


class Keys:
    """Identity keys as the tops have signed them. The tops' own keys come from outside and need no record."""

    def __init__(self, records: Sequence[Signed], *top_keys: bytes) -> None:
        """`top_keys` are those of the tops that are trusted; each vouches for its own tree.

        Errors: SIGNATURE_INVALID, EVIDENCE_BROKEN (no record, two keys of one top, not sorted, one node twice).
        """
        self.tops: dict[str, bytes] = {}
        for signed in records:
            key = next((key for key in top_keys if verify(NODE_RECORD, signed, key)), b"")
            check_signature(NODE_RECORD, signed, key, "a node record")
            _check(self.tops.setdefault(signed.signer, key) == key, f"{signed.signer} has two keys")
        tops, keys = len(self.tops), len(set(self.tops.values()))
        _check(0 < tops == keys, f"the records name {tops} tops with {keys} keys")
        found = [decode_record(signed.statement) for signed in records]
        names = [record.node_id for record in found]
        _check(names == sorted(set(names)), "the records are not sorted or one stands twice")
        # The name of the signer is not under its signature; that of each node below it is.
        for signed, name in zip(records, names, strict=True):
            below = is_below(name, signed.signer) and not parent(signed.signer)
            _check(below, f"a record is of a node that is not below {signed.signer}")
        self._records = {record.node_id: record for record in found}
        self._used: set[str] = set()

    def of(self, node: str) -> bytes:
        """The identity key of `node`. Errors: EVIDENCE_BROKEN when there is no record of it."""
        if node in self.tops:
            return self.tops[node]
        _check(node in self._records, f"there is no record of {node}")
        self._used.add(node)
        return self._records[node].identity_key

    def parent(self, node: str) -> str:
        """The node above, by the record; empty above a top."""
        return "" if node in self.tops else self._records[node].parent

    def unused(self) -> list[str]:
        """Nodes whose key nobody has asked for."""
        return sorted(self._records.keys() - self._used)


def check_signature(context: str, signed: Signed, key: bytes, what: str) -> None:
    """Errors: SIGNATURE_INVALID."""
    guard("TDN-F-EVD-01").check(
        verify(context, signed, key), Reason.SIGNATURE_INVALID, f"{what} is not signed by {signed.signer}"
    )


def check_event(attestation: Attestation, keys: Keys) -> Event:
    """The event of an attestation, signed by its node. Errors: EVIDENCE_BROKEN, SIGNATURE_INVALID."""
    event = wire.decode_event(attestation.event.statement)
    _check(event.node == attestation.event.signer, f"an event of {event.node} is signed by another node")
    check_signature(EVENT, attestation.event, keys.of(event.node), "an event")
    return event


def check_chain(attestation: Attestation, event: Event, keys: Keys) -> tuple[TreeHead, ...]:
    """The heads of the logs from the event's own to the top's.

    Errors: EVIDENCE_BROKEN (a leaf is not in its log, a log is not that of the node above, the chain ends
    before the top or goes on after it, the event is younger than the head over it), SIGNATURE_INVALID.
    """
    leaf, node, heads = attestation.event, event.node, []
    for link in attestation.chain:
        head = wire.decode_tree_head(link.head.statement)
        _check(
            head.node == link.head.signer == node,
            f"the log of {node or 'nobody'} is expected, that of {head.node} comes",
        )
        check_signature(TREE_HEAD, link.head, keys.of(node), "a head")
        _check(
            verify_inclusion(leaf_hash(encode_signed(leaf)), link.index, head.size, link.path, head.root),
            f"leaf {link.index} is not in the log of {node}",
        )
        heads.append(head)
        leaf, node = link.head, keys.parent(node)
    _check(node == "", f"the chain of {event.node} ends before the log of {node}")
    # Both times are of one clock; clocks of different nodes are not compared.
    guard("TDN-F-EVD-05").check(
        event.at_ms <= heads[0].at_ms,
        Reason.EVIDENCE_BROKEN,
        f"the event of {event.node} is younger than its log",
    )
    return tuple(heads)


def check_attestation(attestation: Attestation, *top_keys: bytes) -> None:
    """An attestation with its own records, as it comes from a party. Errors: EVIDENCE_BROKEN, SIGNATURE_INVALID."""
    found = {decode_record(signed.statement): signed for signed in attestation.records}
    below = sorted((record for record in found if record.parent), key=lambda record: record.node_id)
    keys = Keys([found[record] for record in below], *top_keys)
    check_chain(attestation, check_event(attestation, keys), keys)


def check_one_history(heads: Sequence[TreeHead]) -> None:
    """Two heads of one log with one size have one root. Errors: EQUIVOCATION."""
    roots: dict[tuple[str, int], bytes] = {}
    for head in heads:
        guard("TDN-F-EVD-02").check(
            roots.setdefault((head.node, head.size), head.root) == head.root, Reason.EQUIVOCATION,
            f"{head.node} shows two logs of {head.size} leaves",
        )  # fmt: skip


def _check(ok: object, message: str) -> None:
    guard("TDN-F-EVD-04").check(ok, Reason.EVIDENCE_BROKEN, message)
