"""Letters: how the post reaches a node that is offline, by the mailbox at the hub above it.

A message of the post for a peer that cannot be reached is sealed to the peer's key, signed and left at the peer's
hub; the peer fetches it when it is back, also when its sender is gone by then. The post decides what is new: a letter
is one more way for the same message, and may come twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc.aio
import structlog

from tdn_interop import ids
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.post import mailbox_wire as wire
from tdn_interop.app.post import post_wire, sealing
from tdn_interop.app.post.letterbox import Letterbox, check_validity
from tdn_interop.app.post.mailbox_service import MailboxClient
from tdn_interop.app.post.mailbox_wire import Letter, SealingKey, SignedLetter
from tdn_interop.app.post.post_wire import WireParcel
from tdn_interop.app.post.sealing import SealingKeys
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.mailbox import BoxRow
from tdn_interop.errors import PeerProtocolError, Reason, Refused, TdnError, guard
from tdn_interop.identity import LETTER, SEALING_KEY, Signed, verify
from tdn_interop.reasons import Retry
from tdn_interop.transport import status
from tdn_interop.transport.trust import now_ms

if TYPE_CHECKING:
    from tdn_interop.app.mesh import Mesh

_log = structlog.get_logger("tdn.mailbox")
POLL_S = 60.0
"""A letter can come while the link stands: its sender may have no way to us."""
RECEIPT_LIFE_MS = 7 * 86_400_000
# Reasons for which a letter stays at the hub: it can be taken later.
_LATER = frozenset({Reason.SEQ_GAP, Reason.RESOURCE_EXHAUSTED, Reason.STORE_UNAVAILABLE})


class Mailbox:
    """The letters of one node, out and in; `box` is the letterbox that it keeps for others, None at a child."""

    def __init__(self, mesh: Mesh, store: Store, log: EvidenceLog, clock: Callable[[], int] = now_ms) -> None:
        self._mesh = mesh
        self._clock = clock
        self._look = asyncio.Event()
        self._keys = SealingKeys(mesh.config.file("sealing.key"), clock)
        relays = mesh.config.role != "child"
        self.box = Letterbox(store, log, mesh.register, mesh.record, clock) if relays else None

    def start(self) -> None:
        """Take what the post cannot send; fetch what is there, now and after each time the link comes back."""
        self._mesh.post.away = self.send
        if self._mesh.link:
            self._mesh.adjacency.on_parent = self._look.set
            self._mesh.spawn(self._visit())

    async def boxes(self) -> list[BoxRow]:
        """What this hub or top keeps, by recipient. Errors: UNSUPPORTED at a child."""
        if self.box is None:
            words = f"{self._mesh.me} keeps no letters; hubs and tops do"
            guard("TDN-T-MBX-01").refuse(Reason.UNSUPPORTED, words, Refused)
        return await self.box.boxes()

    # -- out -----------------------------------------------------------------------------------

    async def send(self, peer: str, messages: Sequence[bytes]) -> bool:
        """Leave serialized messages of the post for `peer`; True when its hub has them all."""
        hub = ids.parent(peer)
        if not hub:
            return False  # above a top there is nobody
        try:
            async with self._at(hub) as box:
                key = self._key(peer, *await box.key_of(peer))
                await box.deposit([self._letter(peer, key, message) for message in messages])
        except TdnError as error:
            self._failed("letters not left", hub, error)
            return False
        _log.info("letters left", peer=peer, hub=hub, letters=len(messages))
        return True

    def _key(self, peer: str, signed: Signed, record: Signed) -> SealingKey:
        """The sealing key of `peer`. Errors: IDENTITY_MISMATCH unless its identity key has signed it, LETTER_EXPIRED."""
        key, known = wire.decode_key(signed.statement), self._mesh.record(record)
        own = key.node_id == signed.signer == known.node_id == peer
        guard("TDN-T-MBX-02").check(
            own and verify(SEALING_KEY, signed, known.identity_key), Reason.IDENTITY_MISMATCH,
            f"the sealing key is not that of {peer}", Refused,
        )  # fmt: skip
        guard("TDN-T-MBX-04").check(
            key.not_after_ms > self._clock(),
            Reason.LETTER_EXPIRED,
            f"the sealing key of {peer} is too old",
            Refused,
        )
        return key

    def _letter(self, peer: str, key: SealingKey, message: bytes) -> SignedLetter:
        letter_id, expires_at_ms = self._label(post_wire.decode(message))
        digest = hashlib.sha256(key.public_key).digest()
        bare = Letter(self._mesh.me, peer, letter_id, expires_at_ms, digest)
        sealed = sealing.seal(message, key.public_key, bare.info)
        whole = Letter(self._mesh.me, peer, letter_id, expires_at_ms, digest, sealed)
        standing = self._mesh.standing
        return SignedLetter(standing.key.sign(LETTER, wire.encode_letter(whole)), standing.membership.record)

    def _label(self, message: post_wire.WireParcel | post_wire.WireReceipt) -> tuple[bytes, int]:
        """(letter id, end of validity): the same parcel has the same id, and a stream has one letter with a receipt."""
        longest = self._clock() + sealing.LONGEST_LETTER_MS
        if isinstance(message, WireParcel):
            name = message.stream_id + message.number.to_bytes(8, "big")
            return hashlib.sha256(name).digest()[:16], min(message.expires_at_ms, longest)
        return hashlib.sha256(message.stream_id).digest()[:16], self._clock() + RECEIPT_LIFE_MS

    # -- in ------------------------------------------------------------------------------------

    async def _visit(self) -> None:
        link = self._mesh.link
        assert link is not None  # noqa: S101  checked by the caller
        while True:
            await link.linked.wait()
            self._look.clear()
            try:
                box = MailboxClient(link.channel, link.ask)
                await box.publish(self._published())
                await self._fetch(box)
            except TdnError as error:
                self._failed("letters not fetched", link.node, error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._look.wait()

    def _published(self) -> Signed:
        key = self._mesh.standing.key
        return key.sign(SEALING_KEY, wire.encode_key(SealingKey(key.node, *self._keys.current())))

    async def _fetch(self, box: MailboxClient) -> None:
        """Take every letter; the hub forgets those that are stored here and those that never can be."""
        done: list[bytes] = []
        async for signed in box.letters():
            try:
                await self._take(signed)
            except TdnError as error:
                self._mesh.refused(error)
                if error.reason in _LATER:
                    continue
            done.append(signed.sha256)
            if len(done) == wire.MAX_BATCH:
                await box.acknowledge(done)
                done = []
        if done:
            await box.acknowledge(done)

    async def _take(self, signed: SignedLetter) -> None:
        """Verify, open, hand to the post.

        Errors: IDENTITY_MISMATCH, SIGNATURE_INVALID, LETTER_EXPIRED, SEAL_BROKEN, REVOKED, those of `Post.arrived`.
        """
        letter, record = wire.decode_letter(signed.letter.statement), self._mesh.record(signed.record)
        ours = letter.recipient == self._mesh.me
        guard("TDN-T-MBX-03").check(
            ours and letter.sender == signed.letter.signer == record.node_id, Reason.IDENTITY_MISMATCH,
            f"a letter of {letter.sender} to {letter.recipient}, signed by {signed.letter.signer}", Refused,
        )  # fmt: skip
        guard("TDN-T-MBX-03").check(
            verify(LETTER, signed.letter, record.identity_key), Reason.SIGNATURE_INVALID,
            f"the letter is not as {letter.sender} signed it", PeerProtocolError,
        )  # fmt: skip
        if refusal := self._mesh.lists.refusal(letter.sender):
            raise refusal
        check_validity(letter, self._clock())
        message = self._keys.open(letter.key_sha256, letter.sealed, letter.info)
        await self._mesh.post.arrived(letter.sender, message)

    def _failed(self, event: str, hub: str, error: TdnError) -> None:
        """A hub that is away is nothing to worry about."""
        _log.info(event, hub=hub, reason=error.reason.name)
        if error.reason.value.retry is not Retry.LATER:
            self._mesh.refused(error)

    # -- hubs ----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _at(self, hub: str) -> AsyncIterator[MailboxClient | _Own]:
        """The mailbox at `hub`: our own, our parent's over the link, any other over a connection of its own."""
        link = self._mesh.link
        if hub == self._mesh.me and self.box:
            yield _Own(self._mesh.me, self.box)
        elif link and hub == self._mesh.standing.membership.parent:
            yield MailboxClient(link.channel, link.ask)
        else:
            dialled = await self._mesh.peers.dial(hub)

            async def ask(call: Awaitable[Any]) -> Any:
                try:
                    return await call
                except grpc.aio.AioRpcError as error:
                    raise dialled.reason(error) or status.from_rpc_error(error) from error

            try:
                yield MailboxClient(dialled.channel, ask)
            finally:
                await dialled.close()


class _Own:
    """The letterbox of this node, for letters to nodes below it."""

    def __init__(self, me: str, box: Letterbox) -> None:
        self._me = me
        self._box = box
        self.key_of = box.key_of

    async def deposit(self, letters: Sequence[SignedLetter]) -> None:
        """Leave letters of ours."""
        await self._box.deposit(self._me, letters)
