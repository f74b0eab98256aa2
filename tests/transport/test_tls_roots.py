"""Several roots in one trust file: each one counts, and only for the names that it is constrained to."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tdn_interop.errors import Reason, TdnError
from tdn_interop.transport import pki, tls
from tests.interop.forge import leaf, raw_context, until, write
from tests.interop.fronts import CLIENT, HUB, ROOT, VICTIM, dns, exchange, fronted, made

FOREIGN = pki.create_root("hk")


@pytest.fixture
async def victim(tmp_path):
    """Trusts its own root and that of another top."""
    files = made(tmp_path / "victim", dns(VICTIM))
    files.root.write_bytes(pki.pem(ROOT.certificate, FOREIGN.certificate))
    async with fronted(tmp_path / "f", files) as parts:
        yield parts


def below(folder, name, *issuers):
    """A leaf for `name` by the last one of `issuers`, below the others."""
    key = pki.new_key()
    chain = [issuer.certificate for issuer in reversed(issuers)]
    return write(folder, [leaf(issuers[-1], dns(name), key), *chain], key, ROOT.certificate)


async def test_nodes_below_either_root_are_served(victim, tmp_path):
    _, port, behind = victim
    for number, files in enumerate(
        (below(tmp_path / "own", CLIENT, HUB), below(tmp_path / "foreign", "clinic.hk", FOREIGN)), 1
    ):
        assert await exchange(port, raw_context(files)) == b"hello"
        assert len(behind.reached) == number


def hub_of(root, name):
    key = pki.new_key()
    return pki.Authority(pki.issue_intermediate(root, name, key.public_key()), key)


@pytest.mark.parametrize("issuers", [(FOREIGN,), (FOREIGN, hub_of(FOREIGN, "shandong.cn"))])
async def test_a_foreign_root_cannot_name_a_node_of_ours(victim, tmp_path, issuers):
    """The constraint stands in the trust anchor, and OpenSSL holds it against the whole chain."""
    _, port, behind = victim
    answer = await exchange(port, raw_context(below(tmp_path / "bad", CLIENT, *issuers)))
    assert isinstance(answer, Exception)
    await until(lambda: behind.refused)
    assert behind.said() == [("IDENTITY_MISMATCH", "TDN-T-IDN-06")]
    assert behind.reached == []


async def test_our_root_cannot_name_a_foreign_node(victim, tmp_path):
    _, port, behind = victim
    await exchange(port, raw_context(below(tmp_path / "bad", "clinic.hk", ROOT)))
    await until(lambda: behind.refused)
    assert behind.said() == [("IDENTITY_MISMATCH", "TDN-T-IDN-06")]


async def test_a_root_that_is_taken_out_of_the_file_counts_no_longer(tmp_path):
    """Without a restart: the file is read for each connection."""
    files = made(tmp_path / "victim", dns(VICTIM))
    files.root.write_bytes(pki.pem(ROOT.certificate, FOREIGN.certificate))
    guest = raw_context(below(tmp_path / "foreign", "clinic.hk", FOREIGN))
    async with fronted(tmp_path / "f", files) as (_, port, behind):
        assert await exchange(port, guest) == b"hello"
        files.root.write_bytes(pki.pem(ROOT.certificate))
        await exchange(port, guest)
        await until(lambda: behind.refused)
        assert behind.said() == [("UNAUTHENTICATED", "TDN-T-IDN-01")]


def constrained(*extensions):
    """A root with other extensions than ours."""
    key = pki.new_key()
    builder = pki._build(pki._name("root"), pki._name("root"), key.public_key(), pki.ROOT_LIFE)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return pki.der(builder.sign(key, hashes.SHA256()))


CA = (x509.BasicConstraints(ca=True, path_length=1), True)


def names(*permitted, excluded=None):
    return x509.NameConstraints([x509.DNSName(name) for name in permitted], excluded)


def test_what_is_read_as_a_root():
    good = pki.der(FOREIGN.certificate)
    assert pki.read_root(good, "hk") == FOREIGN.certificate
    assert pki.read_root(constrained(CA, (names("hk"), True)), "hk")
    for bad in (
        b"", good[:-1], pki.der(HUB.certificate), pki.der(ROOT.certificate), constrained(CA),
        constrained(CA, (names("hk"), False)), constrained(CA, (names("hk", "cn"), True)),
        constrained(CA, (names("hk", excluded=[x509.DNSName("a.hk")]), True)),
        constrained((x509.BasicConstraints(ca=False, path_length=None), True), (names("hk"), True)),
    ):  # fmt: skip
        with pytest.raises(TdnError) as caught:
            pki.read_root(bad, "hk")
        assert (caught.value.reason, caught.value.requirement) == (Reason.INVALID_REQUEST, "TDN-T-IDN-08")


def test_the_dialling_side_reads_every_root(tmp_path):
    files = made(tmp_path, dns(CLIENT))
    files.root.write_bytes(pki.pem(ROOT.certificate, FOREIGN.certificate))
    assert len(tls.client_context(files).get_ca_certs()) == 2
