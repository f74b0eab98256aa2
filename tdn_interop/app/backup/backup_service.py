"""BackupService on the control socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio

from tdn_interop._pb.tdn.app.v1 import backup_service_pb2 as pb
from tdn_interop._pb.tdn.app.v1 import backup_service_pb2_grpc
from tdn_interop.app.backup import backup

if TYPE_CHECKING:
    from tdn_interop.app.store.engine import Store
    from tdn_interop.config import NodeConfig


class BackupServicer(backup_service_pb2_grpc.BackupServiceServicer):
    """For the owner of the node."""

    def __init__(self, config: NodeConfig, store: Store) -> None:
        self._config = config
        self._store = store

    async def BackUp(  # noqa: N802  the name of the RPC
        self, request: pb.BackUpRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.BackUpResponse:
        """See the proto."""
        del context
        loop = asyncio.get_running_loop()

        def copy(target: Path) -> None:
            asyncio.run_coroutine_threadsafe(self._store.copy_to(target), loop).result()

        path = Path(request.path)
        done = await asyncio.to_thread(backup.back_up, self._config, path, request.passphrase, copy)
        return pb.BackUpResponse(path=str(path), bytes=done.bytes, sha256=done.sha256, files=done.files)
