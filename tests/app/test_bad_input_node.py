"""A node that cannot start says why, in one sentence, and leaves its folder as it was."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tdn_interop.app.members import setup
from tdn_interop.app.node import running
from tdn_interop.config import load_config
from tdn_interop.errors import Reason, TdnError
from tdn_interop.transport import pki
from tests.app.job_mesh import tdn
from tests.mesh import AIRLINE, HUB_1, MINI, TOP, Mesh, free_address, mini_mesh

MEMBERS = tuple(member for member in MINI if member[0] in {TOP, HUB_1, AIRLINE})


@pytest.fixture
async def mesh(tmp_path):
    """A top, a hub and the airline, which does not run."""
    async with mini_mesh(tmp_path, MEMBERS) as mesh:
        await mesh.stop(AIRLINE)
        yield mesh


async def start(mesh: Mesh):
    async with running(mesh.config(AIRLINE)):
        pass


async def refuses(mesh, reason, *parts):
    """The start is refused; the folder holds what it held before, and once repaired the node starts."""
    before = files(mesh)
    with pytest.raises(TdnError) as error:
        await start(mesh)
    assert error.value.reason is reason
    assert error.value.exit_code in {3, 5}
    for part in parts:
        assert part in error.value.message
    assert files(mesh) == before


def files(mesh):
    return {path.name: path.read_bytes() for path in (mesh.folder / AIRLINE).iterdir() if path.is_file()}


async def test_expired_certificate(mesh):
    chain = mesh.folder / AIRLINE / "tls.pem"
    good = chain.read_bytes()
    hub = mesh.config(HUB_1)
    authority = pki.load_authority(hub.file("ca.pem"), hub.file("ca.key"))
    key = serialization.load_pem_private_key((mesh.folder / AIRLINE / "tls.key").read_bytes(), None)
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    expired = pki.issue_leaf(authority, AIRLINE, key.public_key(), dt.timedelta(hours=1), yesterday)
    chain.write_bytes(pki.pem(expired, *x509.load_pem_x509_certificates(good)[1:]))
    await refuses(mesh, Reason.CERTIFICATE_EXPIRED, AIRLINE)
    chain.write_bytes(good)
    await start(mesh)


@pytest.mark.parametrize("content", [b"not a database" * 1000, b"\0" * 100_000])
async def test_damaged_database(mesh, content):
    database = mesh.folder / AIRLINE / "node.db"
    good = database.read_bytes()
    database.write_bytes(content)
    await refuses(mesh, Reason.STORE_UNAVAILABLE, "database")
    database.write_bytes(good)
    await start(mesh)


async def test_second_process(mesh):
    async with running(mesh.config(AIRLINE)):
        with pytest.raises(TdnError) as error:
            await start(mesh)
        assert error.value.reason in {Reason.CONFIG_INVALID, Reason.STORE_UNAVAILABLE}
        assert "another process" in error.value.message
        code, _, err = await tdn(mesh, AIRLINE, "node", "status")
        assert code == 0, err


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("identity.key", Reason.CONFIG_INVALID),
        ("membership.json", Reason.NOT_ENROLLED),
        ("tls.pem", Reason.CONFIG_INVALID),
    ],
)
async def test_missing_file(mesh, name, reason):
    file = mesh.folder / AIRLINE / name
    good = file.read_bytes()
    file.unlink()
    await refuses(mesh, reason, name)
    file.write_bytes(good)
    await start(mesh)


async def test_identity_key_of_another_node(mesh):
    """What it signs is worth nothing, so it does not begin."""
    key, other = (mesh.folder / node / "identity.key" for node in (AIRLINE, HUB_1))
    good = key.read_bytes()
    key.write_bytes(other.read_bytes())
    with pytest.raises(TdnError) as error:
        await start(mesh)
    assert error.value.reason in {Reason.SIGNATURE_INVALID, Reason.CONFIG_INVALID, Reason.IDENTITY_MISMATCH}
    key.write_bytes(good)
    await start(mesh)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('\nid = "', '\nlisen = "127.0.0.1:1"\nid = "', "lisen"),
        ("idle_s = 120", 'idle_s = "long"', "timeouts.idle_s"),
        ('mode = "rules"', 'mode = "magic"', "approval.mode"),
        ("\nrole = ", "\nrole ", "node.toml"),
        ("\nlisten = ", '\nlisten = "nowhere" # ', "nowhere"),
        ('algorithms = ["psi"]', 'algorithm = ["psi"]', "algorithm"),
    ],
)
async def test_configuration(mesh, old, new, part):
    file = mesh.folder / AIRLINE / "node.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(TdnError) as error:
        load_config(file)
    assert error.value.reason is Reason.CONFIG_INVALID
    assert part in error.value.message


async def test_address_that_is_taken(mesh):
    file = mesh.folder / AIRLINE / "node.toml"
    taken = mesh.config(HUB_1).listen
    file.write_text(file.read_text().replace(mesh.config(AIRLINE).listen, taken))
    await refuses(mesh, Reason.CONFIG_INVALID, taken)


async def test_enrolment_where_nobody_listens(mesh):
    """The folder keeps no half of a certificate, and the token is still good."""
    node = "late.shandong.cn"
    token = await mesh.nodes[HUB_1].mesh.admission.invite(node, "child", 600)
    file = setup.init_node(mesh.folder / node, node, "child", listen=free_address())
    before = sorted(path.name for path in file.parent.iterdir())
    await mesh.stop(HUB_1)
    with pytest.raises(TdnError) as error:
        await setup.join(load_config(file), token)
    assert error.value.reason is Reason.UNREACHABLE
    assert sorted(path.name for path in file.parent.iterdir()) == before
    await mesh.start(HUB_1)
    await setup.join(load_config(file), token)
    await mesh.start(node)


async def test_node_that_does_not_run(mesh):
    for words in (("node", "status"), ("job", "ls"), ("channel", "recv", "t", "--out", mesh.folder / "x")):
        code, out, err = await tdn(mesh, AIRLINE, *words)
        assert (code, out) == (4, "")
        assert "NODE_DOWN" in err
        assert AIRLINE in err
