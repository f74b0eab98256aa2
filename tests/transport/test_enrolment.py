"""Enrolment over real connections: tokens, keys and records, and everybody who lies about them."""

import asyncio
import contextlib
import dataclasses
import os

import pytest

from tdn_interop import identity
from tdn_interop._pb.tdn.transport.v1 import enrolment_service_pb2, enrolment_service_pb2_grpc
from tdn_interop.app.members import setup
from tdn_interop.config import load_config, runtime_dir
from tdn_interop.errors import Reason, TdnError
from tdn_interop.identity import Identity
from tdn_interop.transport import pki, records_wire, tls
from tdn_interop.transport.enrolment_client import enrol
from tdn_interop.transport.records_wire import Application, NodeRecord
from tdn_interop.transport.server import Server
from tests.interop.forge import leaf, refusals, stranger, write
from tests.interop.fronts import dns
from tests.mesh import HUB_1, HUB_2, TOP, Mesh, free_address, mini_mesh

CHILD = "bank.shandong.cn"
TWO = ((TOP, "top", True), (HUB_1, "hub", True))


@pytest.fixture
async def mesh(tmp_path):
    async with mini_mesh(tmp_path, TWO) as running:
        yield running


def made(mesh: Mesh, node=CHILD, role="child", folder=None):
    """A new node that has not enrolled."""
    address = free_address() if role == "hub" else None
    file = setup.init_node(mesh.folder / (folder or node), node, role, listen=address, enrolment=address)
    return load_config(file)


async def invite(mesh, node=CHILD, role="child", valid_s=600):
    return await mesh.nodes[node.partition(".")[2]].mesh.admission.invite(node, role, valid_s)


async def refusal(work):
    with pytest.raises(TdnError) as caught:
        await work
    return caught.value


def lied(text, **changes):
    """The token with some fields changed."""
    return records_wire.encode_token(dataclasses.replace(records_wire.decode_token(text), **changes))


TOKEN = (Reason.TOKEN_INVALID, "TDN-T-IDN-07")


async def test_a_token_is_good_once(mesh):
    config, token = made(mesh), await invite(mesh)
    await setup.join(config, token)
    node = await mesh.start(CHILD)
    assert node.mesh.standing.record.parent == HUB_1
    await mesh.stop(CHILD)
    error = await refusal(setup.join(config, token))
    assert (error.reason, error.requirement) == TOKEN
    assert refusals(mesh.nodes[HUB_1])["TOKEN_INVALID", "TDN-T-IDN-07"] == 1


async def test_of_many_who_use_a_token_at_once_exactly_one_succeeds(mesh):
    config, token = made(mesh), await invite(mesh)
    key = Identity.load(CHILD, config.file("identity.key"))
    parsed, folder = records_wire.decode_token(token), runtime_dir(config.dir)
    outcomes = await asyncio.gather(
        *(enrol(parsed, key, "child", folder) for _ in range(6)), return_exceptions=True
    )
    failed = [one for one in outcomes if isinstance(one, Exception)]
    assert len(failed) == 5
    assert {(one.reason, one.requirement) for one in failed} == {TOKEN}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: lied(token, secret=os.urandom(16)),
        lambda token: lied(token, secret=bytes(16)),
    ],
)
async def test_a_wrong_secret(mesh, spoil):
    config, token = made(mesh), await invite(mesh)
    error = await refusal(setup.join(config, spoil(token)))
    assert (error.reason, error.requirement) == TOKEN
    assert not config.file("membership.json").exists()
    await setup.join(config, token)  # the good one has not suffered


async def test_an_expired_token(mesh):
    config, token = made(mesh), await invite(mesh, valid_s=0)
    error = await refusal(setup.join(config, lied(token, expires_at_ms=1 << 60)))
    assert (error.reason, error.requirement) == TOKEN


async def test_a_token_for_another_node(mesh):
    other = "other.shandong.cn"
    config, token = made(mesh), await invite(mesh, other)
    local = await refusal(setup.join(config, token))
    assert (local.reason, local.message) == (
        Reason.TOKEN_INVALID, f"the token is for {other} as child, this is {CHILD} as child",
    )  # fmt: skip
    error = await refusal(setup.join(config, lied(token, node_id=CHILD)))
    assert (error.reason, error.requirement) == TOKEN
    assert refusals(mesh.nodes[HUB_1])["TOKEN_INVALID", "TDN-T-IDN-07"] == 1


async def test_a_token_for_another_role(mesh):
    """A token for a child does not make a hub, although the top could enrol one."""
    config = made(mesh, HUB_2, "hub")
    token = await invite(mesh, HUB_2, "child")
    error = await refusal(setup.join(config, lied(token, role="hub")))
    assert (error.reason, error.requirement) == TOKEN


