"""X.509 of the mesh: a root for each top, a constrained intermediate for each hub, 24-hour leaves.

A leaf has exactly one DNS name, the node id, and no other name. An intermediate carries a name
constraint (RFC 5280 section 4.2.1.10) for the hub's own name and a path length of 0, so a hub can
name nobody outside its domain: the verifier of TLS refuses, not only our code.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tdn_interop import ids
from tdn_interop.errors import PeerProtocolError, Reason, Refused, TdnError, guard

LEAF_LIFE = dt.timedelta(hours=24)
CA_LIFE = dt.timedelta(days=365)
ROOT_LIFE = dt.timedelta(days=3650)
# Clocks of honest nodes differ; a fresh certificate must not be "not yet valid" at a slow one.
SKEW = dt.timedelta(minutes=10)
# What parsing foreign X.509 raises.
UNREADABLE = (
    ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.ExtensionNotFound, x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that may sign, and its key.

    `above` are the certificates between it and a root; at a top that has a new root, the one by which the old
    root vouches for the new one.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    above: tuple[x509.Certificate, ...] = ()


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What the verified certificate of a connection says, and which one of ours the other side was shown."""

    node: str
    tls_key_sha256: bytes
    expires_at_ms: int
    issued_at_ms: int = 0
    ours: x509.Certificate | None = None

    def at(self, share: float) -> int:
        """When this share of its life is over, in milliseconds since the epoch."""
        return int(self.issued_at_ms + (self.expires_at_ms - self.issued_at_ms) * share)


PrivateKey = ec.EllipticCurvePrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """A P-256 key for TLS or for a CA."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8 PEM, not encrypted: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_authority(certificate: Path, key: Path) -> Authority:
    """Read a CA of this node from its PEM files. What stands above it counts until it ends."""
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        guard("TDN-T-IDN-03").refuse(Reason.CONFIG_INVALID, f"{key} holds no elliptic-curve key", TdnError)
    own, *above = x509.load_pem_x509_certificates(certificate.read_bytes())
    now = dt.datetime.now(dt.UTC)
    return Authority(own, loaded, tuple(c for c in above if c.not_valid_after_utc > now))


def create_root(top: str) -> Authority:
    """A self-signed root for the hierarchy below `top`."""
    key = new_key()
    certificate = _build(_name(f"{top} root"), _name(f"{top} root"), key.public_key(), ROOT_LIFE)
    certificate = _as_ca(certificate, path_length=1, permitted=top)
    return Authority(certificate.sign(key, hashes.SHA256()), key)


def cross_sign(old: Authority, new: x509.Certificate, life: dt.timedelta) -> x509.Certificate:
    """The new root of a top as the old one vouches for it, so that who knows the old one accepts the new one.

    Its subject and its issuer have the same name: such a certificate does not count for the path length
    (RFC 5280 section 4.2.1.9).
    """
    key = new.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101  a root of ours
    constraint = old.certificate.extensions.get_extension_for_class(x509.NameConstraints)
    builder = _build(new.subject, old.certificate.subject, key, life)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
    builder = builder.add_extension(_usage(key_cert_sign=True), critical=True)
    builder = builder.add_extension(constraint.value, critical=True)
    return builder.add_extension(_authority_id(old), critical=False).sign(old.key, hashes.SHA256())


def read(certificate_der: bytes) -> x509.Certificate:
    """A certificate that somebody sent. Errors: INVALID_REQUEST."""
    try:
        return x509.load_der_x509_certificate(certificate_der)
    except UNREADABLE:
        guard("TDN-T-ENC-01").refuse(
            Reason.INVALID_REQUEST, "the issuer sent something that is no certificate"
        )


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """True when the key of `issuer` signed the certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def lineage(authority: x509.Certificate) -> bytes:
    """SHA-256 over the key of a CA and the name of the key above it: the same after a mere renewal of the CA."""
    try:
        above = authority.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:  # a root
        above = None
    return hashlib.sha256(spki_sha256(authority) + (above or b"")).digest()


def renewal_due_ms(certificate: x509.Certificate, share: float = 2 / 3) -> int:
    """When this share of its life is over, counted from its issue and not from the slack before it."""
    ends = certificate.not_valid_after_utc
    starts = min(certificate.not_valid_before_utc + SKEW, ends)
    return int((starts + (ends - starts) * share).timestamp() * 1000)


