"""The floor: one raw gRPC stream with gRPC's own mutual TLS, in the same interpreter, nothing around it.

usage: python -m bench.raw serve|dial FOLDER NAME     FOLDER has tls.pem, tls.key and root.pem of a node
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import grpc
import grpc.aio

from bench.peer import MESSAGE_BYTES, Answer, commands_of, cpu_s, serve
from tdn_interop.transport.dial import OPTIONS

METHOD = "/bench.Raw/Stream"


class Listening:
    """Takes one stream and counts it."""

    def __init__(self, folder: Path) -> None:
        self._server = grpc.aio.server(options=OPTIONS)
        rows: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Stream": grpc.stream_unary_rpc_method_handler(self._stream)
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Raw", rows),))
        pair = ((folder / "tls.key").read_bytes(), (folder / "tls.pem").read_bytes())
        credentials = grpc.ssl_server_credentials(
            [pair], (folder / "root.pem").read_bytes(), require_client_auth=True
        )
        self._port = self._server.add_secure_port("127.0.0.1:0", credentials)

    async def _stream(self, requests: object, _context: object) -> bytes:
        total = 0
        async for message in requests:  # type: ignore[attr-defined]
            total += len(message)
        return str(total).encode()

    async def port(self) -> Answer:
        await self._server.start()
        return {"port": self._port}

    async def cpu(self) -> Answer:
        return {"cpu_s": cpu_s()}


class Dialling:
    """Sends."""

    def __init__(self, folder: Path, name: str) -> None:
        self._name = name
        self._credentials = grpc.ssl_channel_credentials(
            (folder / "root.pem").read_bytes(),
            (folder / "tls.key").read_bytes(),
            (folder / "tls.pem").read_bytes(),
        )
        self._message = os.urandom(MESSAGE_BYTES)
        self._channel: grpc.aio.Channel

    async def dial(self, port: int) -> Answer:
        options = [*OPTIONS, ("grpc.ssl_target_name_override", self._name)]
        self._channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", self._credentials, options=options)
        await self._channel.channel_ready()
        return {}

    async def cpu(self) -> Answer:
        return {"cpu_s": cpu_s()}

    async def send(self, count: int) -> Answer:
        stream: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = self._channel.stream_unary(METHOD)
        call = stream()
        for _ in range(count):
            await call.write(self._message)
        await call.done_writing()
        return {"bytes": int(await call)}


async def main(role: str, folder: Path, name: str) -> None:
    await serve(commands_of(Listening(folder) if role == "serve" else Dialling(folder, name)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
