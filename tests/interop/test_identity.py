"""Who is who, among running nodes: impostors with real certificates, foreign credentials, pins.

A hub is its children's CA, so every impostor here has a certificate that TLS accepts.
"""

import asyncio
import contextlib

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from tdn_interop.config import runtime_dir, split_address
from tdn_interop.errors import Reason, TdnError
from tdn_interop.identity import Credentials, Identity
from tdn_interop.transport import pki, records_wire
from tests.interop.forge import (
    Impostor,
    authority,
    delegation,
    divert,
    leaf,
    membership,
    raw_context,
    refusals,
    stranger,
    until,
    write,
)
from tests.mesh import AIRLINE, HUB_2, REGISTRY, RESEARCH, TOP, mini_mesh


@pytest.fixture
async def mesh(tmp_path):
    async with mini_mesh(tmp_path) as running:
        for node in running.nodes.values():
            node.mesh.admits = lambda _peer, _topic: True
        yield running


async def works(mesh, source, destination):
    """A message of an honest node arrives."""
    return (await mesh.nodes[source].mesh.pings.ping(destination, 10)).identity_sha256


async def pretend(channels, victim):
    """Dial as an impostor and try to deliver; the error of the impostor's side."""
    try:
        with pytest.raises(TdnError) as caught:
            await channels.send(victim, "loot", b"false", 10)
            await channels.flush(victim, "loot", 10)
        return caught.value
    finally:
        await channels.close(0.1)


async def nothing_came(node):
    with pytest.raises(TdnError) as caught:
        await node.mesh.channels.receive("loot", timeout_s=0.01)
    assert caught.value.reason is Reason.DEADLINE


UNDELEGATED = ("IDENTITY_MISMATCH", "TDN-T-IDN-06")


def other_delegations(mesh, impostor):
    """Credentials that an impostor can put together, and what the victim must say."""
    genuine = Identity.load(REGISTRY, mesh.folder / REGISTRY / "identity.key")
    stale = mesh.nodes[REGISTRY].mesh.standing.credentials().delegation
    other = membership(mesh.folder / RESEARCH)
    return {
        "own key": (impostor.credentials(), UNDELEGATED),
        "the genuine delegation of the genuine TLS key": (Credentials(impostor.record, stale), UNDELEGATED),
        "a delegation of this key that has ended": (
            Credentials(impostor.record, delegation(genuine, impostor.tls_key, ends_s=-1)), UNDELEGATED,
        ),
        "the record of another node": (
            Credentials(other.record, delegation(stranger(REGISTRY), impostor.tls_key)),
            ("IDENTITY_MISMATCH", "TDN-T-IDN-02"),
        ),
        "a record that its hub signed": (
            Credentials(forged_record(mesh), delegation(stranger(REGISTRY), impostor.tls_key)),
            ("SIGNATURE_INVALID", "TDN-T-IDN-06"),
        ),
    }  # fmt: skip


def forged_record(mesh, signer=HUB_2):
    """A record of the registry with another key."""
    record = records_wire.decode_record(membership(mesh.folder / REGISTRY).record.statement)
    false = records_wire.NodeRecord(
        record.node_id, record.role, stranger(REGISTRY).public_key, record.parent, 1
    )
    key = Identity.load(signer, mesh.folder / signer / "identity.key")
    return key.sign("tdn/v1/node-record", records_wire.encode_record(false))


async def test_an_impostor_that_dials_is_refused_whatever_it_shows(mesh, tmp_path):
    victim = mesh.nodes[AIRLINE]
    impostor = Impostor.of(mesh, REGISTRY, tmp_path / "impostor")
    cases = other_delegations(mesh, impostor)
    for name, (credentials, (reason, requirement)) in cases.items():
        before = refusals(victim).get((reason, requirement), 0)
        channels = impostor.dial(
            AIRLINE, victim.config.listen, runtime_dir(tmp_path / "impostor"), lambda c=credentials: c
        )
        error = await pretend(channels, AIRLINE)
        assert error.reason.name == reason, name
        assert refusals(victim)[reason, requirement] == before + 1, name
    await nothing_came(victim)
    assert REGISTRY not in victim.mesh.channels.peers()
    assert len(await works(mesh, REGISTRY, AIRLINE)) == 64


