import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tdn_interop.algo.psi import sealing
from tdn_interop.errors import PeerProtocolError, Reason
from tests.algo.parties import KERNEL, task

OWN = json.loads((Path(__file__).parent.parent / "vectors" / "x25519-sha256-ell2.json").read_text())
EXTERNAL = OWN["external"]
ROWS = EXTERNAL["rows"]


def octets(name: str) -> bytes:
    return bytes.fromhex(EXTERNAL[name])


def column(name: str) -> np.ndarray:
    return np.frombuffer(b"".join(bytes.fromhex(row[name]) for row in ROWS), np.uint8).reshape(len(ROWS), -1)


def test_the_binding_names_agreement_epoch_and_suite():
    run = task(agreement=octets("agreement"), epoch=EXTERNAL["epoch"])
    assert run.binding == octets("binding")
    others = [task(agreement=bytes(32)), task(epoch=9), task()]
    assert len({run.binding, *(other.binding for other in others)}) == 4


def test_known_answers_of_holder_b():
    a, b = (bytes.fromhex(OWN[name]) for name in ("scalar_a", "scalar_b"))
    items = [bytes.fromhex(row["item"]) for row in ROWS]
    block = sealing.block_bytes(items)
    points, sealed = sealing.mask_and_seal(KERNEL, b, octets("item_key"), items, 0, block, octets("binding"))
    assert block == EXTERNAL["block_bytes"]
    assert sealed == column("sealed").tobytes()
    assert len(sealed) == len(items) * sealing.sealed_bytes(block)
    tags, locked = sealing.tag_and_lock(KERNEL, a, points, column("sealed"), octets("binding"))
    assert tags.tobytes() == column("tag").tobytes()
    assert locked.tobytes() == column("locked").tobytes()


def test_known_answers_of_tag_and_key():
    a, b = (bytes.fromhex(OWN[name]) for name in ("scalar_a", "scalar_b"))
    once = KERNEL.mask(a, KERNEL.hash([bytes.fromhex(row["item"]) for row in ROWS]))
    tags, keys = sealing.tag_and_key(KERNEL, b, once, octets("binding"))
    assert tags.tobytes() == column("tag").tobytes()
    assert keys.tobytes() == column("key").tobytes()


def test_known_answers_of_the_receiver():
    assert sealing.public_key(octets("receiver_seed")) == octets("receiver_key")
    item_key = sealing.decapsulate(
        octets("encapsulated_item_key"), octets("receiver_seed"), octets("binding")
    )
    assert item_key == octets("item_key")
    opened = sealing.unlock(column("locked"), column("key"), item_key, octets("binding"))
    assert opened == [bytes.fromhex(row["item"]) for row in ROWS]


def test_tag_and_key_are_hkdf_sha256():
    point = bytes(range(32))
    info = b"tdn/psi.ecdh-external/1 point\0"
    assert sealing._derive(point, b"salt") == HKDF(hashes.SHA256(), 48, b"salt", info).derive(point)


def test_positions_go_on_from_one_batch_to_the_next():
    items = [b"item-%d" % i for i in range(5)]
    args = (KERNEL, b"\7" * 32, bytes(32))
    _, whole = sealing.mask_and_seal(*args, items, 0, 32, b"binding")
    parts = [sealing.mask_and_seal(*args, items[s : s + 2], s, 32, b"binding")[1] for s in (0, 2, 4)]
    assert b"".join(parts) == whole
    nonces = {whole[i : i + 12] for i in range(0, len(whole), 60)}
    assert len(nonces) == len(items)


@pytest.mark.parametrize("other", ["binding", "seed"])
def test_the_item_key_opens_for_this_run_and_receiver_only(other):
    seed, binding = octets("receiver_seed"), b"this run"
    sealed = sealing.encapsulate(bytes(32), sealing.public_key(seed), binding)
    assert sealing.decapsulate(sealed, seed, binding) == bytes(32)
    with pytest.raises(PeerProtocolError) as caught:
        if other == "binding":
            sealing.decapsulate(sealed, seed, b"another run")
        else:
            sealing.decapsulate(sealed, bytes(sealing.SEED_BYTES), binding)
    assert caught.value.reason is Reason.SEAL_BROKEN


def test_an_item_key_of_another_size_is_refused():
    seed = octets("receiver_seed")
    sealed = sealing._HPKE.encrypt(bytes(31), _public(seed), sealing._ITEM_KEY_LABEL + b"run")
    with pytest.raises(PeerProtocolError) as caught:
        sealing.decapsulate(sealed, seed, b"run")
    assert caught.value.reason is Reason.SEAL_BROKEN


def _public(seed: bytes):
    mlkem = sealing.MLKEM768PrivateKey.from_seed_bytes(seed[:64]).public_key()
    x25519 = sealing.X25519PrivateKey.from_private_bytes(seed[64:]).public_key()
    return sealing.MLKEM768X25519PublicKey(mlkem, x25519)


@pytest.mark.parametrize(
    ("longest", "block"), [(0, 32), (1, 32), (30, 32), (31, 64), (62, 64), (63, 128), (4094, 4096)]
)
def test_block_is_the_next_power_of_two(longest, block):
    assert sealing.block_bytes([b"x" * longest] if longest else []) == block


@pytest.mark.parametrize(
    "padded",
    [b"\0\5abc", b"\0\3abcd", b"\0\3abc\0\1", b"\0", bytes(32), b"\xff\xffabc"],
    ids=["longer than there is", "rest not zero", "zero then not", "no length", "empty item", "far too long"],
)
def test_bad_padding_is_refused(padded):
    nonce = bytes(12)
    sealed = nonce + AESGCM(bytes(32)).encrypt(nonce, padded, b"run")
    with pytest.raises(PeerProtocolError) as caught:
        _unlock(sealed)
    assert caught.value.reason is Reason.SEAL_BROKEN


@pytest.mark.parametrize("sealed", [b"", bytes(11), bytes(12), bytes(27)], ids=len)
def test_a_sealed_value_without_room_for_nonce_and_tag_is_refused(sealed):
    with pytest.raises(PeerProtocolError) as caught:
        _unlock(sealed)
    assert caught.value.reason is Reason.SEAL_BROKEN


def _unlock(sealed: bytes) -> list[bytes]:
    value = AESGCM(b"\1" * 32).encrypt(bytes(12), sealed, b"run")
    rows = np.frombuffer(value, np.uint8).reshape(1, -1)
    return sealing.unlock(rows, np.ones((1, 32), np.uint8), bytes(32), b"run")
