"""`tdn node check`: what the node would do, and what stands in its way. It changes nothing.

Every finding is a refusal that did or did not happen, so the reason table gives the advice.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec

import sqlalchemy as sa

from tdn_interop.algo.catalogue import CATALOGUE
from tdn_interop.algo.kernel import best_kernel
from tdn_interop.algo.suites import SUITES, suite_named
from tdn_interop.app.members.standing import Standing
from tdn_interop.config import NodeConfig, control_socket, split_address
from tdn_interop.errors import ConfigError, Reason, TdnError, Unavailable, guard
from tdn_interop.identity import Identity, fingerprint
from tdn_interop.transport import tls
from tdn_interop.transport.pki import PeerCertificate
from tdn_interop.transport.tls import TlsFiles
from tdn_interop.transport.trust import Membership, Trust

P = ParamSpec("P")
REACH_S = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: `detail` says what is, or why not; `advice` what to do about it."""

    name: str
    ok: bool
    detail: str
    advice: str = ""


def check_node(config: NodeConfig) -> list[Finding]:
    """Everything about a node that can be known before it runs, or while it does."""
    running = _answers(control_socket(config))
    enrolled = config.file("membership.json").exists()
    suites = config.suites if config.suites is not None else list(SUITES)
    return [
        Finding("process", ok=True, detail="runs" if running else "does not run"),
        Finding("role", ok=True, detail=f"{config.id} is a {config.role}"),
        _find("identity key", _identity_key, config),
        _find("membership", _membership, config),
        *(_find(name, check, config) for name, check in _STANDING.items() if enrolled),
        _find("listen", _address, config.listen, running),
        _find("enrolment", _address, config.enrolment, running),
        _find("metrics", _address, config.metrics, running),
        _find("database", _database, config, running),
        Finding("algorithms", ok=True, detail=", ".join(CATALOGUE)),
        *(_find(f"suite {suite}", _kernel, suite) for suite in suites),
        _find("approval", _approval, config),
        *_effective(config),
    ]


def _find(name: str, check: Callable[P, str], *arguments: P.args, **named: P.kwargs) -> Finding:
    try:
        return Finding(name, ok=True, detail=check(*arguments, **named))
    except TdnError as error:
        return Finding(name, ok=False, detail=error.message, advice=error.reason.value.advice[0])


def _identity_key(config: NodeConfig) -> str:
    path = config.file("identity.key")
    key = Identity.load(config.id, path)
    mode = stat.S_IMODE(path.stat().st_mode)
    guard("TDN-T-IDN-06").check(
        not mode & 0o077, Reason.CONFIG_INVALID, f"{path} has mode {mode:04o}, others may use it: chmod 600 {path}",
        ConfigError,
    )  # fmt: skip
    return f"SHA-256 {fingerprint(key.public_key)}"


def _membership(config: NodeConfig) -> str:
    """The record that the top signed is ours, key included."""
    place = Membership.load(config.file("membership.json"))
    record = _trust(place).record(place.record)
    ours = (record.node_id, record.role, record.identity_key) == (
        config.id, config.role, Identity.load(config.id, config.file("identity.key")).public_key,
    )  # fmt: skip
    guard("TDN-T-IDN-06").check(
        ours, Reason.IDENTITY_MISMATCH, f"the record names {record.node_id} as {record.role} or another key", ConfigError
    )  # fmt: skip
    return f"below {place.parent}, under {place.top}" if place.parent else "the top of its mesh"


def _certificate(config: NodeConfig) -> str:
    """What a peer would say to it: a TLS handshake with ourselves, in memory."""
    certificate = _shown(config)
    guard("TDN-T-IDN-02").check(
        certificate.node == config.id, Reason.IDENTITY_MISMATCH, f"the certificate names {certificate.node}", ConfigError
    )  # fmt: skip
    ends = dt.datetime.fromtimestamp(certificate.expires_at_ms / 1000, dt.UTC)
    return f"names {certificate.node}, valid until {ends.isoformat(sep=' ', timespec='seconds')}"