async def test_an_impostor_that_a_hub_puts_in_place_of_its_child(mesh, tmp_path):
    """HUB_2 hands tunnels for its child to an endpoint of its own, with a certificate from its real CA."""
    impostor = Impostor.of(mesh, REGISTRY, tmp_path / "impostor")
    tunnels = mesh.nodes[HUB_2].mesh.tunnels
    async with impostor.serving(runtime_dir(tmp_path / "impostor")) as (front, channels):
        divert(tunnels, REGISTRY, front)
        with capture_logs() as log:
            for _ in range(2):
                error = await refusal(mesh.nodes[AIRLINE].mesh.pings.ping(REGISTRY, 10))
                assert (error.reason.name, error.requirement) == UNDELEGATED
        failed = [line for line in log if line.get("event_kind") == "failed" and line["peer"] == REGISTRY]
        assert [line["reason"] for line in failed] == ["IDENTITY_MISMATCH"] * 2
        with pytest.raises(TdnError):  # not a byte of a message came
            await channels.receive("ping", timeout_s=0.01)
    del tunnels._down
    assert len(await works(mesh, AIRLINE, REGISTRY)) == 64


async def refusal(work):
    with pytest.raises(TdnError) as caught:
        await work
    return caught.value


async def test_a_second_identity_key_that_even_the_top_vouches_for(mesh, tmp_path):
    """The top equivocates: another record, signed with its real key, for a node that the victim knows."""
    victim = mesh.nodes[AIRLINE]
    await works(mesh, AIRLINE, REGISTRY)
    impostor = Impostor.of(mesh, REGISTRY, tmp_path / "impostor")
    second = stranger(REGISTRY)
    genuine = records_wire.decode_record(impostor.record.statement)
    top = Identity.load(TOP, mesh.folder / TOP / "identity.key")
    false = records_wire.NodeRecord(
        REGISTRY, "child", second.public_key, genuine.parent, genuine.logged_at_ms
    )
    credentials = Credentials(
        top.sign("tdn/v1/node-record", records_wire.encode_record(false)),
        delegation(second, impostor.tls_key),
    )
    channels = impostor.dial(AIRLINE, victim.config.listen, runtime_dir(tmp_path / "i"), lambda: credentials)
    error = await pretend(channels, AIRLINE)
    assert error.reason is Reason.IDENTITY_MISMATCH
    assert "another identity key" in error.message
    assert refusals(victim)[UNDELEGATED] == 1
    assert victim.mesh.key_of(REGISTRY) == genuine.identity_key
    # The pin is in the database too: it holds after a restart.
    await mesh.stop(AIRLINE)
    await mesh.start(AIRLINE)
    assert mesh.nodes[AIRLINE].mesh.key_of(REGISTRY) == genuine.identity_key
    await works(mesh, AIRLINE, REGISTRY)


async def test_a_certificate_of_another_hub_reaches_no_service(mesh, tmp_path):
    """The guangdong hub issues a leaf for a node of shandong; the node itself and its hub both refuse."""
    ca = authority(mesh.folder / HUB_2)
    key = pki.new_key()
    chain = [leaf(ca, [x509.DNSName("evil.shandong.cn")], key), ca.certificate]
    files = write(tmp_path / "evil", chain, key, ca.certificate)
    for victim in (mesh.nodes[AIRLINE], mesh.nodes["shandong.cn"]):
        host, port = split_address(victim.config.listen)
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(host, port, ssl=raw_context(files))
            await reader.read()
            writer.transport.abort()
        await until(lambda v=victim: refusals(v).get(UNDELEGATED) == 1)
    await works(mesh, RESEARCH, AIRLINE)
