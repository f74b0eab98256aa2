"""Making a node: its folder, its identity key, its configuration; then its place in the mesh."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from tdn_interop import identity, ids
from tdn_interop.app.members.standing import Standing
from tdn_interop.config import NodeConfig, split_address
from tdn_interop.errors import ConfigError, Reason, TdnError, guard
from tdn_interop.identity import Identity, write_secret
from tdn_interop.transport import pki, records_wire, tls
from tdn_interop.transport.enrolment_client import Enrolled, enrol
from tdn_interop.transport.notices import TRUST_BUNDLE, Notices
from tdn_interop.transport.records_wire import NodeRecord
from tdn_interop.transport.renewal_service import Renewed
from tdn_interop.transport.tls import TlsFiles
from tdn_interop.transport.trust import Membership, Trust, now_ms

_TEMPLATE = """\
# A node of the TDN mesh. Every key can also be given as an environment variable, for example
# TDN_LISTEN or TDN_APPROVAL__MODE. `tdn node check` shows what the node would do.

# Node id, read right to left: this node lives below {above}.
id = {id}
# child, hub or top.
role = {role}

# Where other nodes connect, host:port. A child needs none: its hub reaches it through the link it keeps.
{listen}
# Where new members enrol, host:port. Only at hubs and tops.
{enrolment}
# Where Prometheus may read /metrics, host:port. Off unless given.
# metrics = "127.0.0.1:9464"
# Log file; standard error unless given.
# log = "node.log"
# SQLAlchemy URL of the store; a SQLite file in this folder unless given.
# database = "postgresql+psycopg://..."
# Suites this node serves, best first; all unless given.
# suites = ["x25519-sha256-ell2"]
# Seconds after which a list of revoked nodes is too old to begin channels; tops issue one every 60.
# status_max_age_s = 600
# Life in seconds of the certificates that this hub or top issues; nodes renew theirs after two thirds of it.
# leaf_life_s = 86400
# Largest set this node takes part with.
# max_items = 2000000

# Other hubs and tops, and children of other hubs, that may keep a link to this node. Only at hubs and tops.
# neighbours = ["guangdong.cn", "bank-b.zhejiang.cn"]

# Further nodes to keep a link to, besides the parent: a hub or top that names this node among its neighbours. When
# the parent or another hub fails, tunnels go over them.
# [[links]]
# node = "zhejiang.cn"
# address = "10.0.0.9:7000"

# Nodes that can be dialled without a hub.
# [direct]
# "bank-b.zhejiang.cn" = "10.0.0.7:7000"

# Who decides on the jobs that others propose: a human (mode = "manual", then `tdn job approve`) or rules
# (mode = "rules"). A rule approves when each of its conditions holds; what no rule approves is refused.
[approval]
mode = "manual"
# [[approval.rules]]
# initiators = ["regulator.cn"]
# algorithms = ["psi.ecdh-external/1"]
# receivers = ["regulator.cn"]
# resources = ["loans"]
# keys = ["id_number"]

[timeouts]
dial_s = 10
idle_s = 120
# The longest that the flow of another node may set for each stage: it binds this node for so long.
# approval_s = 86400
# step_s = 3600
# run_s = 86400
# stop_s = 600
# lease_s = 3600

