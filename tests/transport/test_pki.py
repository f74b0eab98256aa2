"""What our CAs issue, what they can never issue, and what is read from a certificate or a request."""

import contextlib
import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from tdn_interop.errors import Reason, TdnError
from tdn_interop.transport import pki
from tests.interop.forge import leaf
from tests.interop.fronts import HUB, ROOT, dns


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind)


def test_a_root_covers_its_hierarchy_and_allows_one_ca_below():
    constraint = extension(ROOT.certificate, x509.NameConstraints)
    assert constraint.critical
    assert [name.value for name in constraint.value.permitted_subtrees] == ["cn"]
    basic = extension(ROOT.certificate, x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 1)


def test_an_intermediate_names_only_its_own_domain():
    constraint = extension(HUB.certificate, x509.NameConstraints)
    assert constraint.critical
    assert [name.value for name in constraint.value.permitted_subtrees] == ["shandong.cn"]
    assert constraint.value.excluded_subtrees is None
    basic = extension(HUB.certificate, x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    usage = extension(HUB.certificate, x509.KeyUsage).value
    assert usage.key_cert_sign
    assert not usage.digital_signature


def test_a_leaf_names_one_node_for_a_day():
    key = pki.new_key()
    made = pki.issue_leaf(HUB, "bank.shandong.cn", key.public_key())
    assert list(extension(made, x509.SubjectAlternativeName).value) == dns("bank.shandong.cn")
    assert not extension(made, x509.BasicConstraints).value.ca
    usages = set(extension(made, x509.ExtendedKeyUsage).value)
    assert usages == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    life = made.not_valid_after_utc - dt.datetime.now(dt.UTC)
    assert dt.timedelta(hours=23) < life <= pki.LEAF_LIFE
    peer = pki.read_peer(pki.der(made))
    assert peer.node == "bank.shandong.cn"
    assert peer.tls_key_sha256 == pki.spki_sha256(made)
    assert peer.expires_at_ms == made.not_valid_after_utc.timestamp() * 1000


NAMES = {
    "none": ([], Reason.IDENTITY_MISMATCH),
    "two": (dns("a.cn", "b.cn"), Reason.IDENTITY_MISMATCH),
    "the same twice": (dns("a.cn", "a.cn"), Reason.IDENTITY_MISMATCH),
    "a URI": ([x509.UniformResourceIdentifier("tdn://a.cn")], Reason.IDENTITY_MISMATCH),
    "a mail address": ([x509.RFC822Name("a@a.cn")], Reason.IDENTITY_MISMATCH),
    "a wildcard": (dns("*.cn"), Reason.INVALID_REQUEST),
    "upper case": (dns("A.cn"), Reason.INVALID_REQUEST),
    "an empty label": (dns("a..cn"), Reason.INVALID_REQUEST),
    "a zero byte": (dns("a.cn\0.b.cn"), Reason.INVALID_REQUEST),
}


@pytest.mark.parametrize("which", NAMES)
def test_a_certificate_that_does_not_name_exactly_one_node(which):
    names, reason = NAMES[which]
    with pytest.raises(TdnError) as caught:
        pki.read_peer(pki.der(leaf(HUB, names, pki.new_key())))
    assert caught.value.reason is reason


GOOD = pki.der(pki.issue_leaf(HUB, "bank.shandong.cn", pki.new_key().public_key()))


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")  # odd serial numbers
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_damaged_certificate_is_read_or_refused(at, change):
    damaged = GOOD[:at] + bytes([GOOD[at] ^ change]) + GOOD[at + 1 :]
    with contextlib.suppress(TdnError):
        assert pki.read_peer(damaged).node


def request(key, sign_hash=None):
    builder = x509.CertificateSigningRequestBuilder().subject_name(pki._name("bank.cn"))
    return builder.sign(key, sign_hash).public_bytes(serialization.Encoding.DER)


def test_the_key_of_a_request():
    key = pki.new_key()
    assert pki.requested_key(pki.request("bank.cn", key)) == key.public_key()


@pytest.mark.parametrize(
    "csr",
    [
        b"",
        b"\x30\x00",
        request(ed25519.Ed25519PrivateKey.generate()),
        request(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
        request(rsa.generate_private_key(65537, 2048), hashes.SHA256()),
    ],
)
def test_a_request_for_another_kind_of_key(csr):
    with pytest.raises(TdnError) as caught:
        pki.requested_key(csr)
    assert (caught.value.reason, caught.value.requirement) == (Reason.INVALID_REQUEST, "TDN-T-IDN-07")


CSR = pki.request("bank.cn", pki.new_key())


@given(st.integers(0, len(CSR) - 1), st.integers(1, 255))
def test_a_damaged_request_never_verifies(at, change):
    damaged = CSR[:at] + bytes([CSR[at] ^ change]) + CSR[at + 1 :]
    with pytest.raises(TdnError) as caught:
        pki.requested_key(damaged)
    assert caught.value.reason is Reason.INVALID_REQUEST


def test_a_ca_with_a_key_of_another_kind(tmp_path):
    (tmp_path / "ca.pem").write_bytes(pki.pem(ROOT.certificate))
    key = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "ca.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(TdnError) as caught:
        pki.load_authority(tmp_path / "ca.pem", tmp_path / "ca.key")
    assert caught.value.reason is Reason.CONFIG_INVALID