def read_root(root_der: bytes, top: str) -> x509.Certificate:
    """A root that can vouch for `top` and nodes below it only. Errors: INVALID_REQUEST.

    The constraint must be critical: a verifier that does not know it must not accept the chain (RFC 5280
    section 4.2.1.10).
    """
    try:
        certificate = x509.load_der_x509_certificate(root_der)
        names = certificate.extensions.get_extension_for_class(x509.NameConstraints)
        may_sign = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        bound = names.critical and names.value == x509.NameConstraints([x509.DNSName(top)], None)
        ok = may_sign and bound and isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    except UNREADABLE:
        ok = False
    guard("TDN-T-IDN-08").check(
        ok, Reason.INVALID_REQUEST, f"this is no root that is constrained to names of {top}"
    )
    return certificate


def request(node: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #10 request for `node`, DER."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(node))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def requested_key(csr_der: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a request whose own signature verifies. Errors: INVALID_REQUEST."""
    try:
        csr = x509.load_der_x509_csr(csr_der)
        key = csr.public_key()
        ok = csr.is_signature_valid and isinstance(key, ec.EllipticCurvePublicKey)
        ok = ok and isinstance(key.curve, ec.SECP256R1)  # type: ignore[union-attr]  # narrowed just before
    except UNREADABLE:
        ok = False
    guard("TDN-T-IDN-07").check(
        ok, Reason.INVALID_REQUEST, "the certificate request is not a valid P-256 request"
    )
    return key  # type: ignore[return-value]  # narrowed by the check


def issue_leaf(
    issuer: Authority, node: str, key: ec.EllipticCurvePublicKey, life: dt.timedelta = LEAF_LIFE,
    starts: dt.datetime | None = None,
) -> x509.Certificate:  # fmt: skip
    """A leaf for `node`, good for client and server, with exactly one DNS name. It does not outlive its issuer."""
    ends = issuer.certificate.not_valid_after_utc
    builder = _build(_name(node), issuer.certificate.subject, key, life, starts, ends)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(node)]), critical=False)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(_authority_id(issuer), critical=False)
    )
    return builder.sign(issuer.key, hashes.SHA256())


def issue_intermediate(issuer: Authority, hub: str, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
    """The CA certificate of `hub`: it can name only itself and nodes below."""
    ends = issuer.certificate.not_valid_after_utc
    builder = _build(_name(f"{hub} hub"), issuer.certificate.subject, key, CA_LIFE, latest=ends)
    builder = _as_ca(builder, path_length=0, permitted=hub)
    return builder.add_extension(_authority_id(issuer), critical=False).sign(issuer.key, hashes.SHA256())


def read_peer(certificate_der: bytes) -> PeerCertificate:
    """The node a verified certificate names. Errors: IDENTITY_MISMATCH unless it has exactly one DNS name."""
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        key = spki_sha256(certificate)
    except UNREADABLE:
        names = []
    if len(names) != 1 or not isinstance(names[0], x509.DNSName):
        guard("TDN-T-IDN-02").refuse(
            Reason.IDENTITY_MISMATCH,
            "the certificate does not name exactly one node, by one DNS name",
            Refused,
        )
    node = ids.node_id(names[0].value, PeerProtocolError)
    return PeerCertificate(node, key, renewal_due_ms(certificate, 1), renewal_due_ms(certificate, 0))


def spki_sha256(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo (RFC 7469 section 2.4 pins the same bytes)."""
    spki = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(spki).digest()


def sha256(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate in DER form."""
    return certificate.fingerprint(hashes.SHA256())


def der(certificate: x509.Certificate) -> bytes:
    """DER bytes."""
    return certificate.public_bytes(serialization.Encoding.DER)


def pem(*certificates: x509.Certificate) -> bytes:
    """PEM chain."""
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _build(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: dt.timedelta,
    starts: dt.datetime | None = None, latest: dt.datetime | None = None,
) -> x509.CertificateBuilder:  # fmt: skip
    now = starts or dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now if starts else now - SKEW)
        .not_valid_after(min(now + life, latest) if latest else now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _as_ca(builder: x509.CertificateBuilder, path_length: int, permitted: str) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.NameConstraints([x509.DNSName(permitted)], None), critical=True)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature, key_cert_sign=key_cert_sign, crl_sign=key_cert_sign,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _authority_id(issuer: Authority) -> x509.AuthorityKeyIdentifier:
    own = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
