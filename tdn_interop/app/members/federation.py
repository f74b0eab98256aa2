"""Whom a hierarchy trusts: the bundle that a top signs, and agreements with other tops.

A top states in a bundle its own roots and those of the tops it is federated with. Every node below takes
the newest bundle: its TLS accepts the roots, its `Trust` the tops' signatures. Federation is agreed from
both sides: each operator hands the other a text and compares its fingerprints on another way.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from cryptography import x509

from tdn_interop import identity
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.members.standing import Standing
from tdn_interop.app.store.engine import Store
from tdn_interop.config import NodeConfig
from tdn_interop.errors import ConfigError, Reason, Refused, TdnError, guard
from tdn_interop.identity import Signed, fingerprint
from tdn_interop.transport import pki, records_wire, trust_wire
from tdn_interop.transport.notices import TRUST_BUNDLE, Notices
from tdn_interop.transport.trust import Membership, Trust, now_ms
from tdn_interop.transport.trust_wire import TrustBundle, TrustedTop

FOLLOW_S = 60.0


class Federation:
    """Keeps the trust of one node at the newest bundle of its top; at a top, issues the bundles.

    `on_roots(gone)` is called when the roots are others than before; `gone` when one of them counts no longer.
    """

    def __init__(
        self, config: NodeConfig, standing: Standing, trust: Trust, notices: Notices, log: EvidenceLog
    ) -> None:
        self._config = config
        self._key = standing.key
        self._roots = standing.files.root
        self._is_top = not standing.membership.parent
        self._trust = trust
        self._notices = notices
        self._log = log
        self.on_roots: Callable[[bool], object] = bool
        self._due: dict[str, TrustedTop] = {}  # what other tops have said since we followed them
        self._follow_at = 0.0
        notices.add(TRUST_BUNDLE, lambda signed: trust.bundle(signed).version, self._took)

    def start(self) -> None:
        """A top publishes the roots that it has now, if they are others than in its last bundle.

        The newest first; the one before it stays as long as it vouches for the newest.
        """
        if not self._is_top:
            return
        ca = pki.load_authority(self._config.file("ca.pem"), self._config.file("ca.key"))
        newest = pki.der(ca.certificate)
        before = self.bundle.own.roots if self.signed else ()
        older = tuple(root for root in before if root != newest)[:1] if ca.above else ()
        own = TrustedTop(self._key.node, self._key.public_key, (newest, *older))
        if own.roots != before:
            self.issue((own, *(self.bundle.tops[1:] if self.signed else ())))

    @property
    def signed(self) -> Signed | None:
        """The newest bundle of our top; None while the enrolment token is all there is."""
        return self._notices.newest(TRUST_BUNDLE, self._trust.top)

    @property
    def bundle(self) -> TrustBundle:
        """The newest bundle of our top. Errors: STATE_CONFLICT when there is none yet."""
        signed = self.signed
        if signed is None:
            words = f"no trust bundle of {self._trust.top} has come yet"
            guard("TDN-T-IDN-08").refuse(Reason.STATE_CONFLICT, words, Refused)
        return trust_wire.decode_bundle(signed.statement)

    def issue(self, tops: Sequence[TrustedTop]) -> None:
        """Sign and publish the next bundle. Errors: UNSUPPORTED at a node that is no top, INVALID_REQUEST."""
        self._publish(self._next(tops))

    def _next(self, tops: Sequence[TrustedTop]) -> TrustBundle:
        guard("TDN-T-IDN-08").check(
            self._is_top, Reason.UNSUPPORTED, f"{self._key.node} is no top and issues no bundle", Refused
        )
        version = self.bundle.version + 1 if self.signed else 1
        bundle = TrustBundle(self._key.node, version, now_ms(), tuple(tops))
        return trust_wire.decode_bundle(trust_wire.encode_bundle(bundle))  # as everybody will check it

    def _publish(self, bundle: TrustBundle) -> None:
        self._notices.offer(
            TRUST_BUNDLE, self._key.sign(identity.TRUST_BUNDLE, trust_wire.encode_bundle(bundle))
        )

    def card(self) -> str:
        """What to hand to the operator of another top: a text that names this top, its key and its roots."""
        guard("TDN-T-IDN-08").check(
            self._is_top, Reason.UNSUPPORTED, f"{self._key.node} is no top; ask the operator of its top", Refused
        )  # fmt: skip
        own = TrustBundle(self._key.node, 0, now_ms(), (self.bundle.own,))
        signed = self._key.sign(identity.FEDERATION, trust_wire.encode_bundle(own))
        return base64.urlsafe_b64encode(records_wire.encode_signed(signed)).decode().rstrip("=")

    async def add(self, other: TrustedTop) -> None:
        """Trust another top from now on, here and below; again after it has new roots.

        Errors: INVALID_REQUEST for ourselves; IDENTITY_MISMATCH when we know it with another identity key.
        """
        bundle = self.bundle
        rest = [top for top in bundle.tops if top.top != other.top]
        known = next((top for top in bundle.tops if top.top == other.top), other)
        check = guard("TDN-T-IDN-08").check
        check(
            other.top != self._key.node,
            Reason.INVALID_REQUEST,
            "a top is not federated with itself",
            ConfigError,
        )
        check(known.identity_key == other.identity_key, Reason.IDENTITY_MISMATCH,
              f"{other.top} is known here with another identity key; end that federation first", Refused)  # fmt: skip
        self._due.pop(other.top, None)
        fresh = self._next((*rest, other))
        await self._log.append("top.federated", other.top, facts(other))
        self._publish(fresh)

    async def end(self, top: str) -> None:
        """Trust another top no longer. Errors: INVALID_REQUEST when it is none that we are federated with."""
        bundle = self.bundle
        rest = [other for other in bundle.tops if other.top != top]
        guard("TDN-T-IDN-08").check(
            top != self._key.node and len(rest) < len(bundle.tops), Reason.INVALID_REQUEST,
            f"{self._key.node} is not federated with {top}", ConfigError,
        )  # fmt: skip
        fresh = self._next(rest)
        await self._log.append("top.parted", top)
        self._publish(fresh)

    def _took(self, signed: Signed) -> None:
        bundle = trust_wire.decode_bundle(signed.statement)
        if bundle.top == self._trust.top:
            self._trust.adopt(bundle)
            before = set(map(pki.der, x509.load_pem_x509_certificates(self._roots.read_bytes())))
            if before != set(bundle.roots):
                write_roots(self._roots, bundle.roots)
                self.on_roots(not before <= set(bundle.roots))
        elif self._is_top and self.signed:
            self._due[bundle.top] = bundle.own
            self.follow()

    def follow(self) -> None:
        """Tops that we are federated with have other roots now: their keys, the same as ever, have said so.

        At most once in `FOLLOW_S`, for where a root goes the connections of our whole tree begin anew.
        """
        tops = tuple(self._due.get(top.top, top) for top in self.bundle.tops)
        if tops == self.bundle.tops:
            self._due.clear()
        elif time.monotonic() >= self._follow_at:
            self._follow_at = time.monotonic() + FOLLOW_S
            self.issue(tops)


def read_card(text: str) -> TrustedTop:
    """What another top says of itself; its fingerprints must be compared before it is trusted. Errors: INVALID_REQUEST."""
    try:
        data = base64.b64decode(text.strip() + "=" * (-len(text.strip()) % 4), altchars=b"-_", validate=True)
        signed = records_wire.decode_signed(data)
        own = trust_wire.decode_bundle(signed.statement).own
        good = own.top == signed.signer and identity.verify(identity.FEDERATION, signed, own.identity_key)
    except (binascii.Error, ValueError, TdnError):
        good = False
    if not good:
        words = "this text does not come from tdn registry export"
        guard("TDN-T-IDN-08").refuse(Reason.INVALID_REQUEST, words, ConfigError)
    return own


def fingerprints(top: TrustedTop) -> tuple[str, list[str]]:
    """Hexadecimal SHA-256 of the identity key and of each root, to compare out of band."""
    return fingerprint(top.identity_key), [hashlib.sha256(root).hexdigest() for root in top.roots]


def facts(top: TrustedTop) -> dict[str, str]:
    """The fingerprints for the evidence log."""
    identity_sha256, roots = fingerprints(top)
    return {"identitySha256": identity_sha256, "rootSha256": " ".join(roots)}


def write_roots(file: Path, roots: Sequence[bytes]) -> None:
    """The roots that TLS accepts, PEM; each new connection reads them. Atomic."""
    fresh = file.with_suffix(".fresh")
    fresh.write_bytes(pki.pem(*map(x509.load_der_x509_certificate, roots)))
    fresh.replace(file)


def trusted_keys(config: NodeConfig) -> list[bytes]:
    """Identity keys of the tops that a node trusts, from its folder. Errors: NOT_ENROLLED, CONFIG_INVALID."""
    place = Membership.load(config.file("membership.json"))
    trust = Trust(place.top, place.top_identity_key, lambda _node, key: key)
    notices = Notices(config.file("notices"), place.top, trust.knows)
    notices.add(TRUST_BUNDLE, lambda signed: trust.bundle(signed).version)
    if own := notices.newest(TRUST_BUNDLE, place.top):
        trust.adopt(trust.bundle(own))
    return trust.keys


async def federate(one: NodeConfig, other: NodeConfig) -> None:
    """Federate two tops of one operator while neither runs. Errors: STORE_UNAVAILABLE when one does."""
    async with _stopped(one) as first, _stopped(other) as second:
        await first.add(read_card(second.card()))
        await second.add(read_card(first.card()))


@contextlib.asynccontextmanager
async def _stopped(config: NodeConfig) -> AsyncIterator[Federation]:
    standing = Standing.load(config, expired=True)
    store = Store.open(config.database_url)
    try:
        place = standing.membership
        trust = Trust(place.top, place.top_identity_key, lambda _node, key: key)
        notices = Notices(config.file("notices"), place.top, trust.knows)
        federation = Federation(config, standing, trust, notices, await EvidenceLog.open(store, standing.key))
        federation.start()
        yield federation
    finally:
        store.close()
