"""A front with an echo behind it, and a small PKI to knock with."""

import asyncio
import contextlib

from cryptography import x509

from tdn_interop.transport import pki, tls
from tdn_interop.transport.front import Front
from tests.interop.forge import leaf, write

ROOT = pki.create_root("cn")
HUB_KEY, OTHER_HUB_KEY = pki.new_key(), pki.new_key()
HUB = pki.Authority(pki.issue_intermediate(ROOT, "shandong.cn", HUB_KEY.public_key()), HUB_KEY)
OTHER_HUB = pki.Authority(
    pki.issue_intermediate(ROOT, "guangdong.cn", OTHER_HUB_KEY.public_key()), OTHER_HUB_KEY
)
VICTIM, CLIENT = "victim.shandong.cn", "client.shandong.cn"


def dns(*names):
    return [x509.DNSName(name) for name in names]


def made(folder, names, issuer=HUB, **times):
    key = pki.new_key()
    return write(folder, [leaf(issuer, names, key, **times), issuer.certificate], key, ROOT.certificate)


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    def __init__(self, behind):
        self.behind = behind

    def connection_made(self, transport):
        self.transport = transport
        self.behind.reached.append(transport)

    def data_received(self, data):
        self.transport.write(data)


class Behind:
    """What stands behind the front: an echo that notes who reached it."""

    def __init__(self):
        self.reached = []
        self.refused = []

    def said(self):
        return [(e.reason.name, e.requirement) for e in self.refused]


@contextlib.asynccontextmanager
async def fronted(folder, files=None, *, mutual=True, life_s=None):
    """(front, port, what is behind)."""
    folder.mkdir(exist_ok=True)
    files = files or made(folder / "victim", dns(VICTIM))
    behind = Behind()
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: Echo(behind), folder / "b.sock")
    front = Front(
        lambda: tls.server_context(files, mutual=mutual),
        folder / "b.sock",
        folder,
        behind.refused.append,
        life_s,
    )
    try:
        yield front, await front.listen("127.0.0.1", 0), behind
    finally:
        await front.close()
        for transport in behind.reached:
            transport.abort()
        server.close()
        await server.wait_closed()


async def exchange(port, context):
    """Say hello over TLS; what comes back, or how it ended."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            writer.write(b"hello")
            return await reader.readexactly(5)
        finally:
            writer.transport.abort()
    except (OSError, asyncio.IncompleteReadError) as error:
        return error
