"""What an attacker makes: certificates with the real keys of hubs, false credentials, a lying relay."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tdn_interop.config import split_address
from tdn_interop.identity import Credentials, Identity
from tdn_interop.transport import pki, records_wire, tls, trust
from tdn_interop.transport.channel_service import ChannelServicer, ClientFrames
from tdn_interop.transport.channels import Channels
from tdn_interop.transport.dial import Dialled, Dialler
from tdn_interop.transport.front import connect_tcp, socket_pair
from tdn_interop.transport.relay import _Onward
from tdn_interop.transport.server import Server
from tdn_interop.transport.tls import TlsFiles
from tdn_interop.transport.trust import Membership, now_ms
from tdn_interop.transport.tunnel import SocketLeg

DAY = dt.timedelta(days=1)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def authority(directory: Path) -> pki.Authority:
    """The CA of a hub or top, from its folder."""
    return pki.load_authority(directory / "ca.pem", directory / "ca.key")


def leaf(issuer, names, key, *, starts=None, life=DAY) -> x509.Certificate:
    """A leaf with any alternative names; [] for none."""
    builder = pki._build(pki._name("forged"), issuer.certificate.subject, key.public_key(), life, starts)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.add_extension(pki._authority_id(issuer), critical=False).sign(issuer.key, hashes.SHA256())


def write(folder: Path, chain, key, root) -> TlsFiles:
    """As the files of a node."""
    folder.mkdir(parents=True, exist_ok=True)
    files = TlsFiles(folder / "tls.pem", folder / "tls.key", folder / "root.pem")
    files.chain.write_bytes(pki.pem(*chain))
    files.key.write_bytes(pki.key_pem(key))
    files.root.write_bytes(pki.pem(root))
    return files


def refusals(node) -> dict[tuple[str, str], int]:
    """What a node has counted: (reason, requirement) -> times."""
    samples = (s for metric in node.mesh._metrics.refusal.collect() for s in metric.samples)
    return {
        (s.labels["reason"], s.labels["requirement"]): int(s.value) for s in samples if s.name.endswith("_total")
    }  # fmt: skip


async def until(ready, timeout_s: float = 10) -> None:
    """Wait until `ready()`; the event loop runs in between."""
    async with asyncio.timeout(timeout_s):
        while not ready():
            await asyncio.sleep(0.001)


def membership(directory: Path) -> Membership:
    return Membership.load(directory / "membership.json")


def stranger(node: str) -> Identity:
    """A new identity key under a name that has another one."""
    return Identity(node, Ed25519PrivateKey.generate())


def delegation(key: Identity, tls_key, *, starts_s: int = -60, ends_s: int = 3600):
    digest = pki.spki_sha256(leaf(pki.create_root("x"), [], tls_key))
    return trust.delegate(key, digest, now_ms() + starts_s * 1000, now_ms() + ends_s * 1000)


@dataclass
class Impostor:
    """Somebody who has a valid certificate for `node`, made by its own hub, and not its identity key."""

    node: str
    tls_key: object
    files: TlsFiles
    record: object  # the genuine one: it is public

    @classmethod
    def of(cls, mesh, node: str, folder: Path) -> Impostor:
        ca = authority(mesh.folder / node.partition(".")[2])
        key = pki.new_key()
        root = x509.load_pem_x509_certificate((mesh.folder / node / "root.pem").read_bytes())
        chain = [pki.issue_leaf(ca, node, key.public_key()), ca.certificate]
        genuine = membership(mesh.folder / node)
        return cls(node, key, write(folder, chain, key, root), genuine.record)

    def credentials(self) -> Credentials:
        """The genuine record, and a delegation by a key of the impostor's own."""
        return Credentials(self.record, delegation(stranger(self.node), self.tls_key))

    def channels(self, connect=None, credentials=None) -> Channels:
        made = credentials or self.credentials
        return Channels(
            self.node, lambda _stream: made(), lambda _stream, _credentials: None, connect or _nowhere,
        )  # fmt: skip

    def dial(self, victim: str, address: str, folder: Path, credentials=None) -> Channels:
        """Channels that dial `victim` directly."""
        host, port = split_address(address)

        async def connect(_peer: str) -> ClientFrames:
            dialled = Dialled(
                victim,
                lambda: connect_tcp(host, port, 5),
                Dialler(lambda: tls.client_context(self.files), folder),
            )
            return ClientFrames(await dialled.start())

        return self.channels(connect, credentials)

    @contextlib.asynccontextmanager
    async def serving(self, folder: Path):
        """An endpoint that takes diverted tunnels; yields its front."""
        channels = self.channels()
        server = Server(lambda: tls.server_context(self.files), folder, "impostor", lambda _error: None)
        server.grpc.add_generic_rpc_handlers((ChannelServicer(channels, server.front).handler(),))
        await server.start(None)
        try:
            yield server.front, channels
        finally:
            await channels.close(0.1)
            await server.close()


async def _nowhere(_peer: str):
    raise AssertionError("an impostor that only listens dials nobody")


def divert(tunnels, destination: str, front) -> None:
    """Make a hub hand tunnels for `destination` to another endpoint."""
    honest = tunnels._down

    async def down(opening, node):
        if opening.destination != destination:
            return await honest(opening, node)
        near, far = socket_pair()
        front.take(far, "a diverted tunnel")
        return _Onward(SocketLeg(near), (), node, lambda _receipt: None)

    tunnels._down = down


def raw_context(files: TlsFiles | None = None, *, version=ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A client that believes anybody and shows `files` if there are any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = version
    if files:
        context.load_cert_chain(files.chain, files.key)
    return context


class Lying:
    """A leg whose incoming records pass `lie`: TLS record -> what is handed on instead."""

    def __init__(self, leg, lie) -> None:
        self._leg = leg
        self._lie = lie
        self._rest = b""

    async def read(self) -> bytes:
        while True:
            message = await self._leg.read()
            if not message:
                return message
            self._rest += records_wire.decode_carried(message)
            out = b""
            while len(self._rest) >= 5 and len(self._rest) >= 5 + int.from_bytes(self._rest[3:5]):
                size = 5 + int.from_bytes(self._rest[3:5])
                record, self._rest = self._rest[:size], self._rest[size:]
                out += self._lie(record)
            if out:
                return records_wire.encode_carried(out)

    def __getattr__(self, name: str):
        return getattr(self._leg, name)


def lie(tunnels, forward=bytes, backward=bytes) -> None:
    """From now on a relay lies about the records of every tunnel it carries."""
    honest = tunnels._carry

    def carry(opening, leg, onward, previous):
        onward = replace(onward, leg=Lying(onward.leg, backward))
        return honest(opening, Lying(leg, forward), onward, previous)

    tunnels._carry = carry
