"""TLS 1.3 contexts and the reasons behind their refusals.

Python's `ssl` raises what went wrong, so every refused certificate gets a typed reason; gRPC's own
TLS would answer UNAVAILABLE to all of them (docs/design/0001-one-front.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from tdn_interop.errors import PeerProtocolError, Reason, Refused, TdnError, Unavailable, guard
from tdn_interop.transport import pki


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one node: its leaf chain, the key of the leaf, the root it trusts."""

    chain: Path
    key: Path
    root: Path


class Context(ssl.SSLContext):
    """The context of one connection; `leaf` is the certificate that it shows."""

    leaf: x509.Certificate


def server_context(files: TlsFiles, *, mutual: bool = True) -> Context:
    """TLS 1.3 as the listening side; `mutual` demands a client certificate."""
    context = _strict(Context(ssl.PROTOCOL_TLS_SERVER), files)
    context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE
    return context


def client_context(files: TlsFiles) -> Context:
    """TLS 1.3 as the dialling side: shows the leaf, checks the name of the other side."""
    return _strict(Context(ssl.PROTOCOL_TLS_CLIENT), files)


def enrolment_context(root_pem: str | None) -> ssl.SSLContext:
    """TLS 1.3 without an own certificate.

    With None the server is not verified: only good for fetching the root, whose digest the caller
    then compares with the one in its token.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if root_pem is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=root_pem)
    return context


def _strict(context: Context, files: TlsFiles) -> Context:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_ciphers("DEFAULT:@SECLEVEL=2")  # no SHA-1 signatures, no RSA below 2048 bits in a chain
    context.load_cert_chain(files.chain, files.key)
    context.load_verify_locations(files.root)
    context.leaf = x509.load_pem_x509_certificate(files.chain.read_bytes())
    return context


def peer_certificate(connection: ssl.SSLObject) -> pki.PeerCertificate:
    """The verified certificate of the other side. Errors: IDENTITY_MISMATCH, see `pki.read_peer`."""
    certificate = connection.getpeercert(binary_form=True)
    if not certificate:
        guard("TDN-T-IDN-01").refuse(Reason.UNAUTHENTICATED, "the other side showed no certificate")
    ours = connection.context.leaf if isinstance(connection.context, Context) else None
    return dataclasses.replace(pki.read_peer(certificate), ours=ours)


def self_test(files: TlsFiles, node: str) -> pki.PeerCertificate:
    """What a peer that trusts the same roots sees of us. Errors: those of a handshake; OSError for unusable files."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialling = client_context(files).wrap_bio(down, up, server_hostname=node)
    listening = server_context(files).wrap_bio(up, down, server_side=True)
    try:
        for side in (dialling, listening, dialling, listening):  # hello, answer, finished, finished
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        return peer_certificate(dialling)
    except ssl.SSLError as error:
        raise explain(error, node) from error


