"""Keys for letters: made, rotated, destroyed; what is sealed opens with the right key and binding only."""

import hashlib
import json
import stat

import pytest

from tdn_interop.app.post import sealing
from tdn_interop.app.post.sealing import SealingKeys, seal
from tdn_interop.errors import ConfigError, Reason, TdnError

DAY = 86_400_000


class Clock:
    now = 1_800_000_000_000

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def keys(tmp_path, clock):
    return SealingKeys(tmp_path / "sealing.key", clock)


def digest(public):
    return hashlib.sha256(public).digest()


def test_what_is_sealed_opens_for_the_same_binding_only(keys):
    public, _ = keys.current()
    sealed = seal(b"secret", public, b"binding")
    assert len(sealed) == len(b"secret") + sealing.OVERHEAD
    assert keys.open(digest(public), sealed, b"binding") == b"secret"
    for broken in (sealed[:-1], sealed[:10], b"", bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(TdnError) as caught:
            keys.open(digest(public), broken, b"binding")
        assert caught.value.reason is Reason.SEAL_BROKEN
    for key, binding in ((digest(public), b"another"), (b"x" * 32, b"binding")):
        with pytest.raises(TdnError):
            keys.open(key, sealed, binding)


def test_the_file_is_private_and_read_again(keys, tmp_path, clock):
    public, _ = keys.current()
    file = tmp_path / "sealing.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = SealingKeys(file, clock)
    assert again.current()[0] == public
    assert again.open(digest(public), seal(b"x", public, b""), b"") == b"x"


def test_keys_rotate_and_are_destroyed_when_no_letter_can_need_them(keys, tmp_path, clock):
    first, not_after = keys.current()
    begin = clock.now
    sealed = seal(b"x", first, b"")
    clock.now = begin + 29 * DAY
    assert keys.current()[0] == first
    clock.now = begin + 31 * DAY
    second, _ = keys.current()
    assert second != first
    assert keys.open(digest(first), sealed, b"") == b"x"
    clock.now = not_after + sealing.LONGEST_LETTER_MS + 1
    third, _ = keys.current()
    with pytest.raises(TdnError):
        keys.open(digest(first), sealed, b"")
    assert len(json.loads((tmp_path / "sealing.key").read_text())) == 2
    assert third not in (first, second)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"seed": "00", "not_after_ms": 1}]', '[{"seed": "xx"}]'])
def test_a_damaged_file_is_not_overwritten(tmp_path, clock, text):
    file = tmp_path / "sealing.key"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        SealingKeys(file, clock)
    assert caught.value.reason is Reason.CONFIG_INVALID
    assert file.read_text() == text


@pytest.mark.parametrize("public", [b"\xff" * 1216, b"short", b""])
def test_a_key_that_is_none_is_refused(public):
    with pytest.raises(TdnError) as caught:
        seal(b"x", public, b"")
    assert caught.value.reason is Reason.INVALID_REQUEST
