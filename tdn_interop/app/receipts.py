"""Receipts for tunnels: what this node signed as a relay, and what its neighbours signed for it, kept as evidence.

Implements `relay.Ledger`. A tunnel has one receipt of a relay: what is written first stays.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.evidence.statements import digest
from tdn_interop.app.store import receipts
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.receipts import ReceiptRow
from tdn_interop.errors import PeerProtocolError, Reason, TdnError, guard
from tdn_interop.identity import RECEIPT, Signed, verify
from tdn_interop.transport import records_wire
from tdn_interop.transport.link import Carried
from tdn_interop.transport.records_wire import Receipt


class Receipts:
    """The receipts of one node. `key_of` gives the identity key of a neighbour; `on_refusal` hears of false ones."""

    def __init__(
        self, store: Store, log: EvidenceLog, key_of: Callable[[str], bytes],
        on_refusal: Callable[[TdnError], None],
    ) -> None:  # fmt: skip
        self._store = store
        self._log = log
        self._key_of = key_of
        self._on_refusal = on_refusal

    async def knows(self, tunnel_id: bytes) -> bool:
        """See `relay.Ledger`."""
        return bool(await self._store.run(lambda c: receipts.of_tunnel(c, tunnel_id)))

    async def gave(self, receipt: Signed) -> None:
        """See `relay.Ledger`."""
        await self._keep(receipt, "relay.receipt.given")

    async def got(self, receipt: Signed, carried: Carried) -> None:
        """Keep a receipt of a neighbour, unless it is not what we have seen of the tunnel: that is a refusal."""
        try:
            check(receipt, self._key_of(carried.relay), carried)
        except TdnError as error:
            self._on_refusal(error)
            return
        await self._keep(receipt, "relay.receipt.got")

    async def _keep(self, signed: Signed, kind: str) -> None:
        receipt = records_wire.decode_receipt(signed.statement)
        row = ReceiptRow(receipt.tunnel_id, receipt.relay, records_wire.encode_signed(signed))
        facts = {"relay": receipt.relay, "bytes": str(receipt.forward_bytes + receipt.backward_bytes)}

        def write(connection: sa.Connection) -> None:
            if receipts.add(connection, row):
                self._log.append_in(connection, kind, receipt.tunnel_id.hex(), facts, digest(signed))

        await self._store.run(write)


def check(signed: Signed, key: bytes, carried: Carried) -> None:
    """Refuse a receipt that the relay with this identity key cannot have given for what we carried. Pure.

    The rule gives no false alarm: a relay never forwards more than we handed to it, and when we have read a tunnel
    to its orderly end, it has not handed more to us than we read. What it counts below that may be lost on the way.

    Errors: SIGNATURE_INVALID, IDENTITY_MISMATCH (another relay, tunnel or neighbour), COUNT_MISMATCH.
    """
    gate = guard("TDN-T-RTE-08")
    gate.check(
        verify(RECEIPT, signed, key), Reason.SIGNATURE_INVALID, f"a receipt is not signed by {carried.relay}",
        PeerProtocolError,
    )  # fmt: skip
    receipt: Receipt = records_wire.decode_receipt(signed.statement)
    neighbour = receipt.previous if carried.opened else receipt.next
    gate.check(
        (receipt.relay, receipt.tunnel_id, neighbour) == (carried.relay, carried.tunnel_id, carried.me),
        Reason.IDENTITY_MISMATCH, f"{carried.relay} gives a receipt of {receipt.relay} for another tunnel", PeerProtocolError,
    )  # fmt: skip
    sent, received = receipt.forward_bytes, receipt.backward_bytes
    if not carried.opened:
        sent, received = received, sent
    fits = sent <= carried.sent and (carried.received is None or received <= carried.received)
    gate.check(
        fits, Reason.COUNT_MISMATCH,
        f"{carried.relay} claims {sent} bytes from us and {received} to us, we counted {carried.sent} and {carried.received}",
        PeerProtocolError,
    )  # fmt: skip