# What OpenSSL says -> (reason, requirement, our words). The first match decides.
_ALERTS: tuple[tuple[str, Reason, str, str], ...] = (
    ("ALERT_CERTIFICATE_EXPIRED", Reason.CERTIFICATE_EXPIRED, "TDN-T-IDN-01", "it says that our certificate has expired"),
    ("ALERT_CERTIFICATE_REQUIRED", Reason.UNAUTHENTICATED, "TDN-T-IDN-01", "it misses our certificate"),
    ("ALERT_UNKNOWN_CA", Reason.UNAUTHENTICATED, "TDN-T-IDN-01", "it does not know the CA of our certificate"),
    ("ALERT_BAD_CERTIFICATE", Reason.UNAUTHENTICATED, "TDN-T-IDN-01", "it refuses our certificate"),
    ("ALERT_PROTOCOL_VERSION", Reason.UNSUPPORTED_VERSION, "TDN-T-IDN-03", "it refuses our TLS version"),
    ("ALERT_BAD_RECORD_MAC", Reason.E2E_AUTH_FAILED, "TDN-T-RTE-02", "it says that bytes were changed on the way"),
    ("ALERT_DECRYPT_ERROR", Reason.E2E_AUTH_FAILED, "TDN-T-RTE-02", "it says that bytes were changed on the way"),
    ("ALERT", Reason.UNAUTHENTICATED, "TDN-T-IDN-01", "it refuses our part of the TLS handshake"),
)  # fmt: skip
_HANDSHAKE: tuple[tuple[str, Reason, str, str], ...] = (
    ("certificate has expired", Reason.CERTIFICATE_EXPIRED, "TDN-T-IDN-01", "its certificate has expired"),
    ("not yet valid", Reason.UNAUTHENTICATED, "TDN-T-IDN-01", "its certificate is not valid yet; compare the clocks"),
    ("permitted subtree violation", Reason.IDENTITY_MISMATCH, "TDN-T-IDN-06",
     "its certificate names a node outside the domain of the hub that issued it"),
    ("hostname mismatch", Reason.IDENTITY_MISMATCH, "TDN-T-IDN-02", "its certificate names another node"),
    ("self-signed certificate", Reason.UNAUTHENTICATED, "TDN-T-IDN-01", "its certificate comes from an unknown CA"),
    ("self signed certificate", Reason.UNAUTHENTICATED, "TDN-T-IDN-01", "its certificate comes from an unknown CA"),
    ("unable to get local issuer", Reason.UNAUTHENTICATED, "TDN-T-IDN-01", "its certificate comes from an unknown CA"),
    ("path length constraint", Reason.UNAUTHENTICATED, "TDN-T-IDN-06", "its hub let another CA issue its certificate"),
    ("md too weak", Reason.UNAUTHENTICATED, "TDN-T-IDN-03", "its certificate chain uses a weak signature"),
    ("key too small", Reason.UNAUTHENTICATED, "TDN-T-IDN-03", "its certificate chain uses a small key"),
    ("certificate signature failure", Reason.UNAUTHENTICATED, "TDN-T-IDN-01", "its certificate is forged"),
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", Reason.UNAUTHENTICATED, "TDN-T-IDN-01", "it showed no certificate"),
    ("UNSUPPORTED_PROTOCOL", Reason.UNSUPPORTED_VERSION, "TDN-T-IDN-03", "it offers no TLS 1.3"),
    ("WRONG_VERSION_NUMBER", Reason.UNSUPPORTED_VERSION, "TDN-T-IDN-03", "it does not speak TLS 1.3"),
    ("HTTP_REQUEST", Reason.UNSUPPORTED_VERSION, "TDN-T-IDN-03", "it does not speak TLS"),
    ("CERTIFICATE_VERIFY_FAILED", Reason.UNAUTHENTICATED, "TDN-T-IDN-01", "its certificate does not verify"),
    *_ALERTS,
    ("", Reason.E2E_AUTH_FAILED, "TDN-T-RTE-02", "the TLS handshake is malformed or was changed on the way"),
)  # fmt: skip
# After the handshake only the other side's alert about our certificate is its verdict (RFC 8446 section 4.4.2.4:
# a client may learn of it this late); whatever else TLS cannot read was changed on the way.
UNREAD = "UNREAD_ANSWERS"
_STREAM: tuple[tuple[str, Reason, str, str], ...] = (
    *_ALERTS,
    (UNREAD, Reason.RESOURCE_EXHAUSTED, "TDN-T-LIM-03", "it asks TLS for answers and reads none"),
    ("", Reason.E2E_AUTH_FAILED, "TDN-T-RTE-02", "bytes were changed on the way"),
)  # fmt: skip


def explain(error: BaseException, other: str) -> TdnError:
    """The refusal behind a handshake with `other` that failed."""
    if isinstance(error, TdnError):
        return error
    if isinstance(error, ssl.SSLError):
        return _verdict(error, other, _HANDSHAKE)
    if isinstance(error, TimeoutError):
        return Unavailable(Reason.DEADLINE, f"{other}: no TLS handshake in time", "TDN-T-DDL-02")
    why = getattr(error, "strerror", None) or "the connection ended during the TLS handshake"
    return Unavailable(Reason.UNREACHABLE, f"{other}: {why}", "TDN-T-ENC-03")


def broken(error: ssl.SSLError, other: str) -> TdnError:
    """The refusal behind a TLS stream with `other` that broke after its handshake."""
    return _verdict(error, other, _STREAM)


def _verdict(error: ssl.SSLError, other: str, table: tuple[tuple[str, Reason, str, str], ...]) -> TdnError:
    said = f"{getattr(error, 'verify_message', '') or ''} {error}".lower()
    reason, requirement, words = next(row[1:] for row in table if row[0].lower() in said)
    kind = PeerProtocolError if reason is Reason.E2E_AUTH_FAILED else Refused
    return kind(reason, f"{other}: {words}", requirement)