# Calls that one node (one address, before it has a certificate) may make in a second, ten times as many at once;
# `calls` counts everything that has no line of its own. Beyond: RATE_LIMITED.
# [rates]
# openings = 100
# resolves = 200
# hellos = 50
# attachments = 5
# enrolments = 5
# letters = 10      # calls that leave up to 64 letters each
# calls = 200
"""


def init_node(
    directory: Path, node: str, role: str, *, listen: str | None = None, enrolment: str | None = None
) -> Path:
    """Make the folder of a node; its configuration file.

    A top makes its root here, signs its own record and is a member at once. Errors: ALREADY_EXISTS,
    CONFIG_INVALID; nothing is left behind.
    """
    _check(node, role, listen, enrolment)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = directory / "node.toml"
    guard("TDN-X-LAB-05").check(
        not file.exists(), Reason.ALREADY_EXISTS, f"{file} exists; a node is never overwritten", ConfigError
    )
    key = Identity.create(node, directory / "identity.key")
    if role == "top":
        _found(directory, key, listen or "")
    text = _TEMPLATE.format(
        above=ids.parent(node) or "nobody", id=json.dumps(node), role=json.dumps(role),
        listen=_line("listen", listen), enrolment=_line("enrolment", enrolment),
    )  # fmt: skip
    file.write_text(text)
    return file


async def join(config: NodeConfig, token_text: str) -> None:
    """Spend a token and keep what comes of it: certificates, keys, membership.

    Errors: TOKEN_INVALID when the token is for another node, and those of `enrol`.
    """
    token = records_wire.decode_token(token_text)
    fits = token.node_id == config.id and token.role == config.role
    guard("TDN-T-IDN-07").check(
        fits, Reason.TOKEN_INVALID, f"the token is for {token.node_id} as {token.role}, this is {config.id} as {config.role}",
        ConfigError,
    )  # fmt: skip
    key = Identity.load(config.id, config.file("identity.key"))
    with tempfile.TemporaryDirectory(prefix="tdn-") as folder:
        enrolled = await enrol(token, key, config.role, Path(folder))
    _keep(config.dir, enrolled)


def _check(node: str, role: str, listen: str | None, enrolment: str | None) -> None:
    ids.node_id(node)
    above = ids.parent(node)
    guard("TDN-X-LAB-05").check(
        (role == "top") == (above == ""), Reason.CONFIG_INVALID,
        f"{node} cannot be a {role}: a top has one label, every other node has its parent's name after the first dot",
        ConfigError,
    )  # fmt: skip
    for address in (listen, enrolment):
        if address:
            split_address(address)
    guard("TDN-X-LAB-05").check(
        role == "child" or (listen and enrolment), Reason.CONFIG_INVALID,
        f"a {role} needs --listen and --enrolment", ConfigError,
    )  # fmt: skip


def _line(name: str, value: str | None) -> str:
    return f"{name} = {json.dumps(value)}" if value else f'# {name} = "127.0.0.1:7000"'


def _found(directory: Path, key: Identity, listen: str) -> None:
    """A top is its own root, issuer and first member."""
    root = pki.create_root(key.node)
    tls_key = pki.new_key()
    leaf = pki.issue_leaf(root, key.node, tls_key.public_key())
    record = NodeRecord(key.node, "top", key.public_key, "", now_ms())
    signed = key.sign(identity.NODE_RECORD, records_wire.encode_record(record))
    membership = Membership(key.node, key.public_key, "", listen, signed, None)
    _keep(directory, Enrolled(root.certificate, [leaf], tls_key, root, membership))


def renew_top(config: NodeConfig) -> bool:
    """Issue a top's own leaf again after two thirds of its life, with a fresh key; True when it was time.

    A top has nobody above who could do it. Errors: CONFIG_INVALID when its files are damaged.
    """
    standing = Standing.load(config, expired=True)
    root = pki.load_authority(config.file("ca.pem"), config.file("ca.key"))
    leaf = standing.leaf
    if now_ms() < pki.renewal_due_ms(leaf) and pki.issued_by(leaf, root.certificate):
        return False
    keep_renewed(config, top_leaf(config, root))
    return True


def top_leaf(config: NodeConfig, root: pki.Authority) -> Renewed:
    """A fresh leaf of a top, by its own root."""
    tls_key = pki.new_key()
    life = timedelta(seconds=config.leaf_life_s)
    leaf = pki.issue_leaf(root, config.id, tls_key.public_key(), life)
    return Renewed([leaf, *root.above], tls_key, None)


def keep_authority(directory: Path, authority: pki.Authority) -> None:
    """Put a CA in place of the one before."""
    names = _write_ca(directory, authority)
    _rename(directory, names)


def keep_renewed(config: NodeConfig, renewed: Renewed) -> None:
    """Put fresh certificates in place of the old ones, once they are seen to work.

    Errors: those of a handshake with ourselves; then the old ones stay.
    """
    names = _write_fresh(config.dir, renewed)
    fresh = TlsFiles(config.file("tls.pem.new"), config.file("tls.key.new"), config.file("root.pem"))
    try:
        tls.self_test(fresh, config.id)
    except TdnError:
        for name in names:
            (config.dir / f"{name}.new").unlink()
        raise
    _rename(config.dir, names)


def finish_enrolment(directory: Path) -> None:
    """Complete what a crash interrupted: a new key is in place, its certificate still has its temporary name."""
    for name in ("tls", "ca"):
        certificate, key = directory / f"{name}.pem.new", directory / f"{name}.key"
        if certificate.exists() and key.exists():
            fits = pki.load_authority(certificate, key)
            if fits.certificate.public_key() == fits.key.public_key():
                certificate.replace(directory / f"{name}.pem")


def _keep(directory: Path, enrolled: Enrolled) -> None:
    """Write everything under new names first, then rename; the membership comes last: it makes the rest count."""
    names = _write_fresh(directory, Renewed(enrolled.chain, enrolled.tls_key, enrolled.authority))
    root = directory / "root.pem"
    if not root.exists() or enrolled.root not in x509.load_pem_x509_certificates(root.read_bytes()):
        (directory / "root.pem.new").write_bytes(pki.pem(enrolled.root))
        names.append("root.pem")
    _rename(directory, names)
    if enrolled.bundle:  # one from before the node was away may name other roots
        place = enrolled.membership
        trust = Trust(place.top, place.top_identity_key, lambda _node, key: key)
        notices = Notices(directory / "notices", place.top, trust.knows)
        notices.add(TRUST_BUNDLE, lambda signed: trust.bundle(signed).version)
        notices.offer(TRUST_BUNDLE, enrolled.bundle)
    enrolled.membership.save(directory / "membership.json")


def _write_fresh(directory: Path, renewed: Renewed) -> list[str]:
    """Keys and certificates as `….new`; their names, each key before its certificates.

    A crash between renaming them leaves either the old pair or what `finish_enrolment` completes.
    """
    names = _write_pair(directory, "tls", renewed.tls_key, renewed.chain)
    return names + (_write_ca(directory, renewed.authority) if renewed.authority else [])


def _write_ca(directory: Path, authority: pki.Authority) -> list[str]:
    return _write_pair(directory, "ca", authority.key, [authority.certificate, *authority.above])


def _write_pair(directory: Path, name: str, key: pki.PrivateKey, chain: list[x509.Certificate]) -> list[str]:
    fresh = directory / f"{name}.key.new"
    fresh.unlink(missing_ok=True)
    write_secret(fresh, pki.key_pem(key))
    (directory / f"{name}.pem.new").write_bytes(pki.pem(*chain))
    return [f"{name}.key", f"{name}.pem"]


def _rename(directory: Path, names: list[str]) -> None:
    for name in names:
        os.replace(directory / f"{name}.new", directory / name)  # noqa: PTH105  atomic by definition
