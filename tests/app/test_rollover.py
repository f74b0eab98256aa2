"""A CA is followed by another one while messages run: old and new certificates get along until the overlap ends."""

import asyncio
import datetime as dt

import pytest

from tdn_interop.app.members import setup
from tdn_interop.config import load_config
from tdn_interop.errors import Reason, TdnError
from tdn_interop.transport import pki, tls
from tests.app.test_renewal import Watched, stream
from tests.interop.forge import authority, until
from tests.mesh import AIRLINE, HUB_1, HUB_2, REGISTRY, RESEARCH, TOP, free_address, mini_mesh

HOUR = dt.timedelta(hours=1)
NODES = (
    (TOP, "top", True), (HUB_1, "hub", True), (HUB_2, "hub", True), (AIRLINE, "child", True), (RESEARCH, "child", True),
    (REGISTRY, "child", False),
)  # fmt: skip


@pytest.fixture
async def mesh(tmp_path, monkeypatch):
    monkeypatch.setattr("tdn_interop.app.members.renewal.PAUSE_S", (0.05, 0.3))
    monkeypatch.setattr("tdn_interop.app.members.rollover.CHECK_S", 0.1)
    async with mini_mesh(tmp_path, NODES) as running:
        yield running


def root(mesh, node):
    """The root that the chain of a node hangs on."""
    return mesh.nodes[node].mesh.standing.own_root


def roots(mesh, node):
    return mesh.nodes[node].mesh.standing.roots


async def anew(mesh, here, there):
    """End the sessions of two nodes, and ping in a new one; the last words of an old one may come in between."""
    for one, other in ((here, there), (there, here)):
        mesh.nodes[one].mesh.channels.drop(other)
    async with asyncio.timeout(10):
        while True:
            try:
                return await mesh.nodes[here].mesh.pings.ping(there, 10)
            except TdnError as error:
                if error.reason is not Reason.SESSION_CLOSED:
                    raise


async def all_on(mesh, root_certificate):
    def done():
        return all(root(mesh, node) == root_certificate for node in mesh.nodes)

    await until(done)


async def test_everybody_follows_a_new_root_and_messages_run_on(mesh):
    top = mesh.nodes[TOP].mesh
    airline, registry = mesh.nodes[AIRLINE].mesh, mesh.nodes[REGISTRY].mesh
    for node in (airline, registry):
        node.served["x"] = lambda _peer, _topic: True
    seen = [Watched(airline), Watched(registry)]
    old = root(mesh, TOP)
    await airline.channels.open(REGISTRY)
    done = asyncio.Event()
    runs = asyncio.gather(
        stream(airline, registry, "x/up", done.is_set), stream(registry, airline, "x/down", done.is_set)
    )
    await top.rollover.begin(HOUR)
    new = root(mesh, TOP)
    assert new != old
    await all_on(mesh, new)
    for node in mesh.nodes:
        assert roots(mesh, node) == [new, old]
    shown = await top.rollover.show()
    assert [(m.node_id, m.current) for m in shown.members] == [(HUB_2, True), (HUB_1, True)]
    assert shown.overlap_ends_at_ms > shown.members[0].certificate_expires_at_ms - 24 * 3_600_000

    await top.rollover.retire()
    await until(lambda: all(roots(mesh, node) == [new] for node in mesh.nodes))
    await until(lambda: all(len(one.keys) >= 2 for one in seen))
    done.set()
    for sent, received, _gap in await runs:
        assert received == list(range(sent))
    for one in seen:
        assert one.kinds.count("opened") == 1
        assert not {"failed", "closed"} & set(one.kinds)
    await mesh.nodes[RESEARCH].mesh.pings.ping(REGISTRY, 10)


async def test_who_was_away_comes_back_while_the_overlap_runs(mesh):
    """It knows the old root only, and everybody else has left it: the old root vouches for the new one."""
    await mesh.stop(RESEARCH)
    top, old = mesh.nodes[TOP].mesh, root(mesh, TOP)
    await top.rollover.begin(HOUR)
    await all_on(mesh, root(mesh, TOP))
    research = (await mesh.start(RESEARCH)).mesh
    await until(lambda: root(mesh, RESEARCH) != old)
    await research.pings.ping(REGISTRY, 10)


async def test_old_and_new_certificates_talk_in_both_directions(mesh, monkeypatch):
    """The children of one hub have not renewed yet."""

    async def later(*_args):
        raise TdnError(Reason.UNREACHABLE, "not now")

    for node in (REGISTRY, HUB_2):
        monkeypatch.setattr(mesh.nodes[node].mesh.renewal, "_fresh", later)
    old = root(mesh, TOP)
    await mesh.nodes[TOP].mesh.rollover.begin(HOUR)
    new = root(mesh, TOP)
    await until(lambda: root(mesh, AIRLINE) == new)
    assert root(mesh, REGISTRY) == old
    for here, there in ((AIRLINE, REGISTRY), (REGISTRY, AIRLINE), (RESEARCH, REGISTRY), (REGISTRY, RESEARCH)):
        await anew(mesh, here, there)


