"""The mailbox at a hub or top: letters for the nodes directly below, until they are acknowledged or expire.

The hub reads who, to whom, when and how large. Whether a letter is what its sender signed is checked here, so
that nobody fills a mailbox in the name of another; what it says only the recipient can read.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import sqlalchemy as sa

from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.members.register import Register
from tdn_interop.app.post import mailbox_wire as wire
from tdn_interop.app.post import sealing
from tdn_interop.app.post.mailbox_wire import Letter, SignedLetter
from tdn_interop.app.store import mailbox as table
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.mailbox import BoxRow, KeyRow, LetterRow
from tdn_interop.errors import PeerProtocolError, Reason, Refused, Unavailable, guard
from tdn_interop.identity import LETTER, SEALING_KEY, Signed, verify
from tdn_interop.transport import route
from tdn_interop.transport.records_wire import NodeRecord, decode_signed, encode_signed
from tdn_interop.transport.trust import SKEW_MS

PER_RECIPIENT, PER_RECIPIENT_BYTES = 1024, 64 << 20
PER_SENDER, PER_SENDER_BYTES = 256, 16 << 20
"""Letters of one sender, for all recipients here."""


class Letterbox:
    """`record` verifies a NodeRecord; callers are nodes of verified certificates."""

    def __init__(
        self, store: Store, log: EvidenceLog, register: Register, record: Callable[[Signed], NodeRecord],
        clock: Callable[[], int],
    ) -> None:  # fmt: skip
        self._store = store
        self._log = log
        self._register = register
        self._record = record
        self._clock = clock

    async def publish(self, caller: str, signed: Signed) -> None:
        """Keep the sealing key of a member. Errors: POLICY_DENIED, IDENTITY_MISMATCH, INVALID_REQUEST."""
        self._check_member(caller)
        key = wire.decode_key(signed.statement)
        record = await self._register.record(caller)
        good = record and verify(SEALING_KEY, signed, self._record(record).identity_key)
        guard("TDN-T-MBX-02").check(
            good and key.node_id == signed.signer == caller, Reason.IDENTITY_MISMATCH,
            f"{caller} publishes a sealing key that is not its own", Refused,
        )  # fmt: skip
        left_ms = key.not_after_ms - self._clock()
        guard("TDN-T-MBX-02").check(
            0 < left_ms <= sealing.VALID_MS + SKEW_MS,
            Reason.INVALID_REQUEST,
            "a sealing key is good for 60 days",
        )
        digest = hashlib.sha256(key.public_key).digest()
        row = KeyRow(caller, encode_signed(signed), digest, key.not_after_ms)

        def keep(connection: sa.Connection) -> None:
            if table.key(connection, caller) != row:  # most calls say what is known
                table.put_key(connection, row)

        await self._store.run(keep)

    async def key_of(self, node: str) -> tuple[Signed, Signed]:
        """The sealing key of a member and its record. Errors: NO_ROUTE, the same for every cause."""
        found = await self._store.run(lambda c: table.key(c, node))
        record = await self._register.record(node) if self._register.known(node) else None
        if found is None or record is None or found.not_after_ms <= self._clock():
            route.no_route(node)
        return decode_signed(found.signed), record

    async def deposit(self, caller: str, letters: Sequence[SignedLetter]) -> None:
        """Keep letters of `caller`, all or none. Errors: those of `_checked`, MAILBOX_FULL."""
        rows = [(self._checked(caller, letter), letter) for letter in letters]
        await self._store.run(partial(self._keep, caller, rows))

    async def letters(self, caller: str) -> AsyncIterator[SignedLetter]:
        """The letters for `caller`, oldest first. Errors: POLICY_DENIED."""
        self._check_member(caller)
        await self._store.run(self._sweep)
        number = -1
        while row := await self._store.run(partial(_after, caller, number)):
            number = row.number
            yield wire.decode_signed(row.letter)

    async def acknowledge(self, caller: str, digests: Sequence[bytes]) -> None:
        """Forget letters for `caller`; a digest that is not here changes nothing. Errors: POLICY_DENIED."""
        self._check_member(caller)

        def forget(connection: sa.Connection) -> None:
            for digest in digests:
                if row := table.by_digest(connection, caller, digest):
                    self._end(connection, "mailbox.fetched", row)

        await self._store.run(forget)

    async def boxes(self) -> list[BoxRow]:
        """What is kept, by recipient."""
        await self._store.run(self._sweep)
        return await self._store.run(table.boxes)

    # -- checks --------------------------------------------------------------------------------

    def _check_member(self, caller: str) -> None:
        guard("TDN-T-MBX-01").check(
            self._register.known(caller), Reason.POLICY_DENIED, f"{caller} has no mailbox here", Refused
        )

    def _checked(self, caller: str, signed: SignedLetter) -> Letter:
        """The letter, if it is what `caller` signed and for a member.

        Errors: IDENTITY_MISMATCH, SIGNATURE_INVALID, NO_ROUTE, LETTER_EXPIRED.
        """
        letter, record = wire.decode_letter(signed.letter.statement), self._record(signed.record)
        own = letter.sender == signed.letter.signer == record.node_id == caller
        guard("TDN-T-MBX-03").check(
            own, Reason.IDENTITY_MISMATCH, f"{caller} brings a letter of somebody else", Refused
        )
        guard("TDN-T-MBX-03").check(
            verify(LETTER, signed.letter, record.identity_key), Reason.SIGNATURE_INVALID,
            f"the letter is not as {caller} signed it", PeerProtocolError,
        )  # fmt: skip
        if not self._register.known(letter.recipient):
            route.no_route(letter.recipient)
        check_validity(letter, self._clock())
        return letter

    # -- transactions --------------------------------------------------------------------------

    def _keep(
        self, sender: str, letters: list[tuple[Letter, SignedLetter]], connection: sa.Connection
    ) -> None:
        self._sweep(connection)
        for letter, signed in letters:
            table.drop_same(connection, sender, letter.letter_id)
            row = self._row(table.next_number(connection), letter, signed)
            table.add(connection, row)
            self._note(connection, "mailbox.deposited", row)
        for recipient in {letter.recipient for letter, _ in letters}:
            limits = (PER_RECIPIENT, PER_RECIPIENT_BYTES)
            _check_room(f"the mailbox of {recipient}", table.sizes(connection, recipient=recipient), limits)
        limits = (PER_SENDER, PER_SENDER_BYTES)
        _check_room(f"what {sender} may leave here", table.sizes(connection, sender=sender), limits)

    def _row(self, number: int, letter: Letter, signed: SignedLetter) -> LetterRow:
        text = wire.encode_signed(signed)
        return LetterRow(
            number, letter.sender, letter.letter_id, letter.recipient, signed.sha256, len(text),
            letter.expires_at_ms, self._clock(), text,
        )  # fmt: skip

    def _sweep(self, connection: sa.Connection) -> None:
        for row in table.expired(connection, self._clock()):
            self._end(connection, "mailbox.expired", row)

    def _end(self, connection: sa.Connection, kind: str, row: LetterRow) -> None:
        table.drop(connection, row.number)
        self._note(connection, kind, row)

    def _note(self, connection: sa.Connection, kind: str, row: LetterRow) -> None:
        facts = {"sender": row.sender, "bytes": str(row.size_bytes), "expiresAtMs": str(row.expires_at_ms)}
        self._log.append_in(connection, kind, row.recipient, facts, row.sha256)


def check_validity(letter: Letter, now_ms: int) -> None:
    """Errors: LETTER_EXPIRED for a letter past its end, or that would lie for too long."""
    guard("TDN-T-MBX-04").check(
        now_ms < letter.expires_at_ms <= now_ms + sealing.LONGEST_LETTER_MS + SKEW_MS, Reason.LETTER_EXPIRED,
        f"the letter of {letter.sender} is valid for {(letter.expires_at_ms - now_ms) // 1000} s", Refused,
    )  # fmt: skip


def _check_room(what: str, used: tuple[int, int], limits: tuple[int, int]) -> None:
    guard("TDN-T-MBX-05").check(
        used[0] <= limits[0] and used[1] <= limits[1], Reason.MAILBOX_FULL,
        f"{what}: at most {limits[0]} letters of {limits[1]} bytes in all", Unavailable,
    )  # fmt: skip


def _after(recipient: str, number: int, connection: sa.Connection) -> LetterRow | None:
    return table.after(connection, recipient, number)
