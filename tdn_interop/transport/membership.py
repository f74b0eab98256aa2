"""What a hub or top must remember of its members. The application tier keeps it in its store."""

from __future__ import annotations

from typing import Protocol

from tdn_interop.identity import Signed
from tdn_interop.transport.records_wire import NodeRecord


class Members(Protocol):
    """The register of one hub or top. Every method is one transaction."""

    def known(self, node: str) -> bool:
        """True for a member that enrolled here and may use this node now. Never waits."""
        ...

    async def record(self, node: str) -> Signed | None:
        """The record of a member, or at a top of any node of the hierarchy."""
        ...

    async def check_token(self, secret_sha256: bytes, node: str, role: str) -> None:
        """Errors: TOKEN_INVALID unless the token is good now."""
        ...

    async def admit(self, secret_sha256: bytes, record: NodeRecord, signed: Signed) -> None:
        """Spend the token and keep the member, both or neither. Errors: TOKEN_INVALID."""
        ...

    async def endorse(self, record: NodeRecord, signed: Signed) -> Signed:
        """Keep the record unless there is one; the kept one. Errors: ALREADY_EXISTS for another identity key."""
        ...