async def test_a_hub_makes_no_hubs_and_nobody_enrols_strangers(mesh):
    for node, role in ((f"sub.{HUB_1}", "hub"), ("bank.guangdong.cn", "child"), (f"x.y.{HUB_1}", "child")):
        error = await refusal(mesh.nodes[HUB_1].mesh.admission.invite(node, role, 60))
        assert (error.reason, error.requirement) == (Reason.POLICY_DENIED, "TDN-T-IDN-07")


async def test_the_same_key_may_enrol_again_and_another_key_may_not(mesh):
    config = made(mesh)
    await setup.join(config, await invite(mesh))
    first = config.file("membership.json").read_text()
    await setup.join(config, await invite(mesh))
    assert config.file("membership.json").read_text() == first  # the record of the first time stays
    thief = made(mesh, folder="thief")
    token = await invite(mesh)
    error = await refusal(setup.join(thief, token))
    assert (error.reason, error.requirement) == (Reason.ALREADY_EXISTS, "TDN-T-IDN-06")
    assert error.message == f"{CHILD} is logged with another identity key"
    assert not thief.file("membership.json").exists()
    await setup.join(config, token)  # the attempt has not spent the token


async def test_a_top_that_is_down_costs_no_token(mesh):
    config, token = made(mesh), await invite(mesh)
    await mesh.stop(TOP)
    error = await refusal(setup.join(config, token))
    assert error.reason in {Reason.UNREACHABLE, Reason.DEADLINE}
    assert not config.file("membership.json").exists()
    await mesh.start(TOP)
    await asyncio.wait_for(mesh.nodes[HUB_1].mesh.link.linked.wait(), 20)
    await setup.join(config, token)
    await mesh.start(CHILD)


# -- a false issuer


class FalseIssuer(enrolment_service_pb2_grpc.EnrolmentServiceServicer):
    """Answers as told and notes what it was sent."""

    def __init__(self, root_der, answer=None):
        self.calls = []
        self.root_der = root_der
        self.answer = answer

    async def GetTrust(self, request, context):
        self.calls.append("GetTrust")
        return enrolment_service_pb2.GetTrustResponse(root_der=self.root_der)

    async def Enrol(self, request, context):
        self.calls.append("Enrol")
        return self.answer(request)


@contextlib.asynccontextmanager
async def listening(folder, files, servicer):
    folder.mkdir(exist_ok=True)
    server = Server(lambda: tls.server_context(files, mutual=False), folder, "enrol", lambda _error: None)
    enrolment_service_pb2_grpc.add_EnrolmentServiceServicer_to_server(servicer, server.grpc)
    try:
        yield f"127.0.0.1:{await server.start('127.0.0.1:0')}"
    finally:
        await server.close()


def false_files(folder, issuer):
    key = pki.new_key()
    return write(folder, [leaf(issuer, dns(HUB_1), key)], key, issuer.certificate)


async def test_somebody_in_the_middle_learns_nothing(mesh, tmp_path):
    """Its root is not the one of the token: the new node hangs up before it has said who it is."""
    config, token = made(mesh), await invite(mesh)
    root = pki.create_root(TOP)
    issuer = FalseIssuer(pki.der(root.certificate))
    async with listening(tmp_path / "mitm", false_files(tmp_path / "files", root), issuer) as address:
        error = await refusal(setup.join(config, lied(token, endpoint=address)))
    assert (error.reason, error.requirement) == (Reason.IDENTITY_MISMATCH, "TDN-T-IDN-07")
    assert issuer.calls == ["GetTrust"]
    await setup.join(config, token)


async def test_somebody_in_the_middle_who_shows_the_genuine_root(mesh, tmp_path):
    """It has no certificate below that root, so the second connection fails."""
    config, token = made(mesh), await invite(mesh)
    genuine = (mesh.folder / TOP / "root.pem").read_text()
    issuer = FalseIssuer(tls.ssl.PEM_cert_to_DER_cert(genuine))
    async with listening(
        tmp_path / "mitm", false_files(tmp_path / "files", pki.create_root(TOP)), issuer
    ) as address:
        error = await refusal(setup.join(config, lied(token, endpoint=address)))
    assert (error.reason, error.requirement) == (Reason.UNAUTHENTICATED, "TDN-T-IDN-01")
    assert issuer.calls == ["GetTrust"]


