"""Making nodes and joining them: what stands in the folder, and when a top renews its own leaf."""

import contextlib
import datetime as dt
import os
import stat

import pytest
from cryptography import x509

from tdn_interop.app.members import setup
from tdn_interop.app.members.standing import Standing
from tdn_interop.config import load_config
from tdn_interop.errors import ConfigError, Reason
from tdn_interop.transport import pki

ADDRESSES = {"listen": "127.0.0.1:20001", "enrolment": "127.0.0.1:20002"}


@pytest.fixture
def top(tmp_path):
    return load_config(setup.init_node(tmp_path / "top", "cn", "top", **ADDRESSES))


def leaf(config):
    return x509.load_pem_x509_certificates(config.file("tls.pem").read_bytes())[0]


def test_a_top_is_enrolled_at_once_with_a_leaf_of_24_hours(top):
    standing = Standing.load(top)
    assert standing.record.role == "top"
    life = standing.leaf.not_valid_after_utc - standing.leaf.not_valid_before_utc
    assert life == pki.LEAF_LIFE + pki.SKEW
    assert pki.read_peer(pki.der(standing.leaf)).node == "cn"


def test_secrets_are_for_their_owner_only(top):
    for name in ("identity.key", "tls.key", "ca.key"):
        assert stat.S_IMODE(top.file(name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(top.dir.stat().st_mode) == 0o700


def test_a_node_is_never_overwritten(top):
    before = {path: path.read_bytes() for path in top.dir.iterdir()}
    with pytest.raises(ConfigError) as error:
        setup.init_node(top.dir, "cn", "top", **ADDRESSES)
    assert error.value.reason is Reason.ALREADY_EXISTS
    assert {path: path.read_bytes() for path in top.dir.iterdir()} == before


@pytest.mark.parametrize(
    ("node", "role", "addresses"),
    [("a.cn", "top", ADDRESSES), ("cn", "child", {}), ("cn", "hub", ADDRESSES), ("h.cn", "hub", {}), ("Bank A.cn", "child", {})],
)  # fmt: skip
def test_a_node_that_cannot_be_is_refused_and_leaves_nothing(tmp_path, node, role, addresses):
    with pytest.raises(ConfigError):
        setup.init_node(tmp_path / "n", node, role, **addresses)
    assert not (tmp_path / "n").exists()


def age(config, hours):
    """Give the top a leaf that was issued so many hours ago."""
    root = pki.load_authority(config.file("ca.pem"), config.file("ca.key"))
    starts = dt.datetime.now(dt.UTC) - dt.timedelta(hours=hours)
    key = pki.new_key()
    old = pki.issue_leaf(root, config.id, key.public_key(), pki.LEAF_LIFE, starts)
    config.file("tls.pem").write_bytes(pki.pem(old))
    config.file("tls.key").write_bytes(pki.key_pem(key))
    return old


@pytest.mark.parametrize(("hours", "renewed"), [(0, False), (15, False), (17, True), (30, True)])
def test_a_top_renews_its_leaf_after_two_thirds_of_its_life(top, hours, renewed):
    old = age(top, hours)
    assert setup.renew_top(top) is renewed
    assert (leaf(top) != old) is renewed
    if renewed:
        assert leaf(top).public_key() != old.public_key()
        assert Standing.load(top).expires_at_ms > dt.datetime.now(dt.UTC).timestamp() * 1000
    assert setup.renew_top(top) is False


@pytest.mark.parametrize("crash_after", range(5))
def test_a_crash_in_a_renewal_leaves_a_pair_that_fits(top, monkeypatch, crash_after):
    """The renames of a renewal, cut after each: the node starts again with key and certificate of one kind."""
    age(top, 17)
    renames = iter(range(100))
    rename = os.replace

    def cut(*names):
        if next(renames) == crash_after:
            raise KeyboardInterrupt
        rename(*names)

    monkeypatch.setattr(os, "replace", cut)
    with contextlib.suppress(KeyboardInterrupt):
        setup.renew_top(top)
    monkeypatch.undo()
    setup.finish_enrolment(top.dir)
    pair = pki.load_authority(top.file("tls.pem"), top.file("tls.key"))
    assert pair.certificate.public_key() == pair.key.public_key()


def test_an_expired_leaf_is_named_at_the_start(top):
    age(top, 25)
    with pytest.raises(ConfigError) as error:
        Standing.load(top)
    assert error.value.reason is Reason.CERTIFICATE_EXPIRED
