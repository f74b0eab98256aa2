"""Sealing of letters: HPKE (RFC 9180, base mode) with MLKEM768-X25519, HKDF-SHA256 and AES-256-GCM.

Letters lie at a hub for days, so they must stay closed even for somebody who keeps them until there is a quantum
computer. A node makes a new key each 30 days and destroys an old one when the last letter that may be sealed to it
has expired.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from tdn_interop.errors import ConfigError, Reason, guard

DAY_MS = 86_400_000
ROTATE_MS = 30 * DAY_MS
VALID_MS = 2 * ROTATE_MS  # nobody who looks now and then meets a key at its end
LONGEST_LETTER_MS = 30 * DAY_MS
PUBLIC_BYTES = 1184 + 32
OVERHEAD = 1088 + 32 + 16
"""What sealing adds: encapsulated keys and a tag, in bytes."""
_SEED = 64 + 32
_HPKE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True)
class _Key:
    """`seed`: 64 bytes of ML-KEM-768 (FIPS 203), then the X25519 scalar."""

    seed: bytes
    not_after_ms: int

    @property
    def public(self) -> bytes:
        mlkem = MLKEM768PrivateKey.from_seed_bytes(self.seed[:64]).public_key().public_bytes_raw()
        return mlkem + X25519PrivateKey.from_private_bytes(self.seed[64:]).public_key().public_bytes_raw()

    def private(self) -> MLKEM768X25519PrivateKey:
        return MLKEM768X25519PrivateKey(
            MLKEM768PrivateKey.from_seed_bytes(self.seed[:64]),
            X25519PrivateKey.from_private_bytes(self.seed[64:]),
        )


class SealingKeys:
    """The keys of this node, newest last, in a file of mode 0600. Errors: CONFIG_INVALID when it is damaged."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self._path = path
        self._clock = clock
        self._keys = _load(path)

    def current(self) -> tuple[bytes, int]:
        """(public key, end of its use in milliseconds) of the newest key; a new one is made in time."""
        now = self._clock()
        if not self._keys or self._keys[-1].not_after_ms - now < VALID_MS - ROTATE_MS:
            living = [key for key in self._keys if key.not_after_ms + LONGEST_LETTER_MS > now]
            self._keys = [*living, _Key(os.urandom(_SEED), now + VALID_MS)]
            _save(self._path, self._keys)
        return self._keys[-1].public, self._keys[-1].not_after_ms

    def open(self, key_sha256: bytes, sealed: bytes, info: bytes) -> bytes:
        """What was sealed to the key with this digest. Errors: SEAL_BROKEN."""
        opened: bytes | None = None
        for key in self._keys:
            if hashlib.sha256(key.public).digest() == key_sha256:
                opened = _open(key, sealed, info)
        if opened is None:
            guard("TDN-T-MBX-06").refuse(Reason.SEAL_BROKEN, f"{len(sealed)} sealed bytes do not open")
        return opened


def seal(plaintext: bytes, public: bytes, info: bytes) -> bytes:
    """Seal to a public key of 1,216 bytes. Errors: INVALID_REQUEST (not a key)."""
    try:
        key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:1184]),
            X25519PublicKey.from_public_bytes(public[1184:]),
        )
        return _HPKE.encrypt(plaintext, key, info)
    except ValueError:
        guard("TDN-T-MBX-02").refuse(Reason.INVALID_REQUEST, f"no sealing key: {len(public)} bytes")


def _open(key: _Key, sealed: bytes, info: bytes) -> bytes | None:
    try:
        return _HPKE.decrypt(sealed, key.private(), info)
    except (InvalidTag, ValueError):  # ValueError: shorter than an encapsulated key
        return None


def _load(path: Path) -> list[_Key]:
    try:
        found = json.loads(path.read_text())
        keys = [_Key(bytes.fromhex(raw["seed"]), int(raw["not_after_ms"])) for raw in found]
        ok = isinstance(found, list) and all(len(key.seed) == _SEED for key in keys)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        ok = False
    guard("TDN-T-MBX-02").check(ok, Reason.CONFIG_INVALID, f"{path} holds no sealing keys", ConfigError)
    return keys


def _save(path: Path, keys: list[_Key]) -> None:
    text = json.dumps([{"seed": key.seed.hex(), "not_after_ms": key.not_after_ms} for key in keys])
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
