"""The front and the dialling side against every kind of bad certificate; real sockets, an echo behind."""

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl

import pytest
from cryptography import x509

from tdn_interop.errors import TdnError
from tdn_interop.transport import pki, tls
from tdn_interop.transport.dial import Dialled, Dialler
from tdn_interop.transport.front import connect_tcp
from tests.interop.forge import leaf, now, raw_context, until, write
from tests.interop.fronts import CLIENT, HUB, OTHER_HUB, ROOT, VICTIM, dns, exchange, fronted, made

HOUR = dt.timedelta(hours=1)
SUB_KEY = pki.new_key()
SUB = pki.Authority(pki.issue_intermediate(HUB, "sub.shandong.cn", SUB_KEY.public_key()), SUB_KEY)


def stranger(folder):
    root = pki.create_root("cn")
    return made(folder, dns(CLIENT), root)


def below_a_child_ca(folder):
    key = pki.new_key()
    chain = [leaf(SUB, dns("x.sub.shandong.cn"), key), SUB.certificate, HUB.certificate]
    return write(folder, chain, key, ROOT.certificate)


def stolen(folder):
    """The certificate of somebody else without its key."""
    files = made(folder, dns(CLIENT))
    other = made(folder / "other", dns(CLIENT))
    return tls.TlsFiles(other.chain, files.key, files.root)


