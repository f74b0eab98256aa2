"""The scanner sees: each form of a secret, anywhere; and it does not see what is not there."""

import base64
import gzip
import hashlib
import os
import random
import zlib
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.interop.scanner import Scanner, forms

SECRET = random.Random("scanner").randbytes(20)
OTHER = random.Random("other").randbytes(20)
SEES = Scanner({"secret": SECRET, "other": OTHER})


@pytest.mark.parametrize("form", forms(SECRET))
@pytest.mark.parametrize("before", [0, 1, 7, 8, 4_099])
def test_every_form_is_found_at_every_place(form, before):
    data = os.urandom(before) + forms(SECRET)[form] + os.urandom(5)
    assert ("secret", form) in SEES.find(data)
    assert SEES.names(data) == {"secret"}


@pytest.mark.parametrize("form", forms(SECRET))
def test_one_missing_byte_is_not_a_hit(form):
    cut = forms(SECRET)[form][:-1]
    assert ("secret", form) not in SEES.find(b"?" + cut + b"?")


@given(st.binary(max_size=40), st.binary(max_size=40), st.sampled_from(["b64", "url", "mime"]))
def test_base64_of_a_text_that_holds_it(before, after, kind):
    encode = {"b64": base64.b64encode, "url": base64.urlsafe_b64encode, "mime": base64.encodebytes}[kind]
    assert SEES.names(encode(before + SECRET + after)) == {"secret"}


@pytest.mark.parametrize("pack", [zlib.compress, partial(zlib.compress, level=9), gzip.compress])
def test_streams_are_looked_into(pack):
    plain = b"text " * 900 + SECRET.hex().encode() + OTHER + b"text " * 900
    packed = b"x\x9c?" + pack(plain)
    assert SECRET.hex().encode() not in packed
    assert SEES.find(packed + b"more") == {("secret", "plain hex"), ("other", "plain bytes")}
    cut = pack(SECRET + os.urandom(20_000))[:10_000]
    assert SEES.names(cut) == {"secret"}


@pytest.mark.parametrize(
    ("form", "published"),
    [
        ("sm3 hex", "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"),  # GB/T 32905, A.1
        ("sha256 hex", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),  # FIPS 180-4
        ("sha1 hex", "a9993e364706816aba3e25717850c26c9cd0d89d"),  # FIPS 180-4
        ("md5 hex", "900150983cd24fb0d6963f7d28e17f72"),  # RFC 1321
    ],
)
def test_digests_are_those_of_the_standards(form, published):
    assert forms(b"abc")[form] == published.encode()


def test_random_bytes_hold_nothing():
    noise = random.Random("noise").randbytes(1 << 20)
    many = Scanner({str(n): random.Random(n).randbytes(16) for n in range(500)})
    assert many.find(noise) == set()
    assert many.names(noise + hashlib.sha256(random.Random(77).randbytes(16)).digest()) == {"77"}


@pytest.mark.parametrize("data", [b"", b"1", b"1234567", b"12345678"])
def test_little_data(data):
    assert SEES.find(data) == set()


def test_what_is_too_short_to_tell_from_noise_is_refused():
    with pytest.raises(ValueError, match="tail"):
        Scanner({"tail": b"N1"})