def _delegation(config: NodeConfig) -> str:
    """A peer accepts what the identity key says about the TLS key."""
    standing = Standing.load(config)
    _trust(standing.membership).verify(_shown(config), standing.credentials())
    return "the identity key delegates the TLS key"


def _parent(config: NodeConfig) -> str:
    place = Membership.load(config.file("membership.json"))
    if not place.parent:
        return "none above a top"
    try:
        socket.create_connection(split_address(place.parent_link), REACH_S).close()
    except OSError as error:
        guard("TDN-T-ENC-03").refuse(
            Reason.UNREACHABLE,
            f"{place.parent} at {place.parent_link}: {error.strerror or error}",
            Unavailable,
        )
    return f"{place.parent} answers at {place.parent_link}"


# What follows from enrolment; a node that has not enrolled has one fault, not four.
_STANDING = {"certificate": _certificate, "delegation": _delegation, "parent": _parent}


def _address(address: str | None, running: bool) -> str:
    if address is None:
        return "none"
    if running:
        return f"{address}, used by this node"
    host, port = split_address(address)
    try:
        family, kind, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        words = f"cannot listen on {address}: {error.strerror}"
        guard("TDN-X-LAB-05").refuse(Reason.CONFIG_INVALID, words, ConfigError)
    return f"{address} is free"


def _database(config: NodeConfig, running: bool) -> str:
    """Open it and read its list of tables; nothing is made and nothing is migrated."""
    shown = _without_password(config.database_url)
    gate = guard("TDN-F-RCV-01")
    try:
        url = sa.make_url(config.database_url)
        if url.get_backend_name() == "sqlite":
            if running:
                return f"{shown}, open in this node"
            file = Path(url.database or "")
            if not file.exists():
                writable = os.access(file.parent, os.W_OK)
                gate.check(
                    writable, Reason.STORE_UNAVAILABLE, f"{file.parent} cannot be written", ConfigError
                )
                return f"{shown}, to be made"
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        count = len(sa.inspect(engine).get_table_names())
    except (sa.exc.ArgumentError, ImportError) as error:
        gate.refuse(Reason.CONFIG_INVALID, f"not a usable database URL: {error}", ConfigError)
    except sa.exc.DatabaseError as error:
        gate.refuse(Reason.STORE_UNAVAILABLE, f"{shown}: {error.orig}", Unavailable)
    return f"{shown}, {count} tables"


def _kernel(suite: str) -> str:
    kernel, why = best_kernel(suite_named(suite))
    return f"kernel {kernel.name}: {why}"


def _approval(config: NodeConfig) -> str:
    rules = len(config.approval.rules)
    if config.approval.mode == "manual":
        return "a human decides on each job: tdn job approve JOB"
    guard("TDN-X-LAB-05").check(
        rules, Reason.CONFIG_INVALID, "approval.mode is rules and there is no rule: every job is refused", ConfigError
    )  # fmt: skip
    return f"{rules} {'rule decides' if rules == 1 else 'rules decide'}; what no rule approves is refused"


def _effective(config: NodeConfig) -> Iterator[Finding]:
    """Every value that counts. The configuration holds no secret but the password of a database."""
    values = config.model_dump(mode="json", exclude_none=True)
    values["database"] = _without_password(config.database_url)
    for key, value in values.items():
        yield Finding(f"config {key}", ok=True, detail=json.dumps(value, ensure_ascii=False))


def _without_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return "a URL that cannot be read"


def _trust(place: Membership) -> Trust:
    return Trust(place.top, place.top_identity_key, pin=lambda _node, key: key)


def _shown(config: NodeConfig) -> PeerCertificate:
    """The certificate that a peer sees after it has verified it. Errors: those of a handshake, CONFIG_INVALID."""
    files = TlsFiles(config.file("tls.pem"), config.file("tls.key"), config.file("root.pem"))
    try:
        return tls.self_test(files, config.id)
    except OSError as error:
        words = f"{files.chain}, {files.key} and {files.root} do not fit together: {error.strerror or error}"
        guard("TDN-T-IDN-01").refuse(Reason.CONFIG_INVALID, words, ConfigError)


def _answers(target: str) -> bool:
    """True when a process listens on the control socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(target.removeprefix("unix:")) == 0
