"""Identity keys and signed statements: who said what, provable offline.

A node has one Ed25519 identity key (RFC 8032), made at `node init`; it never leaves the node. A
signature covers `context || 0x00 || statement`, so that a statement made for one purpose is worth
nothing for another.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tdn_interop.errors import ConfigError, Reason, guard

NODE_RECORD = "tdn/v1/node-record"
DELEGATION = "tdn/v1/delegation"
APPLICATION = "tdn/v1/application"
RECEIPT = "tdn/v1/receipt"
ROUTE = "tdn/v1/route"
ADVERT = "tdn/v1/advert"
OFFER = "tdn/v1/offer"
CONSENT = "tdn/v1/consent"
STATEMENT = "tdn/v1/statement"
VERDICT = "tdn/v1/verdict"
EVENT = "tdn/v1/event"
TREE_HEAD = "tdn/v1/tree-head"
TRUST_BUNDLE = "tdn/v1/trust-bundle"
STATUS_LIST = "tdn/v1/status-list"
FEDERATION = "tdn/v1/federation"
REVOCATION = "tdn/v1/revocation"
SEALING_KEY = "tdn/v1/sealing-key"
LETTER = "tdn/v1/letter"


@dataclass(frozen=True, slots=True)
class Signed:
    """Serialized statement, node id of the signer, 64-byte Ed25519 signature."""

    statement: bytes
    signer: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a node shows on a connection: its NodeRecord (signed by the top) and its Delegation (by itself)."""

    record: Signed
    delegation: Signed


class Identity:
    """The identity key of one node."""

    def __init__(self, node: str, key: Ed25519PrivateKey) -> None:
        self.node = node
        self._key = key
        self.public_key = key.public_key().public_bytes_raw()

    @classmethod
    def create(cls, node: str, path: Path) -> Identity:
        """Make a key and write it to `path` (PKCS #8 PEM, mode 0600). Errors: ALREADY_EXISTS."""
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_secret(path, pem)
        return cls(node, key)

    @classmethod
    def load(cls, node: str, path: Path) -> Identity:
        """Read the key of `node`. Errors: CONFIG_INVALID when the file is missing or is no Ed25519 key."""
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            guard("TDN-T-IDN-06").refuse(
                Reason.CONFIG_INVALID, f"no Ed25519 identity key in {path}", ConfigError
            )
        return cls(node, key)

    def sign(self, context: str, statement: bytes) -> Signed:
        """Sign `statement` for one purpose, named by `context`."""
        return Signed(statement, self.node, self._key.sign(_bound(context, statement)))


def verify(context: str, signed: Signed, key: bytes) -> bool:
    """True when `key` (32 bytes) signed this statement for this context."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signed.signature, _bound(context, signed.statement))
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(key: bytes) -> str:
    """Hexadecimal SHA-256 of an identity key, to compare out of band."""
    return hashlib.sha256(key).hexdigest()


def write_secret(path: Path, content: bytes) -> None:
    """Create `path` with mode 0600; never replaces a file. Errors: ALREADY_EXISTS."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        guard("TDN-T-IDN-06").refuse(
            Reason.ALREADY_EXISTS, f"{path} exists; a key is never replaced", ConfigError
        )
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _bound(context: str, statement: bytes) -> bytes:
    return context.encode() + b"\0" + statement
