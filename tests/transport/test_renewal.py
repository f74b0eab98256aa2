"""Who may have fresh certificates, and what a node makes of what it is given."""

import dataclasses
import datetime as dt

import pytest

from tdn_interop import identity
from tdn_interop._pb.tdn.transport.v1 import renewal_service_pb2 as pb
from tdn_interop._pb.tdn.transport.v1 import renewal_service_pb2_grpc
from tdn_interop.app.members import setup
from tdn_interop.errors import Reason, TdnError
from tdn_interop.transport import pki, records_wire
from tdn_interop.transport.records_wire import Application
from tdn_interop.transport.renewal_service import Renewed
from tests.interop.forge import authority, refusals, stranger, until
from tests.mesh import AIRLINE, HUB_1, RESEARCH, TOP, mini_mesh

FEW = ((TOP, "top", True), (HUB_1, "hub", True), (AIRLINE, "child", True), (RESEARCH, "child", True))


@pytest.fixture
async def mesh(tmp_path):
    async with mini_mesh(tmp_path, FEW) as running:
        yield running


def application(node, key, role="child", signer=None, csr=None):
    csr = csr or pki.request(node, pki.new_key())
    made = Application(node, role, key.public_key, csr, csr if role == "hub" else b"")
    return (signer or key).sign(identity.APPLICATION, records_wire.encode_application(made))


async def asked(mesh, caller, signed):
    """Why the hub gives `caller` no certificate for this application; None when it does."""
    link = mesh.nodes[caller].mesh.link
    stub = renewal_service_pb2_grpc.RenewalServiceStub(link.channel)
    try:
        await link.ask(stub.Renew(pb.RenewRequest(application=records_wire.signed_to_pb(signed)), timeout=10))
    except TdnError as error:
        return error.reason
    return None


async def test_who_gets_no_certificate(mesh):
    own, other = (mesh.nodes[name].mesh.standing.key for name in (AIRLINE, RESEARCH))
    thief = stranger(AIRLINE)
    forged = dataclasses.replace(application(AIRLINE, own), signature=application(AIRLINE, thief).signature)
    cases = {
        "the name of a neighbour": (application(RESEARCH, other), Reason.IDENTITY_MISMATCH),
        "another identity key, with a stolen TLS key": (
            application(AIRLINE, thief),
            Reason.IDENTITY_MISMATCH,
        ),
        "a signature of somebody else": (forged, Reason.SIGNATURE_INVALID),
        "another role": (application(AIRLINE, own, "hub"), Reason.IDENTITY_MISMATCH),
        "no request": (application(AIRLINE, own, csr=b"nothing"), Reason.INVALID_REQUEST),
        "what it may have": (application(AIRLINE, own), None),
    }
    for name, (signed, reason) in cases.items():
        assert await asked(mesh, AIRLINE, signed) is reason, name


async def test_who_is_no_member_any_more(mesh):
    register = mesh.nodes[HUB_1].mesh.register
    register._active.discard(AIRLINE)
    key = mesh.nodes[AIRLINE].mesh.standing.key
    assert await asked(mesh, AIRLINE, application(AIRLINE, key)) is Reason.POLICY_DENIED


async def test_what_was_issued_is_on_record(mesh):
    airline = mesh.nodes[AIRLINE].mesh
    await airline.renewal.renew()
    leaf = airline.standing.leaf
    events = [event for _, event in await mesh.nodes[HUB_1].mesh._evidence.about(AIRLINE)]
    issued = [event.facts for event in events if event.kind == "certificate.issued"]
    assert [facts["certificateSha256"] for facts in issued][-1] == pki.sha256(leaf).hex()
    assert len(issued) == 2


