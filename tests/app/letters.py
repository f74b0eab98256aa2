"""Identities, records and letters for tests of the mailbox; a mesh of which only what the mailbox touches is there."""

import hashlib
from types import SimpleNamespace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tdn_interop import identity
from tdn_interop.app.post import mailbox_wire as wire
from tdn_interop.app.post import post_wire, sealing
from tdn_interop.app.post.mailbox import Mailbox
from tdn_interop.app.post.mailbox_wire import Letter, SealingKey, SignedLetter
from tdn_interop.app.post.post_wire import WireParcel
from tdn_interop.errors import TdnError
from tdn_interop.identity import Identity
from tdn_interop.transport import records_wire
from tdn_interop.transport.records_wire import NodeRecord
from tdn_interop.transport.trust import Trust

TOP, HUB = "cn", "hebei.cn"
BANK, CLINIC, FAR = "bank.hebei.cn", "clinic.hebei.cn", "far.gansu.cn"
NOW = 1_800_000_000_000
DAY = 86_400_000
KEYS = {node: Identity(node, Ed25519PrivateKey.generate()) for node in (TOP, HUB, BANK, CLINIC, FAR)}


def record_of(node, key=None):
    """The NodeRecord of a node, signed by the top."""
    statement = NodeRecord(node, "child", (key or KEYS[node]).public_key, node.partition(".")[2], 1)
    return KEYS[TOP].sign(identity.NODE_RECORD, records_wire.encode_record(statement))


def verified(signed):
    """As `Mesh.record` does it."""
    return Trust(TOP, KEYS[TOP].public_key, lambda _node, key: key).record(signed)


class Members:
    """A register: who is a member, and their records."""

    def __init__(self, *nodes):
        self.nodes = set(nodes)

    def known(self, node):
        return node in self.nodes

    async def record(self, node):
        return record_of(node) if node in KEYS else None


def sealing_key(keys, node, signer=None):
    """What `node` publishes."""
    statement = wire.encode_key(SealingKey(node, *keys.current()))
    return (signer or KEYS[node]).sign(identity.SEALING_KEY, statement)


def parcel(number=0, body=b"body", expires_at_ms=NOW + DAY):
    return post_wire.encode(WireParcel(b"s" * 16, number, 0, body, expires_at_ms))


def letter(public, message, **changes):
    """A letter of FAR to BANK, sealed and signed; `changes` of its fields, and `signer` or `context`."""
    signer, context = changes.pop("signer", KEYS[FAR]), changes.pop("context", identity.LETTER)
    fields = {
        "sender": FAR, "recipient": BANK, "letter_id": hashlib.sha256(message).digest()[:16],
        "expires_at_ms": NOW + DAY, "key_sha256": hashlib.sha256(public).digest(),
    } | changes  # fmt: skip
    bare = Letter(**fields)
    whole = Letter(**fields, sealed=sealing.seal(message, public, bare.info))
    return SignedLetter(signer.sign(context, wire.encode_letter(whole)), record_of(FAR))


class FakeMesh:
    """What a Mailbox touches of a mesh. `arrived` keeps what the post got; `refusals` what was refused."""

    def __init__(self, me, folder):
        self.me, self.link, self.arrived, self.refusals, self.revoked = me, None, [], [], {}
        self.config = SimpleNamespace(role="child", file=lambda name: folder / name)
        self.register = Members()
        self.standing = SimpleNamespace(
            key=KEYS[me], membership=SimpleNamespace(parent=me.partition(".")[2], record=record_of(me))
        )
        self.lists = SimpleNamespace(refusal=self.revoked.get)
        self.post = SimpleNamespace(away=None, arrived=self._arrived)
        self.problem: TdnError | None = None

    def record(self, signed):
        return verified(signed)

    def refused(self, error):
        self.refusals.append(error.reason)

    async def _arrived(self, peer, message):
        if self.problem:
            raise self.problem
        self.arrived.append((peer, message))


def mailbox(folder, me=BANK, clock=lambda: NOW):
    """(mailbox, mesh) of a child."""
    mesh = FakeMesh(me, folder)
    return Mailbox(mesh, None, None, clock), mesh