def answers(mesh):
    """What a dishonest hub, with its genuine certificate, could answer to an application."""
    hub = mesh.nodes[HUB_1].mesh.standing
    ca = pki.load_authority(mesh.folder / HUB_1 / "ca.pem", mesh.folder / HUB_1 / "ca.key")
    top = Identity.load(TOP, mesh.folder / TOP / "identity.key")

    def record(signer, node, key):
        made = NodeRecord(node, "child", key, node.partition(".")[2], 1)
        return signer.sign(identity.NODE_RECORD, records_wire.encode_record(made))

    def answer(make=record, signer=top, node=CHILD, key=None, chain=None, above=None):
        def respond(request):
            application = records_wire.decode_application(
                records_wire.signed_from_pb(request.application).statement
            )
            certificate = pki.issue_leaf(ca, CHILD, pki.requested_key(application.tls_csr))
            return enrolment_service_pb2.EnrolResponse(
                tls_chain_der=[pki.der(certificate)] if chain is None else chain,
                record=records_wire.signed_to_pb(make(signer, node, key or application.identity_key)),
                issuer_record=records_wire.signed_to_pb(above or hub.membership.record),
            )

        return respond

    other = pki.issue_leaf(ca, "other.shandong.cn", pki.new_key().public_key())
    ours = pki.issue_leaf(ca, CHILD, pki.new_key().public_key())
    mismatch = Reason.IDENTITY_MISMATCH
    return {
        "a record that the hub signed": (answer(signer=hub.key), Reason.SIGNATURE_INVALID),
        "a record with another key": (answer(key=stranger(CHILD).public_key), mismatch),
        "a record of another node": (answer(node="other.shandong.cn"), mismatch),
        "another issuer": (answer(above=mesh.nodes[TOP].mesh.standing.membership.record), mismatch),
        "a certificate of another node": (answer(chain=[pki.der(other)]), mismatch),
        "a certificate of another key": (answer(chain=[pki.der(ours)]), mismatch),
        "no certificate": (answer(chain=[]), mismatch),
        "no certificate at all": (answer(chain=[b"\x30\x00"]), Reason.INVALID_REQUEST),
        "an honest answer": (answer(), None),
    }


async def test_what_a_dishonest_issuer_sends_is_not_kept(mesh, tmp_path):
    files = mesh.nodes[HUB_1].mesh.standing.files
    root_der = tls.ssl.PEM_cert_to_DER_cert((mesh.folder / TOP / "root.pem").read_text())
    config, token = made(mesh), await invite(mesh)
    for name, (answer, reason) in answers(mesh).items():
        async with listening(tmp_path / "false", files, FalseIssuer(root_der, answer)) as address:
            work = setup.join(config, lied(token, endpoint=address))
            if reason is None:
                await work
                continue
            error = await refusal(work)
        assert error.reason is reason, name
        assert not config.file("membership.json").exists(), name
        assert not config.file("tls.key").exists(), name


# -- a false hub


def application(node, role="child", signer=None):
    key = signer or stranger(node)
    csr = pki.request(node, pki.new_key())
    statement = Application(node, role, key.public_key, csr, csr if role == "hub" else b"")
    return key.sign(identity.APPLICATION, records_wire.encode_application(statement))


async def test_a_hub_speaks_only_for_its_own_children(mesh):
    link = mesh.nodes[HUB_1].mesh.link
    for node, role in (
        ("bank.guangdong.cn", "child"), (HUB_2, "hub"), (TOP, "top"), (f"x.y.{HUB_1}", "child"),
        (f"sub.{HUB_1}", "hub"), (HUB_1, "hub"),
    ):  # fmt: skip
        error = await refusal(link.endorse(application(node, role)))
        assert (error.reason, error.requirement) == (Reason.POLICY_DENIED, "TDN-T-IDN-07"), node
        assert await mesh.nodes[TOP].mesh.register.record(node) is None or node == HUB_1
    assert refusals(mesh.nodes[TOP])["POLICY_DENIED", "TDN-T-IDN-07"] == 6


async def test_a_hub_cannot_apply_in_the_name_of_its_child(mesh):
    """The application must be signed by the key that it names."""
    link = mesh.nodes[HUB_1].mesh.link
    signed = application(CHILD)
    forged = dataclasses.replace(signed, signature=application(CHILD).signature)
    error = await refusal(link.endorse(forged))
    assert (error.reason, error.requirement) == (Reason.SIGNATURE_INVALID, "TDN-T-IDN-07")
    await link.endorse(signed)
    second = await refusal(link.endorse(application(CHILD)))
    assert (second.reason, second.requirement) == (Reason.ALREADY_EXISTS, "TDN-T-IDN-06")


async def test_a_child_endorses_nobody(mesh):
    config = made(mesh)
    await setup.join(config, await invite(mesh))
    child = await mesh.start(CHILD)
    error = await refusal(child.mesh.link.endorse(application(f"x.{CHILD}")))
    assert error.reason is Reason.UNSUPPORTED  # its hub has no such service
