"""The evidence log of one node: signed events as the leaves of an RFC 9162 tree, in the node's own database.

A leaf, the tree that it makes and the signed head of that tree are committed in one transaction, if wanted
together with the change that the event is about; when the call returns they are on the disk. The tree in
memory only follows the database: a transaction that was undone leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sqlalchemy as sa

from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.merkle import Tree, leaf_hash
from tdn_interop.app.evidence.statements import ANCHOR_KIND, AnchorOffer, Event, Inclusion, TreeHead
from tdn_interop.app.store import log as rows
from tdn_interop.app.store import members
from tdn_interop.app.store.engine import Store
from tdn_interop.errors import LocalProtocolError, Reason, guard
from tdn_interop.identity import EVENT, TREE_HEAD, Identity, Signed, verify
from tdn_interop.transport.records_wire import decode_signed, encode_signed
from tdn_interop.transport.trust import now_ms


class EvidenceLog:
    """Appends, heads and proofs. Methods `…_in` work inside a transaction of the caller, on the store's thread."""

    def __init__(self, store: Store, signer: Identity, clock_ms: Callable[[], int] = now_ms) -> None:
        self.store = store
        self._signer = signer
        self._clock_ms = clock_ms
        self._tree = Tree()

    @classmethod
    async def open(cls, store: Store, signer: Identity, clock_ms: Callable[[], int] = now_ms) -> EvidenceLog:
        """Read the hashes of the log and compare them with its last head; `audit` reads the contents, too.

        Errors: EVIDENCE_BROKEN (the database was changed; metadata `index` when one record is to blame),
        SIGNATURE_INVALID (the last head was made with another identity key).
        """
        log = cls(store, signer, clock_ms)
        await store.run(log._begin)
        return log

    async def append(
        self, kind: str, subject: str, facts: Mapping[str, str] | None = None, statement_sha256: bytes = b""
    ) -> int:
        """Append an event; its index. Errors: INVALID_REQUEST (not a fit event)."""
        return await self.store.run(lambda c: self.append_in(c, kind, subject, facts, statement_sha256))

    def append_in(
        self,
        connection: sa.Connection,
        kind: str,
        subject: str,
        facts: Mapping[str, str] | None = None,
        statement_sha256: bytes = b"",
    ) -> int:
        """`append` as a part of the caller's transaction."""
        index, at_ms = self._next(connection)
        event = Event(self._signer.node, kind, subject, at_ms, facts or {}, statement_sha256)
        signed = self._signer.sign(EVENT, wire.encode_event(event))
        return self._add(connection, index, at_ms, (kind, subject), signed)

    def anchor_in(self, connection: sa.Connection, child: str, head: Signed) -> int:
        """Append the head of a child's log as it is; its index. The caller has checked it."""
        return self._add(connection, *self._next(connection), (ANCHOR_KIND, child), head)

    async def head(self) -> Signed:
        """The TreeHead of the whole log. A size has one head: asking twice gives the same bytes."""
        return await self.store.run(self._head)

    async def event(self, index: int) -> Signed:
        """The statement at `index`."""
        return await self.store.run(lambda c: decode_signed(self._leaf(c, index).leaf))

    async def about(self, subject: str) -> list[tuple[int, Event]]:
        """The events about a subject, with their indices."""
        found = await self.store.run(lambda c: rows.about(c, subject))
        return [
            (row.idx, wire.decode_event(decode_signed(row.leaf).statement))
            for row in found
            if row.kind != ANCHOR_KIND
        ]

    async def inclusion(self, index: int) -> Inclusion:
        """Proof that leaf `index` is in the log as its head stands now."""
        return await self.store.run(lambda c: self.inclusion_in(c, index))

    def inclusion_in(self, connection: sa.Connection, index: int) -> Inclusion:
        """`inclusion` as a part of the caller's transaction."""
        self._leaf(connection, index)
        size, _ = self._follow(connection)
        return Inclusion(index, self._tree.inclusion(index, size), self._head(connection))

    async def offer(self, head: Signed, since: int = 0) -> AnchorOffer:
        """`head`, one of this log, with the proof that it continues the log of size `since`.

        Errors: EVIDENCE_BROKEN when `since` is larger: whoever anchored it has seen more of this log than we have.
        """
        size = wire.decode_tree_head(head.statement).size
        guard("TDN-F-EVD-02").check(
            since <= size, Reason.EVIDENCE_BROKEN, f"{since} leaves are anchored, {size} are here", LocalProtocolError
        )  # fmt: skip
        return await self.store.run(lambda c: AnchorOffer(head, since, self._consistency(c, since, size)))

    async def audit(self) -> int:
        """Check every record and the head; the number of records.

        Errors: EVIDENCE_BROKEN or SIGNATURE_INVALID with the `index` of the first record that is wrong.
        """
        return await self.store.run(self._audit)

    def _consistency(self, connection: sa.Connection, first: int, second: int) -> tuple[bytes, ...]:
        self._follow(connection)
        return self._tree.consistency(first, second)

    def _add(
        self, connection: sa.Connection, index: int, at_ms: int, about: tuple[str, str], signed: Signed
    ) -> int:
        leaf = encode_signed(signed)
        self._tree.append(leaf_hash(leaf))
        root = self._tree.root(index + 1)
        rows.add_leaf(connection, rows.LeafRow(index, leaf, leaf_hash(leaf), root, *about, at_ms))
        self._put_head(connection, TreeHead(self._signer.node, index + 1, root, at_ms))
        return index

    def _leaf(self, connection: sa.Connection, index: int) -> rows.LeafRow:
        found = rows.leaf(connection, index)
        if found is None:
            guard("TDN-F-EVD-01").refuse(
                Reason.INVALID_REQUEST, f"the log has no leaf {index}", LocalProtocolError
            )
        return found

    def _next(self, connection: sa.Connection) -> tuple[int, int]:
        """Index and time of the next leaf; a clock that is set back does not disorder the log."""
        size, last_ms = self._follow(connection)
        return size, max(self._clock_ms(), last_ms)

    def _follow(self, connection: sa.Connection) -> tuple[int, int]:
        """Bring the tree to the state of the database; its size and the time of its last leaf."""
        size, last_ms = rows.last(connection)
        self._tree.truncate(size)
        if self._tree.size < size:
            for value in rows.hashes(connection, self._tree.size):
                self._tree.append(value)
        return size, last_ms

    def _head(self, connection: sa.Connection) -> Signed:
        found = rows.head(connection, self._signer.node)
        if found is None:
            guard("TDN-F-EVD-01").refuse(Reason.EVIDENCE_BROKEN, "the log has no head", LocalProtocolError)
        return decode_signed(found.head)

    def _put_head(self, connection: sa.Connection, head: TreeHead) -> None:
        signed = self._signer.sign(TREE_HEAD, wire.encode_tree_head(head))
        rows.put_head(connection, rows.HeadRow(head.node, head.size, encode_signed(signed)))

    def _begin(self, connection: sa.Connection) -> None:
        size, _ = self._follow(connection)
        if size == 0 and rows.head(connection, self._signer.node) is None:
            self._put_head(connection, TreeHead(self._signer.node, 0, self._tree.root(0), self._clock_ms()))
        if self._tree.size != size or not self._is_whole(connection, self._tree):
            self._audit(connection)

    def _is_whole(self, connection: sa.Connection, tree: Tree) -> bool:
        """True when `tree` is what the last head says. Errors: SIGNATURE_INVALID."""
        signed = self._head(connection)
        guard("TDN-F-EVD-01").check(
            verify(TREE_HEAD, signed, self._signer.public_key), Reason.SIGNATURE_INVALID,
            "the head of the log is signed with another key", LocalProtocolError,
        )  # fmt: skip
        head = wire.decode_tree_head(signed.statement)
        return (head.size, head.root) == (tree.size, tree.root(tree.size))

    def _audit(self, connection: sa.Connection) -> int:
        tree, last_ms = Tree(), 0
        for index, row in enumerate(rows.leaves(connection)):
            self._check_row(connection, tree, index, row)
            _whole(row.at_ms >= last_ms, index, "is older than the one before it", "TDN-F-EVD-05")
            last_ms = row.at_ms
        guard("TDN-F-EVD-02").check(
            self._is_whole(connection, tree), Reason.EVIDENCE_BROKEN,
            f"the log ends after {tree.size} records, its last head says otherwise", LocalProtocolError,
            index=tree.size,
        )  # fmt: skip
        return tree.size

    def _check_row(self, connection: sa.Connection, tree: Tree, index: int, row: rows.LeafRow) -> None:
        _whole(row.idx == index, index, "is missing")
        _whole(leaf_hash(row.leaf) == row.leaf_hash, index, "was edited")
        tree.append(row.leaf_hash)
        _whole(tree.root(index + 1) == row.root, index, "is not the one that was appended here")
        signed = decode_signed(row.leaf)
        if row.kind == ANCHOR_KIND:
            context, key = TREE_HEAD, self._child_key(connection, row.subject)
        else:
            context, key = EVENT, self._signer.public_key
            event = wire.decode_event(signed.statement)
            same = (event.kind, event.subject, event.at_ms) == (row.kind, row.subject, row.at_ms)
            _whole(same, index, "is filed under something else")
        guard("TDN-F-EVD-01").check(
            verify(context, signed, key), Reason.SIGNATURE_INVALID,
            f"record {index} is not signed by {signed.signer}", LocalProtocolError, index=index,
        )  # fmt: skip

    def _child_key(self, connection: sa.Connection, node: str) -> bytes:
        member = members.get(connection, node)
        return member.identity_key if member else b""


def _whole(ok: object, index: int, what: str, requirement: str = "TDN-F-EVD-01") -> None:
    guard(requirement).check(
        ok, Reason.EVIDENCE_BROKEN, f"record {index} {what}", LocalProtocolError, index=index
    )
