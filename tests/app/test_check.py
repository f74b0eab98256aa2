"""`tdn node check` finds what stands in the way of a node, and changes nothing."""

import datetime as dt
import socket

import pytest

from tdn_interop.app.check import check_node
from tdn_interop.app.members import setup
from tdn_interop.config import load_config
from tdn_interop.identity import Identity
from tdn_interop.reasons import Reason
from tdn_interop.transport import pki
from tests.mesh import HUB_1, TOP, free_address, mini_mesh


@pytest.fixture
def folder(tmp_path):
    """A top that has never run."""
    setup.init_node(tmp_path / TOP, TOP, "top", listen=free_address(), enrolment=free_address())
    return tmp_path / TOP


def findings(folder):
    return {finding.name: finding for finding in check_node(load_config(folder / "node.toml"))}


def edit(folder, old, new):
    file = folder / "node.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def reissue(folder, node=TOP, life=pki.LEAF_LIFE):
    """Another leaf in the place of the node's own, from its own CA, with a key that fits."""
    key = pki.new_key()
    authority = pki.load_authority(folder / "ca.pem", folder / "ca.key")
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=2)
    leaf = pki.issue_leaf(authority, node, key.public_key(), life, past if life < pki.LEAF_LIFE else None)
    (folder / "tls.pem").write_bytes(pki.pem(leaf))
    (folder / "tls.key").write_bytes(pki.key_pem(key))


def test_a_fresh_top_is_fine_and_stays_as_it_is(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    found = findings(folder)
    assert [finding for finding in found.values() if not finding.ok] == []
    assert found["process"].detail == "does not run"
    assert found["certificate"].detail.startswith(f"names {TOP}, valid until ")
    assert found["suite x25519-sha256-ell2"].detail.startswith("kernel ")
    assert found["database"].detail.endswith("to be made")
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before


def no_key(folder):
    (folder / "identity.key").unlink()


def open_key(folder):
    (folder / "identity.key").chmod(0o644)


def other_key(folder):
    no_key(folder)
    Identity.create(TOP, folder / "identity.key")


def other_tls_key(folder):
    (folder / "tls.key").write_bytes(pki.key_pem(pki.new_key()))


def other_root(folder):
    (folder / "root.pem").write_bytes(pki.pem(pki.create_root(TOP).certificate))


def damaged_database(folder):
    (folder / "node.db").write_text("this is not a database" * 100)


FAULTS = [
    (no_key, {"identity key", "membership", "delegation"}, Reason.CONFIG_INVALID, "no Ed25519 identity key"),
    (open_key, {"identity key"}, Reason.CONFIG_INVALID, "mode 0644"),
    (other_key, {"membership", "delegation"}, Reason.IDENTITY_MISMATCH, "another key"),
    (lambda folder: (folder / "membership.json").unlink(), {"membership"}, Reason.NOT_ENROLLED, "membership.json"),
    (lambda folder: (folder / "tls.pem").unlink(), {"certificate", "delegation"}, Reason.CONFIG_INVALID, "tls.pem"),
    (other_tls_key, {"certificate", "delegation"}, Reason.CONFIG_INVALID, "do not fit together"),
    (other_root, {"certificate", "delegation"}, Reason.UNAUTHENTICATED, "unknown CA"),
    (lambda folder: reissue(folder, life=dt.timedelta(hours=1)), {"certificate", "delegation"},
     Reason.CERTIFICATE_EXPIRED, "expired"),
    (lambda folder: reissue(folder, "other.cn"), {"certificate", "delegation"}, Reason.IDENTITY_MISMATCH, "another node"),
    (damaged_database, {"database"}, Reason.STORE_UNAVAILABLE, "not a database"),
    (lambda folder: edit(folder, '# database = "postgresql+psycopg://..."', 'database = "nonsense"'), {"database"},
     Reason.CONFIG_INVALID, "not a usable database URL"),
    (lambda folder: edit(folder, '# suites = ["x25519-sha256-ell2"]', 'suites = ["rot13"]'), {"suite rot13"},
     Reason.UNSUPPORTED_PARAMS, "rot13"),
    (lambda folder: edit(folder, '\nmode = "manual"', '\nmode = "rules"'), {"approval"}, Reason.CONFIG_INVALID, "no rule"),
]  # fmt: skip


@pytest.mark.parametrize(("break_it", "names", "reason", "words"), FAULTS, ids=lambda value: str(value)[:40])
def test_a_fault_is_found_with_advice(folder, break_it, names, reason, words):
    break_it(folder)
    bad = {name: finding for name, finding in findings(folder).items() if not finding.ok}
    assert set(bad) == names
    assert any(
        words in finding.detail and finding.advice == reason.value.advice[0] for finding in bad.values()
    )


@pytest.mark.parametrize("name", ["listen", "enrolment"])
def test_a_port_that_another_process_has(folder, name):
    config = load_config(folder / "node.toml")
    host, port = getattr(config, name).split(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        finding = findings(folder)[name]
    assert not finding.ok
    assert f"cannot listen on {host}:{port}" in finding.detail


def test_a_password_is_not_shown(folder):
    edit(
        folder, '# database = "postgresql+psycopg://..."', 'database = "postgresql+none://me:s3cret@host/tdn"'
    )
    found = findings(folder).values()
    assert "s3cret" not in repr(found)
    assert "postgresql+none://me:***@host/tdn" in repr(found)


async def test_a_node_that_runs_and_one_whose_parent_is_gone(tmp_path):
    async with mini_mesh(tmp_path, ((TOP, "top", True), (HUB_1, "hub", True))) as mesh:
        found = findings(tmp_path / HUB_1)
        assert [finding for finding in found.values() if not finding.ok] == []
        assert found["process"].detail == "runs"
        assert found["listen"].detail.endswith("used by this node")
        assert found["database"].detail.endswith("open in this node")
        assert found["parent"].detail.startswith(f"{TOP} answers at ")
        await mesh.stop(TOP)
        bad = {name: finding for name, finding in findings(tmp_path / HUB_1).items() if not finding.ok}
        assert set(bad) == {"parent"}
        assert bad["parent"].advice == Reason.UNREACHABLE.value.advice[0]