# How -> what the certificate is, and what the victim must say.
BAD = {
    "expired": (
        lambda f: made(f, dns(CLIENT), starts=now() - 2 * HOUR, life=HOUR),
        ("CERTIFICATE_EXPIRED", "TDN-T-IDN-01"),
    ),
    "expired a second ago": (
        lambda f: made(f, dns(CLIENT), starts=now() - HOUR, life=HOUR - dt.timedelta(seconds=1)),
        ("CERTIFICATE_EXPIRED", "TDN-T-IDN-01"),
    ),
    "not yet valid": (
        lambda f: made(f, dns(CLIENT), starts=now() + dt.timedelta(seconds=60)),
        ("UNAUTHENTICATED", "TDN-T-IDN-01"),
    ),
    "unknown CA": (stranger, ("UNAUTHENTICATED", "TDN-T-IDN-01")),
    "other hub's CA": (
        lambda f: made(f, dns(CLIENT), OTHER_HUB), ("IDENTITY_MISMATCH", "TDN-T-IDN-06"),
    ),
    "outside the root": (lambda f: made(f, dns("client.us"), HUB), ("IDENTITY_MISMATCH", "TDN-T-IDN-06")),
    "CA below a hub": (below_a_child_ca, ("UNAUTHENTICATED", "TDN-T-IDN-06")),
    "two names": (
        lambda f: made(f, dns(CLIENT, "x.shandong.cn")), ("IDENTITY_MISMATCH", "TDN-T-IDN-02"),
    ),
    "no name": (lambda f: made(f, []), ("IDENTITY_MISMATCH", "TDN-T-IDN-02")),
    "a URI": (
        lambda f: made(f, [x509.UniformResourceIdentifier(f"tdn://{CLIENT}")]),
        ("IDENTITY_MISMATCH", "TDN-T-IDN-02"),
    ),
    "a URI beside the name": (
        lambda f: made(f, [*dns(CLIENT), x509.UniformResourceIdentifier(f"tdn://{CLIENT}")]),
        ("IDENTITY_MISMATCH", "TDN-T-IDN-02"),
    ),
    "an address": (
        lambda f: made(f, [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
        ("IDENTITY_MISMATCH", "TDN-T-IDN-02"),
    ),
    "a wildcard": (lambda f: made(f, dns("*.shandong.cn")), ("INVALID_REQUEST", "TDN-T-ENC-01")),
}  # fmt: skip


@pytest.fixture
async def victim(tmp_path):
    async with fronted(tmp_path / "f") as parts:
        yield parts


@pytest.mark.parametrize("how", BAD)
async def test_a_bad_client_certificate_is_refused_with_its_reason(victim, tmp_path, how):
    front, port, behind = victim
    make, (reason, requirement) = BAD[how]
    answer = await exchange(port, raw_context(make(tmp_path / "bad")))
    assert isinstance(answer, Exception)
    await until(lambda: behind.refused)
    assert behind.said() == [(reason, requirement)]
    assert behind.reached == []
    assert front._peers == {}
    assert await exchange(port, raw_context(made(tmp_path / "good", dns(CLIENT)))) == b"hello"


async def test_no_client_certificate(victim, tmp_path):
    _, port, behind = victim
    assert isinstance(await exchange(port, raw_context()), Exception)
    await until(lambda: behind.refused)
    assert behind.said() == [("UNAUTHENTICATED", "TDN-T-IDN-01")]
    assert behind.reached == []
    assert await exchange(port, raw_context(made(tmp_path / "good", dns(CLIENT)))) == b"hello"


async def test_tls_1_2(victim, tmp_path):
    _, port, behind = victim
    context = raw_context(made(tmp_path / "good", dns(CLIENT)), version=ssl.TLSVersion.TLSv1_2)
    answer = await exchange(port, context)
    assert "protocol version" in str(answer)  # the alert is on the wire
    assert behind.said() == [("UNSUPPORTED_VERSION", "TDN-T-IDN-03")]
    assert behind.reached == []


@pytest.mark.parametrize(
    ("first", "reason", "requirement"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "UNSUPPORTED_VERSION", "TDN-T-IDN-03"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "UNSUPPORTED_VERSION", "TDN-T-IDN-03"),
        (b"\x00" * 200, "UNSUPPORTED_VERSION", "TDN-T-IDN-03"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "E2E_AUTH_FAILED", "TDN-T-RTE-02"),
    ],
)
async def test_not_tls(victim, first, reason, requirement):
    _, port, behind = victim
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    await reader.read()
    writer.close()
    await until(lambda: behind.refused)
    assert behind.said() == [(reason, requirement)]
    assert behind.reached == []


async def dial(folder, port, client, node=VICTIM):
    """The error of a dial."""
    dialled = Dialled(
        node, lambda: connect_tcp("127.0.0.1", port, 5), Dialler(lambda: tls.client_context(client), folder)
    )
    with pytest.raises(TdnError) as caught:
        await dialled.start()
    await dialled.close()
    assert dialled.error is caught.value
    return caught.value


SERVER = {name: case for name, case in BAD.items() if name not in {"two names", "a URI beside the name"}}


@pytest.mark.parametrize("how", SERVER)
async def test_a_bad_server_certificate_is_refused_with_its_reason(tmp_path, how):
    make, (reason, requirement) = SERVER[how]
    client = made(tmp_path / "client", dns("x.shandong.cn"))
    async with fronted(tmp_path / "f", make(tmp_path / "bad")) as (_, port, behind):
        error = await dial(tmp_path, port, client, CLIENT)
    nameless = how in {
        "no name",
        "a URI",
        "an address",
        "outside the root",
    }  # OpenSSL compares names before we count them
    assert error.reason.name == reason
    assert error.requirement == ("TDN-T-IDN-02" if nameless else requirement)
    assert behind.reached == []


async def test_a_server_with_the_name_of_another_node(tmp_path):
    client = made(tmp_path / "client", dns(CLIENT))
    async with fronted(tmp_path / "f", made(tmp_path / "s", dns("x.shandong.cn"))) as (_, port, _behind):
        error = await dial(tmp_path, port, client)
    assert (error.reason.name, error.requirement) == ("IDENTITY_MISMATCH", "TDN-T-IDN-02")


@pytest.mark.parametrize(
    ("make", "reason", "words"),
    [
        (BAD["expired"][0], "CERTIFICATE_EXPIRED", "our certificate has expired"),
        (stranger, "UNAUTHENTICATED", "does not know the CA of our certificate"),
        (BAD["not yet valid"][0], "UNAUTHENTICATED", "refuses our certificate"),
    ],
)
async def test_who_is_refused_learns_why(victim, tmp_path, make, reason, words):
    _, port, _ = victim
    files = make(tmp_path / "bad")
    (tmp_path / "root.pem").write_bytes(pki.pem(ROOT.certificate))
    files = tls.TlsFiles(files.chain, files.key, tmp_path / "root.pem")
    dialled = await Dialled(
        VICTIM,
        lambda: connect_tcp("127.0.0.1", port, 5),
        Dialler(lambda: tls.client_context(files), tmp_path),
    ).start()
    dialled.channel.get_state(try_to_connect=True)
    await until(lambda: dialled.error)
    await dialled.close()
    assert dialled.error.reason.name == reason
    assert words in dialled.error.message


async def test_the_key_must_be_the_one_of_the_certificate(tmp_path):
    with pytest.raises(ssl.SSLError):
        tls.client_context(stolen(tmp_path))


async def test_nobody_answers_a_silent_client_for_ever(victim, monkeypatch):
    _, port, behind = victim
    monkeypatch.setattr("tdn_interop.transport.front.HANDSHAKE_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read() == b""
    writer.close()
    assert behind.said() == [("DEADLINE", "TDN-T-DDL-02")]


async def test_a_server_that_never_answers_tls(tmp_path, monkeypatch):
    monkeypatch.setattr("tdn_interop.transport.dial.HANDSHAKE_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = await dial(tmp_path, silent.getsockname()[1], made(tmp_path / "c", dns(CLIENT)))
    assert (error.reason.name, error.requirement) == ("DEADLINE", "TDN-T-DDL-02")