async def test_after_the_overlap_the_old_root_is_refused(mesh, tmp_path):
    """T-IDN-04.N1, for certificates that are still valid and only hang on the wrong root."""
    top = mesh.nodes[TOP].mesh
    old_hub, old_root = authority(mesh.folder / HUB_1), root(mesh, TOP)
    key = pki.new_key()
    leaf = pki.issue_leaf(old_hub, AIRLINE, key.public_key())
    await top.rollover.begin(dt.timedelta(seconds=2))  # and nobody ends it by hand
    await until(lambda: all(old_root not in roots(mesh, node) for node in mesh.nodes))
    chain = tmp_path / "old.pem"
    chain.write_bytes(pki.pem(leaf, old_hub.certificate))
    (tmp_path / "old.key").write_bytes(pki.key_pem(key))
    victim = mesh.nodes[RESEARCH].mesh
    with pytest.raises(TdnError) as caught:
        tls.self_test(tls.TlsFiles(chain, tmp_path / "old.key", victim.standing.files.root), AIRLINE)
    assert caught.value.reason is Reason.UNAUTHENTICATED


async def test_who_missed_the_whole_overlap_joins_again(mesh):
    """Its identity key stays; what it remembers of the old root does not get in the way."""
    await mesh.stop(RESEARCH)
    top, old = mesh.nodes[TOP].mesh, root(mesh, TOP)
    await top.rollover.begin(HOUR)
    await all_on(mesh, root(mesh, TOP))
    await top.rollover.retire()
    await until(lambda: old not in roots(mesh, HUB_1))
    token = await mesh.nodes[HUB_1].mesh.admission.invite(RESEARCH, "child", 600)
    await setup.join(mesh.config(RESEARCH), token)
    research = (await mesh.start(RESEARCH)).mesh
    assert old not in research.standing.roots
    await research.pings.ping(REGISTRY, 10)


async def test_a_hub_changes_its_key_and_its_children_stay(mesh):
    hub, airline = mesh.nodes[HUB_1].mesh, mesh.nodes[AIRLINE].mesh
    before = hub.rollover.authority
    await hub.rollover.begin(HOUR)
    after = hub.rollover.authority
    assert after.certificate.public_key() != before.certificate.public_key()
    await airline.pings.ping(RESEARCH, 10)  # both still hang on the old one
    assert [m.current for m in (await hub.rollover.show()).members] == [False, False]
    await airline.renewal.renew()
    assert airline.standing.chain[1] == after.certificate
    assert [(m.node_id, m.current) for m in (await hub.rollover.show()).members] == [
        (AIRLINE, True), (RESEARCH, False),
    ]  # fmt: skip
    await anew(mesh, RESEARCH, AIRLINE)


async def test_one_overlap_at_a_time_and_none_at_a_child(mesh):
    top = mesh.nodes[TOP].mesh
    with pytest.raises(TdnError) as caught:
        await top.rollover.retire()
    assert caught.value.reason is Reason.STATE_CONFLICT
    await top.rollover.begin(HOUR)
    with pytest.raises(TdnError) as caught:
        await top.rollover.begin(HOUR)
    assert caught.value.reason is Reason.STATE_CONFLICT
    for refused in (mesh.nodes[AIRLINE].mesh.rollover.begin(HOUR), mesh.nodes[AIRLINE].mesh.rollover.show()):
        with pytest.raises(TdnError) as caught:
            await refused
        assert caught.value.reason is Reason.UNSUPPORTED


async def test_a_crash_between_the_new_root_and_its_bundle(mesh, monkeypatch):
    top = mesh.nodes[TOP].mesh
    old = root(mesh, TOP)

    def crash():
        raise OSError

    monkeypatch.setattr(top.federation, "start", crash)
    with pytest.raises(OSError):
        await top.rollover.begin(HOUR)
    await mesh.stop(TOP)
    await mesh.start(TOP)
    new = roots(mesh, TOP)[0]
    assert new != old
    await all_on(mesh, new)
    await mesh.nodes[AIRLINE].mesh.pings.ping(REGISTRY, 10)


async def test_a_token_from_before_still_works_during_the_overlap(mesh):
    bank = "bank.shandong.cn"
    config = load_config(setup.init_node(mesh.folder / bank, bank, "child", listen=free_address()))
    token = await mesh.nodes[HUB_1].mesh.admission.invite(bank, "child", 600)
    await mesh.nodes[TOP].mesh.rollover.begin(HOUR)
    new = root(mesh, TOP)
    await all_on(mesh, new)
    await setup.join(config, token)
    bank = (await mesh.start(bank)).mesh
    await bank.pings.ping(REGISTRY, 10)
