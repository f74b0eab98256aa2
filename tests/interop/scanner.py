"""Looks for secrets in bytes, in every form in which they may have slipped out.

A secret is looked for as it is, reversed, as a decimal number, and as its SHA-256, SM3, MD5 or SHA-1; the
bytes of each of these plain, in hexadecimal, and in both base64 alphabets at each of the three alignments.
Base64 may be broken into lines; zlib and gzip streams are looked into.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
from cryptography.hazmat.primitives import hashes

SHORTEST = 8  # bytes of a needle; shorter ones turn up in random bytes
_WINDOW = 8
_FILTER_BITS = 24
_DEFLATED = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]")  # RFC 1952 and RFC 1950, section 2.2 each
_EITHER = 32 + zlib.MAX_WBITS  # zlib finds out which of the two
_CHUNK, _MOST = 256, 1 << 20
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio: spreads windows over the filter


def _sm3(value: bytes) -> bytes:
    digest = hashes.Hash(hashes.SM3())
    digest.update(value)
    return digest.finalize()


_DERIVED = {
    "plain": bytes,
    "reversed": lambda value: value[::-1],
    "sha256": lambda value: hashlib.sha256(value).digest(),
    "sm3": _sm3,
    "md5": lambda value: hashlib.md5(value).digest(),
    "sha1": lambda value: hashlib.sha1(value).digest(),
}


def forms(value: bytes) -> dict[str, bytes]:
    """Every form of `value` that is looked for, by name."""
    found = {
        "decimal": str(int.from_bytes(value, "big")).encode(),
        "decimal little-endian": str(int.from_bytes(value, "little")).encode(),
    }
    for derived, derive in _DERIVED.items():
        for coded, needle in _coded(derive(value)):
            found[f"{derived} {coded}"] = needle
    return found


def _coded(value: bytes) -> Iterator[tuple[str, bytes]]:
    yield "bytes", value
    yield "hex", value.hex().encode()
    yield "HEX", value.hex().upper().encode()
    for before in range(3):
        # Characters that also hold bits of a neighbour are left out: 6 bits each, from the front and the end.
        first, end = -(-before * 8 // 6), (before + len(value)) * 8 // 6
        for name, alphabet in (("base64", b"+/"), ("base64url", b"-_")):
            yield f"{name} {before}", base64.b64encode(bytes(before) + value, alphabet)[first:end]


class Scanner:
    """Knows secrets by name; `find` is one pass over the bytes, however many secrets there are."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self._needles: dict[bytes, list[tuple[bytes, str, str]]] = defaultdict(list)
        for name, value in secrets.items():
            for form, needle in forms(value).items():
                if len(needle) < SHORTEST:
                    raise ValueError(f"{name} is too short to be looked for")
                self._needles[needle[:_WINDOW]].append((needle, name, form))
        self._filter = np.zeros(1 << _FILTER_BITS, bool)
        self._filter[_places(np.frombuffer(b"".join(self._needles), "<u8"))] = True

    def find(self, data: bytes) -> set[tuple[str, str]]:
        """(secret, form) for everything that is in `data`."""
        texts = {data, data.translate(None, b"\r\n"), *_inflated(data)}
        return {hit for text in texts for hit in self._hits(text)}

    def names(self, data: bytes) -> set[str]:
        """The secrets that are in `data`, in whatever form."""
        return {name for name, _ in self.find(data)}

    def _hits(self, text: bytes) -> Iterator[tuple[str, str]]:
        for offset in range(min(_WINDOW, max(0, len(text) - _WINDOW + 1))):
            count = (len(text) - offset) // _WINDOW
            windows = np.frombuffer(text, "<u8", count, offset)
            for position in np.flatnonzero(self._filter[_places(windows)]).tolist():
                at = position * _WINDOW + offset
                for needle, name, form in self._needles.get(text[at : at + _WINDOW], ()):
                    if text.startswith(needle, at):
                        yield name, form


def _inflated(data: bytes) -> Iterator[bytes]:
    """What every stream in `data` holds, as far as it can be read."""
    for match in _DEFLATED.finditer(data):
        stream, plain = zlib.decompressobj(_EITHER), b""
        with contextlib.suppress(zlib.error):  # most places only look like a stream; some streams are cut
            for at in range(match.start(), len(data), _CHUNK):
                plain += stream.decompress(data[at : at + _CHUNK], _MOST)
                if stream.eof or len(plain) >= _MOST:
                    break
        if len(plain) >= SHORTEST:
            yield plain


def _places(windows: np.ndarray) -> np.ndarray:
    return (windows * _ODD) >> np.uint64(64 - _FILTER_BITS)
