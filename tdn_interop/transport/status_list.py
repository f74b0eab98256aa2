"""Who may not take part any more: the newest status list of each top, and what follows from them.

A top signs its list anew every minute, so its age tells whether a revocation could have been missed
(the idea of the validity time of a CRL, RFC 5280 section 5.1.2.5). Who is on a list is refused at
once and for ever, and with it everybody below: a revoked hub vouches for nobody. A list that is too
old opens no new channels; what is open goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tdn_interop import identity, ids
from tdn_interop.errors import Reason, Refused, Unavailable, guard
from tdn_interop.identity import Identity, Signed
from tdn_interop.transport import status_list_wire as wire
from tdn_interop.transport.status_list_wire import Revocation, StatusList
from tdn_interop.transport.trust import SKEW_MS, now_ms

# What a node that has just started may take to hear the newest list: no longer than a revocation may take.
START_MS = 60_000


@dataclass(frozen=True, slots=True)
class Standing:
    """The newest list of one top, for its operator: ages in seconds."""

    top: str
    version: int
    issued_at_ms: int
    age_s: float
    stale: bool


class StatusLists:
    """The newest lists a node holds. `signed_by_top(context, signed)` raises unless a top that is trusted signed."""

    def __init__(
        self,
        signed_by_top: Callable[[str, Signed], None],
        max_age_s: float,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._signed_by_top = signed_by_top
        self._max_age_ms = int(max_age_s * 1000)
        self._clock = clock
        self._started_ms = clock()
        self._lists: dict[str, StatusList] = {}
        self._revoked: dict[str, Revocation] = {}

    # -- lists come in -------------------------------------------------------------------------

    def verify(self, signed: Signed) -> int:
        """The version of a list that its top signed.

        Errors: SIGNATURE_INVALID, INVALID_REQUEST; STATUS_STALE for one from the future, which would never
        become old; EQUIVOCATION for one on which somebody is missing: revoked is for ever.
        """
        gate = guard("TDN-T-IDN-09")
        self._signed_by_top(identity.STATUS_LIST, signed)
        if (version := wire.version(signed.statement)) <= self.version(signed.signer):
            return version  # it will not be taken: reading long lists again costs more than sending them
        found = wire.decode_status_list(signed.statement)
        gate.check(
            found.top == signed.signer,
            Reason.SIGNATURE_INVALID,
            f"{signed.signer} signed a list of {found.top}",
        )
        ahead_ms = found.issued_at_ms - self._clock()
        gate.check(
            ahead_ms <= SKEW_MS, Reason.STATUS_STALE,
            f"the list of {found.top} is {ahead_ms // 1000} s ahead; compare the clocks", Refused,
        )  # fmt: skip
        self._check_growth(found)
        return found.version

    def _check_growth(self, found: StatusList) -> None:
        before = self._lists.get(found.top)
        if before is None or found.version < before.version:
            return
        missing = {one.node_id for one in before.revoked} - {one.node_id for one in found.revoked}
        guard("TDN-T-IDN-09").check(
            not missing, Reason.EQUIVOCATION,
            f"{min(missing, default='')} was revoked and is missing on list {found.version} of {found.top}",
        )  # fmt: skip

    def took(self, signed: Signed) -> None:
        """Hold a list that `verify` has let pass."""
        found = wire.decode_status_list(signed.statement)
        self._lists[found.top] = found
        self.refuse(found.revoked)

    def refuse(self, revoked: Iterable[Revocation]) -> None:
        """From now on refuse these nodes and everybody below them."""
        self._revoked.update({one.node_id: one for one in revoked})

    # -- what follows --- -------------------------------------------------------------------------

    def admit(self, node: str) -> None:
        """Errors: REVOKED, when the node was revoked itself or somebody above it."""
        above = node
        while self._revoked and above and above not in self._revoked:
            above = ids.parent(above)
        why = (
            f"{node} has been revoked"
            if above == node
            else f"{node} is below {above}, which has been revoked"
        )
        revoked = self._revoked and above
        guard("TDN-T-IDN-01").check(not revoked, Reason.REVOKED, why, Refused)

    def refusal(self, node: str) -> Refused | None:
        """Why `node` is refused, None when it is not."""
        try:
            self.admit(node)
        except Refused as refusal:
            return refusal
        return None

    def admit_new(self, node: str) -> None:
        """For a channel that begins. Errors: REVOKED, STATUS_STALE."""
        self.admit(node)
        top = node.rpartition(".")[2]
        guard("TDN-T-IDN-09").check(
            not self._is_stale(top), Reason.STATUS_STALE,
            f"the newest status list of {top} is older than {self._max_age_ms // 1000} s, no channel with {node} begins",
            Unavailable,
        )  # fmt: skip

    def version(self, top: str) -> int:
        """The version of the newest list of a top, 0 when there is none."""
        found = self._lists.get(top)
        return found.version if found else 0

    def on_list(self, node: str) -> bool:
        """True when a list of a top names `node` itself."""
        found = self._lists.get(node.rpartition(".")[2])
        return found is not None and any(one.node_id == node for one in found.revoked)

    def standings(self) -> list[Standing]:
        """How old the lists are, by top."""
        now = self._clock()
        return [
            Standing(top, one.version, one.issued_at_ms, (now - one.issued_at_ms) / 1000, self._is_stale(top))
            for top, one in sorted(self._lists.items())
        ]

    def everybody(self) -> list[Revocation]:
        """Who is refused, by node id, without those that are refused because of somebody above."""
        return [self._revoked[node] for node in sorted(self._revoked)]

    def _is_stale(self, top: str) -> bool:
        now, found = self._clock(), self._lists.get(top)
        if now - self._started_ms <= START_MS:
            return False
        return found is None or now - found.issued_at_ms > self._max_age_ms


def issue(key: Identity, version: int, issued_at_ms: int, revoked: Iterable[Revocation]) -> Signed:
    """The list of the top whose `key` it is. Errors: RESOURCE_EXHAUSTED when it is too long to be sent."""
    ordered = tuple(sorted(revoked, key=lambda one: one.node_id))
    statement = wire.encode_status_list(StatusList(key.node, version, issued_at_ms, ordered))
    guard("TDN-T-IDN-09").check(
        len(statement) <= wire.MAX_LIST, Reason.RESOURCE_EXHAUSTED, f"a list of {len(ordered)} nodes is too long", Refused
    )  # fmt: skip
    return key.sign(identity.STATUS_LIST, statement)
