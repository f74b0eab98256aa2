"""Somebody with a valid certificate and bad manners: HTTP/2 by hand, and sessions that keep no rule."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
import struct
from dataclasses import dataclass
from pathlib import Path

from tdn_interop.app.members.standing import Standing
from tdn_interop.config import NodeConfig, split_address
from tdn_interop.transport import tls
from tdn_interop.transport.channel_service import ClientFrames
from tdn_interop.transport.dial import Dialled, Dialler
from tdn_interop.transport.frame import Hello, Limits
from tdn_interop.transport.front import connect_tcp
from tests.interop.forge import raw_context

# RFC 9113 section 6: types of frames, and flags.
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

EXCHANGE = "/tdn.transport.v1.ChannelService/Exchange"
RESOLVE = "/tdn.transport.v1.RoutingService/Resolve"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113 section 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header that goes into no table (RFC 7541 section 6.2.2), short strings without Huffman."""
    return b"\0" + b"".join(bytes([len(part)]) + part for part in (name.encode(), value.encode()))


def call_headers(path: str, *more: tuple[str, str]) -> bytes:
    """The headers of a gRPC call."""
    pseudo = ((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "hub"))
    usual = (("te", "trailers"), ("content-type", "application/grpc"))
    return b"".join(literal(*header) for header in (*pseudo, *usual, *more))


def message(body: bytes, *, claimed: int | None = None) -> bytes:
    """A gRPC message; `claimed` is a length that lies."""
    return struct.pack(">BI", 0, len(body) if claimed is None else claimed) + body


class H2:
    """A connection that speaks HTTP/2 as badly as its owner likes. What comes back is thrown away."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._next = -1
        self._reading = asyncio.ensure_future(self._read())
        self.heard = 0
        self.over = asyncio.Event()

    @classmethod
    async def to(cls, address: str, context: ssl.SSLContext, window: int = 65_535) -> H2:
        host, port = split_address(address)
        one = cls(*await asyncio.open_connection(host, port, ssl=context))
        await one.send(PREFACE, frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW, window)))
        return one

    async def _read(self) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while data := await self._reader.read(1 << 16):
                self.heard += len(data)
        self.over.set()

    def deafen(self) -> None:
        """Read nothing from now on."""
        self._reading.cancel()

    async def send(self, *frames: bytes) -> bool:
        """True while the other side takes it."""
        try:
            self._writer.write(b"".join(frames))
            await self._writer.drain()
        except OSError:
            return False
        await asyncio.sleep(0)  # a turn for the reader: it sees the end
        return not self.over.is_set()

    def call(self, path: str, *more: tuple[str, str], ends: bool = False) -> tuple[int, bytes]:
        """(stream, the frame that opens it)."""
        self._next += 2
        flags = END_HEADERS | (END_STREAM if ends else 0)
        return self._next, frame(HEADERS, flags, self._next, call_headers(path, *more))

    async def close(self) -> None:
        self._reading.cancel()
        self._writer.transport.abort()
        await asyncio.gather(self._reading, return_exceptions=True)


@dataclass(frozen=True)
class Attacker:
    """A member of the victim's; `folder` is for its sockets."""

    config: NodeConfig
    victim: str
    address: str
    enrolment: str
    folder: Path

    @property
    def node(self) -> str:
        return self.config.id

    @property
    def _standing(self) -> Standing:
        return Standing.load(self.config)

    async def http2(self, window: int = 65_535, *, enrolling: bool = False) -> H2:
        if enrolling:
            return await H2.to(self.enrolment, raw_context(), window)
        return await H2.to(self.address, raw_context(self._standing.files), window)

    @contextlib.asynccontextmanager
    async def dialled(self):
        """A gRPC channel to the victim."""
        host, port = split_address(self.address)
        dialler = Dialler(lambda: tls.client_context(self._standing.files), self.folder)
        dialled = await Dialled(self.victim, lambda: connect_tcp(host, port, 10), dialler).start()
        try:
            yield dialled
        finally:
            await dialled.close()

    def hello(self, limits: Limits | None = None) -> Hello:
        return Hello(
            (1,), secrets.token_bytes(16), False, self._standing.credentials(), limits or Limits(), ()
        )

    @contextlib.asynccontextmanager
    async def session(self, *, greets: bool = True):
        """A session with the victim, greeted; its rules are the caller's business."""
        async with self.dialled() as dialled:
            frames = ClientFrames(dialled)
            if greets:
                await frames.send(self.hello())
                assert isinstance(await frames.receive(), Hello)
            yield frames
