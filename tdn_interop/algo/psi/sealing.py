"""Sealing for an external receiver: only matched items can be opened, and only by the receiver.

Two locks. The inner one is a symmetric *item key*, fresh in every run, that the holder encapsulates
to the receiver with HPKE (RFC 9180) once. One encapsulation an item would cost 1,120 bytes and two
public-key operations each; one for the run gives the receiver exactly the same power. Every item is
padded to one block size and sealed under a nonce that is its position in the shuffled order, so no
nonce comes twice under one key. The outer lock is a key derived from the double-masked point, which
the receiver gets from the other side for its items only.

Everything is bound to agreement, epoch and suite (`binding`).
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from tdn_interop.algo.curve25519 import Points
from tdn_interop.algo.kernel import Kernel, Scalar
from tdn_interop.algo.message import TAG_BYTES
from tdn_interop.algo.psi.sets import Rows
from tdn_interop.errors import ConfigError, Reason, guard

SEED_BYTES = 64 + 32  # ML-KEM seed (FIPS 203), X25519 scalar
ITEM_KEY_BYTES = 32
LONGEST_ITEM = 4094  # so that the largest block is 4096
_HPKE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_MLKEM_BYTES = 1184
_NONCE_BYTES = 12
_GCM_TAG_BYTES = 16
_SMALLEST_BLOCK = 32
_LENGTH_BYTES = 2
_ONCE = bytes(_NONCE_BYTES)  # each outer key seals one value, so its nonce may be constant
_POINT_LABEL = b"tdn/psi.ecdh-external/1 point\0"
_ITEM_KEY_LABEL = b"tdn/psi.ecdh-external/1 item key\0"


def public_key(seed: Scalar) -> bytes:
    """Public key of the receiver, 1,216 bytes: ML-KEM-768, then X25519."""
    return MLKEM768PrivateKey.from_seed_bytes(seed[:64]).public_key().public_bytes_raw() + (
        X25519PrivateKey.from_private_bytes(seed[64:]).public_key().public_bytes_raw()
    )


def encapsulate(item_key: Scalar, public: bytes, binding: bytes) -> bytes:
    """The item key for the holder of `public`; the library draws its own randomness. Errors: INVALID_REQUEST."""
    try:
        key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_BYTES]),
            X25519PublicKey.from_public_bytes(public[_MLKEM_BYTES:]),
        )
        return _HPKE.encrypt(item_key, key, _ITEM_KEY_LABEL + binding)
    except ValueError:
        guard("TDN-A-PSI-12").refuse(Reason.INVALID_REQUEST, f"no receiver key: {len(public)} bytes")


def decapsulate(sealed: bytes, seed: Scalar, binding: bytes) -> bytes:
    """The item key, 32 bytes. Errors: SEAL_BROKEN."""
    key = MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(seed[:64]), X25519PrivateKey.from_private_bytes(seed[64:])
    )
    try:
        item_key = _HPKE.decrypt(sealed, key, _ITEM_KEY_LABEL + binding)
    except InvalidTag:
        item_key = b""
    guard("TDN-A-PSI-12").check(
        len(item_key) == ITEM_KEY_BYTES, Reason.SEAL_BROKEN, "the item key does not open"
    )
    return item_key


def block_bytes(items: Sequence[bytes]) -> int:
    """Size of a padded item: the power of two, at least 32, that holds the longest and its length.

    This bucket is all that the size of a sealed value tells. Errors: INVALID_ITEM above 4,094 bytes.
    """
    longest = max(map(len, items), default=0)
    guard("TDN-A-PSI-10").check(
        longest <= LONGEST_ITEM,
        Reason.INVALID_ITEM,
        f"an item of {longest} bytes, {LONGEST_ITEM} allowed",
        ConfigError,
    )
    block = _SMALLEST_BLOCK
    while block < longest + _LENGTH_BYTES:
        block *= 2
    return block


def sealed_bytes(block: int) -> int:
    """Size of an item sealed in a block: nonce, ciphertext, tag."""
    return _NONCE_BYTES + block + _GCM_TAG_BYTES


def mask_and_seal(
    kernel: Kernel,
    scalar: Scalar,
    item_key: Scalar,
    items: Sequence[bytes],
    first: int,
    block: int,
    binding: bytes,
) -> tuple[Points, bytes]:
    """Masked points of the items and, in the same order, the items sealed; `first` is the position of items[0]."""
    lock = AESGCM(bytes(item_key))
    sealed = []
    for position, item in enumerate(items, first):
        nonce = position.to_bytes(_NONCE_BYTES, "big")
        padded = (len(item).to_bytes(_LENGTH_BYTES, "big") + item).ljust(block, b"\0")
        sealed.append(nonce + lock.encrypt(nonce, padded, binding))
    return kernel.mask(scalar, kernel.hash(items)), b"".join(sealed)


def tag_and_lock(
    kernel: Kernel, scalar: Scalar, points: Points, sealed: Rows, binding: bytes
) -> tuple[Rows, Rows]:
    """Mask points; tag each (n, 16) and lock its sealed value (n, k) -> (n, k + 16) with the point's key."""
    tags, keys = tag_and_key(kernel, scalar, points, binding)
    locked = [
        AESGCM(key.tobytes()).encrypt(_ONCE, value.tobytes(), binding)
        for key, value in zip(keys, sealed, strict=True)
    ]
    width = sealed.shape[1] + _GCM_TAG_BYTES
    return tags, np.frombuffer(b"".join(locked), np.uint8).reshape(-1, width)


