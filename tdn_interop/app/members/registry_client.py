"""The asking side of `RegistryService` and `BackupService`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from tdn_interop._pb.tdn.app.v1 import backup_service_pb2 as backup_pb
from tdn_interop._pb.tdn.app.v1 import registry_service_pb2 as pb
from tdn_interop._pb.tdn.app.v1.backup_service_pb2_grpc import BackupServiceStub
from tdn_interop._pb.tdn.app.v1.registry_service_pb2_grpc import RegistryServiceStub

Document = dict[str, Any]
BACKUP_S = 3_600.0


class RegistryClient:
    """Asks one node; `ask(method, request)` answers with a document and knows the errors."""

    def __init__(self, channel: grpc.aio.Channel, ask: Callable[..., Awaitable[Document]]) -> None:
        self._stub = RegistryServiceStub(channel)
        self._backups = BackupServiceStub(channel)
        self._ask = ask

    async def revoke(self, node: str, reason: str) -> Document:
        """RevokeNode."""
        return await self._ask(self._stub.RevokeNode, pb.RevokeNodeRequest(node_id=node, reason=reason))

    async def members(self) -> Document:
        """ListMembers."""
        return await self._ask(self._stub.ListMembers, pb.ListMembersRequest())

    async def standing(self) -> Document:
        """GetStanding."""
        return await self._ask(self._stub.GetStanding, pb.GetStandingRequest())

    async def back_up(self, path: str, passphrase: str) -> Document:
        """BackUp; `path` is absolute."""
        request: Message = backup_pb.BackUpRequest(path=path, passphrase=passphrase)
        return await self._ask(self._backups.BackUp, request, BACKUP_S)
