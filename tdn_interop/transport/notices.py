"""The newest notices a node knows: signed statements of tops that are for everybody.

Of each kind and top the highest version counts; an older one that comes again changes nothing. The
newest ones stand in the node's folder, so a node that starts again knows what it knew.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from tdn_interop.errors import Reason, TdnError, guard
from tdn_interop.identity import Signed
from tdn_interop.transport import records_wire
from tdn_interop.transport.status_list_wire import MAX_LIST

TRUST_BUNDLE = "trust_bundle"
STATUS_LIST = "status_list"
# Kind -> bytes that a statement may have.
KINDS = {TRUST_BUNDLE: records_wire.MAX_STATEMENT, STATUS_LIST: MAX_LIST}

_log = structlog.get_logger("tdn.notices")


@dataclass(frozen=True, slots=True)
class _Known:
    version: int
    order: int  # of arrival
    signed: Signed


@dataclass(frozen=True, slots=True)
class _Kind:
    verify: Callable[[Signed], int]
    took: Callable[[Signed], None]


class Notices:
    """Keeps the newest notice of each kind and top in `folder`, and tells who follows.

    `own` is the top of this node: what it said is read first, for it tells whom else to trust; `knows` says
    whether a top is trusted. What others sign is nothing to us: a neighbour may trust tops that we do not.
    """

    def __init__(self, folder: Path, own: str = "", knows: Callable[[str], bool] = lambda _top: True) -> None:
        self._folder = folder
        self._own = own
        self._knows = knows
        self._kinds: dict[str, _Kind] = {}
        self._known: dict[tuple[str, str], _Known] = {}
        self._order = 0
        self._changed = asyncio.Event()

    def add(
        self,
        kind: str,
        verify: Callable[[Signed], int],
        took: Callable[[Signed], None] = lambda _signed: None,
    ) -> None:
        """Serve a kind and read what is kept of it.

        `verify` tells the version, or raises unless a top that this node trusts signed the statement; `took`
        is called with each one that is newer than the one before, and with those that were kept.
        """
        self._kinds[kind] = _Kind(verify, took)
        first = self._folder / f"{kind}-{self._own}.bin"
        for file in sorted(self._folder.glob(f"{kind}-*.bin"), key=lambda file: (file != first, file)):
            try:
                self._take(kind, records_wire.decode_signed(file.read_bytes(), KINDS[kind]), keep=False)
            except TdnError as error:  # damaged; if it still counts, it comes again
                _log.warning("notice dropped", file=file.name, reason=error.reason.name)

    def offer(self, kind: str, signed: Signed) -> bool:
        """Take a notice; True when it was news, False when this one or a newer one is known.

        Errors: those of the kind's `verify`; EQUIVOCATION when its top signed something else under this version.
        """
        if kind not in self._kinds:
            return False
        return self._take(kind, signed, keep=True)

    def newest(self, kind: str, top: str) -> Signed | None:
        """The newest notice of a top, or None."""
        known = self._known.get((kind, top))
        return known.signed if known else None

    async def follow(self) -> AsyncIterator[tuple[str, Signed]]:
        """(kind, notice): everything that is known, then each newer one; what a slow reader missed it never sees."""
        seen = 0
        while True:
            changed = self._changed
            news = [(k.order, kind, k.signed) for (kind, _), k in self._known.items() if k.order > seen]
            for order, kind, signed in sorted(news, key=lambda one: one[0]):
                seen = order
                yield kind, signed
            await changed.wait()

    def _take(self, kind: str, signed: Signed, *, keep: bool) -> bool:
        before = self._known.get((kind, signed.signer))
        if (before and before.signed == signed) or not self._knows(signed.signer):
            return False
        version = self._kinds[kind].verify(signed)
        if before and version < before.version:
            return False
        guard("TDN-T-IDN-09").check(
            not before or version > before.version, Reason.EQUIVOCATION,
            f"{signed.signer} has signed two different notices with version {version}",
        )  # fmt: skip
        if keep:
            self._keep(kind, signed)
        self._order += 1
        self._known[kind, signed.signer] = _Known(version, self._order, signed)
        self._kinds[kind].took(signed)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        return True

    def _keep(self, kind: str, signed: Signed) -> None:
        """Write it down before anybody hears of it: a version that was told is never told anew."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        fresh = self._folder / f"{kind}-{signed.signer}.new"
        with fresh.open("wb") as file:
            file.write(records_wire.encode_signed(signed))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(fresh.with_suffix(".bin"))