async def test_a_renewal_changes_keys_and_ends_no_session(mesh):
    airline = mesh.nodes[AIRLINE].mesh
    before, ca = airline.standing.leaf, mesh.nodes[HUB_1].mesh.rollover.authority
    await airline.pings.ping(RESEARCH, 10)
    heard = []
    airline.listeners.append(lambda event: heard.append(event.kind))
    for node in (AIRLINE, HUB_1, TOP, RESEARCH):
        await mesh.nodes[node].mesh.renewal.renew()
    assert airline.standing.leaf.public_key() != before.public_key()
    renewed = mesh.nodes[HUB_1].mesh.rollover.authority
    assert renewed.certificate != ca.certificate
    assert renewed.certificate.public_key() == ca.certificate.public_key()
    await airline.pings.ping(RESEARCH, 10)
    assert "resumed" in heard
    assert not {"failed", "closed", "opened"} & set(heard)


@pytest.mark.parametrize("what", ["another name", "another root", "an old one"])
async def test_what_cannot_be_used_does_not_replace_what_can(mesh, tmp_path, what):
    """The parent is wrong or hostile; the node keeps what works."""
    config, hub = mesh.nodes[AIRLINE].config, authority(mesh.folder / HUB_1)
    key, past = pki.new_key(), dt.datetime.now(dt.UTC) - dt.timedelta(hours=2)
    if what == "another name":
        chain = [pki.issue_leaf(hub, RESEARCH, key.public_key()), hub.certificate]
    elif what == "another root":
        chain = [pki.issue_leaf(pki.create_root("cn"), AIRLINE, key.public_key())]
    else:
        leaf = pki.issue_leaf(hub, AIRLINE, key.public_key(), dt.timedelta(hours=1), past)
        chain = [leaf, hub.certificate]
    before = {file.name: file.read_bytes() for file in config.dir.glob("tls.*")}
    with pytest.raises(TdnError):
        setup.keep_renewed(config, Renewed(chain, key, None))
    assert {file.name: file.read_bytes() for file in config.dir.glob("tls.*")} == before


async def test_a_node_asks_until_its_parent_is_back(mesh, monkeypatch):
    monkeypatch.setattr("tdn_interop.app.members.renewal.PAUSE_S", (0.05, 0.1))
    airline = mesh.nodes[AIRLINE].mesh
    before = airline.standing.leaf
    await mesh.stop(HUB_1)
    monkeypatch.setattr(airline.renewal, "due_ms", lambda: 0 if airline.standing.leaf == before else 1 << 62)
    airline.renewal.soon()
    await until(lambda: not airline.link.linked.is_set())
    assert airline.standing.leaf == before
    await mesh.start(HUB_1)
    await until(lambda: airline.standing.leaf != before, 30)
    assert not refusals(mesh.nodes[HUB_1]).get(("CERTIFICATE_EXPIRED", "TDN-T-IDN-01"))


def test_when_a_certificate_is_due():
    """Counted from its issue: the ten minutes of slack before it are no part of its life."""
    root = pki.create_root("cn")
    for life in (dt.timedelta(seconds=20), dt.timedelta(hours=24)):
        leaf = pki.issue_leaf(root, "bank.cn", pki.new_key().public_key(), life)
        ends = leaf.not_valid_after_utc.timestamp() * 1000
        assert pki.renewal_due_ms(leaf, 0) == ends - life.total_seconds() * 1000
        assert pki.renewal_due_ms(leaf, 1) == ends
        assert pki.renewal_due_ms(leaf) == pytest.approx(ends - life.total_seconds() * 1000 / 3, abs=1)


def test_no_certificate_outlives_its_issuer():
    root = pki.create_root("cn")
    key = pki.new_key()
    soon = pki.issue_leaf(root, "x.cn", key.public_key(), dt.timedelta(seconds=20))
    short = pki.Authority(soon, key)
    leaf = pki.issue_leaf(short, "bank.x.cn", pki.new_key().public_key())
    assert leaf.not_valid_after_utc == soon.not_valid_after_utc
    ca = pki.issue_intermediate(short, "x.cn", pki.new_key().public_key())
    assert ca.not_valid_after_utc == soon.not_valid_after_utc