def tag_and_key(kernel: Kernel, scalar: Scalar, points: Points, binding: bytes) -> tuple[Rows, Rows]:
    """Mask points; derive a tag (n, 16) and an outer key (n, 32) from each product.

    HKDF-SHA256 (RFC 5869): salt = binding, key material = the point, 48 bytes: key, then tag.
    """
    derived = b"".join([_derive(point.tobytes(), binding) for point in kernel.mask(scalar, points)])
    rows = np.frombuffer(derived, np.uint8).reshape(-1, ITEM_KEY_BYTES + TAG_BYTES)
    return rows[:, ITEM_KEY_BYTES:], rows[:, :ITEM_KEY_BYTES]


def unlock(locked: Rows, keys: Rows, item_key: Scalar, binding: bytes) -> list[bytes]:
    """Items of matched values, (n, k) with their outer keys (n, 32). Errors: SEAL_BROKEN."""
    inner = AESGCM(bytes(item_key))
    return [
        _unlock_one(value.tobytes(), key.tobytes(), inner, binding)
        for value, key in zip(locked, keys, strict=True)
    ]


def _unlock_one(value: bytes, key: bytes, inner: AESGCM, binding: bytes) -> bytes:
    seal = guard("TDN-A-PSI-12")
    try:
        sealed = AESGCM(key).decrypt(_ONCE, value, binding)
        padded = inner.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], binding)
    except (InvalidTag, ValueError):  # ValueError: shorter than a nonce and a tag
        seal.refuse(Reason.SEAL_BROKEN, "a matched value does not open")
    length = int.from_bytes(padded[:_LENGTH_BYTES], "big")
    item, padding = padded[_LENGTH_BYTES : _LENGTH_BYTES + length], padded[_LENGTH_BYTES + length :]
    seal.check(
        0 < length == len(item) and not any(padding), Reason.SEAL_BROKEN, "a sealed item is badly padded"
    )
    return item


def _derive(point: bytes, binding: bytes) -> bytes:
    secret = hmac.digest(binding, point, "sha256")
    first = hmac.digest(secret, _POINT_LABEL + b"\1", "sha256")
    second = hmac.digest(secret, first + _POINT_LABEL + b"\2", "sha256")
    return first + second[:TAG_BYTES]
